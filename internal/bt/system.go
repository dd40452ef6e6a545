package bt

import (
	"ring3/internal/x86"
	"ring3/internal/x86/insn"
)

// system emits what reads and writes system state that the control page has.
func (e *emitter) system(in *insn.Inst, pc, next uint64) bool {
	dst := in.Args[0]
	switch in.Op {
	case insn.OpMOV:
		src := in.Args[1]
		if dst.Kind == insn.ArgCR && dst.Reg == 3 && src.Reg != x86.RSP && !e.ac {
			// The stub does it if it knows the address space and nothing is to be
			// flushed.
			e.tellStub(e.h.SetCR3, src.Reg, pc, next)
			return true
		}
		if dst.Kind != insn.ArgGPR || dst.Reg == x86.RSP {
			return false
		}
		switch {
		case src.Kind == insn.ArgCR && src.Reg <= 4 && src.Reg != 1:
			e.absolute(0x8b, dst.Reg, e.h.CR+8*uint32(src.Reg))
			return true
		case src.Kind == insn.ArgSeg && src.Reg <= x86.GS:
			if in.OpSize == 16 {
				e.bytes(0x66) // the rest of the register stays
			}
			e.mov32(dst.Reg, e.h.Sel+4*uint32(src.Reg))
			return true
		}
		return false
	case insn.OpSWAPGS:
		e.swapgs(pc, next)
		return true
	case insn.OpINVLPG:
		return e.invlpg(in, pc, next)
	}
	if !e.h.FSGSBase || dst.Kind != insn.ArgGPR || dst.Reg == x86.RSP || in.OpSize != 64 {
		return false
	}
	switch in.Op {
	case insn.OpRDFSBASE:
		e.absolute(0x8b, dst.Reg, e.h.FS)
	case insn.OpRDGSBASE:
		e.absolute(0x8b, dst.Reg, e.h.GS)
	case insn.OpWRFSBASE:
		e.wrbase(in, pc, next, false)
	case insn.OpWRGSBASE:
		e.wrbase(in, pc, next, true)
	default:
		return false
	}
	return true
}

// invlpg emits INVLPG of the address in a register, as Linux has it. The stub
// does it for user pages of the program that it may return to.
func (e *emitter) invlpg(in *insn.Inst, pc, next uint64) bool {
	m := &in.Mem
	if e.ac || in.AddrSize != 64 || in.SegOverride || m.Base >= 16 || m.Base == x86.RSP || m.Index != insn.NoReg || m.Disp != 0 {
		return false
	}
	e.tellStub(e.h.Invlpg, m.Base, pc, next)
	return true
}

// tellStub jumps to a routine of the stub that gets the value of a register, may
// use the exit, and goes on behind the jump.
func (e *emitter) tellStub(routine uint64, reg uint8, pc, next uint64) {
	e.mark(pc, None)
	e.absolute(0x89, reg, e.h.Scratch+8*wordValue)
	e.b.Exits = append(e.b.Exits, Exit{Kind: ExitStep, RIP: pc})
	e.exitID(len(e.b.Exits) - 1)
	e.callStub(routine)
	e.mark(next, None)
}

// callStub jumps to a routine of the stub that goes on behind the jump.
func (e *emitter) callStub(routine uint64) {
	const mov, jump = 12, 5
	e.callStubFor(routine, e.off()+mov+jump)
}

// callStubFor jumps to a routine of the stub that goes on at an offset in the
// code of the block.
func (e *emitter) callStubFor(routine uint64, next uint32) {
	e.bytes(0x48, 0xc7, 0x04, 0x25) // mov qword [wordNext], imm32
	e.imm32(e.h.Scratch + 8*wordNext)
	e.imm32(uint32(e.at) + next)
	e.jmp(routine)
}

// xstate emits XSAVE, XSAVEC, XSAVEOPT and XRSTOR: the state is moved to the
// registers of the kernel stub before, or to the user stub behind it. The exit
// is for when that cannot be.
func (e *emitter) xstate(raw []byte, in *insn.Inst, pc, next uint64) bool {
	if e.ac || uses(in, x86.RAX) || uses(in, x86.RDX) {
		return false
	}
	e.mark(pc, None)
	e.b.Exits = append(e.b.Exits, Exit{Kind: ExitStep, RIP: pc})
	e.exitID(len(e.b.Exits) - 1)
	restore := in.Op == insn.OpXRSTOR
	if restore {
		e.callStub(e.h.CheckX)
	} else {
		e.callStub(e.h.SaveX)
	}
	e.words(pc, Words, x86.RAX, x86.RDX)
	if !e.copyInst(raw, in, pc) {
		return false
	}
	if restore {
		e.callStub(e.h.LoadX)
	} else {
		e.words(next, Words, x86.RAX, x86.RDX)
		e.load(x86.RAX, 0)
		e.load(x86.RDX, 1)
	}
	e.mark(next, None)
	return true
}

// Scratch words of tellStub and callStub.
const (
	wordValue = 2
	wordNext  = 3
)

// mov32 loads a doubleword, which clears the upper half of the register; with
// an operand-size prefix before it, a word.
func (e *emitter) mov32(reg uint8, addr uint32) {
	if reg >= 8 {
		e.bytes(0x44)
	}
	e.bytes(0x8b, reg&7<<3|4, 0x25)
	e.imm32(addr)
}

// wrfsbase and wrgsbase fault if the base is not canonical, as the guest's do.
func (e *emitter) wrfsbase(reg uint8) { e.bytes(0xf3, rexW(0, 0, reg), 0x0f, 0xae, 0xd0|reg&7) }
func (e *emitter) wrgsbase(reg uint8) { e.bytes(0xf3, rexW(0, 0, reg), 0x0f, 0xae, 0xd8|reg&7) }

// swapgs emits SWAPGS. The host's FS.base changes first, which may fault; it
// is made of the words in the control page whenever the block is entered, so
// the instruction can be started over until these change.
func (e *emitter) swapgs(pc, next uint64) {
	e.two(pc)
	e.absolute(0x8b, x86.RCX, e.h.Kernel)
	e.movImm(x86.RDX, Delta)
	e.lea(x86.RDX, x86.RCX, x86.RDX, 0)
	e.wrfsbase(x86.RDX)
	e.absolute(0x8b, x86.RDX, e.h.GS)
	e.absolute(0x89, x86.RDX, e.h.Kernel)
	e.mark(next, TwoGS)
	e.absolute(0x89, x86.RCX, e.h.GS)
	e.mark(next, Two)
	e.untwo()
}

// wrbase emits WRFSBASE and WRGSBASE. The base goes through the host's GS to
// see whether it is canonical: folded, it may be when it is not, and the
// guest's FS is in no register of the processor.
func (e *emitter) wrbase(in *insn.Inst, pc, next uint64, gs bool) {
	reg, word := in.Args[0].Reg, e.h.FS
	tmp, s, _ := spare(in) // it has one operand
	e.save(0, tmp)
	e.mark(pc, s)
	e.wrgsbase(reg)
	e.movImm(tmp, Delta)
	e.wrgsbase(tmp)
	if gs {
		e.lea(tmp, reg, tmp, 0)
		e.wrfsbase(tmp)
		word = e.h.GS
	}
	e.absolute(0x89, reg, word)
	e.mark(next, s)
	e.load(tmp, 0)
}
