package interp

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"runtime"
	"testing"

	"golang.org/x/sys/unix"

	"ring3/internal/bus"
	"ring3/internal/cpu"
	"ring3/internal/guestmem"
	"ring3/internal/host"
	"ring3/internal/native"
	"ring3/internal/x86"
	"ring3/internal/x86/insn"
)

// The machine of the host comparison: the host runs code in the raw pages of a
// native executor, with data in pages that the test maps. The guest has the
// same addresses mapped to its RAM, in user mode. So the very same bytes run on
// the same state, and every address that an instruction computes is the same.
//
// Guest RAM:
//
//	0x001000  page tables
//	0x100000  IDT, GDT, TSS, a stack for exceptions, their handlers (HLT)
//	0x110000  the raw pages
//	0x120000  the data pages
//
// Supervisor pages are mapped at supBase.
const (
	checkRAM    = 4 << 20
	supBase     = 0xffff800000000000
	idtGPA      = 0x100000
	gdtGPA      = 0x101000
	tssGPA      = 0x102000
	stackTopGPA = 0x105000
	handlerGPA  = 0x105000
	rawGPA      = 0x110000
	dataGPA     = 0x120000

	dataHint  = 0x60000000
	dataRW    = 3 * x86.PageSize // bytes of read-write data
	dataSize  = 4 * x86.PageSize // with one read-only page behind
	rawPages  = 3
	selHost64 = 0x33 // Linux's selectors for user code and data
	selHost32 = 0x23
	selHostSS = 0x2b
	selKernel = 0x10
)

// checkEnv is the machine around the CPU: the host's CPUID and nothing else.
type checkEnv struct{ fpu *cpu.FPU }

func (e *checkEnv) ReadMSR(uint32) (uint64, bool)         { return 0, false }
func (e *checkEnv) WriteMSR(uint32, uint64) bool          { return false }
func (e *checkEnv) TSC() uint64                           { return 0 }
func (e *checkEnv) Flushed(Flush)                         {}
func (e *checkEnv) SyncFPU() *cpu.FPU                     { return e.fpu }
func (e *checkEnv) SetCR8(uint64)                         {}
func (e *checkEnv) CPUID(l, s uint32) (a, b, c, d uint32) { return host.CPUID(l, s) }

type checkMachine struct {
	x      *native.Executor
	c      *CPU
	env    *checkEnv
	hostFS uint64

	code  uint64 // linear address of the code under test
	data  uint64 // linear address of the data pages
	hmem  []byte // data of the host, writable part
	gmem  []byte // data of the guest, writable part
	state cpu.State
	ctx   native.Context
	fpu   *cpu.FPU // image for the host run
	pt    uint64   // next free page for page tables
	mode  insn.Mode
	amd   bool
}

func newCheckMachine(t testing.TB) *checkMachine {
	t.Helper()
	x, err := native.New()
	if err != nil {
		t.Skipf("no native execution: %v", err)
	}
	mem, err := guestmem.New(checkRAM)
	if err != nil {
		t.Fatal(err)
	}
	m := &checkMachine{x: x, env: &checkEnv{fpu: new(cpu.FPU)}, fpu: new(cpu.FPU), pt: 0x2000}
	m.c = New(mem, &bus.Bus{}, &bus.Bus{}, m.env)
	m.code = x.RawAddress()
	_, b, _, _ := host.CPUID(0, 0)
	m.amd = b == 0x68747541 // "Auth"
	m.mapHostData(t)
	m.buildGuest(t, mem)
	t.Cleanup(func() {
		x.Close()
		mem.Close()
	})
	return m
}

// mapHostData maps the data pages between two guard pages.
func (m *checkMachine) mapHostData(t testing.TB) {
	t.Helper()
	const guard = x86.PageSize
	for hint := uintptr(dataHint); hint < dataHint+1<<28; hint += 1 << 20 {
		p, err := mmapAt(hint, dataSize+2*guard)
		if err != nil {
			continue
		}
		m.data = uint64(hint) + guard
		all := bytesAt(p, dataSize+2*guard)
		if err := unix.Mprotect(all[guard:guard+dataSize], unix.PROT_READ|unix.PROT_WRITE); err != nil {
			t.Fatal(err)
		}
		m.hmem = all[guard : guard+dataRW]
		clear(all[guard : guard+dataSize]) // present from now on
		if err := unix.Mprotect(all[guard+dataRW:guard+dataSize], unix.PROT_READ); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { unix.MunmapPtr(p, dataSize+2*guard) })
		return
	}
	t.Fatal("no room for data pages below 2 GiB")
}

func (m *checkMachine) buildGuest(t testing.TB, mem *guestmem.Memory) {
	t.Helper()
	put := func(gpa, v uint64) { mem.WriteAt(binary.LittleEndian.AppendUint64(nil, v), gpa) }
	const rw, user = x86.PTEPresent | x86.PTEWrite, x86.PTEUser
	for p := uint64(idtGPA); p < handlerGPA+x86.PageSize; p += x86.PageSize {
		m.mapPage(mem, supBase+p, p|rw)
	}
	for p := uint64(0); p < rawPages*x86.PageSize; p += x86.PageSize {
		m.mapPage(mem, m.code-x86.PageSize+p, (rawGPA+p)|rw|user)
	}
	for p := uint64(0); p < dataSize; p += x86.PageSize {
		pte := dataGPA + p | x86.PTEPresent | user | x86.PTENX
		if p < dataRW {
			pte |= x86.PTEWrite
		}
		m.mapPage(mem, m.data+p, pte)
	}
	for v := uint64(0); v < 256; v++ {
		h := uint64(supBase) + handlerGPA + v*16
		typ := uint64(0x8e) // 64-bit interrupt gate
		if v == x86.VecBP || v == x86.VecOF {
			typ |= 3 << 5
		}
		put(idtGPA+v*16, h&0xffff|selKernel<<16|typ<<40|h>>16&0xffff<<48)
		put(idtGPA+v*16+8, h>>32)
		mem.WriteAt([]byte{0xf4}, handlerGPA+v*16)
	}
	put(gdtGPA+selKernel, 0x00af9b000000ffff)
	put(tssGPA+4, supBase+stackTopGPA) // RSP0
	put(tssGPA+0x60, 0xffff<<48)       // no I/O permission bitmap
	raw := bytes.Repeat([]byte{0xcc}, rawPages*x86.PageSize)
	mem.WriteAt(raw, rawGPA)
	var err error
	if m.gmem, err = mem.Slice(dataGPA, dataRW); err != nil {
		t.Fatal(err)
	}

	flat := cpu.Segment{Limit: 0xffffffff, Attr: cpu.AttrP | cpu.AttrS | cpu.AttrDPL | cpu.AttrWritable | cpu.AttrAccessed | cpu.AttrG}
	s := &m.state
	s.Reset()
	s.CPL = 3
	s.CR0 = x86.CR0PE | x86.CR0MP | x86.CR0ET | x86.CR0NE | x86.CR0WP | x86.CR0PG
	s.CR3 = 0x1000
	s.CR4 = x86.CR4PAE | x86.CR4OSFXSR | x86.CR4OSXMMEXCPT | x86.CR4OSXSAVE | x86.CR4FSGSBASE
	s.EFER = x86.EFERSCE | x86.EFERLME | x86.EFERLMA | x86.EFERNX
	s.XCR0 = m.x.Host().XCR0
	s.Seg[x86.CS], s.Seg[x86.SS] = flat, flat
	s.Seg[x86.CS].Sel, s.Seg[x86.SS].Sel = selHost64, selHostSS
	s.Seg[x86.CS].Attr |= cpu.AttrCode | cpu.AttrL
	s.Seg[x86.SS].Attr |= cpu.AttrDB
	for _, r := range []int{x86.ES, x86.DS, x86.FS, x86.GS} {
		s.Seg[r] = cpu.Segment{Unusable: true}
	}
	s.TR = cpu.Segment{Sel: 0x40, Base: supBase + tssGPA, Limit: 0x67, Attr: cpu.AttrP | 11}
	s.GDTR = cpu.Table{Base: supBase + gdtGPA, Limit: 0xff}
	s.IDTR = cpu.Table{Base: supBase + idtGPA, Limit: 0xfff}
}

// start prepares the machine for a test in 64-bit mode or in compatibility
// mode. The goroutine keeps its thread, whose FS base the guest gets.
func (m *checkMachine) start(t testing.TB, mode insn.Mode) {
	runtime.LockOSThread()
	t.Cleanup(runtime.UnlockOSThread)
	m.hostFS = hostFSBase()
	m.mode = mode
	s := &m.state
	s.Seg[x86.FS].Base = m.hostFS
	cs := &s.Seg[x86.CS]
	flat := s.Seg[x86.SS]
	for _, r := range []int{x86.ES, x86.DS} {
		s.Seg[r] = cpu.Segment{Unusable: true}
	}
	cs.Sel = selHost64
	cs.Attr |= cpu.AttrL
	cs.Attr &^= cpu.AttrDB
	if mode == insn.Mode32 {
		cs.Sel = selHost32
		cs.Attr |= cpu.AttrDB
		cs.Attr &^= cpu.AttrL
		s.Seg[x86.ES], s.Seg[x86.DS] = flat, flat
	}
}

// mapPage enters a page in the 4-level tables.
func (m *checkMachine) mapPage(mem *guestmem.Memory, lin, pte uint64) {
	table := uint64(0x1000)
	for shift := 39; shift > 12; shift -= 9 {
		e := mem.Word(table + lin>>shift&0x1ff*8)
		if *e == 0 {
			*e = m.pt | x86.PTEPresent | x86.PTEWrite | x86.PTEUser
			m.pt += x86.PageSize
		}
		table = *e & x86.PTEAddr
	}
	*mem.Word(table + lin>>12&0x1ff*8) = pte
}

// outcome is what an execution left behind, memory and extended state apart.
type outcome struct {
	fault  bool
	vector uint8
	code   uint64
	cr2    uint64
	rip    uint64
	gpr    [16]uint64
	flags  uint64
}

// visible32 clears what 32-bit code does not see.
func (o *outcome) visible32() {
	for i := range o.gpr {
		o.gpr[i] &= 0xffffffff
	}
	clear(o.gpr[8:])
}

func (o outcome) String() string {
	s := fmt.Sprintf("rip %#x flags %#x", o.rip, o.flags)
	if o.fault {
		s = fmt.Sprintf("#%d(%#x) cr2 %#x ", o.vector, o.code, o.cr2) + s
	}
	return s
}

// shownFlags are compared: those that user mode can change without trapping.
const shownFlags = x86.FlagsArith | x86.FlagDF

// runHost runs code from the state in m.ctx until it traps or leaves.
func (m *checkMachine) runHost(code []byte) (o outcome) {
	run := m.x.RunRaw
	if m.mode == insn.Mode32 {
		run = m.x.RunRaw32
	}
	f := run(code, &m.ctx)
	o = outcome{rip: f.RIP, gpr: m.ctx.GPR, flags: m.ctx.RFLAGS & shownFlags}
	if f.Vector != x86.VecBP {
		o.fault, o.vector, o.code, o.cr2 = true, f.Vector, f.Code, f.Address
	}
	return o
}

// guestState puts the guest where the host starts.
func (m *checkMachine) guestState(gpr *[16]uint64, flags uint64) {
	m.c.State = m.state
	m.c.GPR = *gpr
	m.c.RIP = m.code
	m.c.RFLAGS = flags | x86.FlagFixed | x86.FlagIF
	m.c.fault = fault{}
	m.c.shutdown = false
}

// setCode puts code where the guest executes it, and takes it away again.
func (m *checkMachine) setCode(code []byte) { m.c.Mem.WriteAt(code, rawGPA+x86.PageSize) }

func (m *checkMachine) clearCode(n int) {
	m.c.Mem.WriteAt(bytes.Repeat([]byte{0xcc}, n), rawGPA+x86.PageSize)
}

// guestOutcome reads the result of the interpreter. After an exception that is
// in the frame on the stack of the handler (SDM vol. 3A, figure 7-8).
func (m *checkMachine) guestOutcome() (o outcome) {
	c := m.c
	o = outcome{rip: c.RIP, gpr: c.GPR, flags: c.RFLAGS & shownFlags}
	if c.CPL == 3 {
		return o
	}
	v := (c.RIP - supBase - handlerGPA) / 16
	if v > 255 || c.shutdown {
		return outcome{fault: true, vector: 255}
	}
	o.fault, o.vector = true, uint8(v)
	word := func(off uint64) uint64 { return *c.Mem.Word(c.GPR[x86.RSP] - supBase + off) }
	off := uint64(0)
	if x86.VectorHasErrorCode(o.vector) {
		o.code = word(0)
		off = 8
	}
	o.rip = word(off)
	o.flags = word(off+16) & shownFlags
	o.gpr[x86.RSP] = word(off + 24)
	switch o.vector {
	case x86.VecPF:
		o.cr2 = c.CR2
	case x86.VecBP: // the end mark
		o.fault, o.vector = false, 0
		o.rip--
	}
	return o
}
