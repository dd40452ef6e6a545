package interp

import (
	"ring3/internal/x86"
	"ring3/internal/x86/insn"
)

// Branches end their block, so RIP is that of the next instruction when they
// run.

// jump sets RIP to a near target, which must be canonical or within the limit
// of CS (SDM vol. 2A, JMP).
func (c *CPU) jump(target uint64, size uint8) bool {
	if !c.jumpOK(&target, size) {
		return false
	}
	c.RIP = target
	return true
}

// jumpOK truncates target to the operand size and checks it.
func (c *CPU) jumpOK(target *uint64, size uint8) bool {
	if c.mode.is64 {
		if x86.Canonical(*target) {
			return true
		}
		return c.raise(x86.VecGP, 0)
	}
	*target &= 0xffffffff
	if size == 2 {
		*target &= 0xffff
	}
	if *target > uint64(c.Seg[x86.CS].Limit) {
		return c.raise(x86.VecGP, 0)
	}
	return true
}

func lowerJcc(d *decoded, o *op) {
	o.flag |= flagEnd
	o.kind = uint8(d.Op - insn.OpJO)
	o.fn = opJcc
	setSize(o, uint16(d.OpSize))
	if d.Mode == insn.Mode64 {
		lowerHotJcc(o)
	}
}

func opJcc(c *CPU, o *op) bool {
	if c.lazy.cond(o.kind) {
		return c.jump(c.RIP+o.imm, o.size)
	}
	return true
}

func lowerJMP(d *decoded, o *op) {
	o.flag |= flagEnd
	setSize(o, uint16(d.OpSize))
	switch {
	case d.Args[0].Kind == insn.ArgRel && d.Mode == insn.Mode64:
		o.fn = opJMP64
	case d.Args[0].Kind == insn.ArgRel:
		o.fn = opJMP
	default:
		o.src = o.dst
		o.fn = opJMPInd
	}
}

func opJMP64(c *CPU, o *op) bool { c.RIP += o.imm; return true }
func opJMP(c *CPU, o *op) bool   { return c.jump(c.RIP+o.imm, o.size) }

func opJMPInd(c *CPU, o *op) bool {
	v, ok := c.rmv(o, o.size)
	return ok && c.jump(v, o.size)
}

func lowerCALL(d *decoded, o *op) {
	o.flag |= flagEnd
	setSize(o, uint16(d.OpSize))
	switch {
	case d.Args[0].Kind == insn.ArgRel && d.Mode == insn.Mode64:
		o.fn, o.seg = opCALL64, x86.SS
	case d.Args[0].Kind == insn.ArgRel:
		o.fn = opCALL
	default:
		o.src = o.dst
		o.fn = opCALLInd
	}
}

func opCALL64(c *CPU, o *op) bool {
	sp := c.GPR[x86.RSP] - 8
	if !c.store64(sp, c.RIP) {
		return false
	}
	c.GPR[x86.RSP] = sp
	c.RIP += o.imm
	return true
}

func (c *CPU) call(target uint64, size uint8) bool {
	if !c.jumpOK(&target, size) || !c.push(c.RIP, int(size)) {
		return false
	}
	c.RIP = target
	return true
}

func opCALL(c *CPU, o *op) bool { return c.call(c.RIP+o.imm, o.size) }

func opCALLInd(c *CPU, o *op) bool {
	v, ok := c.rmv(o, o.size)
	return ok && c.call(v, o.size)
}

func lowerRET(d *decoded, o *op) {
	o.flag |= flagEnd
	setSize(o, uint16(d.OpSize))
	o.imm &= 0xffff
	o.fn = opRET
	if d.Mode == insn.Mode64 {
		o.fn, o.seg = opRET64, x86.SS
	}
}

func opRET64(c *CPU, o *op) bool {
	v, ok := c.load64(c.GPR[x86.RSP])
	if !ok {
		return false
	}
	if !x86.Canonical(v) {
		return c.raise(x86.VecGP, 0)
	}
	c.GPR[x86.RSP] += 8 + o.imm
	c.RIP = v
	return true
}

func opRET(c *CPU, o *op) bool {
	v, ok := c.peek(0, int(o.size))
	if !ok || !c.jump(v, o.size) {
		return false
	}
	c.setSP(c.GPR[x86.RSP]+uint64(o.size)+o.imm, c.stackMask())
	return true
}

// LOOP, LOOPE, LOOPNE and JCXZ count in CX, ECX or RCX by address size.
func lowerLOOP(d *decoded, o *op) {
	o.flag |= flagEnd
	setSize(o, uint16(d.OpSize))
	switch d.Op {
	case insn.OpLOOP:
		o.kind = 0
	case insn.OpLOOPE:
		o.kind = 1
	case insn.OpLOOPNE:
		o.kind = 2
	}
	o.fn = opLOOP
	if d.Op == insn.OpJCXZ {
		o.fn = opJCXZ
	}
}

// addrSize is the address size in bytes.
func addrSize(o *op) uint8 {
	switch {
	case o.flag&flagAddr32 != 0:
		return 4
	case o.flag&flagAddr16 != 0:
		return 2
	}
	return 8
}

func opLOOP(c *CPU, o *op) bool {
	n := (c.GPR[x86.RCX] - 1) & addrMask(o)
	take := n != 0
	switch o.kind {
	case 1:
		take = take && c.lazy.zf()
	case 2:
		take = take && !c.lazy.zf()
	}
	if take {
		target := c.RIP + o.imm
		if !c.jumpOK(&target, o.size) {
			return false
		}
		c.RIP = target
	}
	c.setReg(x86.RCX, addrSize(o), n)
	return true
}

func opJCXZ(c *CPU, o *op) bool {
	if c.GPR[x86.RCX]&addrMask(o) == 0 {
		return c.jump(c.RIP+o.imm, o.size)
	}
	return true
}

func lowerBOUND(d *decoded, o *op) { o.fn = opBOUND }

func opBOUND(c *CPU, o *op) bool {
	a, ok := c.addr(o, 2*int(o.size), false)
	if !ok {
		return false
	}
	lo, ok := c.load(a, o.size)
	if !ok {
		return false
	}
	hi, ok := c.load(a+uint64(o.size), o.size)
	if !ok {
		return false
	}
	i := int64(sext(c.reg(o.dst, o.size), o.size))
	if i < int64(sext(lo, o.size)) || i > int64(sext(hi, o.size)) {
		return c.raise(x86.VecBR, 0)
	}
	return true
}

func lowerUD(d *decoded, o *op) {
	o.flag |= flagEnd
	o.fn = opUndefined
}
