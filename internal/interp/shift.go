package interp

import (
	"math/bits"

	"ring3/internal/x86"
	"ring3/internal/x86/insn"
)

// Operations of shift, in op.kind.
const (
	shROL = iota
	shROR
	shRCL
	shRCR
	shSHL
	shSHR
	shSAR
)

var shiftKind = map[insn.Op]uint8{
	insn.OpROL: shROL, insn.OpROR: shROR, insn.OpRCL: shRCL, insn.OpRCR: shRCR,
	insn.OpSHL: shSHL, insn.OpSHR: shSHR, insn.OpSAR: shSAR,
}

const countCL = 0xff // op.imm: the count is in CL

func lowerShift(d *decoded, o *op) {
	o.kind = shiftKind[d.Op]
	o.fn = opShift
	switch d.Args[1].Kind {
	case insn.ArgGPR:
		o.imm = countCL
	case insn.ArgOne:
		o.imm = 1
	default:
		o.imm = countOf(o.imm, o.size)
	}
	if o.flag&flagMem == 0 && o.imm != countCL && o.imm != 0 && o.size >= 4 {
		lowerHotShift(o)
	}
}

// countOf masks a shift count (SDM vol. 2B, SAL/SAR/SHL/SHR).
func countOf(n uint64, size uint8) uint64 {
	if size == 8 {
		return n & 63
	}
	return n & 31
}

func opShift(c *CPU, o *op) bool {
	n := o.imm
	if n == countCL {
		n = countOf(c.GPR[x86.RCX], o.size)
	}
	before := c.lazy
	for {
		v, ok := c.modRM(o, o.size)
		if !ok {
			return false
		}
		if n != 0 {
			v = c.shift(o.kind, v, n, o.size, o.sh)
		}
		// The result is written even when the count is 0: a 32-bit register
		// is zero-extended.
		if c.putRM(o, o.size, v) {
			return true
		}
		c.lazy = before
	}
}

// shift computes a shift or rotation by n, 1 to 63, and leaves its flags.
// The overflow flag is defined for a count of one; for other counts it is
// computed by the same rule.
func (c *CPU) shift(kind uint8, v, n uint64, size, sh uint8) uint64 {
	w := uint64(size) * 8
	switch kind {
	case shSHL:
		var cf bool
		if n <= w {
			cf = v>>(w-n)&1 != 0
		}
		r := v << n
		top := r >> (w - 1) & 1
		c.setBits(r<<sh, sh, cf, (top != 0) != cf)
		return r
	case shSHR:
		cf := v>>(n-1)&1 != 0
		r := v >> n
		// Of a shift by one this is the sign of the operand.
		of := (r<<1^r)>>(w-1)&1 != 0
		c.setBits(r<<sh, sh, cf, of)
		return r
	case shSAR:
		s := int64(sext(v, size))
		cf := s>>(n-1)&1 != 0
		r := uint64(s >> n)
		c.setBits(r<<sh, sh, cf, false)
		return r
	}
	return c.rotate(kind, v, n, w)
}

// rotate changes CF and OF only.
func (c *CPU) rotate(kind uint8, v, n, w uint64) uint64 {
	mask := ^uint64(0) >> (64 - w)
	old := c.lazy.arith() &^ (x86.FlagCF | x86.FlagOF)
	var r uint64
	var cf, of bool
	switch kind {
	case shROL:
		n %= w
		r = (v<<n | v>>(w-n)) & mask
		if n == 0 {
			r = v
		}
		cf = r&1 != 0
		of = (r>>(w-1)&1 != 0) != cf
	case shROR:
		n %= w
		r = (v>>n | v<<(w-n)) & mask
		if n == 0 {
			r = v
		}
		cf = r>>(w-1)&1 != 0
		of = (r>>(w-1)^r>>(w-2))&1 != 0
	case shRCL:
		r, cf = rotateCarry(v, n%(w+1), w, c.lazy.cf())
		of = (r>>(w-1)&1 != 0) != cf
	case shRCR:
		// A right rotation of w+1 bits by n is a left one by w+1-n.
		r, cf = rotateCarry(v, (w+1-n%(w+1))%(w+1), w, c.lazy.cf())
		of = (r>>(w-1)^r>>(w-2))&1 != 0
	}
	if cf {
		old |= x86.FlagCF
	}
	if of {
		old |= x86.FlagOF
	}
	c.setArith(old)
	return r
}

// rotateCarry rotates CF:v, w+1 bits, left by n.
func rotateCarry(v, n, w uint64, cf bool) (uint64, bool) {
	cin := uint64(0)
	if cf {
		cin = 1
	}
	if n == 0 {
		return v, cf
	}
	mask := ^uint64(0) >> (64 - w)
	r := v<<n | cin<<(n-1)
	if n > 1 {
		r |= v >> (w + 1 - n)
	}
	return r & mask, v>>(w-n)&1 != 0
}

func lowerDoubleShift(d *decoded, o *op) {
	o.fn = opDoubleShift
	o.kind = 0
	if d.Op == insn.OpSHRD {
		o.kind = 1
	}
	if d.Args[2].Kind == insn.ArgGPR {
		o.imm = countCL
	} else {
		o.imm = countOf(o.imm, o.size)
	}
}

func opDoubleShift(c *CPU, o *op) bool {
	n := o.imm
	if n == countCL {
		n = countOf(c.GPR[x86.RCX], o.size)
	}
	v, ok := c.modRM(o, o.size)
	if !ok {
		return false
	}
	if n == 0 {
		c.putRM(o, o.size, v)
		return true
	}
	w := uint64(o.size) * 8
	s := c.reg(o.src, o.size)
	out := n > w // 16 bits only; undefined: this is what AMD processors do
	if out {
		n -= w
		v = s
	}
	var r uint64
	var cf bool
	if o.kind == 0 {
		r = v<<n | s>>(w-n)
		cf = v>>(w-n)&1 != 0
	} else {
		r = v>>n | s<<(w-n)
		cf = v>>(n-1)&1 != 0
	}
	c.setBits(r<<o.sh, o.sh, cf && !out, (r^v)>>(w-1)&1 != 0)
	c.putRM(o, o.size, r)
	return true
}

// SARX, SHLX, SHRX and RORX leave the flags alone.
func lowerShiftX(d *decoded, o *op) {
	o.src = regNum(&d.Args[1])
	switch d.Op {
	case insn.OpRORX:
		o.fn = opRORX
		o.imm = countOf(o.imm, o.size)
		return
	case insn.OpSHLX:
		o.kind = shSHL
	case insn.OpSHRX:
		o.kind = shSHR
	case insn.OpSARX:
		o.kind = shSAR
	}
	o.imm = uint64(d.Args[2].Reg)
	o.fn = opShiftX
}

func opShiftX(c *CPU, o *op) bool {
	v, ok := c.rmv(o, o.size)
	if !ok {
		return false
	}
	n := countOf(c.GPR[o.imm&15], o.size)
	switch o.kind {
	case shSHL:
		v <<= n
	case shSHR:
		v >>= n
	default:
		v = uint64(int64(sext(v, o.size)) >> n)
	}
	c.setReg(o.dst, o.size, v)
	return true
}

func opRORX(c *CPU, o *op) bool {
	v, ok := c.rmv(o, o.size)
	if !ok {
		return false
	}
	if o.size == 8 {
		v = bits.RotateLeft64(v, -int(o.imm))
	} else {
		v = uint64(bits.RotateLeft32(uint32(v), -int(o.imm)))
	}
	c.setReg(o.dst, o.size, v)
	return true
}
