package interp

import "ring3/internal/x86/insn"

// Conditional branches in 64-bit mode, alone and fused with the comparison
// before them.

func lowerHotJcc(o *op) {
	switch o.kind {
	case 4:
		o.fn = hotJE
	case 5:
		o.fn = hotJNE
	default:
		o.fn = hotJcc
	}
}

func hotJE(c *CPU, o *op) bool {
	if c.lazy.zf() {
		c.RIP += o.imm
	}
	return true
}

func hotJNE(c *CPU, o *op) bool {
	if !c.lazy.zf() {
		c.RIP += o.imm
	}
	return true
}

func hotJcc(c *CPU, o *op) bool {
	if c.lazy.cond(o.kind) {
		c.RIP += o.imm
	}
	return true
}

// fuse turns the register comparison prev and the branch o behind it into one
// op. The flags are left behind all the same.
func fuse(prev, o *op, in *insn.Inst) bool {
	if in.Args[0].Kind != insn.ArgGPR || o.pre != 0 {
		return false
	}
	reg := in.Args[1].Kind == insn.ArgGPR
	imm := in.Args[1].Kind == insn.ArgImm
	if prev.size < 4 && (prev.dst >= 16 || reg && prev.src >= 16) {
		return false
	}
	switch {
	case in.Op == insn.OpCMP && reg:
		prev.fn = hotCmpRRJcc
	case in.Op == insn.OpCMP && imm:
		prev.fn = hotCmpRIJcc
	case in.Op == insn.OpTEST && reg:
		prev.fn = hotTestRRJcc
	default:
		return false
	}
	prev.kind = o.kind
	prev.disp = o.imm // displacement of the branch
	return true
}

func hotCmpRRJcc(c *CPU, o *op) bool {
	a := c.GPR[o.dst&15] << (o.sh & 63)
	b := c.GPR[o.src&15] << (o.sh & 63)
	c.lazy = lazyFlags{a - b, a, lazySub, o.sh}
	if compare(c, o.kind, a, b) {
		c.RIP += o.disp
	}
	return true
}

func hotCmpRIJcc(c *CPU, o *op) bool {
	a := c.GPR[o.dst&15] << (o.sh & 63)
	c.lazy = lazyFlags{a - o.imm, a, lazySub, o.sh}
	if compare(c, o.kind, a, o.imm) {
		c.RIP += o.disp
	}
	return true
}

// compare is condition cc after comparing a and b, whose flags c.lazy has.
func compare(c *CPU, cc uint8, a, b uint64) bool {
	switch cc {
	case 2:
		return a < b
	case 3:
		return a >= b
	case 4:
		return a == b
	case 5:
		return a != b
	case 6:
		return a <= b
	case 7:
		return a > b
	case 12:
		return int64(a) < int64(b)
	case 13:
		return int64(a) >= int64(b)
	case 14:
		return int64(a) <= int64(b)
	case 15:
		return int64(a) > int64(b)
	}
	return c.lazy.cond(cc)
}

func hotTestRRJcc(c *CPU, o *op) bool {
	r := (c.GPR[o.dst&15] & c.GPR[o.src&15]) << (o.sh & 63)
	c.lazy = lazyFlags{r, 0, lazyLogic, o.sh}
	var take bool
	switch o.kind {
	case 4, 6: // CF is clear, so BE is E
		take = r == 0
	case 5, 7:
		take = r != 0
	case 8, 12: // OF is clear, so L is S
		take = int64(r) < 0
	case 9, 13:
		take = int64(r) >= 0
	case 14:
		take = int64(r) <= 0
	case 15:
		take = int64(r) > 0
	default:
		take = c.lazy.cond(o.kind)
	}
	if take {
		c.RIP += o.disp
	}
	return true
}
