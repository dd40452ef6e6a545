package bt

import (
	"ring3/internal/x86"
	"ring3/internal/x86/insn"
)

// With RFLAGS.AC set, a memory operand may be user memory, whose addresses are
// not folded: all RAM is mapped once more, and the user TLB says what to add
// to a guest address to get there. It is direct-mapped. A tag is the negated
// page number, less a salt that stands for the address space, or 1. The page of the last byte is compared with the tag at the
// index of the first, so that what crosses a page misses.
const (
	UserTLBSize = 256
	UserIndex   = (UserTLBSize - 1) * x86.PageSize // bits of an address that are the index
	UserPage    = 1<<64 - x86.PageSize             // bits that the tag has
	EmptyUser   = 1                                // tag of an empty entry
	SaltShift   = 52                               // page numbers are below, salts above; EmptyUser wants no salt with all bits set
)

// Room are masks for PEXT: an offset in a page; then the number of units of 2, 4
// and 8 bytes in at most a page.
var Room = [4]uint64{x86.PageSize - 1, 0x1ffe, 0x1ffc, 0x1ff8}

// Scratch words: see Mark.In for the first four.
const (
	wordS     = 0 // a register of choice
	wordRCX   = 1
	wordRDX   = 2
	wordT     = 3 // another one
	wordEA    = 4 // address that missed
	wordRest  = 4 // of RCX, behind the page
	wordCount = 7 // of RCX, in the page
	wordDI    = 5 // what was added to RDI
	wordSI    = 6 // and to RSI
	wordFlags = 7
)

// mayBeUser reports whether the instruction accesses memory that may be a
// user's: not the stack, per-CPU data, or what has a constant address.
func (e *emitter) mayBeUser(in *insn.Inst) bool {
	switch in.Op {
	case insn.OpNOP, insn.OpLEA, insn.OpPREFETCHNTA, insn.OpPREFETCHT0, insn.OpPREFETCHT1, insn.OpPREFETCHT2, insn.OpPREFETCHW:
		return false // they access nothing
	}
	if in.Enc.Group == insn.GroupString {
		return true
	}
	m := &in.Mem
	for _, a := range in.Args[:in.NArg] {
		switch a.Kind {
		case insn.ArgMoffs:
			return true
		case insn.ArgMem:
			return m.Base != x86.RSP && m.Base != insn.RIPReg && m.Seg != x86.GS &&
				(m.Base != insn.NoReg || m.Index != insn.NoReg)
		}
	}
	return false
}

// words marks that registers are in scratch words.
func (e *emitter) words(rip uint64, s Saved, regs ...uint8) {
	m := Mark{RIP: rip, Saved: s}
	for i, r := range regs {
		if r != insn.NoReg {
			m.In[i] = r + 1
		}
	}
	e.setMark(m)
}

// access is what an instruction does with its memory operand.
type access uint8

const (
	accNone access = iota // not known
	accRead
	accWrite // or both
)

// memAccess says what an integer instruction does with its memory operand, and
// how many bytes that has. It knows none that has implicit operands among the
// registers that user uses, or that accesses memory elsewhere.
func memAccess(in *insn.Inst) (a access, size int) {
	i := 0
	for in.Args[i].Kind != insn.ArgMem {
		if i++; i == int(in.NArg) {
			return accNone, 0
		}
	}
	if size = int(in.Args[i].Size) / 8; size == 0 || size > 8 {
		return accNone, 0
	}
	switch in.Op {
	case insn.OpBT, insn.OpBTS, insn.OpBTR, insn.OpBTC:
		// The bit number of a register can lie anywhere (SDM vol. 2A, BT).
		if in.Args[1].Kind != insn.ArgImm {
			return accNone, 0
		}
		if in.Op == insn.OpBT {
			return accRead, size
		}
		return accWrite, size
	case insn.OpCMPXCHG8B, insn.OpCMPXCHG16B, insn.OpMOVDIR64B:
		return accNone, 0
	case insn.OpCMP, insn.OpTEST, insn.OpPUSH, insn.OpMUL, insn.OpIMUL, insn.OpDIV, insn.OpIDIV:
		return accRead, size
	case insn.OpXCHG:
		return accWrite, size
	}
	if i == 0 {
		return accWrite, size
	}
	return accRead, size
}

// temps are two registers that the instruction does not use. None of them
// needs a displacement or SIB as a base, and no instruction uses them
// implicitly that memAccess knows.
func temps(in *insn.Inst) (s, t uint8, ok bool) {
	free := make([]uint8, 0, 9)
	for _, r := range []uint8{x86.RSI, x86.RDI, x86.RBX, x86.R8, x86.R9, x86.R10, x86.R11, x86.R14, x86.R15} {
		if !uses(in, r) {
			free = append(free, r)
		}
	}
	// AH to BH exist without a REX prefix only.
	for _, a := range in.Args[:in.NArg] {
		if a.Kind == insn.ArgGPR && a.High && free[0] >= 8 {
			return 0, 0, false
		}
	}
	return free[0], free[1], true // it uses four at most
}

// load64 emits mov reg, [table+rdx*8].
func (e *emitter) load64(reg uint8, table uint32) {
	e.bytes(rexW(reg, x86.RDX, 0), 0x8b, reg&7<<3|4, 0xd5)
	e.imm32(table)
}

// leaEA emits LEA of the memory operand.
func (e *emitter) leaEA(dst uint8, raw []byte, in *insn.Inst) {
	end := in.ModRMOff + 1
	if in.ModRM&7 == 4 {
		end++
	}
	e.bytes(0x48|dst>>3<<2|in.Rex&3, 0x8d, in.ModRM&^0x38|dst&7<<3)
	e.bytes(raw[in.ModRMOff+1 : end+in.DispLen]...)
}

// tags is the table for an access.
func (e *emitter) tags(a access) uint32 {
	if a == accWrite {
		return e.h.UserWrite
	}
	return e.h.UserRead
}

// userDelta loads what to add to the address in ea, whose entry has the index
// RDX if its tag is that of the page number in RCX. A miss is an exit.
func (e *emitter) userDelta(pc uint64, ea, s, t uint8, acc access) {
	e.load64(t, e.tags(acc))
	e.lea(x86.RCX, x86.RCX, t, 0)
	e.absolute(0x8b, t, e.h.UserSalt)
	e.lea(x86.RCX, x86.RCX, t, 0)
	hit := e.jrcxz()
	e.save(wordEA, ea)
	e.unfour(s, t)
	e.userExit(pc, acc)
	e.land(hit)
	e.words(pc, Words, s, x86.RCX, x86.RDX, t)
	e.load64(t, e.h.UserDelta)
}

// userExit emits what is done at a miss, with all registers the guest's: the
// stub enters the page and the instruction is tried again, or it is an exit.
func (e *emitter) userExit(pc uint64, a access) {
	kind, routine := ExitUser, e.h.UserMissRead
	if a == accWrite {
		kind, routine = ExitUserWrite, e.h.UserMissWrite
	}
	e.mark(pc, None)
	e.b.Exits = append(e.b.Exits, Exit{Kind: kind, RIP: pc, AC: e.ac})
	e.exitID(len(e.b.Exits) - 1)
	e.callStubFor(routine, e.again)
}

// four saves the registers that the look-up uses; unfour loads them.
func (e *emitter) four(pc uint64, s, t uint8) {
	e.save(wordS, s)
	e.save(wordRCX, x86.RCX)
	e.save(wordRDX, x86.RDX)
	e.save(wordT, t)
	e.words(pc, Words, s, x86.RCX, x86.RDX, t)
}

func (e *emitter) unfour(s, t uint8) {
	e.load(s, wordS)
	e.load(x86.RCX, wordRCX)
	e.load(x86.RDX, wordRDX)
	e.load(t, wordT)
}

// user emits an instruction with its memory operand looked up in the user TLB.
func (e *emitter) user(raw []byte, in *insn.Inst, pc, next uint64) bool {
	if !e.h.UserTLB {
		return false
	}
	switch {
	case in.Op == insn.OpMOVS || in.Op == insn.OpSTOS:
		return e.userStr(raw, in, pc, next)
	case in.Enc.Group != insn.GroupInt, in.Mem.Seg == x86.FS, in.AddrSize != 64, usesRSP(in):
		return false
	}
	op := in.OpcodeOff
	if in.Rex != 0 && raw[op]&0xf0 == 0x40 {
		op++
	}
	switch raw[op] {
	case 0xc4, 0xc5, 0x62:
		return false // VEX, EVEX
	case 0x8f:
		if in.Op != insn.OpPOP {
			return false // XOP
		}
	}
	acc, size := memAccess(in)
	s, t, ok := temps(in)
	if acc == accNone || !ok {
		return false
	}
	e.again = e.off()
	e.four(pc, s, t)
	e.leaEA(s, raw, in)
	e.pext(x86.RDX, s, e.h.UserIndex)
	e.lea1(x86.RCX, s, int32(size-1))
	e.pext(x86.RCX, x86.RCX, e.h.UserPage)
	e.userDelta(pc, s, s, t, acc)
	e.lea(s, s, t, 0)
	e.load(x86.RCX, wordRCX)
	e.load(x86.RDX, wordRDX)
	e.load(t, wordT)
	e.words(pc, Words, s)
	for _, p := range raw[:in.NumPrefix] {
		switch p {
		case 0x26, 0x2e, 0x36, 0x3e: // segment overrides that mean nothing
		default:
			e.bytes(p)
		}
	}
	if op != in.OpcodeOff {
		e.bytes(in.Rex&^3 | s>>3)
	} else if s >= 8 {
		e.bytes(0x41)
	}
	e.bytes(raw[op:in.ModRMOff]...)
	e.bytes(in.ModRM&0x38 | s&7)
	e.bytes(raw[in.Len-in.ImmLen:]...)
	e.words(next, Words, s)
	e.load(s, wordS)
	return true
}

// jrcxzFar is a jump at RCX = 0 to a place further away; landFar gives it.
func (e *emitter) jrcxzFar() int {
	e.bytes(0xe3, 0x02, 0xeb, 0x05) // jrcxz +2; jmp +5
	return e.far()
}

func (e *emitter) far() int {
	e.bytes(0xe9, 0, 0, 0, 0)
	return len(e.out)
}

func (e *emitter) landFar(from int) {
	n := uint32(len(e.out) - from)
	e.out[from-4], e.out[from-3], e.out[from-2], e.out[from-1] = byte(n), byte(n>>8), byte(n>>16), byte(n>>24)
}
