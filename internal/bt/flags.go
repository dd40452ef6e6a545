package bt

import (
	"ring3/internal/x86"
	"ring3/internal/x86/insn"
)

// The guest's RFLAGS.IF is not the processor's, which is always set: it is a
// quadword in the control page, 0 or -FlagIF, that LEA can add to what PUSHF
// pushes.

// plain reports whether the instruction at the start of code is one that may
// as well follow an interrupt: not HLT, MWAIT, SYSEXIT and their like, which
// rely on the shadow of STI (SDM vol. 2B, STI).
func plain(code []byte) bool {
	var in insn.Inst
	return insn.Decode(code, insn.Mode64, &in) == nil &&
		(in.Enc.Class == insn.Innocuous || in.Enc.Class == insn.Branch)
}

// sti emits STI: interpreted when an interrupt waits.
func (e *emitter) sti(pc uint64) {
	e.save(0, x86.RCX)
	e.mark(pc, RCX)
	e.absolute(0x8b, x86.RCX, e.h.Want)
	e.bytes(0xe3, 0x00) // jrcxz free
	jrcxz := len(e.out)
	e.load(x86.RCX, 0)
	e.step(pc)
	e.out[jrcxz-1] = byte(len(e.out) - jrcxz)
	e.mark(pc, RCX)
	e.bytes(0x48, 0xc7, 0x04, 0x25) // mov qword [IF], 0
	e.imm32(e.h.IF)
	e.imm32(0)
	e.load(x86.RCX, 0)
}

// pushf emits PUSHFQ. The stack is written last, so that all before can be
// started over.
func (e *emitter) pushf(pc, next uint64) {
	e.save(0, x86.RCX)
	e.mark(pc, RCX)
	e.save(1, x86.RDX)
	e.mark(pc, Two)
	e.bytes(0x9c) // pushfq
	e.mark(pc, TwoPush)
	e.bytes(0x59) // pop rcx
	e.mark(pc, Two)
	e.absolute(0x8b, x86.RDX, e.h.IF)
	e.lea(x86.RCX, x86.RCX, x86.RDX, 0)
	e.bytes(0x51) // push rcx
	e.mark(next, Two)
	e.load(x86.RCX, 0)
	e.load(x86.RDX, 1)
}
