package bt

import (
	"encoding/binary"

	"ring3/internal/x86"
	"ring3/internal/x86/insn"
)

// emitter writes one block.
type emitter struct {
	h    *Host
	at   uint64 // host address of out[0]
	id   uint32 // of the first exit
	ac   bool   // RFLAGS.AC
	out  []byte
	rest []byte // guest code behind the instruction
	b    *Block
	tail []jump

	again uint32 // where the code of an instruction with user memory begins
}

// jump is a rel32 at off that goes to the code of an exit.
type jump struct {
	off  uint32
	exit int
	from uint64 // guest address while the exit is under way
}

func (e *emitter) bytes(b ...byte) { e.out = append(e.out, b...) }
func (e *emitter) imm32(v uint32)  { e.out = binary.LittleEndian.AppendUint32(e.out, v) }
func (e *emitter) imm64(v uint64)  { e.out = binary.LittleEndian.AppendUint64(e.out, v) }
func (e *emitter) off() uint32     { return uint32(len(e.out)) }

// mark starts a stretch of code; see Mark.
func (e *emitter) mark(rip uint64, s Saved) { e.setMark(Mark{RIP: rip, Saved: s}) }

func (e *emitter) setMark(m Mark) {
	m.Off = uint16(e.off())
	if n := len(e.b.Marks); n > 0 && e.b.Marks[n-1].Off == m.Off {
		e.b.Marks = e.b.Marks[:n-1]
	}
	e.b.Marks = append(e.b.Marks, m)
}

// rel32 emits a displacement to a host address.
func (e *emitter) rel32(to uint64) {
	e.imm32(uint32(to - (e.at + uint64(len(e.out)) + 4)))
}

func (e *emitter) jmp(to uint64) {
	e.bytes(0xe9)
	e.rel32(to)
}

// chain emits the displacement of a jump to guest code at rip.
func (e *emitter) chain(rip uint64) { e.chainTo(rip, e.ac, rip) }

// chainTo is chain to another context. Until the exit is complete, the guest
// is at from, in the context of the block.
func (e *emitter) chainTo(rip uint64, ac bool, from uint64) {
	e.tail = append(e.tail, jump{e.off(), len(e.b.Exits), from})
	e.b.Exits = append(e.b.Exits, Exit{Kind: ExitChain, RIP: rip, AC: ac, Patch: e.off()})
	e.imm32(0)
}

// lookup jumps to the routine for indirect branches.
func (e *emitter) lookup() {
	if e.ac {
		e.jmp(e.h.LookupAC)
	} else {
		e.jmp(e.h.Lookup)
	}
}

// leave emits the code of an exit.
func (e *emitter) leave(exit int) {
	e.exitID(exit)
	e.jmp(e.h.Exit)
}

func (e *emitter) exitID(exit int) {
	e.bytes(0xc7, 0x04, 0x25) // mov dword [ExitID], imm32
	e.imm32(e.h.ExitID)
	e.imm32(e.id + uint32(exit))
}

// step emits an exit that has the instruction at rip interpreted.
func (e *emitter) step(rip uint64) {
	e.mark(rip, None)
	e.b.Exits = append(e.b.Exits, Exit{Kind: ExitStep, RIP: rip, AC: e.ac})
	e.leave(len(e.b.Exits) - 1)
}

// sysret emits SYSRET to 64-bit mode. The exit is for when the monitor must do
// it.
func (e *emitter) sysret(rip uint64) {
	e.mark(rip, None)
	e.b.Exits = append(e.b.Exits, Exit{Kind: ExitStep, RIP: rip})
	e.exitID(len(e.b.Exits) - 1)
	e.jmp(e.h.Sysret)
}

// iret emits IRETQ, whose frame is read here, where a fault finds a mark.
func (e *emitter) iret(rip uint64) {
	e.two(rip)
	for i := range uint32(5) {
		e.bytes(0x48, 0x8b, 0x4c, 0x24, byte(8*i)) // mov rcx, [rsp+8i]
		e.absolute(0x89, x86.RCX, e.h.Frame+8*i)
	}
	e.untwo()
	e.mark(rip, None)
	e.b.Exits = append(e.b.Exits, Exit{Kind: ExitStep, RIP: rip})
	e.exitID(len(e.b.Exits) - 1)
	e.jmp(e.h.Iret)
}

// finish emits the exits of the direct branches.
func (e *emitter) finish() {
	for _, j := range e.tail {
		x := &e.b.Exits[j.exit]
		x.Stub = e.off()
		e.mark(j.from, None)
		binary.LittleEndian.PutUint32(e.out[j.off:], e.off()-(j.off+4))
		e.leave(j.exit)
	}
}

func rexW(reg, index, base uint8) byte { return 0x48 | reg>>3<<2 | index>>3<<1 | base>>3 }

// save and load move a register to and from scratch word i.
func (e *emitter) save(i int, reg uint8) { e.absolute(0x89, reg, e.h.Scratch+uint32(8*i)) }
func (e *emitter) load(reg uint8, i int) { e.absolute(0x8b, reg, e.h.Scratch+uint32(8*i)) }

// absolute emits a 64-bit operation on a register and memory at a low address.
func (e *emitter) absolute(op byte, reg uint8, addr uint32) {
	e.bytes(rexW(reg, 0, 0), op, reg&7<<3|4, 0x25)
	e.imm32(addr)
}

// movImm loads a 64-bit constant.
func (e *emitter) movImm(reg uint8, v uint64) {
	e.bytes(rexW(0, 0, reg), 0xb8|reg&7)
	e.imm64(v)
}

// lea emits lea dst, [base+index+disp]. Index may not be RSP.
func (e *emitter) lea(dst, base, index uint8, disp int32) {
	e.bytes(rexW(dst, index, base), 0x8d, 0x84|dst&7<<3, index&7<<3|base&7)
	e.imm32(uint32(disp))
}

// rspTo emits dst = RSP - Delta + disp, where only dst may be disturbed.
func (e *emitter) rspTo(dst uint8, disp int32) {
	e.movImm(dst, 1<<64-Delta+uint64(int64(disp)))
	e.lea(dst, x86.RSP, dst, 0)
}

// toRSP emits RSP = src + Delta + disp.
func (e *emitter) toRSP(rip uint64, src uint8, disp int32) {
	tmp, s := uint8(x86.RCX), RCX
	if src == x86.RCX {
		tmp, s = x86.RDX, RDX
	}
	e.save(0, tmp)
	e.mark(rip, s)
	e.movImm(tmp, Delta)
	e.lea(x86.RSP, src, tmp, disp)
	e.load(tmp, 0)
}

// jrcxz emits a short jump forward, which land gives its target. It tests
// without flags.
func (e *emitter) jrcxz() int {
	e.bytes(0xe3, 0x00)
	return len(e.out)
}

func (e *emitter) land(from int) { e.out[from-1] = byte(len(e.out) - from) }

// pext emits PEXT dst, src, [mask], all of the first eight registers:
// VEX.LZ.F3.0F38.W1 F5 /r, no flags.
func (e *emitter) pext(dst, src uint8, mask uint32) {
	e.bytes(0xc4, 0xe2, 0x82|^src&15<<3, 0xf5, dst<<3|4, 0x25)
	e.imm32(mask)
}

// copyInst emits the instruction with its memory operand folded; ok is false
// when that cannot be done, and then nothing was emitted.
func (e *emitter) copyInst(raw []byte, in *insn.Inst, rip uint64) bool {
	mem := false
	for _, a := range in.Args[:in.NArg] {
		switch a.Kind {
		case insn.ArgMem:
			mem = true
		case insn.ArgMoffs, insn.ArgVec, insn.ArgMMX, insn.ArgST, insn.ArgMask, insn.ArgBnd, insn.ArgTile, insn.ArgSeg, insn.ArgCR, insn.ArgDR, insn.ArgStrDst, insn.ArgStrSrc:
			return false
		}
	}
	if !mem {
		e.bytes(raw...)
		return true
	}
	m := &in.Mem
	if in.AddrSize != 64 || m.Base == x86.RSP && in.SegOverride || m.VSIB {
		return false
	}
	var prefix byte
	switch {
	case m.Seg == x86.GS:
		prefix = 0x64
	case m.Seg == x86.FS:
		return false
	case m.Base != x86.RSP:
		prefix = 0x65
	}
	var disp uint32
	if m.Base == insn.RIPReg {
		a := rip + uint64(in.Len) + uint64(m.Disp)
		if uint64(int64(int32(a))) != a {
			return false
		}
		disp = uint32(a)
	}
	if prefix != 0 {
		e.bytes(prefix)
	}
	for _, p := range raw[:in.NumPrefix] {
		switch p {
		case 0x26, 0x2e, 0x36, 0x3e, 0x64, 0x65: // segment overrides
		default:
			e.bytes(p)
		}
	}
	if m.Base != insn.RIPReg {
		e.bytes(raw[in.NumPrefix:]...)
		return true
	}
	e.bytes(raw[in.NumPrefix:in.ModRMOff]...)
	e.bytes(in.ModRM&^7|4, 0x25) // no base, no index
	e.imm32(disp)
	e.bytes(raw[in.DispOff+in.DispLen:]...)
	return true
}
