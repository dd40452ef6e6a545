package interp

import (
	"hash/crc32"
	"math/bits"

	"ring3/internal/x86"
	"ring3/internal/x86/insn"
)

// Operations of bit test, in op.kind.
const (
	btTest = iota
	btSet
	btReset
	btComplement
)

var btKind = map[insn.Op]uint8{
	insn.OpBT: btTest, insn.OpBTS: btSet, insn.OpBTR: btReset, insn.OpBTC: btComplement,
}

func lowerBT(d *decoded, o *op) {
	o.kind = btKind[d.Op]
	o.fn = opBT
	if d.Args[1].Kind == insn.ArgGPR && o.flag&flagMem != 0 {
		o.fn = opBTMem
	}
	if d.Args[1].Kind == insn.ArgGPR {
		o.imm = bitInReg
	}
}

// bitInReg as op.imm says that the bit offset is in register src; no immediate
// is as large.
const bitInReg = 1 << 32

// btBit applies the operation to bit n of v; CF is the old bit, the other
// flags stay.
func (c *CPU) btBit(kind uint8, v, n uint64) uint64 {
	bit := uint64(1) << n
	c.setOne(x86.FlagCF, v&bit != 0)
	switch kind {
	case btSet:
		v |= bit
	case btReset:
		v &^= bit
	case btComplement:
		v ^= bit
	}
	return v
}

func opBT(c *CPU, o *op) bool {
	n := o.imm
	if n == bitInReg {
		n = c.GPR[o.src&15]
	}
	n &= uint64(o.size)*8 - 1
	if o.kind == btTest {
		var v uint64
		if o.flag&flagMem != 0 {
			var ok bool
			if v, ok = c.loadMem(o, o.size); !ok {
				return false
			}
		} else {
			v = c.reg(o.dst, o.size)
		}
		c.btBit(btTest, v, n)
		return true
	}
	before := c.lazy
	for {
		v, ok := c.modRM(o, o.size)
		if !ok {
			return false
		}
		if c.putRM(o, o.size, c.btBit(o.kind, v, n)) {
			return true
		}
		c.lazy = before
	}
}

// opBTMem: a register offset addresses bits around the operand's address
// (SDM vol. 1, section 3.1.1.9, bit strings).
func opBTMem(c *CPU, o *op) bool {
	n := sext(c.GPR[o.src&15], o.size)
	w := uint64(o.size) * 8
	at := *o
	at.disp += uint64(int64(n)>>bits.TrailingZeros64(w)) * uint64(o.size)
	at.imm = n & (w - 1)
	return opBT(c, &at)
}

func lowerScan(d *decoded, o *op) {
	switch d.Op {
	case insn.OpBSF:
		o.fn = opBSF
	case insn.OpBSR:
		o.fn = opBSR
	case insn.OpTZCNT:
		o.fn = opTZCNT
	case insn.OpLZCNT:
		o.fn = opLZCNT
	case insn.OpPOPCNT:
		o.fn = opPOPCNT
	}
}

// BSF and BSR leave the destination alone when the source is zero, the upper
// half of a 64-bit register included; processors of both vendors do.
func opBSF(c *CPU, o *op) bool {
	v, ok := c.rmv(o, o.size)
	if !ok {
		return false
	}
	if v != 0 {
		c.setReg(o.dst, o.size, uint64(bits.TrailingZeros64(v)))
	}
	c.setOne(x86.FlagZF, v == 0)
	return true
}

func opBSR(c *CPU, o *op) bool {
	v, ok := c.rmv(o, o.size)
	if !ok {
		return false
	}
	if v != 0 {
		c.setReg(o.dst, o.size, uint64(63-bits.LeadingZeros64(v)))
	}
	c.setOne(x86.FlagZF, v == 0)
	return true
}

// countFlags: CF when the source is zero, ZF when the result is.
func (c *CPU) countFlags(src, r uint64) {
	v := c.lazy.arith() &^ (x86.FlagCF | x86.FlagZF)
	if src == 0 {
		v |= x86.FlagCF
	}
	if r == 0 {
		v |= x86.FlagZF
	}
	c.setArith(v)
}

func opTZCNT(c *CPU, o *op) bool {
	v, ok := c.rmv(o, o.size)
	if !ok {
		return false
	}
	r := min(uint64(bits.TrailingZeros64(v)), uint64(o.size)*8)
	c.setReg(o.dst, o.size, r)
	c.countFlags(v, r)
	return true
}

func opLZCNT(c *CPU, o *op) bool {
	v, ok := c.rmv(o, o.size)
	if !ok {
		return false
	}
	r := uint64(bits.LeadingZeros64(v)) - (64 - uint64(o.size)*8)
	c.setReg(o.dst, o.size, r)
	c.countFlags(v, r)
	return true
}

func opPOPCNT(c *CPU, o *op) bool {
	v, ok := c.rmv(o, o.size)
	if !ok {
		return false
	}
	c.setReg(o.dst, o.size, uint64(bits.OnesCount64(v)))
	var f uint64
	if v == 0 {
		f = x86.FlagZF
	}
	c.setArith(f)
	return true
}

// lowerBMI handles the VEX-encoded bit manipulation instructions: the first
// operand is the destination, one of the others is r/m.
func lowerBMI(d *decoded, o *op) {
	in := &d.Inst
	first, second := uint8(noReg), uint8(noReg) // registers of operands 2 and 3
	if in.Args[1].Kind == insn.ArgGPR {
		first = regNum(&in.Args[1])
	}
	if in.NArg > 2 && in.Args[2].Kind == insn.ArgGPR {
		second = regNum(&in.Args[2])
	}
	switch in.Op {
	case insn.OpANDN, insn.OpPDEP, insn.OpPEXT: // vvvv, r/m
		o.imm, o.src = uint64(first), second
	case insn.OpBEXTR, insn.OpBZHI: // r/m, vvvv
		if in.Args[2].Kind == insn.ArgImm {
			o.fn = opUndefined // XOP form
			return
		}
		o.imm, o.src = uint64(second), first
	default:
		o.src = first
	}
	switch in.Op {
	case insn.OpANDN:
		o.fn = opANDN
	case insn.OpPDEP:
		o.fn = opPDEP
	case insn.OpPEXT:
		o.fn = opPEXT
	case insn.OpBEXTR:
		o.fn = opBEXTR
	case insn.OpBZHI:
		o.fn = opBZHI
	case insn.OpBLSR:
		o.fn = opBLSR
	case insn.OpBLSMSK:
		o.fn = opBLSMSK
	case insn.OpBLSI:
		o.fn = opBLSI
	}
}

func opANDN(c *CPU, o *op) bool {
	b, ok := c.rmv(o, o.size)
	if !ok {
		return false
	}
	r := ^c.GPR[o.imm&15] & b
	c.setReg(o.dst, o.size, r)
	c.setBits(r<<o.sh, o.sh, false, false)
	return true
}

func opBLSR(c *CPU, o *op) bool {
	v, ok := c.rmv(o, o.size)
	if !ok {
		return false
	}
	r := v & (v - 1)
	c.setReg(o.dst, o.size, r)
	c.setBits(r<<o.sh, o.sh, v == 0, false)
	return true
}

func opBLSMSK(c *CPU, o *op) bool {
	v, ok := c.rmv(o, o.size)
	if !ok {
		return false
	}
	r := v ^ (v - 1)
	c.setReg(o.dst, o.size, r)
	c.setBits(r<<o.sh, o.sh, v == 0, false)
	return true
}

func opBLSI(c *CPU, o *op) bool {
	v, ok := c.rmv(o, o.size)
	if !ok {
		return false
	}
	r := v & -v
	c.setReg(o.dst, o.size, r)
	c.setBits(r<<o.sh, o.sh, v != 0, false)
	return true
}

func opBEXTR(c *CPU, o *op) bool {
	v, ok := c.rmv(o, o.size)
	if !ok {
		return false
	}
	ctl := c.GPR[o.imm&15]
	start, n := ctl&0xff, ctl>>8&0xff
	r := v >> start
	if n < 64 {
		r &= 1<<n - 1
	}
	c.setReg(o.dst, o.size, r)
	c.setBits(r<<o.sh, o.sh, false, false)
	return true
}

func opBZHI(c *CPU, o *op) bool {
	v, ok := c.rmv(o, o.size)
	if !ok {
		return false
	}
	n, w := c.GPR[o.imm&15]&0xff, uint64(o.size)*8
	if n < w {
		v &= 1<<n - 1
	}
	c.setReg(o.dst, o.size, v)
	c.setBits(v<<o.sh, o.sh, n >= w, false)
	return true
}

func opPDEP(c *CPU, o *op) bool {
	mask, ok := c.rmv(o, o.size)
	if !ok {
		return false
	}
	src, r := c.GPR[o.imm&15], uint64(0)
	for ; mask != 0; mask &= mask - 1 {
		if src&1 != 0 {
			r |= mask & -mask
		}
		src >>= 1
	}
	c.setReg(o.dst, o.size, r)
	return true
}

func opPEXT(c *CPU, o *op) bool {
	mask, ok := c.rmv(o, o.size)
	if !ok {
		return false
	}
	src, r := c.reg(uint8(o.imm), o.size), uint64(0)
	for i := uint(0); mask != 0; mask &= mask - 1 {
		if src&(mask&-mask) != 0 {
			r |= 1 << i
		}
		i++
	}
	c.setReg(o.dst, o.size, r)
	return true
}

func lowerBSWAP(d *decoded, o *op) { o.fn = opBSWAP }

// opBSWAP: with a 16-bit operand the result is undefined; processors clear it.
func opBSWAP(c *CPU, o *op) bool {
	v := c.GPR[o.dst&15]
	switch o.size {
	case 8:
		v = bits.ReverseBytes64(v)
	case 4:
		v = uint64(bits.ReverseBytes32(uint32(v)))
	default:
		v = 0
	}
	c.setReg(o.dst, o.size, v)
	return true
}

func lowerMOVBE(d *decoded, o *op) {
	o.fn = opMOVBELoad
	if d.Args[0].Kind == insn.ArgMem {
		o.fn = opMOVBEStore
	}
}

func reverse(v uint64, size uint8) uint64 {
	return bits.ReverseBytes64(v) >> (64 - size*8)
}

func opMOVBELoad(c *CPU, o *op) bool {
	v, ok := c.loadMem(o, o.size)
	if ok {
		c.setReg(o.dst, o.size, reverse(v, o.size))
	}
	return ok
}

func opMOVBEStore(c *CPU, o *op) bool {
	return c.storeMem(o, o.size, reverse(c.reg(o.src, o.size), o.size))
}

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

func lowerCRC32(d *decoded, o *op) {
	o.kind = uint8(d.Args[1].Size / 8) // of the source
	o.fn = opCRC32
}

// opCRC32 accumulates without the inversions of the usual checksum
// (SDM vol. 2A, CRC32).
func opCRC32(c *CPU, o *op) bool {
	v, ok := c.rmv(o, o.kind)
	if !ok {
		return false
	}
	crc := uint32(c.GPR[o.dst&15])
	for range o.kind {
		crc = castagnoli[uint8(crc)^uint8(v)] ^ crc>>8
		v >>= 8
	}
	c.GPR[o.dst&15] = uint64(crc)
	return true
}
