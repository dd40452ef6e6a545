package interp

import (
	"math/bits"

	"ring3/internal/x86"
)

// The status flags are lazy: an instruction leaves its result and one operand
// behind, and a flag is computed from them when somebody asks. Both are shifted
// to the top of the word, so that carry, zero, sign and overflow do not depend
// on the operand size; parity and auxiliary carry shift back.
type lazyFlags struct {
	res  uint64
	a    uint64
	kind lazyKind
	sh   uint8 // 64 less the operand size in bits
}

type lazyKind uint8

const (
	lazyRaw   lazyKind = iota // a holds all six flags
	lazyBits                  // a holds CF, AF and OF; the others follow from res
	lazyAdd                   // res = a + b
	lazyAdc                   // res = a + b + 1
	lazySub                   // res = a - b
	lazySbb                   // res = a - b - 1
	lazyLogic                 // CF = AF = OF = 0
	lazyInc                   // a is CF
	lazyDec                   // a is CF
)

// operand b of the addition or subtraction that left the flags.
func (l *lazyFlags) b() uint64 {
	switch l.kind {
	case lazyAdd:
		return l.res - l.a
	case lazyAdc:
		return l.res - l.a - 1<<l.sh
	case lazySub:
		return l.a - l.res
	default:
		return l.a - l.res - 1<<l.sh
	}
}

func (l *lazyFlags) cf() bool {
	switch l.kind {
	case lazySub:
		return l.res > l.a
	case lazyLogic:
		return false
	case lazyAdd:
		return l.res < l.a
	case lazyAdc:
		return l.res <= l.a
	case lazySbb:
		return l.res >= l.a
	}
	return l.a&x86.FlagCF != 0
}

func (l *lazyFlags) zf() bool {
	if l.kind == lazyRaw {
		return l.a&x86.FlagZF != 0
	}
	return l.res == 0
}

func (l *lazyFlags) sf() bool {
	if l.kind == lazyRaw {
		return l.a&x86.FlagSF != 0
	}
	return int64(l.res) < 0
}

func (l *lazyFlags) of() bool {
	switch l.kind {
	case lazySub, lazySbb:
		return int64((l.a^l.b())&(l.a^l.res)) < 0
	case lazyLogic:
		return false
	case lazyAdd, lazyAdc:
		return int64((l.a^l.res)&(l.b()^l.res)) < 0
	case lazyInc:
		return l.res == 1<<63
	case lazyDec:
		return l.res == 1<<63-1<<l.sh
	}
	return l.a&x86.FlagOF != 0
}

func (l *lazyFlags) pf() bool {
	if l.kind == lazyRaw {
		return l.a&x86.FlagPF != 0
	}
	return bits.OnesCount8(uint8(l.res>>l.sh))&1 == 0
}

func (l *lazyFlags) af() bool {
	switch l.kind {
	case lazyLogic:
		return false
	case lazyInc:
		return l.res>>l.sh&0xf == 0
	case lazyDec:
		return l.res>>l.sh&0xf == 0xf
	case lazyRaw, lazyBits:
		return l.a&x86.FlagAF != 0
	}
	return (l.a^l.b()^l.res)>>l.sh&0x10 != 0
}

// arith is the six flags as RFLAGS bits.
func (l *lazyFlags) arith() uint64 {
	if l.kind == lazyRaw {
		return l.a
	}
	var v uint64
	if l.cf() {
		v |= x86.FlagCF
	}
	if l.pf() {
		v |= x86.FlagPF
	}
	if l.af() {
		v |= x86.FlagAF
	}
	if l.res == 0 {
		v |= x86.FlagZF
	}
	if int64(l.res) < 0 {
		v |= x86.FlagSF
	}
	if l.of() {
		v |= x86.FlagOF
	}
	return v
}

// cond is condition code cc of Jcc, SETcc and CMOVcc (SDM vol. 1, appendix B).
func (l *lazyFlags) cond(cc uint8) bool {
	var v bool
	switch cc >> 1 & 7 {
	case 0:
		v = l.of()
	case 1:
		v = l.cf()
	case 2:
		v = l.zf()
	case 3:
		v = l.zf() || l.cf()
	case 4:
		v = l.sf()
	case 5:
		v = l.pf()
	case 6:
		v = l.less()
	case 7:
		v = l.zf() || l.less()
	}
	return v != (cc&1 != 0)
}

func (l *lazyFlags) less() bool {
	if l.kind == lazySub {
		return int64(l.a) < int64(l.a-l.res)
	}
	return l.sf() != l.of()
}

// flags is RFLAGS with the status flags computed.
func (c *CPU) flags() uint64 {
	if !c.active {
		return c.RFLAGS
	}
	return c.RFLAGS&^x86.FlagsArith | c.lazy.arith()
}

// setFlags sets RFLAGS. All changes of RFLAGS outside the status flags must go
// through it or be followed by modeChanged: AC selects the translations that
// data accesses may use.
func (c *CPU) setFlags(v uint64) {
	v = v&x86.FlagsAll | x86.FlagFixed
	changed := (v ^ c.RFLAGS) & x86.FlagAC
	c.RFLAGS = v
	c.lazy = lazyFlags{a: v & x86.FlagsArith, kind: lazyRaw}
	if changed != 0 {
		c.selectTLB()
	}
}

func (c *CPU) setArith(v uint64) {
	c.lazy = lazyFlags{a: v & x86.FlagsArith, kind: lazyRaw}
}

// setOne sets one status flag and keeps the others.
func (c *CPU) setOne(flag uint64, on bool) {
	v := c.lazy.arith() &^ flag
	if on {
		v |= flag
	}
	c.setArith(v)
}

// setBits leaves the flags of a shift or similar operation behind: carry and
// overflow as given, AF clear, the others from the result (shifted to the top).
func (c *CPU) setBits(res uint64, sh uint8, cf, of bool) {
	var a uint64
	if cf {
		a = x86.FlagCF
	}
	if of {
		a |= x86.FlagOF
	}
	c.lazy = lazyFlags{res: res, a: a, kind: lazyBits, sh: sh}
}
