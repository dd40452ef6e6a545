package interp

import (
	"math/bits"

	"ring3/internal/x86"
	"ring3/internal/x86/insn"
)

func lowerMul(d *decoded, o *op) {
	in := &d.Inst
	switch {
	case in.NArg == 1:
		o.src = o.dst // the operand is r/m; the accumulator is implied
		o.fn = opMul
		if in.Op == insn.OpIMUL {
			o.fn = opImul
		}
	case in.NArg == 3:
		o.fn = opImul3
	default:
		o.fn = opImul2
	}
}

// mulFlags sets CF and OF of a multiplication. SF and PF follow from the low
// half of the product, ZF and AF are clear: they are undefined.
func (c *CPU) mulFlags(lo uint64, sh uint8, over bool) {
	c.setBits(lo<<sh, sh, over, over)
}

// double reads and writes the register pair of MUL and DIV: AX for bytes,
// rDX:rAX otherwise.
func (c *CPU) setDouble(size uint8, hi, lo uint64) {
	if size == 1 {
		c.setReg(x86.RAX, 2, hi<<8|lo&0xff)
		return
	}
	c.setReg(x86.RAX, size, lo)
	c.setReg(x86.RDX, size, hi)
}

func opMul(c *CPU, o *op) bool {
	b, ok := c.rmv(o, o.size)
	if !ok {
		return false
	}
	a := c.reg(x86.RAX, o.size)
	var hi, lo uint64
	if o.size == 8 {
		hi, lo = bits.Mul64(a, b)
	} else {
		lo = a * b
		hi = lo >> (o.size * 8)
	}
	c.setDouble(o.size, hi, lo)
	c.mulFlags(lo, o.sh, hi != 0)
	return true
}

// mulSigned is the signed product of two sign-extended operands of size bytes.
func mulSigned(a, b uint64, size uint8) (hi, lo uint64, over bool) {
	if size < 8 {
		lo = a * b
		return uint64(int64(lo) >> (size * 8)), lo, sext(lo, size) != lo
	}
	hi, lo = bits.Mul64(a, b)
	if int64(a) < 0 {
		hi -= b
	}
	if int64(b) < 0 {
		hi -= a
	}
	return hi, lo, hi != uint64(int64(lo)>>63)
}

func opImul(c *CPU, o *op) bool {
	b, ok := c.rmv(o, o.size)
	if !ok {
		return false
	}
	hi, lo, over := mulSigned(sext(c.reg(x86.RAX, o.size), o.size), sext(b, o.size), o.size)
	c.setDouble(o.size, hi, lo)
	c.mulFlags(lo, o.sh, over)
	return true
}

func opImul2(c *CPU, o *op) bool {
	b, ok := c.rmv(o, o.size)
	if !ok {
		return false
	}
	_, lo, over := mulSigned(sext(c.reg(o.dst, o.size), o.size), sext(b, o.size), o.size)
	c.setReg(o.dst, o.size, lo)
	c.mulFlags(lo, o.sh, over)
	return true
}

func opImul3(c *CPU, o *op) bool {
	b, ok := c.rmv(o, o.size)
	if !ok {
		return false
	}
	_, lo, over := mulSigned(sext(b, o.size), o.imm, o.size)
	c.setReg(o.dst, o.size, lo)
	c.mulFlags(lo, o.sh, over)
	return true
}

func lowerDiv(d *decoded, o *op) {
	o.src = o.dst
	o.fn = opDiv
	if d.Op == insn.OpIDIV {
		o.fn = opIdiv
	}
}

// dividend reads the register pair, zero-extended to 128 bits.
func (c *CPU) dividend(size uint8) (hi, lo uint64) {
	switch size {
	case 1:
		return 0, c.reg(x86.RAX, 2)
	case 8:
		return c.GPR[x86.RDX], c.GPR[x86.RAX]
	}
	return 0, c.reg(x86.RDX, size)<<(size*8) | c.reg(x86.RAX, size)
}

// setQuotient writes the result of a division and leaves the flags alone:
// they are undefined.
func (c *CPU) setQuotient(size uint8, q, r uint64) {
	if size == 1 {
		c.setReg(x86.RAX, 2, r<<8|q&0xff)
		return
	}
	c.setReg(x86.RAX, size, q)
	c.setReg(x86.RDX, size, r)
}

func opDiv(c *CPU, o *op) bool {
	b, ok := c.rmv(o, o.size)
	if !ok {
		return false
	}
	hi, lo := c.dividend(o.size)
	if b == 0 || hi >= b {
		return c.raise(x86.VecDE, 0)
	}
	q, r := bits.Div64(hi, lo, b)
	if o.size < 8 && q>>(o.size*8) != 0 {
		return c.raise(x86.VecDE, 0)
	}
	c.setQuotient(o.size, q, r)
	return true
}

func opIdiv(c *CPU, o *op) bool {
	b, ok := c.rmv(o, o.size)
	if !ok {
		return false
	}
	hi, lo := c.dividend(o.size)
	switch o.size {
	case 1:
		lo = sext(lo, 2)
	case 2:
		lo = sext(lo, 4)
	}
	if o.size < 8 {
		hi = uint64(int64(lo) >> 63)
	}
	b = sext(b, o.size)
	negN, negD := int64(hi) < 0, int64(b) < 0
	if negN {
		var borrow uint64
		lo, borrow = bits.Sub64(0, lo, 0)
		hi, _ = bits.Sub64(0, hi, borrow)
	}
	if negD {
		b = -b
	}
	if b == 0 || hi >= b {
		return c.raise(x86.VecDE, 0)
	}
	q, r := bits.Div64(hi, lo, b)
	// The quotient must fit: up to 2^(n-1) when negative, else less.
	limit := uint64(1) << (o.size*8 - 1)
	if negN == negD {
		limit--
	}
	if q > limit {
		return c.raise(x86.VecDE, 0)
	}
	if negN != negD {
		q = -q
	}
	if negN {
		r = -r
	}
	c.setQuotient(o.size, q, r)
	return true
}

func lowerMulx(d *decoded, o *op) {
	o.imm = uint64(d.Args[1].Reg) // second destination: the low half
	o.src = regNum(&d.Args[2])
	o.fn = opMulx
}

func opMulx(c *CPU, o *op) bool {
	b, ok := c.rmv(o, o.size)
	if !ok {
		return false
	}
	a := c.reg(x86.RDX, o.size)
	var hi, lo uint64
	if o.size == 8 {
		hi, lo = bits.Mul64(a, b)
	} else {
		lo = a * b
		hi = lo >> 32
	}
	c.setReg(uint8(o.imm), o.size, lo)
	c.setReg(o.dst, o.size, hi) // last: it wins when both are the same register
	return true
}

// CBW, CWDE, CDQE.
func lowerCBW(d *decoded, o *op) { setSize(o, uint16(d.OpSize)); o.fn = opCBW }

func opCBW(c *CPU, o *op) bool {
	c.setReg(x86.RAX, o.size, sext(c.reg(x86.RAX, o.size/2), o.size/2))
	return true
}

// CWD, CDQ, CQO.
func lowerCWD(d *decoded, o *op) { setSize(o, uint16(d.OpSize)); o.fn = opCWD }

func opCWD(c *CPU, o *op) bool {
	c.setReg(x86.RDX, o.size, uint64(int64(sext(c.reg(x86.RAX, o.size), o.size))>>63))
	return true
}
