package interp

import (
	"testing"

	"ring3/internal/bus"
	"ring3/internal/cpu"
	"ring3/internal/guestmem"
	"ring3/internal/x86"
)

// testEnv is a machine without devices.
type testEnv struct {
	fpu     *cpu.FPU
	flushes []Flush
}

func (e *testEnv) ReadMSR(uint32) (uint64, bool) { return 0, false }
func (e *testEnv) WriteMSR(uint32, uint64) bool  { return false }
func (e *testEnv) TSC() uint64                   { return 12345 }
func (e *testEnv) Flushed(f Flush)               { e.flushes = append(e.flushes, f) }
func (e *testEnv) SyncFPU() *cpu.FPU             { return e.fpu }
func (e *testEnv) SetCR8(uint64)                 {}

// CPUID shows all features there are.
func (e *testEnv) CPUID(leaf, sub uint32) (a, b, c, d uint32) {
	switch leaf {
	case 0:
		return 0x20, 0, 0, 0
	case 0x80000000:
		return 0x80000021, 0, 0, 0
	}
	return ^uint32(0), ^uint32(0), ^uint32(0), ^uint32(0)
}

func alignedFPU() *cpu.FPU {
	b := make([]byte, 2*cpu.XSAVEAreaSize)
	return (*cpu.FPU)(alignPtr(b))
}

// Places in the memory of a test machine.
const (
	testSize  = 16 << 20
	testPML4  = 0x1000
	testPDPT  = 0x2000
	testPD    = 0x3000
	testPT    = 0x4000 // maps the first 2 MiB in pages
	testIDT   = 0x5000
	testGDT   = 0x6000
	testTSS   = 0x7000
	testStubs = 0x8000  // a HLT for each vector, 16 bytes apart
	testCode  = 0x10000 // where programs start
	testData  = 0x20000
	testStack = 0x30000 // top
)

// newMachine is a CPU in 64-bit mode at CPL 0, with 16 MiB mapped one to one
// (the first 2 MiB by small pages, all user-accessible), and an IDT whose
// handlers halt at testStubs + 16*vector, on IST1.
func newMachine(t testing.TB) *CPU {
	t.Helper()
	m, err := guestmem.New(testSize)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { m.Close() })
	c := New(m, &bus.Bus{}, &bus.Bus{}, &testEnv{fpu: alignedFPU()})
	resetMachine(c)
	return c
}

// resetMachine puts c and the first 2 MiB of its memory in the initial state.
func resetMachine(c *CPU) {
	m := c.Mem
	m.WriteAt(make([]byte, 2<<20), 0)
	c.State.Reset()
	c.shutdown = false
	const rwu = x86.PTEPresent | x86.PTEWrite | x86.PTEUser
	*m.Word(testPML4) = testPDPT | rwu
	*m.Word(testPDPT) = testPD | rwu
	*m.Word(testPD) = testPT | rwu
	for i := uint64(0); i < 512; i++ {
		*m.Word(testPT + 8*i) = i<<12 | rwu
	}
	for i := uint64(1); i < testSize>>21; i++ {
		*m.Word(testPD + 8*i) = i<<21 | rwu | x86.PTELarge
	}
	for v := uint64(0); v < 256; v++ {
		at := testStubs + 16*v
		*m.Word(testIDT + 16*v) = at&0xffff | 0x08<<16 | 0x8e01<<32 | at>>16<<48
		*m.Word(testIDT + 16*v + 8) = at >> 32
		m.WriteAt([]byte{0xf4}, at)
	}
	*m.Word(testGDT + 0x08) = 0x00af9b000000ffff // 64-bit code
	*m.Word(testGDT + 0x10) = 0x00cf93000000ffff // data
	*m.Word(testGDT + 0x18) = 0x00cffb000000ffff // 32-bit user code
	*m.Word(testGDT + 0x20) = 0x00cff3000000ffff // user data
	*m.Word(testGDT + 0x28) = 0x00affb000000ffff // 64-bit user code
	*m.Word(testTSS + 0) = testStack << 32       // RSP0
	*m.Word(testTSS + 0x20) = testStack << 32    // IST1
	s := &c.State
	s.CR0 = x86.CR0PE | x86.CR0PG | x86.CR0ET | x86.CR0NE | x86.CR0WP | x86.CR0MP
	s.CR3 = testPML4
	s.CR4 = x86.CR4PAE | x86.CR4PGE | x86.CR4OSFXSR
	s.EFER = x86.EFERLME | x86.EFERLMA | x86.EFERNX | x86.EFERSCE
	s.GDTR = cpu.Table{Base: testGDT, Limit: 0x2f}
	s.IDTR = cpu.Table{Base: testIDT, Limit: 0xfff}
	s.TR = cpu.Segment{Sel: 0x30, Base: testTSS, Limit: 0x67, Attr: 0x8b}
	data := cpu.Segment{Sel: 0x10, Limit: 0xffffffff, Attr: 0xc093}
	for i := range s.Seg {
		s.Seg[i] = data
	}
	s.Seg[x86.CS] = cpu.Segment{Sel: 8, Limit: 0xffffffff, Attr: 0xa09b}
	s.GPR[x86.RSP] = testStack
	s.RIP = testCode
	s.RFLAGS = x86.FlagFixed
	c.flushTLB(Flush{Kind: FlushAll})
}

// user puts the machine at CPL 3 in 64-bit mode.
func user(c *CPU) {
	c.CPL = 3
	c.Seg[x86.CS] = cpu.Segment{Sel: 0x2b, Limit: 0xffffffff, Attr: 0xa0fb}
	c.Seg[x86.SS] = cpu.Segment{Sel: 0x23, Limit: 0xffffffff, Attr: 0xc0f3}
}

// code16 and code32 leave 64-bit mode for a flat segment of a legacy mode
// without paging.
func code32(c *CPU) {
	c.CR0 = x86.CR0PE | x86.CR0ET
	c.EFER, c.CR4 = 0, 0
	c.Seg[x86.CS] = cpu.Segment{Sel: 8, Limit: 0xffffffff, Attr: 0xc09b}
}

func code16(c *CPU) {
	code32(c)
	c.Seg[x86.CS] = cpu.Segment{Sel: 8, Limit: 0xffffffff, Attr: 0x809b}
	c.Seg[x86.SS].Attr = 0x8093
}

// load puts code at testCode.
func load(t testing.TB, c *CPU, code ...byte) {
	t.Helper()
	if err := c.Mem.WriteAt(code, testCode); err != nil {
		t.Fatal(err)
	}
}

// steps executes n instructions one at a time.
func steps(c *CPU, n int) {
	for range n {
		c.Step()
	}
}
