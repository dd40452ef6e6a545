package interp

import (
	"ring3/internal/x86"
	"ring3/internal/x86/insn"
)

// lowerMOV handles all forms of the mnemonic MOV.
func lowerMOV(d *decoded, o *op) {
	in := &d.Inst
	a, b := in.Args[0].Kind, in.Args[1].Kind
	switch {
	case a == insn.ArgSeg || b == insn.ArgSeg || a == insn.ArgCR || b == insn.ArgCR ||
		a == insn.ArgDR || b == insn.ArgDR:
		lowerMovSystem(d, o)
		return
	case lowerHotMove(in, o):
	case a == insn.ArgMem || a == insn.ArgMoffs:
		o.fn = opMovMR
		if b == insn.ArgImm {
			o.fn = opMovMI
		}
	case b == insn.ArgMem || b == insn.ArgMoffs:
		o.fn = opMovRM
	case b == insn.ArgImm:
		o.fn = opMovRI
	default:
		o.fn = opMovRR
	}
}

func opMovRR(c *CPU, o *op) bool {
	c.setReg(o.dst, o.size, c.reg(o.src, o.size))
	return true
}

func opMovRI(c *CPU, o *op) bool {
	c.setReg(o.dst, o.size, o.imm)
	return true
}

func opMovRM(c *CPU, o *op) bool {
	v, ok := c.loadMem(o, o.size)
	if ok {
		c.setReg(o.dst, o.size, v)
	}
	return ok
}

func opMovMR(c *CPU, o *op) bool { return c.storeMem(o, o.size, c.reg(o.src, o.size)) }
func opMovMI(c *CPU, o *op) bool { return c.storeMem(o, o.size, o.imm) }

// lowerExtend handles MOVZX, MOVSX and MOVSXD; kind is the source size.
func lowerExtend(d *decoded, o *op) {
	o.kind = uint8(d.Args[1].Size / 8)
	o.fn = opMOVSX
	if d.Op == insn.OpMOVZX {
		o.fn = opMOVZX
	}
	lowerHotExtend(&d.Inst, o)
}

func opMOVZX(c *CPU, o *op) bool {
	v, ok := c.rmv(o, o.kind)
	if ok {
		c.setReg(o.dst, o.size, v)
	}
	return ok
}

func opMOVSX(c *CPU, o *op) bool {
	v, ok := c.rmv(o, o.kind)
	if ok {
		c.setReg(o.dst, o.size, sext(v, o.kind))
	}
	return ok
}

func lowerLEA(d *decoded, o *op) {
	o.amode &^= amSeg // the address is the offset in the segment
	o.fn = opLEA
	if o.size == 8 && o.amode&^amRIP == 0 {
		o.fn = opLEA64
	}
}

func opLEA64(c *CPU, o *op) bool {
	a := o.disp
	if o.base < 16 {
		a += c.GPR[o.base]
	}
	if o.index < 16 {
		a += c.GPR[o.index] << (o.scale & 63)
	}
	if o.amode != 0 {
		a += c.RIP
	}
	c.GPR[o.dst&15] = a
	return true
}

func opLEA(c *CPU, o *op) bool {
	c.setReg(o.dst, o.size, c.ea(o))
	return true
}

// lowerXCHG: with memory it is locked, LOCK prefix or not.
func lowerXCHG(d *decoded, o *op) {
	if d.Args[0].Kind != insn.ArgMem && d.Args[1].Kind == insn.ArgMem {
		o.src, o.dst = o.dst, o.src
	}
	if o.flag&flagMem != 0 {
		o.flag |= flagLock
	}
	o.fn = opXCHG
}

func opXCHG(c *CPU, o *op) bool {
	for {
		v, ok := c.modRM(o, o.size)
		if !ok {
			return false
		}
		if c.putRM(o, o.size, c.reg(o.src, o.size)) {
			c.setReg(o.src, o.size, v)
			return true
		}
	}
}

func lowerXADD(d *decoded, o *op) { o.fn = opXADD }

func opXADD(c *CPU, o *op) bool {
	before := c.lazy
	for {
		v, ok := c.modRM(o, o.size)
		if !ok {
			return false
		}
		s := c.reg(o.src, o.size)
		r := c.alu(aluAdd, v<<o.sh, s<<o.sh, o.sh) >> o.sh
		// The source is written first: with one register as both operands
		// the sum stays.
		if o.flag&flagMem == 0 {
			c.setReg(o.src, o.size, v)
			c.setReg(o.dst, o.size, r)
			return true
		}
		if c.putRM(o, o.size, r) {
			c.setReg(o.src, o.size, v)
			return true
		}
		c.lazy = before
	}
}

func lowerCMPXCHG(d *decoded, o *op) { o.fn = opCMPXCHG }

// opCMPXCHG writes a destination in memory in any case, as the processor does
// (SDM vol. 2A, CMPXCHG). A register is left alone when it is not equal, its
// upper half included.
func opCMPXCHG(c *CPU, o *op) bool {
	for {
		v, ok := c.modRM(o, o.size)
		if !ok {
			return false
		}
		acc := c.reg(x86.RAX, o.size)
		if v == acc {
			if !c.putRM(o, o.size, c.reg(o.src, o.size)) {
				continue
			}
			c.alu(aluCmp, acc<<o.sh, v<<o.sh, o.sh)
			return true
		}
		if o.flag&flagMem != 0 {
			if !c.putRM(o, o.size, v) {
				continue
			}
		}
		c.alu(aluCmp, acc<<o.sh, v<<o.sh, o.sh)
		c.setReg(x86.RAX, o.size, v)
		return true
	}
}

func lowerCMPXCHG8B(d *decoded, o *op) {
	o.size, o.sh = 8, 0
	o.fn = opCMPXCHG8B
}

func opCMPXCHG8B(c *CPU, o *op) bool {
	for {
		v, ok := c.modMem(o, 8)
		if !ok {
			return false
		}
		want := c.GPR[x86.RDX]<<32 | uint64(uint32(c.GPR[x86.RAX]))
		n := v
		if v == want {
			n = c.GPR[x86.RCX]<<32 | uint64(uint32(c.GPR[x86.RBX]))
		}
		if !c.rmwPut(8, n, o.flag&flagLock != 0) {
			continue
		}
		c.setOne(x86.FlagZF, v == want)
		if v != want {
			c.GPR[x86.RAX], c.GPR[x86.RDX] = uint64(uint32(v)), v>>32
		}
		return true
	}
}

func lowerCMPXCHG16B(d *decoded, o *op) { o.fn = opCMPXCHG16B }

func opCMPXCHG16B(c *CPU, o *op) bool {
	a, ok := c.addr(o, 16, true)
	if !ok {
		return false
	}
	if a&15 != 0 {
		return c.raise(x86.VecGP, 0)
	}
	// The operand does not cross a page, so the check of its first half is
	// that of the whole.
	if _, ok = c.rmw(a, 8); !ok {
		return false
	}
	hi, ok := c.rmw(a+8, 8)
	if !ok {
		return false
	}
	lo, ok := c.rmw(a, 8)
	if !ok {
		return false
	}
	var equal bool
	if c.rm.p == nil { // a device
		if equal = lo == c.GPR[x86.RAX] && hi == c.GPR[x86.RDX]; equal {
			c.store(a, 8, c.GPR[x86.RBX])
			c.store(a+8, 8, c.GPR[x86.RCX])
		}
	} else {
		lo, hi, equal = cas128(c.rm.p, c.GPR[x86.RAX], c.GPR[x86.RDX], c.GPR[x86.RBX], c.GPR[x86.RCX])
		if c.rm.code != noCode {
			c.Mem.Changed(c.rm.code, 16)
		}
	}
	if !equal {
		c.GPR[x86.RAX], c.GPR[x86.RDX] = lo, hi
	}
	c.setOne(x86.FlagZF, equal)
	return true
}

func lowerCMOV(d *decoded, o *op) {
	o.kind = uint8(d.Op - insn.OpCMOVO)
	o.fn = opCMOV
}

// opCMOV reads memory and zero-extends whether the condition holds or not.
func opCMOV(c *CPU, o *op) bool {
	v, ok := c.rmv(o, o.size)
	if !ok {
		return false
	}
	if !c.lazy.cond(o.kind) {
		v = c.reg(o.dst, o.size)
	}
	c.setReg(o.dst, o.size, v)
	return true
}

func lowerSET(d *decoded, o *op) {
	o.kind = uint8(d.Op - insn.OpSETO)
	o.fn = opSET
}

func opSET(c *CPU, o *op) bool {
	v := uint64(0)
	if c.lazy.cond(o.kind) {
		v = 1
	}
	return c.setRM(o, 1, v)
}

func lowerXLAT(d *decoded, o *op) {
	o.fn = opXLAT
	o.seg = d.Mem.Seg
	if !d.SegOverride {
		o.seg = x86.DS
	}
}

func opXLAT(c *CPU, o *op) bool {
	a := (c.GPR[x86.RBX] + c.GPR[x86.RAX]&0xff) & addrMask(o)
	lin, ok := c.segLin(o.seg, a, 1, false)
	if !ok {
		return false
	}
	v, ok := c.load8(lin)
	if ok {
		c.setReg(x86.RAX, 1, v)
	}
	return ok
}

// addrMask is the range of effective addresses.
func addrMask(o *op) uint64 {
	switch {
	case o.flag&flagAddr32 != 0:
		return 0xffffffff
	case o.flag&flagAddr16 != 0:
		return 0xffff
	}
	return ^uint64(0)
}

// MOVNTI and MOVDIRI are plain stores here.
func lowerStore(d *decoded, o *op) { o.fn = opMovMR }

func lowerMOVDIR64B(d *decoded, o *op) { o.fn = opMOVDIR64B }

// opMOVDIR64B moves 64 bytes to ES:dst, which must be aligned.
func opMOVDIR64B(c *CPU, o *op) bool {
	src, ok := c.addr(o, 64, false)
	if !ok {
		return false
	}
	dst, ok := c.segLin(x86.ES, c.GPR[o.dst&15]&addrMask(o), 64, true)
	if !ok {
		return false
	}
	if dst&63 != 0 {
		return c.raise(x86.VecGP, 0)
	}
	var buf [64]byte
	return c.readBytes(src, buf[:]) && c.writeBytes(dst, buf[:])
}
