package interp

import (
	"ring3/internal/cpu"
	"ring3/internal/x86"
)

// opMask cuts an offset to the operand size in bits.
func opMask(opsize int) uint64 {
	if opsize == 64 {
		return ^uint64(0)
	}
	return 1<<opsize - 1
}

// farJump is JMP ptr16:16 to m16:64 (SDM vol. 2A, JMP).
func (c *CPU) farJump(sel uint16, off uint64, opsize int) bool {
	off &= opMask(opsize)
	if !c.protected() {
		if off > uint64(c.Seg[x86.CS].Limit) {
			return c.raise(x86.VecGP, 0)
		}
		c.realSegment(x86.CS, sel)
		c.RIP = off
		c.modeChanged()
		return true
	}
	if null(sel) {
		return c.raise(x86.VecGP, 0)
	}
	d, ok := c.fetchDescriptor(sel, x86.VecGP, 0)
	if !ok {
		return false
	}
	if d.system() {
		return c.farSystem(sel, d, false)
	}
	if !c.checkCode(sel, &d) || !c.checkOffset(d, off, 0) || !c.setAccessed(&d) {
		return false
	}
	c.setCode(sel, d, c.CPL, off)
	c.modeChanged()
	return true
}

// farCall is CALL ptr16:16 to m16:64 (SDM vol. 2A, CALL).
func (c *CPU) farCall(sel uint16, off uint64, opsize int) bool {
	off &= opMask(opsize)
	size := opsize / 8
	s := c.currentStack()
	if !c.protected() {
		if off > uint64(c.Seg[x86.CS].Limit) {
			return c.raise(x86.VecGP, 0)
		}
		if !s.push(uint64(c.Seg[x86.CS].Sel), size) || !s.push(c.RIP, size) {
			return false
		}
		s.commit()
		c.realSegment(x86.CS, sel)
		c.RIP = off
		c.modeChanged()
		return true
	}
	if null(sel) {
		return c.raise(x86.VecGP, 0)
	}
	d, ok := c.fetchDescriptor(sel, x86.VecGP, 0)
	if !ok {
		return false
	}
	if d.system() {
		return c.farSystem(sel, d, true)
	}
	if !c.checkCode(sel, &d) || !c.checkOffset(d, off, 0) ||
		!s.push(uint64(c.Seg[x86.CS].Sel), size) || !s.push(c.RIP, size) || !c.setAccessed(&d) {
		return false
	}
	s.commit()
	c.setCode(sel, d, c.CPL, off)
	c.modeChanged()
	return true
}

// farSystem is a far jump or call to a system descriptor: a call gate, or
// outside long mode a task.
func (c *CPU) farSystem(sel uint16, d descriptor, call bool) bool {
	rpl := uint8(sel) & 3
	bad := func(vec uint8) bool { return c.raise(vec, errSel(sel, 0)) }
	switch typ := d.typ(); {
	case typ == sysCallGate, typ == sysCallGate16 && !c.LongMode():
	case (typ == sysTSSAvail || typ == sysTSS16Avail || typ == sysTaskGate) && !c.LongMode():
		if d.dpl() < c.CPL || d.dpl() < rpl {
			return bad(x86.VecGP)
		}
		if !d.present() {
			return bad(x86.VecNP)
		}
		why := taskJump
		if call {
			why = taskCall
		}
		if typ == sysTaskGate {
			return c.taskSwitch(d.gateSel(), why, 0, true)
		}
		return c.taskSwitch(sel, why, 0, false)
	default:
		return bad(x86.VecGP)
	}
	if d.dpl() < c.CPL || d.dpl() < rpl {
		return bad(x86.VecGP)
	}
	if c.LongMode() {
		found, ok := c.readHigh(sel, &d)
		if !ok {
			return false
		}
		if !found || d.high>>40&0x1f != 0 {
			return bad(x86.VecGP)
		}
	}
	if !d.present() {
		return bad(x86.VecNP)
	}
	if call {
		return c.callGate(d)
	}
	return c.jumpGate(d)
}

// gateTarget checks the code segment of a call gate. A jump may not change
// privilege, a call may gain some.
func (c *CPU) gateTarget(gate *descriptor, jump bool) (d descriptor, off uint64, ok bool) {
	sel := gate.gateSel()
	if null(sel) {
		return d, 0, c.raise(x86.VecGP, 0)
	}
	if d, ok = c.fetchDescriptor(sel, x86.VecGP, 0); !ok {
		return d, 0, false
	}
	switch {
	case d.system() || !d.code() || d.dpl() > c.CPL,
		jump && !d.conforming() && d.dpl() != c.CPL,
		c.LongMode() && (!d.long() || d.big()):
		return d, 0, c.raise(x86.VecGP, errSel(sel, 0))
	case !d.present():
		return d, 0, c.raise(x86.VecNP, errSel(sel, 0))
	}
	off = gate.gateOffset()
	if gate.typ() == sysCallGate16 {
		off &= 0xffff
	}
	return d, off, true
}

func (c *CPU) jumpGate(gate descriptor) bool {
	d, off, ok := c.gateTarget(&gate, true)
	if !ok || !c.checkOffset(d, off, 0) || !c.setAccessed(&d) {
		return false
	}
	c.setCode(gate.gateSel(), d, c.CPL, off)
	c.modeChanged()
	return true
}

// callGate is a call through a call gate (SDM vol. 3A, section 5.8.3 and
// following): parameters are copied to the new stack outside long mode.
func (c *CPU) callGate(gate descriptor) bool {
	d, off, ok := c.gateTarget(&gate, false)
	if !ok {
		return false
	}
	size := 4
	switch {
	case c.LongMode():
		size = 8
	case gate.typ() == sysCallGate16:
		size = 2
	}
	cpl := c.CPL
	s := c.currentStack()
	if !d.conforming() && d.dpl() < c.CPL {
		cpl = d.dpl()
		if s, ok = c.gateStack(&gate, cpl, size); !ok {
			return false
		}
	} else if c.LongMode() {
		// The gate leads to 64-bit code, whose stack is flat.
		s.mask, s.flat = ^uint64(0), true
	}
	if !s.push(uint64(c.Seg[x86.CS].Sel), size) || !s.push(c.RIP, size) ||
		!c.checkOffset(d, off, 0) || !c.setAccessed(&d) {
		return false
	}
	s.commit()
	c.setCode(gate.gateSel(), d, cpl, off)
	c.modeChanged()
	return true
}

// gateStack switches to the stack of privilege cpl and pushes on it the old
// stack pointer and the parameters.
func (c *CPU) gateStack(gate *descriptor, cpl uint8, size int) (s stack, ok bool) {
	old := c.currentStack()
	if c.LongMode() {
		sp, ok := c.tssStack64(cpl, 0)
		if !ok {
			return s, false
		}
		s = c.inner(cpu.NullSS(uint16(cpl), cpl), sp, true, cpl, 0)
		return s, s.push(uint64(old.seg.Sel), 8) && s.push(c.GPR[x86.RSP], 8)
	}
	ss, sp, ok := c.tssStack(cpl, 0)
	if !ok {
		return s, false
	}
	s = c.inner(ss, sp, false, cpl, errSel(ss.Sel, 0))
	params := int(gate.gateParams())
	if !s.room((4 + params) * size) {
		return s, false
	}
	if !s.push(uint64(old.seg.Sel), size) || !s.push(old.sp, size) {
		return s, false
	}
	for i := params - 1; i >= 0; i-- {
		lin, ok := old.lin(old.sp+uint64(i*size), size)
		if !ok {
			return s, false
		}
		v, ok := c.readLin(lin, size)
		if !ok || !s.push(v, size) {
			return s, false
		}
	}
	return s, true
}

// farRet is RETF and RETF imm16 (SDM vol. 2B, RET).
func (c *CPU) farRet(opsize int, popBytes uint16) bool {
	size := opsize / 8
	s := c.currentStack()
	rip, ok := s.pop(size)
	if !ok {
		return false
	}
	cs, ok := s.pop(size)
	if !ok {
		return false
	}
	sel := uint16(cs)
	if !c.protected() {
		if rip > uint64(c.Seg[x86.CS].Limit) {
			return c.raise(x86.VecGP, 0)
		}
		s.skip(uint64(popBytes))
		s.commit()
		c.realSegment(x86.CS, sel)
		c.RIP = rip
		c.modeChanged()
		return true
	}
	d, ok := c.checkReturn(sel)
	if !ok {
		return false
	}
	rpl := uint8(sel) & 3
	code64 := c.LongMode() && d.long()
	s.skip(uint64(popBytes))
	if rpl == c.CPL {
		if !c.checkOffset(d, rip, 0) || !c.setAccessed(&d) {
			return false
		}
		s.commit()
		c.setCode(sel, d, rpl, rip)
		c.modeChanged()
		return true
	}
	rsp, ok := s.pop(size)
	if !ok {
		return false
	}
	sssel, ok := s.pop(size)
	if !ok {
		return false
	}
	var ss cpu.Segment
	if ss, ok = c.checkSS(uint16(sssel), rpl, x86.VecGP, 0, code64); !ok {
		return false
	}
	if !c.checkOffset(d, rip, 0) || !c.setAccessed(&d) {
		return false
	}
	c.Seg[x86.SS] = ss
	// The parameters lie on the outer stack too.
	c.outerSP(rsp+uint64(popBytes), &ss, code64)
	c.setCode(sel, d, rpl, rip)
	c.dropInner()
	c.modeChanged()
	return true
}
