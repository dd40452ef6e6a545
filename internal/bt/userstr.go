package bt

import (
	"ring3/internal/x86"
	"ring3/internal/x86/insn"
)

// userStr emits MOVS and STOS with addresses looked up in the user TLB, page by
// page. RDI and RSI are moved while the instruction runs, and by how much is in
// scratch words, as is what RCX lacks.
//
// With RFLAGS.DF set, which no kernel has there, it is interpreted.
func (e *emitter) userStr(raw []byte, in *insn.Inst, pc, next uint64) bool {
	if in.AddrSize != 64 || in.SegOverride || in.Repne {
		return false
	}
	const s, t = x86.RBX, x86.R8
	size := uint8(in.OpSize / 8)
	for _, a := range in.Args[:in.NArg] {
		if a.Kind == insn.ArgStrDst || a.Kind == insn.ArgStrSrc {
			size = uint8(a.Size / 8)
		}
	}
	e.again = e.off()
	e.forward(pc)
	again := len(e.out)
	e.mark(pc, None)
	none := -1
	if in.Rep {
		none = e.jrcxzFar()
	}
	e.four(pc, s, t)
	if !in.Rep {
		e.movImm(x86.RCX, 1)
		e.save(wordCount, x86.RCX)
	} else {
		// A page has no more than 4096 of anything.
		e.pext(x86.RCX, x86.RCX, e.h.UserPage)
		few := e.jrcxz()
		e.movImm(x86.RCX, x86.PageSize)
		many := e.far()
		e.land(few)
		e.load(x86.RCX, wordRCX)
		e.landFar(many)
		e.save(wordCount, x86.RCX)
	}
	e.room(x86.RDI, size)
	if in.Op == insn.OpMOVS {
		e.room(x86.RSI, size)
	}
	e.load(x86.RCX, wordCount)
	cross := e.jrcxzFar()
	e.userRange(pc, x86.RDI, accWrite, wordDI)
	if in.Op == insn.OpMOVS {
		e.userRange(pc, x86.RSI, accRead, wordSI)
	}
	e.load(s, wordS)
	e.load(t, wordT)
	e.load(x86.RDX, wordCount)
	e.bytes(0x48, 0xf7, 0xd2) // not rdx: no flags (SDM vol. 2B, NOT)
	e.load(x86.RCX, wordRCX)
	rdx := []uint8{insn.NoReg, insn.NoReg, x86.RDX}
	if in.Rep {
		e.lea(x86.RCX, x86.RCX, x86.RDX, 1)
		e.save(wordRest, x86.RCX)
		e.load(x86.RCX, wordCount)
	} else {
		e.movRest()
	}
	e.words(pc, WordsCX, rdx...)
	e.load(x86.RDX, wordDI)
	e.lea(x86.RDI, x86.RDI, x86.RDX, 0)
	e.words(pc, WordsDI, rdx...)
	both := WordsDI
	if in.Op == insn.OpMOVS {
		e.load(x86.RDX, wordSI)
		e.lea(x86.RSI, x86.RSI, x86.RDX, 0)
		both = WordsBoth
		e.words(pc, both, rdx...)
	}
	e.bytes(raw...)
	after := next
	if in.Rep {
		after = pc // there is nothing to do when RCX is 0
	}
	e.words(after, both, rdx...)
	if in.Op == insn.OpMOVS {
		e.takeAway(x86.RSI, wordSI)
		e.words(after, WordsDI, rdx...)
	}
	e.takeAway(x86.RDI, wordDI)
	e.words(after, WordsCX, rdx...)
	if in.Rep {
		e.load(x86.RCX, wordRest) // RCX was 0
		e.words(after, Words, rdx...)
	}
	e.load(x86.RDX, wordRDX)
	e.mark(after, None)
	end := -1
	if in.Rep {
		e.bytes(0xe9)
		e.imm32(uint32(again - len(e.out) - 4))
	} else {
		end = e.far()
	}
	e.landFar(cross) // of a unit that crosses a page
	e.words(pc, Words, s, x86.RCX, x86.RDX, t)
	e.unfour(s, t)
	e.step(pc)
	if in.Rep {
		e.landFar(none)
	} else {
		e.landFar(end)
	}
	e.mark(next, None)
	return true
}

// movRest clears the word for what RCX lacks.
func (e *emitter) movRest() {
	e.bytes(0x48, 0xc7, 0x04, 0x25) // mov qword [wordRest], 0
	e.imm32(e.h.Scratch + 8*wordRest)
	e.imm32(0)
}

// room lowers the count to what fits in the page of an address.
func (e *emitter) room(reg, size uint8) {
	const s = x86.RBX
	e.pext(x86.RDX, reg, e.h.Room)
	e.bytes(0x48, 0xf7, 0xd2)                // not rdx
	e.lea1(x86.RDX, x86.RDX, x86.PageSize+1) // bytes to the end
	if size > 1 {
		i := map[uint8]uint32{2: 1, 4: 2, 8: 3}[size]
		e.pext(x86.RDX, x86.RDX, e.h.Room+8*i)
	}
	e.lea1(s, x86.RDX, 0)
	e.bytes(0x48, 0xf7, 0xd2)
	e.load(x86.RCX, wordCount)
	e.lea(x86.RCX, x86.RCX, x86.RDX, 1)
	e.pext(x86.RCX, x86.RCX, e.h.Upper) // 1: the count is lower
	fewer := e.jrcxz()
	e.bytes(0xeb, 0x00)
	keep := len(e.out)
	e.land(fewer)
	e.save(wordCount, s)
	e.land(keep)
}

// takeAway emits reg -= scratch word, by way of RDX.
func (e *emitter) takeAway(reg uint8, word int) {
	e.load(x86.RDX, word)
	e.bytes(0x48, 0xf7, 0xd2) // not rdx: no flags (SDM vol. 2B, NOT)
	e.lea(reg, reg, x86.RDX, 1)
}

// userRange looks up a range in one page and saves what to add to its address.
// RBX, RCX, RDX, R8 are free.
func (e *emitter) userRange(pc uint64, reg uint8, acc access, word int) {
	const s, t = x86.RBX, x86.R8
	// The kernel's side of a copy is in another page each time.
	e.pext(x86.RCX, reg, e.h.Upper)
	low := e.jrcxz()
	e.movImm(t, Delta)
	upper := e.far()
	e.land(low)
	e.pext(x86.RDX, reg, e.h.UserIndex)
	e.pext(x86.RCX, reg, e.h.UserPage)
	e.userDelta(pc, reg, s, t, acc)
	e.landFar(upper)
	e.save(word, t)
}

// forward emits an exit for when RFLAGS.DF is set. PUSHFQ reads flags without
// changing any; the stack is the guest's, so it pushes to a scratch word.
func (e *emitter) forward(pc uint64) {
	e.save(0, x86.RCX)
	e.save(1, x86.RSP)
	e.words(pc, Words, x86.RCX, x86.RSP)
	e.bytes(0xbc) // mov esp, behind the scratch words
	e.imm32(e.h.Scratch + 8*(wordFlags+1))
	e.bytes(0x9c) // pushfq
	e.load(x86.RSP, 1)
	e.load(x86.RCX, wordFlags)
	e.pext(x86.RCX, x86.RCX, e.h.DFMask)
	up := e.jrcxz()
	e.load(x86.RCX, 0)
	e.step(pc)
	e.land(up)
	e.words(pc, Words, x86.RCX, x86.RSP)
	e.load(x86.RCX, 0)
}
