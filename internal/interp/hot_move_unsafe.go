package interp

import (
	"unsafe"

	"ring3/internal/x86/insn"
)

// Handlers of the commonest moves in 64-bit mode. The TLB look-up is written
// out in those whose address is a register and a displacement: the call of
// load64 would cost as much as the rest.

// lowerHotMove picks a handler of this file for MOV if there is one.
func lowerHotMove(in *insn.Inst, o *op) bool {
	if in.Mode != insn.Mode64 {
		return false
	}
	a, b := in.Args[0].Kind, in.Args[1].Kind
	simple := o.base < 16 && o.index >= 16 && o.amode == 0
	switch {
	case a == insn.ArgGPR && b == insn.ArgGPR && o.size == 8:
		o.fn = hotMovRR64
	case a == insn.ArgGPR && b == insn.ArgGPR && o.size == 4:
		o.fn = hotMovRR32
	case a == insn.ArgGPR && b == insn.ArgImm && o.size >= 4:
		o.imm = o.imm << o.sh >> o.sh
		o.fn = hotMovRI
	case a == insn.ArgGPR && b == insn.ArgMem && o.size == 8:
		if o.fn = hotLoad64; simple {
			o.fn = hotLoad64Base
		}
	case a == insn.ArgGPR && b == insn.ArgMem && o.size == 4:
		if o.fn = hotLoad32; simple {
			o.fn = hotLoad32Base
		}
	case a == insn.ArgMem && b == insn.ArgGPR && o.size == 8:
		if o.fn = hotStore64; simple {
			o.fn = hotStore64Base
		}
	case a == insn.ArgMem && b == insn.ArgGPR && o.size == 4:
		o.fn = hotStore32
	case a == insn.ArgMem && b == insn.ArgGPR && o.size == 1 && o.src < 16:
		o.fn = hotStore8
	case a == insn.ArgMem && b == insn.ArgImm:
		o.fn = hotStoreImm
	}
	return o.fn != nil
}

func hotMovRR64(c *CPU, o *op) bool { c.GPR[o.dst&15] = c.GPR[o.src&15]; return true }
func hotMovRR32(c *CPU, o *op) bool { c.GPR[o.dst&15] = uint64(uint32(c.GPR[o.src&15])); return true }
func hotMovRI(c *CPU, o *op) bool   { c.GPR[o.dst&15] = o.imm; return true }

func hotLoad64(c *CPU, o *op) bool {
	v, ok := c.load64(c.ea(o))
	if !ok {
		return false
	}
	c.GPR[o.dst&15] = v
	return true
}

func hotLoad64Base(c *CPU, o *op) bool {
	a := c.GPR[o.base&15] + o.disp
	e := &c.tlb.r[a>>12%tlbSize]
	if e.tag != (a+7)&^pageMask {
		return c.loadSlow(o, a)
	}
	c.GPR[o.dst&15] = *(*uint64)(unsafe.Add(e.page, a&pageMask))
	return true
}

func hotLoad32(c *CPU, o *op) bool {
	v, ok := c.load32(c.ea(o))
	if !ok {
		return false
	}
	c.GPR[o.dst&15] = v
	return true
}

func hotLoad32Base(c *CPU, o *op) bool {
	a := c.GPR[o.base&15] + o.disp
	e := &c.tlb.r[a>>12%tlbSize]
	if e.tag != (a+3)&^pageMask {
		return c.loadSlow(o, a)
	}
	c.GPR[o.dst&15] = uint64(*(*uint32)(unsafe.Add(e.page, a&pageMask)))
	return true
}

func (c *CPU) loadSlow(o *op, a uint64) bool {
	v, ok := c.readSlow(a, uint64(o.size))
	if ok {
		c.GPR[o.dst&15] = v
	}
	return ok
}

func hotStore64(c *CPU, o *op) bool { return c.store64(c.ea(o), c.GPR[o.src&15]) }
func hotStore32(c *CPU, o *op) bool { return c.store32(c.ea(o), c.GPR[o.src&15]) }
func hotStore8(c *CPU, o *op) bool  { return c.store8(c.ea(o), c.GPR[o.src&15]) }

func hotStore64Base(c *CPU, o *op) bool {
	a := c.GPR[o.base&15] + o.disp
	e := &c.tlb.w[a>>12%tlbSize]
	if e.tag != (a+7)&^pageMask {
		return c.writeSlow(a, 8, c.GPR[o.src&15])
	}
	*(*uint64)(unsafe.Add(e.page, a&pageMask)) = c.GPR[o.src&15]
	return true
}

func hotStoreImm(c *CPU, o *op) bool { return c.store(c.ea(o), o.size, o.imm) }

// lowerHotExtend picks handlers for MOVZX, MOVSX and MOVSXD to 32 and 64 bits.
func lowerHotExtend(in *insn.Inst, o *op) {
	if in.Mode != insn.Mode64 || o.size < 4 {
		return
	}
	switch {
	case in.Op == insn.OpMOVZX && o.flag&flagMem != 0 && o.kind == 1:
		o.fn = hotLoad8
	case in.Op == insn.OpMOVZX && o.flag&flagMem != 0 && o.kind == 2:
		o.fn = hotLoad16
	case in.Op == insn.OpMOVZX && o.src < 16 && o.flag&flagMem == 0:
		o.imm = 1<<(8*o.kind) - 1
		o.fn = hotMovZX
	case in.Op == insn.OpMOVSXD && o.size == 8 && o.kind == 4 && o.flag&flagMem == 0:
		o.fn = hotMovSXD
	}
}

func hotLoad8(c *CPU, o *op) bool {
	v, ok := c.load8(c.ea(o))
	if !ok {
		return false
	}
	c.GPR[o.dst&15] = v
	return true
}

func hotLoad16(c *CPU, o *op) bool {
	v, ok := c.load16(c.ea(o))
	if !ok {
		return false
	}
	c.GPR[o.dst&15] = v
	return true
}

func hotMovZX(c *CPU, o *op) bool { c.GPR[o.dst&15] = c.GPR[o.src&15] & o.imm; return true }

func hotMovSXD(c *CPU, o *op) bool {
	c.GPR[o.dst&15] = uint64(int64(int32(c.GPR[o.src&15])))
	return true
}
