package interp

import (
	"ring3/internal/cpu"
	"ring3/internal/x86"
)

// Flags that IRET and POPF may load at any privilege.
const flagsUser = x86.FlagsArith | x86.FlagTF | x86.FlagDF | x86.FlagNT | x86.FlagAC | x86.FlagID

// iret returns from an interrupt or exception handler (SDM vol. 2A, IRET).
// opsize is 16, 32 or 64.
func (c *CPU) iret(opsize int) bool {
	// The NMI window opens even when IRET faults (SDM vol. 3A, section 6.7.1).
	c.NMIBlocked = false
	if !c.protected() {
		return c.iretReal(opsize)
	}
	if c.RFLAGS&x86.FlagNT != 0 {
		if c.LongMode() {
			return c.raise(x86.VecGP, 0)
		}
		return c.taskReturn()
	}
	size := opsize / 8
	s := c.currentStack()
	rip, ok1 := s.pop(size)
	if !ok1 {
		return false
	}
	cs, ok1 := s.pop(size)
	if !ok1 {
		return false
	}
	flags, ok1 := s.pop(size)
	if !ok1 {
		return false
	}
	if flags&x86.FlagVM != 0 && opsize == 32 && !c.LongMode() && c.CPL == 0 {
		// Virtual-8086 mode is not part of this CPU: no 64-bit kernel enters it.
		return c.raise(x86.VecGP, 0)
	}
	sel := uint16(cs)
	d, ok := c.checkReturn(sel)
	if !ok {
		return false
	}
	rpl := uint8(sel) & 3
	code64 := c.LongMode() && d.long()
	// 64-bit mode pops a stack pointer whatever the privilege.
	switchStack := rpl > c.CPL || c.Code64()
	var ss cpu.Segment
	var rsp uint64
	if switchStack {
		if rsp, ok = s.pop(size); !ok {
			return false
		}
		sssel, ok := s.pop(size)
		if !ok {
			return false
		}
		if ss, ok = c.checkSS(uint16(sssel), rpl, x86.VecGP, 0, code64); !ok {
			return false
		}
	}
	if !c.checkOffset(d, rip, 0) || !c.setAccessed(&d) {
		return false
	}
	mask := uint64(flagsUser)
	if opsize != 16 {
		mask |= x86.FlagRF
	} else {
		mask &= 0xffff
	}
	if c.CPL <= c.iopl() {
		mask |= x86.FlagIF
	}
	if c.CPL == 0 {
		mask |= x86.FlagIOPL
		if opsize != 16 {
			mask |= x86.FlagVIF | x86.FlagVIP
		}
	}
	old := c.flags()
	outer := rpl > c.CPL
	if switchStack {
		c.Seg[x86.SS] = ss
		c.outerSP(rsp, &ss, code64)
	} else {
		s.commit()
	}
	c.setCode(sel, d, rpl, rip)
	c.setFlags(old&^mask | flags&mask)
	if outer {
		c.dropInner()
	}
	c.modeChanged()
	return true
}

// checkReturn checks the code segment that IRET or RET returns to.
func (c *CPU) checkReturn(sel uint16) (d descriptor, ok bool) {
	if null(sel) {
		return d, c.raise(x86.VecGP, 0)
	}
	if d, ok = c.fetchDescriptor(sel, x86.VecGP, 0); !ok {
		return d, false
	}
	rpl := uint8(sel) & 3
	switch {
	case d.system() || !d.code() || rpl < c.CPL,
		d.conforming() && d.dpl() > rpl,
		!d.conforming() && d.dpl() != rpl,
		c.LongMode() && d.long() && d.big():
		return d, c.raise(x86.VecGP, errSel(sel, 0))
	case !d.present():
		return d, c.raise(x86.VecNP, errSel(sel, 0))
	}
	return d, true
}

// dropInner makes the data segment registers null that the new privilege level
// may not use (SDM vol. 2A, IRET, "return to outer privilege level").
func (c *CPU) dropInner() {
	for _, seg := range [...]uint8{x86.ES, x86.DS, x86.FS, x86.GS} {
		s := &c.Seg[seg]
		if s.Unusable || null(s.Sel) {
			continue
		}
		conforming := s.Attr&cpu.AttrCode != 0 && s.Attr&cpu.AttrDown != 0
		if !conforming && s.DPL() < c.CPL {
			c.nullSegment(seg, 0)
		}
	}
}

func (c *CPU) iopl() uint8 { return uint8(c.RFLAGS>>12) & 3 }

func (c *CPU) iretReal(opsize int) bool {
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
	flags, ok := s.pop(size)
	if !ok {
		return false
	}
	if rip > uint64(c.Seg[x86.CS].Limit) {
		return c.raise(x86.VecGP, 0)
	}
	mask := uint64(flagsUser | x86.FlagIF | x86.FlagIOPL | x86.FlagRF)
	if opsize == 16 {
		mask &= 0xffff
	}
	s.commit()
	c.realSegment(x86.CS, uint16(cs))
	c.RIP = rip
	c.setFlags(c.flags()&^mask | flags&mask)
	c.modeChanged()
	return true
}
