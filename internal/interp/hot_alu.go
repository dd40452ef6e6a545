package interp

import "ring3/internal/x86/insn"

// Handlers of the commonest arithmetic: 64-bit mode, operands of 32 and 64
// bits. Shifting the operands to the top of the word, as the lazy flags want
// it, makes one handler of both sizes: shifting back zero-extends.

// hotRR and hotRI by alu operation.
var (
	hotRR = [...]func(*CPU, *op) bool{
		aluAdd: hotAddRR, aluOr: hotOrRR, aluAnd: hotAndRR, aluSub: hotSubRR, aluXor: hotXorRR,
		aluCmp: hotCmpRR, aluTest: hotTestRR,
	}
	hotRI = [...]func(*CPU, *op) bool{
		aluAdd: hotAddRI, aluOr: hotOrRI, aluAnd: hotAndRI, aluSub: hotSubRI, aluXor: hotXorRI,
		aluCmp: hotCmpRI, aluTest: hotTestRI,
	}
)

// lowerHotALU picks a handler of this file if there is one.
func lowerHotALU(in *insn.Inst, o *op) bool {
	if in.Mode != insn.Mode64 {
		return false
	}
	quiet := o.kind == aluCmp || o.kind == aluTest
	if in.Args[0].Kind == insn.ArgMem {
		if !quiet {
			return false
		}
		o.fn = hotCmpMR
		if in.Args[1].Kind == insn.ArgImm {
			o.fn = hotCmpMI
		}
		return o.src < 16
	}
	// Comparisons do not write, so the small sizes need nothing special
	// unless AH, CH, DH or BH is involved.
	if o.size < 4 && (!quiet || o.dst >= 16 || o.src >= 16) || in.NArg < 2 {
		return false
	}
	switch in.Args[1].Kind {
	case insn.ArgGPR:
		o.fn = hotRR[o.kind]
	case insn.ArgImm:
		o.fn = hotRI[o.kind]
	case insn.ArgMem:
		if o.fn = hotAluRM; quiet {
			o.fn = hotCmpRM
		}
	}
	return o.fn != nil
}

func hotAddRR(c *CPU, o *op) bool {
	a := c.GPR[o.dst&15] << (o.sh & 63)
	r := a + c.GPR[o.src&15]<<(o.sh&63)
	c.lazy = lazyFlags{r, a, lazyAdd, o.sh}
	c.GPR[o.dst&15] = r >> (o.sh & 63)
	return true
}

func hotAddRI(c *CPU, o *op) bool {
	a := c.GPR[o.dst&15] << (o.sh & 63)
	r := a + o.imm
	c.lazy = lazyFlags{r, a, lazyAdd, o.sh}
	c.GPR[o.dst&15] = r >> (o.sh & 63)
	return true
}

func hotSubRR(c *CPU, o *op) bool {
	a := c.GPR[o.dst&15] << (o.sh & 63)
	r := a - c.GPR[o.src&15]<<(o.sh&63)
	c.lazy = lazyFlags{r, a, lazySub, o.sh}
	c.GPR[o.dst&15] = r >> (o.sh & 63)
	return true
}

func hotSubRI(c *CPU, o *op) bool {
	a := c.GPR[o.dst&15] << (o.sh & 63)
	r := a - o.imm
	c.lazy = lazyFlags{r, a, lazySub, o.sh}
	c.GPR[o.dst&15] = r >> (o.sh & 63)
	return true
}

func hotAndRR(c *CPU, o *op) bool {
	r := (c.GPR[o.dst&15] & c.GPR[o.src&15]) << (o.sh & 63)
	c.lazy = lazyFlags{r, 0, lazyLogic, o.sh}
	c.GPR[o.dst&15] = r >> (o.sh & 63)
	return true
}

func hotAndRI(c *CPU, o *op) bool {
	r := c.GPR[o.dst&15] << (o.sh & 63) & o.imm
	c.lazy = lazyFlags{r, 0, lazyLogic, o.sh}
	c.GPR[o.dst&15] = r >> (o.sh & 63)
	return true
}

func hotOrRR(c *CPU, o *op) bool {
	r := (c.GPR[o.dst&15] | c.GPR[o.src&15]) << (o.sh & 63)
	c.lazy = lazyFlags{r, 0, lazyLogic, o.sh}
	c.GPR[o.dst&15] = r >> (o.sh & 63)
	return true
}

func hotOrRI(c *CPU, o *op) bool {
	r := c.GPR[o.dst&15]<<(o.sh&63) | o.imm
	c.lazy = lazyFlags{r, 0, lazyLogic, o.sh}
	c.GPR[o.dst&15] = r >> (o.sh & 63)
	return true
}

func hotXorRR(c *CPU, o *op) bool {
	r := (c.GPR[o.dst&15] ^ c.GPR[o.src&15]) << (o.sh & 63)
	c.lazy = lazyFlags{r, 0, lazyLogic, o.sh}
	c.GPR[o.dst&15] = r >> (o.sh & 63)
	return true
}

func hotXorRI(c *CPU, o *op) bool {
	r := c.GPR[o.dst&15]<<(o.sh&63) ^ o.imm
	c.lazy = lazyFlags{r, 0, lazyLogic, o.sh}
	c.GPR[o.dst&15] = r >> (o.sh & 63)
	return true
}

func hotCmpRR(c *CPU, o *op) bool {
	a := c.GPR[o.dst&15] << (o.sh & 63)
	c.lazy = lazyFlags{a - c.GPR[o.src&15]<<(o.sh&63), a, lazySub, o.sh}
	return true
}

func hotCmpRI(c *CPU, o *op) bool {
	a := c.GPR[o.dst&15] << (o.sh & 63)
	c.lazy = lazyFlags{a - o.imm, a, lazySub, o.sh}
	return true
}

func hotTestRR(c *CPU, o *op) bool {
	c.lazy = lazyFlags{(c.GPR[o.dst&15] & c.GPR[o.src&15]) << (o.sh & 63), 0, lazyLogic, o.sh}
	return true
}

func hotTestRI(c *CPU, o *op) bool {
	c.lazy = lazyFlags{c.GPR[o.dst&15] << (o.sh & 63) & o.imm, 0, lazyLogic, o.sh}
	return true
}

func hotAluRM(c *CPU, o *op) bool {
	v, ok := c.load(c.ea(o), o.size)
	if !ok {
		return false
	}
	sh := o.sh & 63
	c.GPR[o.dst&15] = c.alu(o.kind, c.GPR[o.dst&15]<<sh, v<<sh, sh) >> sh
	return true
}

func hotCmpRM(c *CPU, o *op) bool {
	v, ok := c.load(c.ea(o), o.size)
	if !ok {
		return false
	}
	c.quiet(o, c.GPR[o.dst&15]<<(o.sh&63), v<<(o.sh&63))
	return true
}

func hotCmpMR(c *CPU, o *op) bool {
	v, ok := c.load(c.ea(o), o.size)
	if !ok {
		return false
	}
	c.quiet(o, v<<(o.sh&63), c.GPR[o.src&15]<<(o.sh&63))
	return true
}

func hotCmpMI(c *CPU, o *op) bool {
	v, ok := c.load(c.ea(o), o.size)
	if !ok {
		return false
	}
	c.quiet(o, v<<(o.sh&63), o.imm)
	return true
}

// quiet is CMP or TEST.
func (c *CPU) quiet(o *op, a, b uint64) {
	if o.kind == aluCmp {
		c.lazy = lazyFlags{a - b, a, lazySub, o.sh}
	} else {
		c.lazy = lazyFlags{a & b, 0, lazyLogic, o.sh}
	}
}

// lowerHotShift picks a handler for shifts of a 32- or 64-bit register by a
// constant other than 0.
func lowerHotShift(o *op) {
	switch o.kind {
	case shSHL:
		o.fn = hotSHL
	case shSHR:
		o.fn = hotSHR
	case shSAR:
		o.fn = hotSAR
	}
}

func hotSHL(c *CPU, o *op) bool {
	a := c.GPR[o.dst&15] << (o.sh & 63)
	r := a << (o.imm & 63)
	cf := a >> (64 - o.imm&63) & 1
	// CF is bit 0 of the flags, OF bit 11: the carry differs from the sign.
	c.lazy = lazyFlags{r, cf | (cf^r>>63)<<11, lazyBits, o.sh}
	c.GPR[o.dst&15] = r >> (o.sh & 63)
	return true
}

func hotSHR(c *CPU, o *op) bool {
	a := c.GPR[o.dst&15] << (o.sh & 63) >> (o.sh & 63)
	r := a >> (o.imm & 63)
	cf := a >> ((o.imm - 1) & 63) & 1
	top := r << (o.sh & 63)
	c.lazy = lazyFlags{top, cf | (top^top<<1)>>63<<11, lazyBits, o.sh}
	c.GPR[o.dst&15] = r
	return true
}

func hotSAR(c *CPU, o *op) bool {
	a := int64(c.GPR[o.dst&15]<<(o.sh&63)) >> (o.sh & 63)
	r := uint64(a>>(o.imm&63)) << (o.sh & 63)
	c.lazy = lazyFlags{r, uint64(a>>((o.imm-1)&63)) & 1, lazyBits, o.sh}
	c.GPR[o.dst&15] = r >> (o.sh & 63)
	return true
}
