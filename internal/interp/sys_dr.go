package interp

import "ring3/internal/x86"

// Bits of DR6 and DR7 (SDM vol. 3B, sections 18.2.3 and 18.2.4).
const (
	dr6BD    = 1 << 13 // debug register access while GD was set
	dr6BT    = 1 << 15 // task switch
	dr6Ones  = 0xffff0ff0
	dr6Write = dr6BD | dr6BS | dr6BT | 0xf

	dr7GD    = 1 << 13
	dr7Ones  = 1 << 10
	dr7Write = 0xffff03ff | dr7GD
)

// debugAccess checks MOV to or from DRn and resolves the aliases DR4 and DR5.
func (c *CPU) debugAccess(n uint8) (uint8, bool) {
	if n > 7 || (n == 4 || n == 5) && c.CR4&x86.CR4DE != 0 {
		return n, c.raise(x86.VecUD, 0)
	}
	if !c.supervisor() {
		return n, false
	}
	if c.DR[7]&dr7GD != 0 {
		c.DR[6] |= dr6BD
		return n, c.raise(x86.VecDB, 0)
	}
	if n == 4 || n == 5 {
		n += 2
	}
	return n, true
}

func (c *CPU) readDR(n uint8) (uint64, bool) {
	n, ok := c.debugAccess(n)
	if !ok {
		return 0, false
	}
	return c.DR[n], true
}

func (c *CPU) writeDR(n uint8, v uint64) bool {
	n, ok := c.debugAccess(n)
	if !ok {
		return false
	}
	if !c.Code64() {
		v &= 0xffffffff
	}
	if n >= 6 && v>>32 != 0 {
		return c.raise(x86.VecGP, 0)
	}
	switch n {
	case 6:
		v = v&dr6Write | dr6Ones
	case 7:
		v = v&dr7Write | dr7Ones
	}
	c.DR[n] = v
	c.selectTLB()
	return true
}
