package interp

import (
	"math/bits"

	"ring3/internal/x86"
	"ring3/internal/x86/insn"
)

// Operations of alu, in op.kind.
const (
	aluAdd = iota
	aluOr
	aluAdc
	aluSbb
	aluAnd
	aluSub
	aluXor
	aluCmp
	aluTest
	aluInc
	aluDec
	aluNeg
)

var aluKind = map[insn.Op]uint8{
	insn.OpADD: aluAdd, insn.OpOR: aluOr, insn.OpADC: aluAdc, insn.OpSBB: aluSbb,
	insn.OpAND: aluAnd, insn.OpSUB: aluSub, insn.OpXOR: aluXor, insn.OpCMP: aluCmp,
	insn.OpTEST: aluTest, insn.OpINC: aluInc, insn.OpDEC: aluDec, insn.OpNEG: aluNeg,
}

// alu computes an operation on operands shifted to the top of the word and
// leaves its flags behind. CMP and TEST return a.
func (c *CPU) alu(kind uint8, a, b uint64, sh uint8) uint64 {
	l := &c.lazy
	var r uint64
	switch kind {
	case aluAdd:
		r = a + b
		*l = lazyFlags{r, a, lazyAdd, sh}
	case aluOr:
		r = a | b
		*l = lazyFlags{r, 0, lazyLogic, sh}
	case aluAdc:
		if l.cf() {
			r = a + b + 1<<(sh&63)
			*l = lazyFlags{r, a, lazyAdc, sh}
		} else {
			r = a + b
			*l = lazyFlags{r, a, lazyAdd, sh}
		}
	case aluSbb:
		if l.cf() {
			r = a - b - 1<<(sh&63)
			*l = lazyFlags{r, a, lazySbb, sh}
		} else {
			r = a - b
			*l = lazyFlags{r, a, lazySub, sh}
		}
	case aluAnd:
		r = a & b
		*l = lazyFlags{r, 0, lazyLogic, sh}
	case aluSub:
		r = a - b
		*l = lazyFlags{r, a, lazySub, sh}
	case aluXor:
		r = a ^ b
		*l = lazyFlags{r, 0, lazyLogic, sh}
	case aluCmp:
		*l = lazyFlags{a - b, a, lazySub, sh}
		r = a
	case aluTest:
		*l = lazyFlags{a & b, 0, lazyLogic, sh}
		r = a
	case aluInc, aluDec:
		cf := uint64(0)
		if l.cf() {
			cf = x86.FlagCF
		}
		if kind == aluInc {
			r = a + 1<<(sh&63)
			*l = lazyFlags{r, cf, lazyInc, sh}
		} else {
			r = a - 1<<(sh&63)
			*l = lazyFlags{r, cf, lazyDec, sh}
		}
	case aluNeg:
		r = -a
		*l = lazyFlags{r, 0, lazySub, sh}
	}
	return r
}

// lowerALU picks handlers for the two-operand arithmetic instructions.
func lowerALU(d *decoded, o *op) {
	in := &d.Inst
	o.kind = aluKind[in.Op]
	quiet := o.kind == aluCmp || o.kind == aluTest
	src := insn.ArgNone
	if in.NArg > 1 {
		src = in.Args[1].Kind
	}
	if src == insn.ArgImm {
		o.imm <<= o.sh
	}
	if lowerHotALU(in, o) {
		return
	}
	switch {
	case in.Args[0].Kind == insn.ArgMem && quiet:
		o.fn = opCmpMR
		if src == insn.ArgImm {
			o.fn = opCmpMI
		}
	case in.Args[0].Kind == insn.ArgMem:
		o.fn = opAluMR
		if src == insn.ArgImm || src == insn.ArgNone {
			o.fn = opAluMI
		}
	case src == insn.ArgMem && quiet:
		o.fn = opCmpRM
	case src == insn.ArgMem:
		o.fn = opAluRM
	case src == insn.ArgGPR && quiet:
		o.fn = opCmpRR
	case src == insn.ArgGPR:
		o.fn = opAluRR
	case quiet:
		o.fn = opCmpRI
	default:
		o.fn = opAluRI
	}
}

func opAluRR(c *CPU, o *op) bool {
	a, b := c.reg(o.dst, o.size)<<o.sh, c.reg(o.src, o.size)<<o.sh
	c.setReg(o.dst, o.size, c.alu(o.kind, a, b, o.sh)>>o.sh)
	return true
}

func opAluRI(c *CPU, o *op) bool {
	c.setReg(o.dst, o.size, c.alu(o.kind, c.reg(o.dst, o.size)<<o.sh, o.imm, o.sh)>>o.sh)
	return true
}

func opAluRM(c *CPU, o *op) bool {
	v, ok := c.loadMem(o, o.size)
	if !ok {
		return false
	}
	c.setReg(o.dst, o.size, c.alu(o.kind, c.reg(o.dst, o.size)<<o.sh, v<<o.sh, o.sh)>>o.sh)
	return true
}

func opCmpRR(c *CPU, o *op) bool {
	c.alu(o.kind, c.reg(o.dst, o.size)<<o.sh, c.reg(o.src, o.size)<<o.sh, o.sh)
	return true
}

func opCmpRI(c *CPU, o *op) bool {
	c.alu(o.kind, c.reg(o.dst, o.size)<<o.sh, o.imm, o.sh)
	return true
}

func opCmpRM(c *CPU, o *op) bool {
	v, ok := c.loadMem(o, o.size)
	if !ok {
		return false
	}
	c.alu(o.kind, c.reg(o.dst, o.size)<<o.sh, v<<o.sh, o.sh)
	return true
}

func opCmpMR(c *CPU, o *op) bool {
	v, ok := c.loadMem(o, o.size)
	if !ok {
		return false
	}
	c.alu(o.kind, v<<o.sh, c.reg(o.src, o.size)<<o.sh, o.sh)
	return true
}

func opCmpMI(c *CPU, o *op) bool {
	v, ok := c.loadMem(o, o.size)
	if !ok {
		return false
	}
	c.alu(o.kind, v<<o.sh, o.imm, o.sh)
	return true
}

func opAluMR(c *CPU, o *op) bool {
	return c.aluMem(o, c.reg(o.src, o.size)<<o.sh)
}

func opAluMI(c *CPU, o *op) bool { return c.aluMem(o, o.imm) }

func (c *CPU) aluMem(o *op, b uint64) bool {
	before := c.lazy
	for {
		v, ok := c.modMem(o, o.size)
		if !ok {
			return false
		}
		r := c.alu(o.kind, v<<o.sh, b, o.sh) >> o.sh
		if c.rmwPut(o.size, r, o.flag&flagLock != 0) {
			return true
		}
		c.lazy = before
	}
}

func lowerNot(d *decoded, o *op) { o.fn = opNot }

func opNot(c *CPU, o *op) bool {
	for {
		v, ok := c.modRM(o, o.size)
		if !ok {
			return false
		}
		if c.putRM(o, o.size, ^v) {
			return true
		}
	}
}

// lowerADX: ADCX and ADOX add with one flag only and keep the others.
func lowerADX(d *decoded, o *op) {
	o.kind = 0
	if d.Op == insn.OpADOX {
		o.kind = 1
	}
	o.fn = opADX
}

func opADX(c *CPU, o *op) bool {
	b, ok := c.rmv(o, o.size)
	if !ok {
		return false
	}
	flag, in := uint64(x86.FlagCF), c.lazy.cf()
	if o.kind == 1 {
		flag, in = x86.FlagOF, c.lazy.of()
	}
	cin := uint64(0)
	if in {
		cin = 1 << o.sh
	}
	// Shifted to the top, both additions carry out of bit 63.
	r, c1 := bits.Add64(c.reg(o.dst, o.size)<<o.sh, b<<o.sh, 0)
	r, c2 := bits.Add64(r, cin, 0)
	c.setReg(o.dst, o.size, r>>o.sh)
	c.setOne(flag, c1|c2 != 0)
	return true
}

// Flag instructions.

func opCLC(c *CPU, o *op) bool { c.setOne(x86.FlagCF, false); return true }
func opSTC(c *CPU, o *op) bool { c.setOne(x86.FlagCF, true); return true }
func opCMC(c *CPU, o *op) bool { c.setOne(x86.FlagCF, !c.lazy.cf()); return true }
func opCLD(c *CPU, o *op) bool { c.RFLAGS &^= x86.FlagDF; return true }
func opSTD(c *CPU, o *op) bool { c.RFLAGS |= x86.FlagDF; return true }

func opLAHF(c *CPU, o *op) bool {
	v := c.lazy.arith()&0xff | x86.FlagFixed
	c.setReg(x86.RAX|16, 1, v)
	return true
}

func opSAHF(c *CPU, o *op) bool {
	const low = x86.FlagSF | x86.FlagZF | x86.FlagAF | x86.FlagPF | x86.FlagCF
	c.setArith(c.lazy.arith()&x86.FlagOF | c.reg(x86.RAX|16, 1)&low)
	return true
}

func opSALC(c *CPU, o *op) bool {
	v := uint64(0)
	if c.lazy.cf() {
		v = 0xff
	}
	c.setReg(x86.RAX, 1, v)
	return true
}
