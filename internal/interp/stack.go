package interp

import (
	"ring3/internal/x86"
	"ring3/internal/x86/insn"
)

func lowerPUSH(d *decoded, o *op) {
	in := &d.Inst
	setSize(o, uint16(in.OpSize))
	switch in.Args[0].Kind {
	case insn.ArgMem:
		o.fn = opPushMem
	case insn.ArgImm:
		o.fn = opPushImm
	case insn.ArgSeg:
		o.fn = opPushSeg
	default:
		o.fn = opPushReg
	}
	if in.Mode == insn.Mode64 && o.size == 8 {
		switch in.Args[0].Kind {
		case insn.ArgGPR:
			o.fn, o.seg = opPush64, x86.SS
		case insn.ArgImm:
			o.fn, o.seg = opPushImm64, x86.SS
		}
	}
}

func opPush64(c *CPU, o *op) bool {
	sp := c.GPR[x86.RSP] - 8
	if !c.store64(sp, c.GPR[o.dst&15]) {
		return false
	}
	c.GPR[x86.RSP] = sp
	return true
}

func opPushImm64(c *CPU, o *op) bool {
	sp := c.GPR[x86.RSP] - 8
	if !c.store64(sp, o.imm) {
		return false
	}
	c.GPR[x86.RSP] = sp
	return true
}

func opPushReg(c *CPU, o *op) bool { return c.push(c.reg(o.dst, o.size), int(o.size)) }
func opPushImm(c *CPU, o *op) bool { return c.push(o.imm, int(o.size)) }

func opPushMem(c *CPU, o *op) bool {
	v, ok := c.loadMem(o, o.size)
	return ok && c.push(v, int(o.size))
}

// opPushSeg: with a 32-bit operand only 16 bits are written and the rest of
// the slot stays (SDM vol. 2B, PUSH).
func opPushSeg(c *CPU, o *op) bool {
	sel := uint64(c.Seg[o.dst].Sel)
	if o.size != 4 {
		return c.push(sel, int(o.size))
	}
	mask := c.stackMask()
	sp := (c.GPR[x86.RSP] - 4) & mask
	lin, ok := c.segLin(x86.SS, sp, 2, true)
	if !ok || !c.store16(lin, sel) {
		return false
	}
	c.setSP(sp, mask)
	return true
}

func lowerPOP(d *decoded, o *op) {
	in := &d.Inst
	setSize(o, uint16(in.OpSize))
	switch in.Args[0].Kind {
	case insn.ArgMem:
		o.fn = opPopMem
	case insn.ArgSeg:
		endBlock(d, o)
		o.fn = opPopSeg
	default:
		o.fn = opPopReg
		if in.Mode == insn.Mode64 && o.size == 8 {
			o.fn, o.seg = opPop64, x86.SS
		}
	}
}

func opPop64(c *CPU, o *op) bool {
	v, ok := c.load64(c.GPR[x86.RSP])
	if !ok {
		return false
	}
	c.GPR[x86.RSP] += 8
	c.GPR[o.dst&15] = v // after RSP: POP RSP keeps the popped value
	return true
}

func opPopReg(c *CPU, o *op) bool {
	v, ok := c.pop(int(o.size))
	if ok {
		c.setReg(o.dst, o.size, v)
	}
	return ok
}

// opPopMem: the address is computed with RSP already incremented, and the
// write may fault (SDM vol. 2B, POP).
func opPopMem(c *CPU, o *op) bool {
	old := c.GPR[x86.RSP]
	v, ok := c.pop(int(o.size))
	if !ok {
		return false
	}
	if !c.storeMem(o, o.size, v) {
		c.GPR[x86.RSP] = old
		return false
	}
	return true
}

func opPopSeg(c *CPU, o *op) bool {
	c.count(o)
	old := c.GPR[x86.RSP]
	// Only the selector is read from a 32- or 64-bit slot.
	v, ok := c.peek(0, 2)
	if !ok {
		return false
	}
	mask := c.stackMask()
	c.setSP(old+uint64(o.size), mask)
	if !c.loadSegment(o.dst, uint16(v)) {
		c.GPR[x86.RSP] = old
	}
	return false
}

func lowerPUSHA(d *decoded, o *op) { setSize(o, uint16(d.OpSize)); o.fn = opPUSHA }

func opPUSHA(c *CPU, o *op) bool {
	old := c.GPR[x86.RSP]
	for r := uint8(0); r < 8; r++ {
		v := c.reg(r, o.size)
		if r == x86.RSP {
			v = old
		}
		if !c.push(v, int(o.size)) {
			c.GPR[x86.RSP] = old
			return false
		}
	}
	return true
}

func lowerPOPA(d *decoded, o *op) { setSize(o, uint16(d.OpSize)); o.fn = opPOPA }

func opPOPA(c *CPU, o *op) bool {
	var v [8]uint64
	for i := range v {
		var ok bool
		if v[i], ok = c.peek(uint64(i)*uint64(o.size), int(o.size)); !ok {
			return false
		}
	}
	mask := c.stackMask()
	c.setSP(c.GPR[x86.RSP]+8*uint64(o.size), mask)
	for i := range v {
		if r := uint8(7 - i); r != x86.RSP {
			c.setReg(r, o.size, v[i])
		}
	}
	return true
}

func lowerENTER(d *decoded, o *op) {
	setSize(o, uint16(d.OpSize))
	o.disp = uint64(d.Imm2)
	o.fn = opENTER
}

func opENTER(c *CPU, o *op) bool {
	size, level := uint64(o.size), o.disp&31
	mask := c.stackMask()
	old, oldBP := c.GPR[x86.RSP], c.GPR[x86.RBP]
	fail := func() bool {
		c.GPR[x86.RSP] = old
		return false
	}
	if !c.push(c.reg(x86.RBP, o.size), int(size)) {
		return false
	}
	frame := c.GPR[x86.RSP]
	if level > 0 {
		bp := oldBP
		for i := uint64(1); i < level; i++ {
			bp -= size
			lin, ok := c.segLin(x86.SS, bp&mask, int(size), false)
			if !ok {
				return fail()
			}
			v, ok := c.load(lin, o.size)
			if !ok || !c.push(v, int(size)) {
				return fail()
			}
		}
		if !c.push(frame, int(size)) {
			return fail()
		}
	}
	sp := (c.GPR[x86.RSP] - o.imm&0xffff) & mask
	// The new top of the stack must be writable (SDM vol. 2A, ENTER).
	lin, ok := c.segLin(x86.SS, sp, int(size), true)
	if !ok || !c.checkWrite(lin, size) {
		return fail()
	}
	c.setSP(sp, mask)
	c.setReg(x86.RBP, o.size, frame)
	return true
}

func lowerLEAVE(d *decoded, o *op) { setSize(o, uint16(d.OpSize)); o.fn = opLEAVE }

func opLEAVE(c *CPU, o *op) bool {
	mask := c.stackMask()
	sp := c.GPR[x86.RBP] & mask
	lin, ok := c.segLin(x86.SS, sp, int(o.size), false)
	if !ok {
		return false
	}
	v, ok := c.load(lin, o.size)
	if !ok {
		return false
	}
	c.setSP(sp+uint64(o.size), mask)
	c.setReg(x86.RBP, o.size, v)
	return true
}

func lowerPUSHF(d *decoded, o *op) {
	setSize(o, uint16(d.OpSize))
	o.fn = opPUSHF
	o.inst = d
}

func opPUSHF(c *CPU, o *op) bool {
	c.count(o)
	if c.RFLAGS&x86.FlagVM != 0 && c.RFLAGS&x86.FlagIOPL != x86.FlagIOPL {
		return c.raise(x86.VecGP, 0)
	}
	return c.push(c.flags()&^(x86.FlagVM|x86.FlagRF), int(o.size))
}

func lowerPOPF(d *decoded, o *op) {
	setSize(o, uint16(d.OpSize))
	endBlock(d, o)
	o.fn = opPOPF
}

func opPOPF(c *CPU, o *op) bool {
	c.count(o)
	old := c.GPR[x86.RSP]
	v, ok := c.pop(int(o.size))
	if ok && !c.popf(v, int(o.size)) {
		c.GPR[x86.RSP] = old
	}
	return false
}
