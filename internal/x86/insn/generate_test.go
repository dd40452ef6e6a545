package insn

import (
	"fmt"
	"math/rand/v2"
	"testing"
)

// randomCode builds bytes that select e in the given mode: a prefix, opcode and
// ModRM allowed by the match word, and random bytes for the rest. The result
// may still break a rule that is not in the match word.
func randomCode(rng *rand.Rand, e *Encoding, match uint64, mode Mode) []byte {
	bit := func(base uint64, n int) int { // random allowed property
		for {
			if i := rng.IntN(n); match>>i&base != 0 {
				return i
			}
		}
	}
	pp := bit(matchNP, 4)
	w := bit(matchW0, 2)
	ll := bit(matchL128, 4)
	b := bit(matchB0, 2)
	reg, rm := bit(1<<matchRegShift, 8), bit(1<<matchRMShift, 8)
	modrm := byte(reg<<3 | rm)
	if match&matchMem == 0 || match&matchReg != 0 && rng.IntN(2) == 0 {
		modrm |= 0xc0
	} else {
		modrm |= byte(rng.IntN(3) << 6)
	}
	mem := modrm < 0xc0
	if mem && e.attr&(attrVSIB|attrSib) != 0 {
		modrm = modrm&^7 | 4
	}
	c := make([]byte, 0, 32)
	if mode == Mode16 && e.attr&(attrVSIB|attrSib) != 0 {
		c = append(c, 0x67) // these have no 16-bit address form
	}
	skip := len(c)
	switch {
	case e.opmap >= mapXOP:
		c = append(c, 0x8f, byte(rng.IntN(8)<<5|b^1<<5|int(e.opmap)-mapXOP+8), vexP1(rng, e, w, ll, pp))
	case e.opmap >= mapEVEX:
		c = append(c, 0x62, byte(rng.IntN(16)<<4)|e.opmap-mapEVEX, vexP1(rng, e, w, 0, pp)|4, byte(ll<<5)|8)
		for _, a := range e.args[:e.nargs] {
			switch {
			case a.pos == posReg && a.kind == ArgMask:
				c[skip+1] |= 0x90 // k0 to k7: R and R' clear
			case a.pos == posReg && a.kind != ArgVec:
				c[skip+1] |= 0x10
			}
		}
		p2 := &c[skip+3]
		if e.attr&attrMaskMust != 0 || e.attr&attrMask != 0 && rng.IntN(2) == 0 {
			*p2 |= byte(1 + rng.IntN(7))
			if e.attr&attrZero != 0 && !(mem && e.args[0].pos == posRM) {
				*p2 |= byte(rng.IntN(2)) << 7
			}
		}
		if rng.IntN(2) == 0 && (mem && e.attr&(attrBcst16|attrBcst32|attrBcst64) != 0 || !mem && e.attr&(attrER|attrSAE) != 0) {
			*p2 |= 0x10
		}
	case e.opmap >= mapVEX:
		c = append(c, 0xc4, byte(rng.IntN(8)<<5)|e.opmap-mapVEX, vexP1(rng, e, w, ll, pp))
	default:
		if rng.IntN(8) == 0 && mode != Mode64 || rng.IntN(8) == 0 && e.attr&attrVSIB == 0 {
			c = append(c, 0x67)
		}
		c = append(c, [][]byte{nil, {0x66}, {0xf3}, {0xf2}}[pp]...)
		if e.attr&attrPPRep != 0 && rng.IntN(6) == 0 && e.attr&attrD64 == 0 {
			c = append([]byte{0x66}, c...)
		}
		if mode == Mode64 && (w|b != 0 || rng.IntN(2) == 0) {
			c = append(c, byte(0x40|w<<3|rng.IntN(4)<<1|b))
		}
		switch e.opmap {
		case map0F:
			c = append(c, 0x0f)
		case map0F38:
			c = append(c, 0x0f, 0x38)
		case map0F3A:
			c = append(c, 0x0f, 0x3a)
		case map3DNow:
			c = append(c, 0x0f, 0x0f)
		}
	}
	if e.opmap >= mapVEX && mode != Mode64 {
		c[skip+1] |= 0xc0
	}
	if e.opmap == map3DNow {
		// The opcode comes behind the operands.
		if mem {
			return append(c, modrm&0x38|0x43, byte(rng.Uint32()), e.opcode)
		}
		return append(c, modrm, e.opcode)
	}
	c = append(c, e.opcode)
	at := int(e.opmap)<<8 | int(e.opcode)
	if hasModRM[at>>6]>>(at&63)&1 != 0 {
		c = append(c, modrm)
	}
	for len(c) < 26 {
		c = append(c, byte(rng.Uint32()))
	}
	return c
}

// vexP1 builds the byte with W, vvvv, L and pp.
func vexP1(rng *rand.Rand, e *Encoding, w, ll, pp int) byte {
	v := 0xf
	if e.attr&attrVvvv != 0 {
		v = rng.IntN(16)
		if e.opmap < mapEVEX && e.Group == GroupMask || e.Group == GroupAMX {
			v |= 8
		}
	}
	return byte(w<<7 | v<<3 | ll&1<<2 | pp)
}

// validCode is a randomCode that Decode accepts, if one is found soon.
func validCode(rng *rand.Rand, e *Encoding, m uint64, mode Mode, hit map[*Encoding]bool) []byte {
	var code []byte
	for range 20 {
		code = randomCode(rng, e, m, mode)
		var in Inst
		if Decode(code, mode, &in) == nil && in.Enc == e {
			hit[e] = true
			break
		}
	}
	return code
}

// unreachable reports encodings that need REX in a mode that has none, or are
// hidden there by a more specific one.
func unreachable(e *Encoding, m uint64, mode Mode) bool {
	if mode == Mode64 || e.opmap >= mapVEX {
		return false
	}
	return m&matchW0 == 0 || e.Op == OpXCHG && e.opcode == 0x90 || mode == Mode16 && e.Feature == FeatureMPX
}

// forEachAlternative calls f for every match word of every encoding.
func forEachAlternative(f func(e *Encoding, match uint64)) {
	for i, m := range matches {
		f(&encodings[matchEnc[i]], m)
	}
}

// TestTableAgainstObjdump builds instructions from every line of the table and
// checks that objdump reads the same length and mnemonic.
func TestTableAgainstObjdump(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 2))
	for _, mode := range []Mode{Mode64, Mode32, Mode16} {
		var codes [][]byte
		var forms []*Encoding
		bits := map[Mode]uint64{Mode16: matchMode16, Mode32: matchMode32, Mode64: matchMode64}[mode]
		n := map[Mode]int{Mode16: 4, Mode32: 6, Mode64: 16}[mode]
		hit := map[*Encoding]bool{}
		forEachAlternative(func(e *Encoding, m uint64) {
			if m&bits == 0 {
				return
			}
			for range n {
				code := validCode(rng, e, m, mode, hit)
				codes, forms = append(codes, code), append(forms, e)
			}
			if !hit[e] && !unreachable(e, m, mode) {
				t.Errorf("mode %d: no bytes found for %s | %s", mode, e.Form, e.Opcode)
			}
		})
		r := report{t: t}
		bad := 0
		for i, l := range objdumpSlots(t, mode, codes) {
			if d := disagreement(l, codes[i], mode); d != "" {
				bad++
				r.add(codes[i][:min(15, len(codes[i]))], fmt.Sprintf("mode %d for %s | %s: %s", mode, forms[i].Form, forms[i].Opcode, d))
			}
		}
		t.Logf("mode %d: %d encodings, %d instructions, %d disagreements", mode, len(hit), len(codes), bad)
	}
}
