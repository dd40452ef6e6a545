package interp

import "ring3/internal/x86"

// Decimal adjustments; not in 64-bit mode (SDM vol. 2A, AAA, AAD, AAM, AAS,
// DAA, DAS).

// ascii is AAA (sign 1) and AAS (sign -1).
func (c *CPU) ascii(sign uint64) {
	ax := c.reg(x86.RAX, 2)
	var f uint64
	if ax&0xf > 9 || c.lazy.af() {
		ax += sign * 0x106
		f = x86.FlagAF | x86.FlagCF
	}
	ax &= 0xff0f
	c.setReg(x86.RAX, 2, ax)
	c.lazy = lazyFlags{res: ax << 56, a: f, kind: lazyBits, sh: 56}
}

func opAAA(c *CPU, o *op) bool { c.ascii(1); return true }
func opAAS(c *CPU, o *op) bool { c.ascii(^uint64(0)); return true }

// decimal is DAA (sign 1) and DAS (sign -1).
func (c *CPU) decimal(sign uint64) {
	al := c.reg(x86.RAX, 1)
	old, cf := al, c.lazy.cf()
	var f uint64
	if al&0xf > 9 || c.lazy.af() {
		al += sign * 6
		f = x86.FlagAF
		if cf || al > 0xff { // carry or borrow out of the byte
			f |= x86.FlagCF
		}
		al &= 0xff
	}
	if old > 0x99 || cf {
		al = (al + sign*0x60) & 0xff
		f |= x86.FlagCF
	} else if sign == 1 {
		f &^= x86.FlagCF
	}
	c.setReg(x86.RAX, 1, al)
	c.lazy = lazyFlags{res: al << 56, a: f, kind: lazyBits, sh: 56}
}

func opDAA(c *CPU, o *op) bool { c.decimal(1); return true }
func opDAS(c *CPU, o *op) bool { c.decimal(^uint64(0)); return true }

func opAAM(c *CPU, o *op) bool {
	base := o.imm & 0xff
	if base == 0 {
		return c.raise(x86.VecDE, 0)
	}
	al := c.reg(x86.RAX, 1)
	ax := al/base<<8 | al%base
	c.setReg(x86.RAX, 2, ax)
	c.setBits(ax<<56, 56, false, false)
	return true
}

func opAAD(c *CPU, o *op) bool {
	al := (c.reg(x86.RAX, 1) + c.reg(x86.RAX|16, 1)*(o.imm&0xff)) & 0xff
	c.setReg(x86.RAX, 2, al)
	c.setBits(al<<56, 56, false, false)
	return true
}
