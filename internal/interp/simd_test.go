package interp

import (
	"bytes"
	"testing"

	"ring3/internal/native"
	"ring3/internal/x86"
)

const noFault = 0xff

// vectorOf is the exception that the last step delivered, noFault for none.
func vectorOf(c *CPU) uint64 {
	if c.RIP >= testStubs && c.RIP < testStubs+256*16 {
		return (c.RIP - testStubs) / 16
	}
	return noFault
}

// What system software allows decides before the host sees the instruction.
func TestVectorChecks(t *testing.T) {
	addps := []byte{0x0f, 0x58, 0xc1}
	paddb := []byte{0x0f, 0xfc, 0xc1}
	cvtpi := []byte{0x0f, 0x2a, 0x07} // cvtpi2ps xmm0, [rdi]
	vaddps := []byte{0xc5, 0xf0, 0x58, 0xc2}
	fld1 := []byte{0xd9, 0xe8}
	fwait := []byte{0x9b}
	avx := func(c *CPU) { c.CR4 |= x86.CR4OSXSAVE; c.XCR0 = 7 }
	tests := []struct {
		name string
		code []byte
		set  func(*CPU)
		want uint64
	}{
		{"SSE", addps, nil, noFault},
		{"SSE, TS", addps, func(c *CPU) { c.CR0 |= x86.CR0TS }, x86.VecNM},
		{"SSE, EM", addps, func(c *CPU) { c.CR0 |= x86.CR0EM }, x86.VecUD},
		{"SSE, EM and TS", addps, func(c *CPU) { c.CR0 |= x86.CR0EM | x86.CR0TS }, x86.VecUD},
		{"SSE without OSFXSR", addps, func(c *CPU) { c.CR4 &^= x86.CR4OSFXSR }, x86.VecUD},
		{"MMX without OSFXSR", paddb, func(c *CPU) { c.CR4 &^= x86.CR4OSFXSR }, noFault},
		{"MMX, EM", paddb, func(c *CPU) { c.CR0 |= x86.CR0EM }, x86.VecUD},
		{"MMX, TS", paddb, func(c *CPU) { c.CR0 |= x86.CR0TS }, x86.VecNM},
		{"CVTPI2PS of memory without OSFXSR", cvtpi, func(c *CPU) { c.CR4 &^= x86.CR4OSFXSR }, x86.VecUD},
		{"AVX", vaddps, avx, noFault},
		{"AVX, EM", vaddps, func(c *CPU) { avx(c); c.CR0 |= x86.CR0EM }, noFault},
		{"AVX, TS", vaddps, func(c *CPU) { avx(c); c.CR0 |= x86.CR0TS }, x86.VecNM},
		{"AVX without OSXSAVE", vaddps, func(c *CPU) { c.XCR0 = 7 }, x86.VecUD},
		{"AVX without XCR0.AVX", vaddps, func(c *CPU) { avx(c); c.XCR0 = 3 }, x86.VecUD},
		{"x87", fld1, nil, noFault},
		{"x87, EM", fld1, func(c *CPU) { c.CR0 |= x86.CR0EM }, x86.VecNM},
		{"x87, TS", fld1, func(c *CPU) { c.CR0 |= x86.CR0TS }, x86.VecNM},
		{"FWAIT, TS", fwait, func(c *CPU) { c.CR0 |= x86.CR0TS }, x86.VecNM},
		{"FWAIT, TS without MP", fwait, func(c *CPU) { c.CR0 = c.CR0&^x86.CR0MP | x86.CR0TS }, noFault},
		{"FWAIT, EM", fwait, func(c *CPU) { c.CR0 |= x86.CR0EM }, noFault},
		{"EVEX without XCR0", []byte{0x62, 0xf1, 0x74, 0x48, 0x58, 0xc2}, avx, x86.VecUD},
		{"key locker", []byte{0xf3, 0x0f, 0x38, 0xdc, 0x07}, nil, x86.VecUD},
	}
	c := newMachine(t)
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			resetMachine(c)
			resetFPU(c)
			if tt.set != nil {
				tt.set(c)
			}
			if bytes.Equal(tt.code, vaddps) && tt.want == noFault && hostXCR0(c)&7 != 7 {
				t.Skip("host without AVX")
			}
			c.GPR[x86.RDI] = testData
			load(t, c, tt.code...)
			c.Step()
			if got := vectorOf(c); got != tt.want {
				t.Errorf("exception %d, want %d", got, tt.want)
			}
		})
	}
}

func hostXCR0(c *CPU) uint64 { return c.simd.executor().Host().XCR0 }

func resetFPU(c *CPU) {
	f := c.Env.SyncFPU()
	clear(f.Area[:])
	le.PutUint16(f.Area[offFCW:], 0x37f)
	le.PutUint32(f.Area[offMXCSR:], 0x1f80)
	f.Area[offBV] = stateX87 | stateSSE
}

// An unmasked SIMD exception is #XM, or #UD when the system does not want it.
func TestUnmaskedSIMD(t *testing.T) {
	c := newMachine(t)
	for _, tt := range []struct{ cr4, want uint64 }{{x86.CR4OSXMMEXCPT, x86.VecXM}, {0, x86.VecUD}} {
		resetMachine(c)
		resetFPU(c)
		f := c.Env.SyncFPU()
		le.PutUint32(f.Area[offMXCSR:], 0x1f80&^(1<<7))
		c.CR4 |= tt.cr4
		load(t, c, 0xf3, 0x0f, 0x5e, 0xc0) // divss xmm0, xmm0: 0/0
		c.Step()
		if got := vectorOf(c); got != tt.want {
			t.Errorf("exception %d, want %d", got, tt.want)
		}
		if le.Uint32(f.Area[offMXCSR:])&1 == 0 {
			t.Error("MXCSR.IE is clear")
		}
	}
}

// An unmasked x87 exception waits for the next waiting instruction, and the
// pointers are the guest's.
func TestPendingX87(t *testing.T) {
	c := newMachine(t)
	resetFPU(c)
	f := c.Env.SyncFPU()
	le.PutUint16(f.Area[offFCW:], 0x37f&^4) // division by zero
	c.GPR[x86.RDI] = testData
	load(t, c,
		0xd9, 0xe8, // fld1
		0xd8, 0x37, // fdiv dword [rdi]: 1/0
		0xdf, 0xe0, // fnstsw ax
		0x90,
		0xd9, 0x77, 0x40, // fnstenv [rdi+64]
		0xdb, 0xe2, // fnclex
		0x9b) // fwait
	steps(c, 7)
	if got := vectorOf(c); got != noFault {
		t.Fatalf("exception %d after FNCLEX", got)
	}
	if c.GPR[x86.RAX]&0x84 != 0x84 {
		t.Errorf("FSW %#x, want ES and ZE", c.GPR[x86.RAX])
	}
	var env [28]byte
	c.Mem.ReadAt(env[:], testData+64)
	if ip, dp, fop := le.Uint32(env[12:]), le.Uint32(env[20:]), le.Uint16(env[18:]); ip != testCode+2 || dp != testData || fop != 0x37 {
		t.Errorf("FIP %#x FDP %#x FOP %#x, want %#x %#x 0x37", ip, dp, fop, testCode+2, testData)
	}

	resetMachine(c)
	resetFPU(c)
	le.PutUint16(f.Area[offFCW:], 0x37f&^4)
	c.GPR[x86.RDI] = testData
	load(t, c, 0xd9, 0xe8, 0xd8, 0x37, 0x9b)
	steps(c, 3)
	if got := vectorOf(c); got != x86.VecMF {
		t.Errorf("exception %d at FWAIT, want #MF", got)
	}
	if fip := le.Uint64(f.Area[offFIP:]); fip != testCode+2 {
		t.Errorf("FIP %#x after #MF, want %#x", fip, testCode+2)
	}
}

// #MF for what is pending comes before the page fault of the operand.
func TestPendingBeforePageFault(t *testing.T) {
	c := newMachine(t)
	resetFPU(c)
	f := c.Env.SyncFPU()
	le.PutUint16(f.Area[offFCW:], 0x37f&^4)
	le.PutUint16(f.Area[offFSW:], 0x8084)
	for _, tt := range []struct {
		code []byte
		want uint64
	}{
		{[]byte{0xd9, 0x07}, x86.VecMF},       // fld dword [rdi]
		{[]byte{0x0f, 0x6f, 0x07}, x86.VecMF}, // movq mm0, [rdi]
		{[]byte{0xdd, 0x3f}, x86.VecPF},       // fnstsw [rdi]
		{[]byte{0x0f, 0x10, 0x07}, x86.VecPF}, // movups xmm0, [rdi]
	} {
		c.RIP, c.GPR[x86.RDI] = testCode, testSize // not mapped
		load(t, c, tt.code...)
		c.Step()
		if got := vectorOf(c); got != tt.want {
			t.Errorf("% x: exception %d, want %d", tt.code, got, tt.want)
		}
	}
}

// A store that an unmasked exception suppresses leaves memory alone.
func TestSuppressedStore(t *testing.T) {
	c := newMachine(t)
	resetFPU(c)
	f := c.Env.SyncFPU()
	le.PutUint16(f.Area[offFCW:], 0x37f&^1) // invalid operation
	c.GPR[x86.RDI] = testData
	*c.Mem.Word(testData) = 0x1122334455667788
	load(t, c, 0xd9, 0x1f) // fstp dword [rdi] with an empty stack
	c.Step()
	if got := *c.Mem.Word(testData); got != 0x1122334455667788 {
		t.Errorf("memory is %#x", got)
	}
	if le.Uint16(f.Area[offFSW:])&0x81 != 0x81 {
		t.Errorf("FSW %#x", le.Uint16(f.Area[offFSW:]))
	}
}

// The environment in 16-bit code has the 16-bit format, with linear addresses
// in real mode (SDM vol. 1, figure 8-12).
func TestEnvironmentRealMode(t *testing.T) {
	c := newMachine(t)
	resetFPU(c)
	code16(c)
	c.CR0 = x86.CR0ET | x86.CR0NE
	c.GPR[x86.RDI] = 0x40
	for i := range c.Seg {
		c.Seg[i].Base, c.Seg[i].Limit, c.Seg[i].Sel = testData, 0xffff, testData>>4
	}
	c.Seg[x86.CS].Base, c.Seg[x86.CS].Sel = testCode, testCode>>4
	c.RIP = 0
	load(t, c, 0xd9, 0x05, 0xd9, 0x75, 0x10) // fld dword [di]; fnstenv [di+16]
	steps(c, 2)
	var got [14]byte
	c.Mem.ReadAt(got[:], testData+0x50)
	// FCW, FSW (TOP 7), FTW (a zero in R7), IP 0, IP[19:16] and opcode,
	// DP 40H, DP[19:16]
	want := []byte{0x7f, 0x03, 0x00, 0x38, 0xff, 0x7f, 0, 0, 0x05, 0x11, 0x40, 0, 0, 0x20}
	if !bytes.Equal(got[:], want) {
		t.Errorf("environment % x, want % x", got, want)
	}
}

// A masked store does not fault for elements that it leaves out, and a store
// that faults changes nothing.
func TestMaskedStoreAcrossPages(t *testing.T) {
	c := newMachine(t)
	if hostXCR0(c)&7 != 7 {
		t.Skip("host without AVX")
	}
	resetFPU(c)
	c.CR4 |= x86.CR4OSXSAVE
	c.XCR0 = 7
	f := c.Env.SyncFPU()
	for i := range 4 {
		le.PutUint32(f.Area[offXMM+4*i:], 0x80000000>>(31*uint(i/2))) // xmm0: mask, two elements
		le.PutUint32(f.Area[offXMM+16+4*i:], uint32(i+1))             // xmm1: data
	}
	*c.Mem.Word(testPT + (testData>>12+1)*8) = 0 // the next page is absent
	load(t, c, 0xc4, 0xe2, 0x79, 0x2e, 0x0f)     // vmaskmovps [rdi], xmm0, xmm1
	at := uint64(testData + 0x1000 - 8)
	c.GPR[x86.RDI] = at
	c.Step()
	if got := vectorOf(c); got != noFault {
		t.Fatalf("exception %d", got)
	}
	if got := *c.Mem.Word(at); got != 2<<32|1 {
		t.Errorf("stored %#x", got)
	}
	resetRIP := c.RIP - 5
	c.RIP = resetRIP
	c.GPR[x86.RDI] = at + 4
	*c.Mem.Word(at) = 0
	c.Step()
	if got := vectorOf(c); got != x86.VecPF || c.CR2 != testData+0x1000 {
		t.Errorf("exception %d, CR2 %#x", got, c.CR2)
	}
	if got := *c.Mem.Word(at); got != 0 {
		t.Errorf("a store that faulted wrote %#x", got)
	}
}

// A batch ends before an instruction that faults, and everything before it has
// happened.
func TestBatchFault(t *testing.T) {
	c := newMachine(t)
	resetFPU(c)
	f := c.Env.SyncFPU()
	f.Area[offXMM] = 5
	c.GPR[x86.RDI] = testData
	c.GPR[x86.RSI] = testData + 1 // misaligned
	load(t, c,
		0x66, 0x0f, 0xfc, 0xc0, // paddb xmm0, xmm0
		0x0f, 0x29, 0x07, // movaps [rdi], xmm0
		0x66, 0x0f, 0xfc, 0x07, // paddb xmm0, [rdi]: what was just stored
		0x0f, 0x29, 0x06, // movaps [rsi], xmm0: #GP
		0x66, 0x0f, 0xfc, 0xc0)
	for round := range 3 {
		f.Area[offXMM] = 5
		c.RIP, c.Halted = testCode, false
		if e := c.Run(100); e != ExitHalt {
			t.Fatalf("exit %v", e)
		}
		if got := (c.RIP - 1 - testStubs) / 16; got != x86.VecGP {
			t.Fatalf("exception %d", got)
		}
		// #GP: error code, RIP
		if got := *c.Mem.Word(testStack - 40); got != testCode+11 {
			t.Errorf("round %d: RIP %#x, want %#x", round, got, testCode+11)
		}
		if f.Area[offXMM] != 20 || *c.Mem.Word(testData) != 10 {
			t.Errorf("round %d: xmm0 %d, memory %d; want 20 and 10", round, f.Area[offXMM], *c.Mem.Word(testData))
		}
	}
}

// Image registers are found in all components.
func TestVecImage(t *testing.T) {
	h := &native.Host{}
	for i, o := range map[int]int{native.CompSSE: 160, native.CompAVX: 576, native.CompOpmask: 1088, native.CompZMMHi256: 1152, native.CompHi16ZMM: 1664} {
		h.Offset[i] = o
	}
	f := alignedFPU()
	v := vecImage{f, h}
	for n := range uint8(32) {
		var r [maxVec]byte
		for i := range r {
			r[i] = n ^ byte(i)
		}
		v.set(n, &r)
	}
	for n := range uint8(32) {
		r := v.get(n)
		for i := range r {
			if r[i] != n^byte(i) {
				t.Fatalf("register %d byte %d is %#x", n, i, r[i])
			}
		}
	}
	v.setMask(5, 0x1234)
	if v.mask(5) != 0x1234 || v.mask(4) != 0 {
		t.Error("mask registers")
	}
	if f.Area[offBV] != 0xe6 {
		t.Errorf("XSTATE_BV %#x", f.Area[offBV])
	}
}
