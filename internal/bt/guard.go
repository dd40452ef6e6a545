package bt

import (
	"ring3/internal/x86"
	"ring3/internal/x86/insn"
)

// guard emits a check before an instruction that was seen to access the lower
// half, as the copying routines that all of a kernel shares are: it is
// interpreted then, and translated with addresses in the upper half.
func (e *emitter) guard(in *insn.Inst, pc uint64) bool {
	var regs []uint8
	m := &in.Mem
	switch {
	case in.AddrSize != 64 || in.SegOverride:
		return false
	case in.Op == insn.OpMOVS:
		regs = []uint8{x86.RDI, x86.RSI}
	case in.Op == insn.OpSTOS:
		regs = []uint8{x86.RDI}
	case in.NArg == 0 || in.Enc.Class != insn.Innocuous || in.ModRMOff == 0 || in.ModRM >= 0xc0 ||
		m.VSIB || m.Base == x86.RSP || m.Base == insn.RIPReg || m.Base == insn.NoReg:
		return false
	}
	e.save(0, x86.RCX)
	e.mark(pc, RCX)
	var low []int
	for _, r := range regs {
		e.pext(x86.RCX, r, e.h.Upper)
		low = append(low, e.jrcxz())
	}
	if regs == nil {
		if m.Index == insn.NoReg {
			e.lea1(x86.RCX, m.Base, int32(m.Disp))
		} else {
			e.bytes(rexW(x86.RCX, m.Index, m.Base), 0x8d, 0x80|x86.RCX<<3|4, in.SIB)
			e.imm32(uint32(m.Disp))
		}
		e.pext(x86.RCX, x86.RCX, e.h.Upper)
		low = append(low, e.jrcxz())
	}
	e.load(x86.RCX, 0)
	e.mark(pc, None)
	e.bytes(0xeb, 0x00) // jmp upper
	upper := len(e.out)
	for _, l := range low {
		e.land(l)
	}
	e.mark(pc, RCX)
	e.load(x86.RCX, 0)
	e.step(pc)
	e.land(upper)
	e.mark(pc, None)
	return true
}

// lea1 emits lea dst, [base+disp], without an index.
func (e *emitter) lea1(dst, base uint8, disp int32) {
	if base&7 == x86.RSP {
		e.bytes(rexW(dst, 0, base), 0x8d, 0x84|dst&7<<3, 0x24)
	} else {
		e.bytes(rexW(dst, 0, base), 0x8d, 0x80|dst&7<<3|base&7)
	}
	e.imm32(uint32(disp))
}
