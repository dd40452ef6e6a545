package interp

import (
	"math/bits"
	"strings"

	"ring3/internal/cpu"
	"ring3/internal/mmu"
	"ring3/internal/x86"
	"ring3/internal/x86/insn"
)

// Instructions that access only some elements of a memory operand, or elements
// in several places. Elements that are masked off do not fault.

// maskedOperand describes the elements of a memory operand.
type maskedOperand struct {
	elem   int    // bytes
	active uint64 // by element of memory
}

// maskedOf finds the elements that inst accesses.
func (c *CPU) maskedOf(inst *insn.Inst, op *nativeOp, v vecImage) maskedOperand {
	name := inst.Op.String()
	if maskMoves[name] {
		elem := 4
		if strings.HasSuffix(name, "PD") || strings.HasSuffix(name, "Q") {
			elem = 8
		}
		r := v.get(inst.Args[1].Reg)
		return maskedOperand{elem, signMask(&r, int(op.size)/elem, elem)}
	}
	k := v.mask(inst.Mask)
	elem, n := elementSize(inst, int(op.size))
	if n < 64 {
		k &= 1<<n - 1
	}
	if strings.Contains(name, "COMPRESS") || strings.Contains(name, "EXPAND") {
		// Memory holds the active elements only, without gaps.
		k = 1<<bits.OnesCount64(k) - 1
	}
	if inst.Bcst {
		// One element, read when any of the result is active.
		if k != 0 {
			k = 1
		}
	}
	return maskedOperand{elem, k}
}

// elementSize is the size in bytes of the elements in memory, and the number
// of mask bits that count. The mask has one bit per element of the result; the
// last letter of the mnemonic names its type (SDM vol. 2A, section 2.7.4).
func elementSize(inst *insn.Inst, size int) (elem, n int) {
	if inst.Bcst {
		e := resultElement(inst)
		return size, max(int(inst.VecLen)/8/e, 1)
	}
	e := resultElement(inst)
	total := size // bytes of the result
	if a := inst.Args[0]; a.Kind == insn.ArgVec {
		total = int(a.Size) / 8
		if total > size && size <= 8 && isScalar(inst) {
			return size, 1
		}
	}
	if inst.Args[0].Kind == insn.ArgMask {
		total = int(inst.VecLen) / 8
	}
	n = max(total/e, 1)
	if size < n || size%n != 0 {
		// Fewer elements in memory than in the result, as of
		// VBROADCASTF32X4: any active element may need any of them.
		return size, n
	}
	return size / n, n
}

func isScalar(inst *insn.Inst) bool {
	name := inst.Op.String()
	return strings.HasSuffix(name, "SS") || strings.HasSuffix(name, "SD") || strings.HasSuffix(name, "SH")
}

// resultElement is the size in bytes of the elements of the result.
func resultElement(inst *insn.Inst) int {
	name := inst.Op.String()
	for _, s := range [...]struct {
		suffix string
		size   int
	}{
		{"DQA32", 4}, {"DQA64", 8}, {"DQU8", 1}, {"DQU16", 2}, {"DQU32", 4}, {"DQU64", 8},
		{"PS2PH", 2}, {"F32X2", 4}, {"F32X4", 4}, {"F32X8", 4}, {"F64X2", 8}, {"F64X4", 8},
		{"I32X2", 4}, {"I32X4", 4}, {"I32X8", 4}, {"I64X2", 8}, {"I64X4", 8},
		{"PS", 4}, {"PD", 8}, {"PH", 2}, {"SS", 4}, {"SD", 8}, {"SH", 2}, {"BF16", 2},
		{"UQQ", 8}, {"UDQ", 4}, {"QQ", 8}, {"DUP", 4}, {"DQ", 4},
		{"B", 1}, {"W", 2}, {"D", 4}, {"Q", 8},
	} {
		if strings.HasSuffix(name, s.suffix) {
			if s.suffix == "DUP" && strings.HasSuffix(name, "DDUP") {
				return 8
			}
			return s.size
		}
	}
	if inst.Rex&8 != 0 {
		return 8
	}
	return 4
}

// runMasked executes an instruction with a masked memory operand.
func (c *CPU) runMasked(inst *insn.Inst, op *nativeOp, fpu *cpu.FPU) bool {
	v := vecImage{fpu, c.simd.x.Host()}
	m := c.maskedOf(inst, op, v)
	lin, ok := c.memLin(inst, 1, op.access == accessWrite)
	if !ok && m.active != 0 {
		return false
	}
	c.fault = fault{}
	buf, addr := c.simd.x.Scratch()
	addr += lin & 63
	buf = buf[lin&63:][:op.size]
	clear(buf)
	count := max(len(buf)/m.elem, 1)
	for i := 0; i < count; i++ {
		if m.active>>i&1 == 0 {
			continue
		}
		a, e := lin+uint64(i*m.elem), buf[i*m.elem:(i+1)*m.elem]
		if op.access == accessRead {
			ok = c.readBytes(a, e)
		} else {
			ok = c.checkWrite(a, uint64(m.elem))
		}
		if !ok {
			return c.earlierFault(op, fpu, lin, addr)
		}
	}
	if f := c.callNative(op, fpu, addr); f.Raised {
		return c.nativeFault(f)
	}
	if op.access == accessWrite {
		for i := range count {
			if m.active>>i&1 != 0 && !c.writeBytes(lin+uint64(i*m.elem), buf[i*m.elem:(i+1)*m.elem]) {
				return false
			}
		}
	}
	return true
}

// maskMovDQ executes MASKMOVDQU, VMASKMOVDQU and MASKMOVQ: the bytes of the
// first operand whose mask byte has its top bit set go to DS:[rDI]. The host
// executes it on the scratch buffer for its effect on the x87 state.
func (c *CPU) maskMovDQ(inst *insn.Inst, op *nativeOp, fpu *cpu.FPU) bool {
	v := vecImage{fpu, c.simd.x.Host()}
	var src, mask [maxVec]byte
	n := 16
	if inst.Args[0].Kind == insn.ArgMMX {
		n = 8
		src, mask = v.mmx(inst.Args[0].Reg), v.mmx(inst.Args[1].Reg)
	} else {
		src, mask = v.get(inst.Args[0].Reg), v.get(inst.Args[1].Reg)
	}
	off := c.GPR[x86.RDI]
	switch inst.AddrSize {
	case 16:
		off &= 0xffff
	case 32:
		off &= 0xffffffff
	}
	lin, ok := c.segLin(inst.Mem.Seg, off, n, true)
	if !ok {
		return false
	}
	active := signMask(&mask, n, 1)
	for i := range n {
		if active>>i&1 != 0 && !c.checkRange(lin+uint64(i), 1, mmu.Write) {
			return false
		}
	}
	gpr := c.GPR
	_, addr := c.simd.x.Scratch()
	c.GPR[x86.RDI] = addr
	f := c.callNative(op, fpu, addr)
	c.GPR = gpr
	if f.Raised {
		return c.nativeFault(f)
	}
	for i := range n {
		if active>>i&1 != 0 && !c.writeBytes(lin+uint64(i), src[i:i+1]) {
			return false
		}
	}
	return true
}

// gatherForm is what the mnemonic of a gather or scatter says.
type gatherForm struct {
	index, elem int // bytes of an index, and of an element
	scatter     bool
	prefetch    bool
}

func gatherFormOf(name string) (g gatherForm) {
	if strings.Contains(name, "GATHERPF") || strings.Contains(name, "SCATTERPF") {
		g.prefetch = true
		return g
	}
	g.scatter = strings.Contains(name, "SCATTER")
	// VGATHERDPS, VPGATHERQD, VPSCATTERDQ: index type, then element type.
	_, types, _ := strings.Cut(name, "GATHER")
	if g.scatter {
		_, types, _ = strings.Cut(name, "SCATTER")
	}
	g.index, g.elem = 4, 4
	if types[0] == 'Q' {
		g.index = 8
	}
	if last := types[len(types)-1]; last == 'Q' || last == 'D' && types[len(types)-2] == 'P' {
		g.elem = 8
	}
	return g
}

// gather executes gathers and scatters. Each element that is done has its mask
// cleared at once, so that the instruction can go on after a page fault
// (SDM vol. 2B, VPGATHERDD). What else becomes of the registers then differs
// between processors; here nothing, as on AMD's.
func (c *CPU) gather(inst *insn.Inst, fpu *cpu.FPU) bool {
	g := gatherFormOf(inst.Op.String())
	if g.prefetch {
		return true
	}
	v := vecImage{fpu, c.simd.x.Host()}
	evex := inst.Enc.Group == insn.GroupEVEX
	n := int(inst.VecLen) / 8 / max(g.index, g.elem)
	data := inst.Args[0].Reg
	if g.scatter {
		data = inst.Args[1].Reg
	}
	reg, index := v.get(data), v.get(inst.Mem.Index)

	var active uint64
	var maskReg [maxVec]byte
	if evex {
		active = v.mask(inst.Mask) & (1<<n - 1)
	} else {
		maskReg = v.get(inst.Args[2].Reg)
		active = signMask(&maskReg, n, g.elem)
	}
	done := true
	for i := 0; i < n && done; i++ {
		if active>>i&1 != 0 {
			lin, ok := c.elementLin(inst, g, &index, i)
			e := reg[i*g.elem : (i+1)*g.elem]
			switch {
			case !ok:
			case g.scatter:
				ok = c.writeBytes(lin, e)
			default:
				ok = c.readBytes(lin, e)
			}
			if !ok {
				done = false
				break
			}
			active &^= 1 << i
		}
		clear(maskReg[i*g.elem : (i+1)*g.elem])
	}
	if done {
		clear(maskReg[:])
		clear(reg[n*g.elem:])
	}
	if evex {
		v.setMask(inst.Mask, active)
	} else {
		v.set(inst.Args[2].Reg, &maskReg)
	}
	if !g.scatter {
		v.set(data, &reg)
	}
	return done
}

// elementLin is the linear address of element i of a VSIB operand.
func (c *CPU) elementLin(inst *insn.Inst, g gatherForm, index *[maxVec]byte, i int) (uint64, bool) {
	var x uint64
	if g.index == 4 {
		x = uint64(int64(int32(le.Uint32(index[i*4:]))))
	} else {
		x = le.Uint64(index[i*8:])
	}
	m := &inst.Mem
	off := x*uint64(m.Scale) + uint64(m.Disp)
	if m.Base < 16 {
		off += c.GPR[m.Base]
	}
	if inst.AddrSize == 32 {
		off &= 0xffffffff
	}
	return c.segLin(m.Seg, off, g.elem, g.scatter)
}
