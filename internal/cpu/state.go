// Package cpu holds the architectural state of one virtual CPU: what the
// manuals define, and nothing about how it is executed. Engines (interpreter,
// direct execution) read and write it; it has no behaviour beyond predicates.
package cpu

import "ring3/internal/x86"

// Segment is a segment register with its hidden part
// (SDM vol. 3A, section 3.4.3).
type Segment struct {
	Sel   uint16 // visible selector
	Base  uint64 // hidden base, bytes
	Limit uint32 // hidden limit in bytes, granularity applied
	// Attr is the access-rights word in the layout of descriptor bits 40..55:
	// bits 0-3 type, 4 S, 5-6 DPL, 7 P, 12 AVL, 13 L, 14 D/B, 15 G.
	Attr     uint16
	Unusable bool // null selector loaded
}

// Segment attribute bits, in the layout of Segment.Attr.
const (
	AttrTypeMask = 0xf
	AttrAccessed = 1 << 0
	AttrWritable = 1 << 1 // data: writable; code: readable
	AttrDown     = 1 << 2 // data: expand-down; code: conforming
	AttrCode     = 1 << 3
	AttrS        = 1 << 4 // code or data (not a system descriptor)
	AttrDPL      = 3 << 5
	AttrP        = 1 << 7
	AttrAVL      = 1 << 12
	AttrL        = 1 << 13
	AttrDB       = 1 << 14
	AttrG        = 1 << 15
)

// DPL returns the descriptor privilege level.
func (s *Segment) DPL() uint8 { return uint8(s.Attr>>5) & 3 }

// Table is GDTR or IDTR.
type Table struct {
	Base  uint64
	Limit uint16
}

// XSAVEAreaSize bounds the XSAVE image in standard format, in bytes: up to
// PKRU, behind AVX-512 (SDM vol. 1, section 13.5).
const XSAVEAreaSize = 4096

// FPU is the extended state as an XSAVE image in standard (non-compacted)
// format (SDM vol. 1, section 13.4). It must be 64-byte aligned where native
// code loads it. XSTATE_BV in the header tells which components are not in
// their initial configuration.
type FPU struct {
	Area [XSAVEAreaSize]byte
}

// State is the architectural state of one virtual CPU.
type State struct {
	GPR    [16]uint64 // indexed by x86.RAX .. x86.R15
	RIP    uint64
	RFLAGS uint64
	Seg    [6]Segment // indexed by x86.ES .. x86.GS; Seg[FS].Base is IA32_FS_BASE
	LDTR   Segment
	TR     Segment
	GDTR   Table
	IDTR   Table
	CPL    uint8

	CR0, CR2, CR3, CR4, CR8 uint64
	EFER                    uint64
	DR                      [8]uint64 // DR4 and DR5 unused
	XCR0                    uint64
	PDPTE                   [4]uint64 // PAE paging outside long mode

	// MSRs that the CPU itself acts on; the rest live in the MSR file of the
	// machine.
	STAR, LSTAR, CSTAR, SFMASK           uint64
	KernelGSBase                         uint64
	SysenterCS, SysenterESP, SysenterEIP uint64
	TSCAux                               uint64
	PAT                                  uint64
	// InterruptShadow is set after STI and after loads of SS, until the next
	// instruction has completed (SDM vol. 3A, section 6.8.3).
	InterruptShadow bool
	// NMIBlocked is set from NMI delivery to the next IRET.
	NMIBlocked bool
	// Halted is set by HLT until the next interrupt.
	Halted bool
}

// Reset puts s in the state after RESET# (SDM vol. 3A, table 10-1).
func (s *State) Reset() {
	*s = State{
		RIP:    0xfff0,
		RFLAGS: x86.FlagFixed,
		CR0:    x86.CR0ET | x86.CR0NW | x86.CR0CD,
		XCR0:   1,
		PAT:    0x0007040600070406,
	}
	s.GPR[x86.RDX] = 0x600
	s.DR[6], s.DR[7] = 0xffff0ff0, 0x400
	for i := range s.Seg {
		s.Seg[i] = Segment{Limit: 0xffff, Attr: AttrP | AttrS | AttrWritable | AttrAccessed}
	}
	s.Seg[x86.CS] = Segment{Sel: 0xf000, Base: 0xffff0000, Limit: 0xffff,
		Attr: AttrP | AttrS | AttrCode | AttrWritable | AttrAccessed}
	s.LDTR = Segment{Limit: 0xffff, Attr: AttrP | 2}
	s.TR = Segment{Limit: 0xffff, Attr: AttrP | 11}
	s.GDTR.Limit, s.IDTR.Limit = 0xffff, 0xffff
}

// Init puts s in the state after INIT: that after RESET#, but the cache control
// bits of CR0, XCR0 and the model-specific registers stay (SDM vol. 3A, table
// 10-1). IA32_EFER does not, as AMD has it (APM vol. 2, table 14-1).
func (s *State) Init() {
	old := *s
	s.Reset()
	s.CR0 = x86.CR0ET | old.CR0&(x86.CR0NW|x86.CR0CD)
	s.XCR0, s.PAT, s.TSCAux = old.XCR0, old.PAT, old.TSCAux
	s.STAR, s.LSTAR, s.CSTAR, s.SFMASK, s.KernelGSBase = old.STAR, old.LSTAR, old.CSTAR, old.SFMASK, old.KernelGSBase
	s.SysenterCS, s.SysenterESP, s.SysenterEIP = old.SysenterCS, old.SysenterESP, old.SysenterEIP
}

// StartUp is the effect of a start-up IPI on a processor that waits for one
// after RESET# or INIT: real mode at the physical address page<<12 (SDM vol. 3A,
// section 9.4.4.2).
func (s *State) StartUp(page uint8) {
	s.Seg[x86.CS].Sel, s.Seg[x86.CS].Base = uint16(page)<<8, uint64(page)<<12
	s.RIP = 0
}

// LongMode reports IA32_EFER.LMA: 64-bit or compatibility mode.
func (s *State) LongMode() bool { return s.EFER&x86.EFERLMA != 0 }

// Code64 reports 64-bit mode: long mode with CS.L set.
func (s *State) Code64() bool {
	return s.EFER&x86.EFERLMA != 0 && s.Seg[x86.CS].Attr&AttrL != 0
}

// FlatCode and FlatData are the segments that the fast system calls load
// (SDM vol. 2B, SYSCALL and SYSRET).
func FlatCode(sel uint16, dpl uint8, extra uint16) Segment {
	const attr = AttrP | AttrS | AttrG | AttrCode | AttrWritable | AttrAccessed
	return Segment{Sel: sel, Limit: 0xffffffff, Attr: attr | uint16(dpl)<<5 | extra}
}

func FlatData(sel uint16, dpl uint8) Segment {
	const attr = AttrP | AttrS | AttrG | AttrDB | AttrWritable | AttrAccessed
	return Segment{Sel: sel, Limit: 0xffffffff, Attr: attr | uint16(dpl)<<5}
}

// EnterSyscall and LeaveSyscall set privilege level, CS and SS as SYSCALL and a
// 64-bit SYSRET do in long mode.
func (s *State) EnterSyscall() {
	sel := uint16(s.STAR>>32) &^ 3
	s.Seg[x86.CS], s.Seg[x86.SS] = FlatCode(sel, 0, AttrL), FlatData(sel+8, 0)
	s.CPL = 0
}

func (s *State) LeaveSyscall() {
	sel := uint16(s.STAR>>48) | 3
	s.Seg[x86.CS], s.Seg[x86.SS] = FlatCode(sel+16, 3, AttrL), FlatData(sel+8, 3)
	s.CPL = 3
}

// EnterGate sets them as an interrupt or trap gate does in long mode that leads
// from user mode to a flat code segment of privilege level 0 (SDM vol. 3A,
// section 6.14.4).
func (s *State) EnterGate(sel uint16) {
	s.Seg[x86.CS], s.Seg[x86.SS] = FlatCode(sel, 0, AttrL), NullSS(0, 0)
	s.CPL = 0
}

// NullSS is SS with a null selector: usable in 64-bit mode at CPL 0 to 2. The
// DPL is always CPL.
func NullSS(sel uint16, cpl uint8) Segment {
	return Segment{Sel: sel, Attr: uint16(cpl) << 5, Unusable: true}
}

// Paging reports CR0.PG.
func (s *State) Paging() bool { return s.CR0&x86.CR0PG != 0 }
