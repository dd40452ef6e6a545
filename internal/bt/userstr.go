package bt

import (
	"ring3/internal/x86"
	"ring3/internal/x86/insn"
)

// userStr emits MOVS and STOS with addresses looked up in the user TLB, when
// each range lies in one page. RDI and RSI are moved while the instruction
// runs, and by how much is in scratch words.
// With RFLAGS.DF set, which no kernel has there, it is interpreted.
func (e *emitter) userStr(raw []byte, in *insn.Inst, pc, next uint64) bool {
	if in.AddrSize != 64 || in.SegOverride || in.Repne {
		return false
	}
	const s, t = x86.RBX, x86.R8
	all := []uint8{s, x86.RCX, x86.RDX, t}
	none := -1
	if in.Rep {
		none = e.jrcxzFar() // nothing to do
	}
	e.forward(pc)
	e.four(pc, s, t)
	var cross []int
	if in.Rep {
		// A count that multiplied by the size goes beyond 2^64.
		e.pext(x86.RCX, x86.RCX, e.h.UserPage)
		ok := e.jrcxz()
		cross = append(cross, e.far())
		e.land(ok)
	}
	size := uint8(in.OpSize / 8)
	for _, a := range in.Args[:in.NArg] {
		if a.Kind == insn.ArgStrDst || a.Kind == insn.ArgStrSrc {
			size = uint8(a.Size / 8)
		}
	}
	cross = append(cross, e.userRange(in, pc, x86.RDI, accWrite, size, wordDI)...)
	if in.Op == insn.OpMOVS {
		cross = append(cross, e.userRange(in, pc, x86.RSI, accRead, size, wordSI)...)
	}
	e.load(x86.RCX, wordRCX)
	e.load(s, wordS)
	e.load(t, wordT)
	rdx := []uint8{insn.NoReg, insn.NoReg, x86.RDX}
	e.words(pc, Words, rdx...)
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
	e.words(next, both, rdx...)
	if in.Op == insn.OpMOVS {
		e.takeAway(x86.RSI, wordSI)
		e.words(next, WordsDI, rdx...)
	}
	e.takeAway(x86.RDI, wordDI)
	e.words(next, Words, rdx...)
	e.load(x86.RDX, wordRDX)
	e.mark(next, None)
	end := e.far()
	for _, c := range cross {
		e.landFar(c)
	}
	e.words(pc, Words, all...)
	e.unfour(s, t)
	e.step(pc)
	e.landFar(end)
	if none >= 0 {
		e.landFar(none)
	}
	e.mark(next, None)
	return true
}

// takeAway emits reg -= scratch word, by way of RDX.
func (e *emitter) takeAway(reg uint8, word int) {
	e.load(x86.RDX, word)
	e.bytes(0x48, 0xf7, 0xd2) // not rdx: no flags (SDM vol. 2B, NOT)
	e.lea(reg, reg, x86.RDX, 1)
}

// userRange looks up a range and saves what to add to its address. RBX, RCX,
// RDX, R8 are free. It returns jumps for when the range is in two pages.
func (e *emitter) userRange(in *insn.Inst, pc uint64, reg uint8, acc access, size uint8, word int) (cross []int) {
	const s, t = x86.RBX, x86.R8
	all := []uint8{s, x86.RCX, x86.RDX, t}
	if in.Rep {
		scale := map[uint8]byte{1: 0, 2: 0x40, 4: 0x80, 8: 0xc0}[size]
		e.load(x86.RCX, wordRCX)
		e.bytes(0x48, 0x8d, 0x40|s<<3|4, scale|x86.RCX<<3|reg, 0xff) // lea rbx, [reg+rcx*size-1]
	} else {
		e.lea1(s, reg, int32(size)-1)
	}
	e.pext(x86.RDX, reg, e.h.UserIndex)
	e.pext(x86.RCX, s, e.h.UserPage)
	e.load64(t, e.tags(acc))
	e.lea(x86.RCX, x86.RCX, t, 0)
	hit := e.jrcxzFar()
	// Not there, or in two pages: subtract the page numbers.
	e.pext(x86.RCX, reg, e.h.UserPage)
	e.pext(x86.RDX, s, e.h.UserPage)
	e.bytes(0x48, 0xf7, 0xd2) // not rdx
	e.lea(x86.RCX, x86.RCX, x86.RDX, 1)
	one := e.jrcxz()
	cross = append(cross, e.far())
	e.land(one)
	e.save(wordEA, reg)
	e.unfour(s, t)
	e.userExit(pc, acc)
	e.landFar(hit)
	e.words(pc, Words, all...)
	e.load64(t, e.h.UserDelta)
	e.save(word, t)
	return cross
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
