package bt

import (
	"ring3/internal/x86"
	"ring3/internal/x86/insn"
)

// branch emits a near branch.
func (e *emitter) branch(raw []byte, in *insn.Inst, pc, next uint64) bool {
	target := next + uint64(in.Imm)
	rel := in.NArg == 1 && in.Args[0].Kind == insn.ArgRel
	switch {
	case in.Op >= insn.OpJO && in.Op < insn.OpJO+16:
		e.bytes(0x0f, 0x80|byte(in.Op-insn.OpJO))
		e.chain(target)
		e.mark(next, None)
		e.bytes(0xe9)
		e.chain(next)
		return true
	case in.Op == insn.OpJMP && rel:
		e.bytes(0xe9)
		e.chain(target)
		return true
	case in.Op == insn.OpCALL && rel:
		if !top(next) {
			return false
		}
		e.bytes(0x68) // push imm32
		e.imm32(uint32(next))
		e.mark(target, None)
		e.bytes(0xe9)
		e.chain(target)
		return true
	case in.Op == insn.OpRET && in.NArg == 0:
		e.save(0, x86.RCX)
		e.mark(pc, RCX)
		e.bytes(0x59) // pop rcx
		e.mark(0, Target)
		e.lookup()
		return true
	case (in.Op == insn.OpJMP || in.Op == insn.OpCALL) && in.NArg == 1 && in.OpSize == 64 && in.ModRMOff != 0:
		return e.indirect(raw, in, pc, next)
	}
	return false
}

// indirect emits JMP and CALL through a register or memory.
func (e *emitter) indirect(raw []byte, in *insn.Inst, pc, next uint64) bool {
	a := in.Args[0]
	e.save(0, x86.RCX)
	e.mark(pc, RCX)
	switch a.Kind {
	case insn.ArgGPR:
		if a.Reg == x86.RSP {
			return false
		}
		e.bytes(rexW(a.Reg, 0, x86.RCX), 0x89, 0xc0|a.Reg&7<<3|x86.RCX) // mov rcx, reg
	case insn.ArgMem:
		if e.ac && e.mayBeUser(in) {
			return false
		}
		// MOV RCX, r/m64 is the same instruction with another opcode and
		// register field.
		mov := *in
		mov.ModRM = in.ModRM&^0x38 | x86.RCX<<3
		var b []byte
		b = append(b, raw[:in.NumPrefix]...)
		b = append(b, in.Rex&^4|0x48, 0x8b, mov.ModRM)
		b = append(b, raw[in.ModRMOff+1:]...)
		grown := uint8(len(b) - len(raw))
		mov.Rex = in.Rex&^4 | 0x48
		mov.OpcodeOff = in.NumPrefix
		mov.ModRMOff = in.NumPrefix + 2
		if in.DispLen != 0 {
			mov.DispOff += grown
		}
		if !e.copyInst(b, &mov, pc) {
			return false
		}
	default:
		return false
	}
	if in.Op == insn.OpCALL {
		if !top(next) {
			return false
		}
		e.bytes(0x68)
		e.imm32(uint32(next))
	}
	e.mark(0, Target)
	e.lookup()
	return true
}
