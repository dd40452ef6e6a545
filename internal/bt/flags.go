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
	free := e.jrcxz()
	e.load(x86.RCX, 0)
	e.step(pc)
	e.b.Exits[len(e.b.Exits)-1].Kind = ExitWindow
	e.land(free)
	e.mark(pc, RCX)
	e.bytes(0x48, 0xc7, 0x04, 0x25) // mov qword [IF], 0
	e.imm32(e.h.IF)
	e.imm32(0)
	e.load(x86.RCX, 0)
}

// pushf emits PUSHFQ. The stack is written last, so that all before can be
// started over.
func (e *emitter) pushf(pc, next uint64) {
	e.two(pc)
	e.bytes(0x9c) // pushfq
	e.mark(pc, TwoPush)
	e.bytes(0x59) // pop rcx
	e.mark(pc, Two)
	e.absolute(0x8b, x86.RDX, e.h.IF)
	e.lea(x86.RCX, x86.RCX, x86.RDX, 0)
	e.bytes(0x51) // push rcx
	e.mark(next, Two)
	e.untwo()
}

// PopMask has the flags that POPF may not set here: the processor's are not
// the guest's, or the guest must be interpreted with them.
const PopMask = x86.FlagTF | x86.FlagIOPL | x86.FlagNT | x86.FlagRF | x86.FlagVM | x86.FlagAC | x86.FlagVIF | x86.FlagVIP

// popf emits POPFQ: interpreted when it sets a flag of PopMask, or IF while an
// interrupt waits.
func (e *emitter) popf(pc, next uint64) {
	e.two(pc)
	e.bytes(0x48, 0x8b, 0x14, 0x24) // mov rdx, [rsp]
	e.pext(x86.RCX, x86.RDX, e.h.PopMask)
	plain := e.jrcxz()
	e.bytes(0xeb, 0x00) // jmp slow
	slow := len(e.out)
	e.land(plain)
	e.pext(x86.RCX, x86.RDX, e.h.IFMask)
	off := e.jrcxz()
	e.absolute(0x8b, x86.RCX, e.h.Want)
	on := e.jrcxz()
	e.land(slow)
	e.untwo()
	e.step(pc)
	e.land(on)
	e.mark(pc, Two)
	e.bytes(0x48, 0x8d, 0x49, 0x01) // lea rcx, [rcx+1]
	e.land(off)
	// RCX is IF, 0 or 1: make it (IF-1) << 9.
	e.bytes(0x48, 0x8d, 0x49, 0xff) // lea rcx, [rcx-1]
	for range 3 {
		e.bytes(0x48, 0x8d, 0x0c, 0xcd, 0, 0, 0, 0) // lea rcx, [rcx*8]
	}
	e.bytes(0x9d) // popfq
	e.mark(next, TwoIF)
	e.absolute(0x89, x86.RCX, e.h.IF)
	e.mark(next, Two)
	e.untwo()
}
