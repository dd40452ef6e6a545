package interp

import (
	"ring3/internal/x86"
	"ring3/internal/x86/insn"
)

// Descriptor tables and the machine status word.
func lowerTableOps(d *decoded, o *op) {
	endBlock(d, o)
	o.fn = opTable
}

func opTable(c *CPU, o *op) bool {
	c.count(o)
	in := &o.inst.Inst
	switch in.Op {
	case insn.OpLGDT, insn.OpLIDT:
		c.loadTableReg(o)
	case insn.OpSGDT:
		c.storeTableReg(o, c.GDTR.Base, c.GDTR.Limit)
	case insn.OpSIDT:
		c.storeTableReg(o, c.IDTR.Base, c.IDTR.Limit)
	case insn.OpLLDT, insn.OpLTR, insn.OpLMSW:
		if c.CPL != 0 && (in.Op == insn.OpLMSW || !c.mode.real) {
			c.raise(x86.VecGP, 0) // before the operand is looked at
			break
		}
		v, ok := c.rmSelector(o)
		switch {
		case !ok:
		case in.Op == insn.OpLLDT:
			c.lldt(uint16(v))
		case in.Op == insn.OpLTR:
			c.ltr(uint16(v))
		default:
			c.lmsw(uint16(v))
		}
	case insn.OpVERR, insn.OpVERW:
		if v, ok := c.rmSelector(o); ok {
			c.verr(uint16(v), in.Op == insn.OpVERW)
		}
	case insn.OpSLDT, insn.OpSTR, insn.OpSMSW:
		c.storeWord(o)
	case insn.OpINVLPG:
		c.invlpg(c.linOf(o))
	case insn.OpINVPCID:
		c.invpcid(c.reg(o.dst, o.size), c.linOf(o))
	}
	return false
}

// rmSelector reads a 16-bit ModRM operand that is the first one.
func (c *CPU) rmSelector(o *op) (uint64, bool) {
	if o.flag&flagMem != 0 {
		return c.loadMem(o, 2)
	}
	return c.reg(o.dst, 2), true
}

// linOf is the linear address of the memory operand without checks.
func (c *CPU) linOf(o *op) uint64 {
	a := c.ea(o)
	if !c.mode.is64 {
		a = (a + c.Seg[o.seg].Base) & 0xffffffff
	}
	return a
}

func (c *CPU) loadTableReg(o *op) {
	if c.CPL != 0 {
		c.raise(x86.VecGP, 0)
		return
	}
	n := uint8(4)
	if c.mode.is64 {
		n = 8
	}
	a, ok := c.addr(o, int(n)+2, false)
	if !ok {
		return
	}
	limit, ok := c.load16(a)
	if !ok {
		return
	}
	base, ok := c.load(a+2, n)
	if !ok {
		return
	}
	if o.inst.OpSize == 16 && !c.mode.is64 {
		base &= 0xffffff
	}
	if o.inst.Op == insn.OpLGDT {
		c.lgdt(base, uint16(limit))
	} else {
		c.lidt(base, uint16(limit))
	}
}

func (c *CPU) storeTableReg(o *op, base uint64, limit uint16) {
	if !c.umip() {
		return
	}
	n := uint8(4)
	if c.mode.is64 {
		n = 8
	}
	a, ok := c.addr(o, int(n)+2, true)
	if !ok || !c.checkWrite(a, uint64(n)+2) {
		return
	}
	c.store16(a, uint64(limit))
	c.store(a+2, n, base)
}

// storeWord is SLDT, STR and SMSW: 16 bits to memory, the operand size to a
// register.
func (c *CPU) storeWord(o *op) {
	if o.inst.Op != insn.OpSMSW && (c.mode.real || !c.protected()) {
		c.raise(x86.VecUD, 0)
		return
	}
	if !c.umip() {
		return
	}
	v := c.CR0
	switch o.inst.Op {
	case insn.OpSLDT:
		v = uint64(c.LDTR.Sel)
	case insn.OpSTR:
		v = uint64(c.TR.Sel)
	}
	if o.flag&flagMem != 0 {
		c.storeMem(o, 2, v)
		return
	}
	c.setReg(o.dst, o.size, v)
}

// LAR and LSL.
func lowerSelector(d *decoded, o *op) {
	endBlock(d, o)
	o.fn = opSelector
}

func opSelector(c *CPU, o *op) bool {
	c.count(o)
	sel, ok := c.rmv(o, 2)
	if !ok {
		return false
	}
	var v uint32
	if o.inst.Op == insn.OpLAR {
		v, ok = c.lar(uint16(sel))
	} else {
		v, ok = c.lsl(uint16(sel))
	}
	if ok {
		c.setReg(o.dst, o.size, uint64(v))
	}
	return false
}

func lowerARPL(d *decoded, o *op) {
	o.fn = opARPL
}

func opARPL(c *CPU, o *op) bool {
	if c.mode.real {
		return c.raise(x86.VecUD, 0)
	}
	v, ok := uint64(0), true
	if o.flag&flagMem != 0 {
		v, ok = c.loadMem(o, 2)
	} else {
		v = c.reg(o.dst, 2)
	}
	if !ok {
		return false
	}
	rpl := c.reg(o.src, 2) & 3
	lower := v&3 < rpl
	if lower && !c.setRM(o, 2, v&^3|rpl) {
		return false
	}
	c.setOne(x86.FlagZF, lower)
	return true
}
