package interp

import (
	"encoding/binary"
	"testing"

	"ring3/internal/x86"
)

// handler is the vector whose stub c halted in.
func vector(t *testing.T, c *CPU) int {
	t.Helper()
	if c.RIP < testStubs || c.RIP >= testStubs+16*256 {
		t.Fatalf("RIP %#x is in no handler", c.RIP)
	}
	return int(c.RIP-testStubs) / 16
}

// frame is word i of the frame that the handler found: RIP, CS, RFLAGS, RSP, SS.
func frame(c *CPU, i uint64) uint64 {
	b, _ := c.Mem.Slice(c.GPR[x86.RSP]+8*i, 8)
	return binary.LittleEndian.Uint64(b)
}

// expect runs to a handler and checks what it was called for.
func expect(t *testing.T, c *CPU, vec int, rip uint64) {
	t.Helper()
	run(t, c)
	if v := vector(t, c); v != vec {
		t.Fatalf("vector %d, want %d", v, vec)
	}
	i := uint64(0)
	if x86.VectorHasErrorCode(uint8(vec)) {
		i = 1
	}
	want(t, "saved RIP", frame(c, i), rip)
}

func TestSingleStep(t *testing.T) {
	for name, k := range map[string]struct {
		code []byte
		at   uint64 // RIP in the frame
	}{
		"an instruction":      {[]byte{0xff, 0xc0, 0x90}, 2},
		"a branch":            {[]byte{0xeb, 0x10}, 0x12},
		"MOV SS covers next":  {[]byte{0x8e, 0xd1, 0x90, 0x90}, 3},
		"a repeated string":   {[]byte{0xf3, 0xaa}, 0},
		"POPF that clears TF": {[]byte{0x9d}, 1},
	} {
		t.Run(name, func(t *testing.T) {
			c := newMachine(t)
			load(t, c, k.code...)
			c.RFLAGS |= x86.FlagTF
			c.GPR[x86.RCX], c.GPR[x86.RDI] = 0x10, testData
			c.GPR[x86.RSP] -= 8 // a zero word for POPF
			expect(t, c, x86.VecDB, testCode+k.at)
			want(t, "DR6.BS", c.DR[6]&dr6BS, dr6BS)
			if k.code[0] == 0xf3 {
				want(t, "RCX", c.GPR[x86.RCX], 0xf)
			}
		})
	}
	// The instruction behind the POPF that sets TF is the first to trap.
	c := newMachine(t)
	load(t, c, 0x9d, 0x90, 0x90)
	c.GPR[x86.RSP] -= 8
	c.Mem.WriteAt([]byte{2, 1}, c.GPR[x86.RSP])
	expect(t, c, x86.VecDB, testCode+2)
}

func TestBreakpoints(t *testing.T) {
	t.Run("code", func(t *testing.T) {
		c := newMachine(t)
		load(t, c, 0xff, 0xc0, 0xff, 0xc0, 0xf4)
		c.DR[0], c.DR[7] = testCode+2, 1
		expect(t, c, x86.VecDB, testCode+2)
		want(t, "RAX", c.GPR[x86.RAX], 1)
		want(t, "DR6", c.DR[6]&0xf, 1)
		// With RF set it goes on.
		c.RIP, c.RFLAGS = testCode+2, c.RFLAGS|x86.FlagRF
		run(t, c)
		want(t, "RIP", c.RIP, testCode+5)
		want(t, "RF", c.RFLAGS&x86.FlagRF, 0)
	})
	t.Run("data", func(t *testing.T) {
		c := newMachine(t)
		load(t, c, 0x8b, 0x03, 0x88, 0x43, 0x03, 0xf4) // mov eax, [rbx]; mov [rbx+3], al
		c.GPR[x86.RBX] = testData
		c.DR[1], c.DR[7] = testData, 4|1<<20|3<<22 // four bytes, writes
		expect(t, c, x86.VecDB, testCode+5)
		want(t, "DR6", c.DR[6]&0xf, 2)
	})
}

func TestInterruptWindow(t *testing.T) {
	c := newMachine(t)
	load(t, c, 0xfb, 0xff, 0xc0, 0xff, 0xc0, 0xf4) // sti; inc eax; inc eax; hlt
	c.WantWindow = true
	if e := c.Run(100); e != ExitKick {
		t.Fatal("exit", e)
	}
	want(t, "RIP", c.RIP, testCode+3) // one instruction behind STI
	c.WantWindow = false
	c.Interrupt(0x20)
	want(t, "vector", uint64(vector(t, c)), 0x20)
}

func TestKickAndBudget(t *testing.T) {
	c := newMachine(t)
	load(t, c, 0xeb, 0xfe)
	if e := c.Run(1000); e != ExitBudget {
		t.Error("exit", e)
	}
	c.Kick()
	if e := c.Run(1000); e != ExitKick {
		t.Error("exit", e)
	}
	// rep stosb of 16 MiB stops for a kick and can go on.
	load(t, c, 0xf3, 0xaa, 0xf4)
	c.RIP, c.GPR[x86.RDI], c.GPR[x86.RCX] = testCode, 4<<20, 8<<20
	c.Run(1)
	c.Kick()
	c.Run(1 << 20)
	want(t, "RIP", c.RIP, testCode)
	want(t, "RDI+RCX", c.GPR[x86.RDI]+c.GPR[x86.RCX], 12<<20)
	run(t, c)
	want(t, "RDI", c.GPR[x86.RDI], 12<<20)
}

func TestExitUser(t *testing.T) {
	c := newMachine(t)
	c.StopAtUser = true
	c.STAR = 0x1b<<48 | 8<<32
	c.GPR[x86.RCX], c.GPR[x86.R11] = 0x123000, 0x202
	load(t, c, 0x48, 0x0f, 0x07) // sysretq
	if e := c.Run(100); e != ExitUser {
		t.Fatal("exit", e)
	}
	want(t, "RIP", c.RIP, 0x123000)
	want(t, "CPL", uint64(c.CPL), 3)
}

func TestAlignmentCheck(t *testing.T) {
	c := newMachine(t)
	user(c)
	c.CR0 |= x86.CR0AM
	c.RFLAGS |= x86.FlagAC
	load(t, c, 0x8b, 0x43, 0x04, 0x8b, 0x43, 0x01) // aligned, then not
	c.GPR[x86.RBX] = testData
	expect(t, c, x86.VecAC, testCode+3)
}

// A repeated move that faults in the middle leaves the registers at the
// element that faulted, and everything before it moved.
func TestStringFault(t *testing.T) {
	const edge = testData + 0x1000
	for name, k := range map[string]struct {
		code         []byte
		cx, left, di uint64
		err          uint64
	}{
		"stosq":          {[]byte{0xf3, 0x48, 0xab, 0xf4}, 4, 2, edge, 2},
		"movsb":          {[]byte{0xf3, 0xa4, 0xf4}, 0x30, 0x20, edge, 2},
		"stosq crossing": {[]byte{0xf3, 0x48, 0xab, 0xf4}, 4, 3, edge - 4, 2},
	} {
		t.Run(name, func(t *testing.T) {
			c := newMachine(t)
			load(t, c, k.code...)
			*pte(c, edge) = 0
			c.GPR[x86.RDI], c.GPR[x86.RSI], c.GPR[x86.RCX] = edge-16, testData, k.cx
			if name == "stosq crossing" {
				c.GPR[x86.RDI] = edge - 12
			}
			expect(t, c, x86.VecPF, testCode)
			want(t, "RCX", c.GPR[x86.RCX], k.left)
			want(t, "RDI", c.GPR[x86.RDI], k.di)
			want(t, "CR2", c.CR2, edge)
			want(t, "error code", frame(c, 0), k.err)
		})
	}
}

// Overlapping moves go element by element.
func TestStringOverlap(t *testing.T) {
	c := newMachine(t)
	c.Mem.WriteAt([]byte{1, 2, 3, 4, 5, 6, 7, 8, 9, 10}, testData)
	load(t, c, 0xf3, 0xa4, 0xf4)
	c.GPR[x86.RSI], c.GPR[x86.RDI], c.GPR[x86.RCX] = testData, testData+2, 6
	c.load8(testData) // both pages in the TLB
	c.store8(testData+9, 10)
	run(t, c)
	got, _ := c.Mem.Slice(testData, 9)
	if string(got) != "\x01\x02\x01\x02\x01\x02\x01\x02\x09" {
		t.Errorf("% x", got)
	}
}

func TestNonCanonical(t *testing.T) {
	for name, k := range map[string]struct {
		code []byte
		vec  int
	}{
		"load":        {[]byte{0x8b, 0x03}, x86.VecGP},
		"rbp":         {[]byte{0x8b, 0x45, 0x00}, x86.VecSS},
		"rsp":         {[]byte{0x48, 0x89, 0xdc, 0x50}, x86.VecSS},
		"jump":        {[]byte{0xff, 0xe3}, x86.VecGP},
		"string":      {[]byte{0xa4}, x86.VecGP},
		"rep string":  {[]byte{0xf3, 0xa4}, x86.VecGP},
		"lock add":    {[]byte{0xf0, 0x01, 0x03}, x86.VecGP},
		"wraps round": {[]byte{0x48, 0x8b, 0x47, 0xfc}, x86.VecGP},
	} {
		t.Run(name, func(t *testing.T) {
			c := newMachine(t)
			load(t, c, k.code...)
			for _, r := range []int{x86.RBX, x86.RBP, x86.RSI} {
				c.GPR[r] = 1<<47 + 0x10
			}
			c.GPR[x86.RDI] = 1<<47 + 2
			c.GPR[x86.RCX] = 5
			at := uint64(testCode)
			if name == "rsp" {
				at += 3
			}
			expect(t, c, k.vec, at)
		})
	}
}
