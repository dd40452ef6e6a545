package bt

import (
	"ring3/internal/x86"
	"ring3/internal/x86/insn"
)

// RSP holds the folded address of the guest's stack, or of whatever the guest
// has in RSP: at the entry of a system call that is user code's. Where RSP is
// data, it is unfolded first.

// uses reports whether the instruction has anything to do with a register;
// implicit operands of what rspData takes are none of RCX and RDX.
func uses(in *insn.Inst, reg uint8) bool {
	for _, a := range in.Args[:in.NArg] {
		switch a.Kind {
		case insn.ArgGPR:
			if a.Reg == reg || a.High && a.Reg-4 == reg {
				return true
			}
		case insn.ArgMem:
			if in.Mem.Base == reg || in.Mem.Index == reg {
				return true
			}
		}
	}
	return false
}

// spare is a register that the instruction does not use, and the mark for it
// in scratch 0.
func spare(in *insn.Inst) (reg uint8, s Saved, ok bool) {
	switch {
	case !uses(in, x86.RCX):
		return x86.RCX, RCX, true
	case !uses(in, x86.RDX):
		return x86.RDX, RDX, true
	}
	return 0, None, false
}

// instead is a two-operand instruction with another register in place of RSP.
// Both are among the first eight. With an immediate, the register field of
// ModRM is part of the opcode.
func instead(raw []byte, in *insn.Inst, reg uint8) ([]byte, insn.Inst) {
	x := *in
	if in.ModRM&0x38 == x86.RSP<<3 && in.Rex&4 == 0 && in.Args[1].Kind != insn.ArgImm {
		x.ModRM = x.ModRM&^0x38 | reg<<3
	}
	if in.ModRM&0xc7 == 0xc0|x86.RSP && in.Rex&1 == 0 {
		x.ModRM = x.ModRM&^7 | reg
	}
	b := append([]byte(nil), raw...)
	b[in.ModRMOff] = x.ModRM
	return b, x
}

// rspInst emits an instruction that has RSP as a register operand.
func (e *emitter) rspInst(raw []byte, in *insn.Inst, pc, next uint64) bool {
	if in.OpSize != 64 || in.NArg != 2 || in.ModRMOff == 0 {
		return false
	}
	dst, src := in.Args[0], in.Args[1]
	written := dst.Kind == insn.ArgGPR && dst.Reg == x86.RSP
	switch in.Op {
	case insn.OpMOV:
		switch {
		case src.Kind == insn.ArgGPR && dst.Kind == insn.ArgGPR:
			switch {
			case dst.Reg == x86.RSP && src.Reg == x86.RSP:
			case dst.Reg == x86.RSP:
				e.toRSP(pc, src.Reg, 0)
			default:
				e.rspTo(dst.Reg, 0)
			}
			return true
		case dst.Kind == insn.ArgMem:
			return e.rspRead(raw, in, pc, next)
		case src.Kind == insn.ArgMem:
			return e.rspLoad(raw, in, pc, next)
		}
		return false
	case insn.OpCMP, insn.OpTEST:
		return e.rspRead(raw, in, pc, next)
	case insn.OpADD, insn.OpSUB, insn.OpAND:
		switch {
		case !written:
			return e.rspRead(raw, in, pc, next)
		case src.Kind == insn.ArgImm && (in.Op != insn.OpAND || in.Imm < 0) && signDead(e.rest):
			e.bytes(raw...) // Delta is a multiple of 2^36
			return true
		}
		return e.rspChange(raw, in, pc, next)
	}
	return false
}

// rspRead emits an instruction that reads RSP.
func (e *emitter) rspRead(raw []byte, in *insn.Inst, pc, next uint64) bool {
	tmp, s, ok := spare(in)
	if !ok {
		return false
	}
	e.save(0, tmp)
	e.mark(pc, s)
	e.rspTo(tmp, 0)
	b, x := instead(raw, in, tmp)
	if !e.copyInst(b, &x, pc) {
		return false
	}
	e.mark(next, s)
	e.load(tmp, 0)
	return true
}

// two saves RCX and RDX.
func (e *emitter) two(pc uint64) {
	e.save(0, x86.RCX)
	e.mark(pc, RCX)
	e.save(1, x86.RDX)
	e.mark(pc, Two)
}

// untwo loads them.
func (e *emitter) untwo() {
	e.load(x86.RCX, 0)
	e.load(x86.RDX, 1)
}

// rspLoad emits MOV RSP, m64.
func (e *emitter) rspLoad(raw []byte, in *insn.Inst, pc, next uint64) bool {
	e.two(pc)
	b, x := instead(raw, in, x86.RCX)
	if !e.copyInst(b, &x, pc) {
		return false
	}
	e.movImm(x86.RDX, Delta)
	e.lea(x86.RSP, x86.RCX, x86.RDX, 0)
	e.mark(next, Two)
	e.untwo()
	return true
}

// rspChange emits arithmetic on RSP, all flags of which are exact.
func (e *emitter) rspChange(raw []byte, in *insn.Inst, pc, next uint64) bool {
	if uses(in, x86.RCX) || uses(in, x86.RDX) {
		return false
	}
	e.two(pc)
	e.rspTo(x86.RCX, 0)
	e.movImm(x86.RDX, Delta)
	b, x := instead(raw, in, x86.RCX)
	if !e.copyInst(b, &x, pc) {
		return false
	}
	e.mark(next, TwoRSP)
	e.lea(x86.RSP, x86.RCX, x86.RDX, 0)
	e.mark(next, Two)
	e.untwo()
	return true
}

// pushRSP emits PUSH RSP, which pushes the old value.
func (e *emitter) pushRSP(pc, next uint64) {
	e.save(0, x86.RCX)
	e.mark(pc, RCX)
	e.rspTo(x86.RCX, 0)
	e.bytes(0x51) // push rcx
	e.mark(next, RCX)
	e.load(x86.RCX, 0)
}

// popRSP emits POP RSP: the value popped is what stays in RSP.
func (e *emitter) popRSP(pc, next uint64) {
	e.two(pc)
	e.bytes(0x48, 0x8b, 0x0c, 0x24) // mov rcx, [rsp]
	e.movImm(x86.RDX, Delta)
	e.lea(x86.RSP, x86.RCX, x86.RDX, 0)
	e.mark(next, Two)
	e.untwo()
}

// leaRSP emits LEA r64, [RSP+index*scale+disp].
func (e *emitter) leaRSP(in *insn.Inst, pc, next uint64) bool {
	m, dst := &in.Mem, in.Args[0].Reg
	tmp, s, ok := spare(in)
	if !ok {
		return false
	}
	e.save(0, tmp)
	e.mark(pc, s)
	e.rspTo(tmp, int32(m.Disp))
	e.bytes(rexW(dst, m.Index, tmp), 0x8d, dst&7<<3|4, in.SIB&^7|tmp) // lea dst, [tmp+index*scale]
	e.mark(next, s)
	e.load(tmp, 0)
	return true
}
