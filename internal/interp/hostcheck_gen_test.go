package interp

import (
	"encoding/binary"
	"math/rand/v2"

	"ring3/internal/x86"
	"ring3/internal/x86/insn"
)

// skeleton is a way to encode an entry of the instruction table: what selects
// the entry is fixed, the rest is left to chance.
type skeleton struct {
	kind   skelKind
	opmap  uint8
	opcode uint8
	pp     uint8 // as in VEX: none, 66, F3, F2
	w, l   uint8
	modrm  uint8
	mask   uint8 // EVEX.aaa: some entries need one
	rexB   uint8 // XCHG needs one where NOP has none
	has    bool  // ModRM counts
}

type skelKind uint8

const (
	skelLegacy skelKind = iota
	skel3DNow
	skelVEX
	skelXOP
	skelEVEX
)

// enumerate finds skeletons of all encodings that the decoder accepts in a
// mode, by trying everything that may select an encoding.
func enumerate(mode insn.Mode) map[*insn.Encoding][]skeleton {
	found := make(map[*insn.Encoding][]skeleton)
	var in insn.Inst
	try := func(s skeleton) {
		code := s.bytes(nil, nil, mode, false)
		code = append(code, 0x08) // SIB with index 1, as gathers need other registers
		for len(code) < insn.MaxLen {
			code = append(code, 0)
		}
		if insn.Decode(code, mode, &in) != nil {
			return
		}
		s.has = in.ModRMOff != 0
		list := found[in.Enc]
		if !s.has && len(list) > 0 && list[len(list)-1].opcode == s.opcode && list[len(list)-1].pp == s.pp && list[len(list)-1].w == s.w {
			return
		}
		found[in.Enc] = append(list, s)
	}
	maps := map[skelKind][]uint8{
		skelLegacy: {0, 1, 2, 3}, skel3DNow: {0}, skelVEX: {1, 2, 3, 5, 6, 7}, skelXOP: {8, 9, 10},
		skelEVEX: {1, 2, 3, 5, 6},
	}
	lengths := map[skelKind]uint8{skelLegacy: 1, skel3DNow: 1, skelVEX: 2, skelXOP: 2, skelEVEX: 3}
	for kind := skelLegacy; kind <= skelEVEX; kind++ {
		for _, m := range maps[kind] {
			for i := range 256 * 4 * 2 * int(lengths[kind]) {
				s := skeleton{kind: kind, opmap: m, opcode: uint8(i), pp: uint8(i >> 8 & 3), w: uint8(i >> 10 & 1), l: uint8(i >> 11)}
				if s.w != 0 && mode != insn.Mode64 && kind == skelLegacy {
					continue
				}
				if kind == skelLegacy && m == 0 && isPrefix(s.opcode, mode) {
					continue
				}
				if kind == skelLegacy && m == 0 && s.opcode == 0x90 && mode == insn.Mode64 {
					s.rexB = 1
					try(s)
					s.rexB = 0
				}
				for reg := range uint8(8) {
					s.modrm = reg<<3 | 4 // with SIB, for VSIB
					try(s)
					if kind == skelEVEX {
						s.mask = 1
						try(s)
						s.mask = 0
					}
					for rm := range uint8(8) {
						s.modrm = 0xc0 | reg<<3 | rm
						try(s)
					}
				}
			}
		}
	}
	return found
}

func isPrefix(b uint8, mode insn.Mode) bool {
	switch b {
	case 0x26, 0x2e, 0x36, 0x3e, 0x64, 0x65, 0x66, 0x67, 0xf0, 0xf2, 0xf3, 0x0f:
		return true
	case 0x62, 0xc4, 0xc5:
		return mode == insn.Mode64
	}
	return mode == insn.Mode64 && b>>4 == 4
}

// bytes encodes s up to ModRM. With rng, register extensions, vvvv, masks and
// superfluous prefixes are random; the caller must check that the result still
// is the same entry. With ripOnly the memory form has a RIP-relative address.
func (s skeleton) bytes(b []byte, rng *rand.Rand, mode insn.Mode, ripOnly bool) []byte {
	r := func(n int) uint8 {
		if rng == nil {
			return 0
		}
		return uint8(rng.IntN(n))
	}
	is64 := mode == insn.Mode64
	modrm := s.modrm
	if rng != nil && s.has && modrm < 0xc0 {
		modrm = modrm&0x38 | r(3)<<6 | r(8)
		if ripOnly {
			modrm = modrm&0x38 | 5
		}
	}
	if rng != nil && rng.IntN(6) == 0 {
		b = append(b, []byte{0x67, 0x64, 0x65, 0x2e, 0x3e, 0x66, 0x26, 0xf0}[r(8)])
	}
	vvvv := uint8(0xf)
	if r(2) == 1 {
		vvvv = r(16)
	}
	switch s.kind {
	case skelLegacy, skel3DNow:
		b = append(b, [][]byte{nil, {0x66}, {0xf3}, {0xf2}}[s.pp]...)
		if rex := s.w<<3 | r(8) | s.rexB; is64 && (rex != 0 && r(3) != 0 || s.w|s.rexB != 0) {
			b = append(b, 0x40|rex)
		}
		switch {
		case s.kind == skel3DNow:
			return append(b, 0x0f, 0x0f, modrm&0x38|0xc0, s.opcode)
		case s.opmap == 1:
			b = append(b, 0x0f)
		case s.opmap == 2:
			b = append(b, 0x0f, 0x38)
		case s.opmap == 3:
			b = append(b, 0x0f, 0x3a)
		}
	case skelVEX, skelXOP:
		p0, p1 := 0xe0&^(r(8)<<5), vvvv<<3|s.l<<2|s.pp
		switch {
		case !is64:
			p0, p1 = 0xe0, p1|0x40
			fallthrough
		default:
			if s.kind == skelXOP {
				b = append(b, 0x8f, p0|s.opmap, p1|s.w<<7)
			} else if s.opmap == 1 && s.w == 0 && p0&0x60 == 0x60 && r(2) == 1 {
				b = append(b, 0xc5, p0&0x80|p1)
			} else {
				b = append(b, 0xc4, p0|s.opmap, p1|s.w<<7)
			}
		}
	case skelEVEX:
		p0 := 0xf0 &^ (r(16) << 4)
		p2 := s.l<<5 | 8
		if rng == nil {
			p2 |= s.mask
		} else {
			p2 = p2&^(r(2)<<3) | r(8)
			if r(4) == 0 {
				p2 |= 0x80
			}
			if r(4) == 0 {
				p2 |= 0x10
			}
		}
		if !is64 {
			p0, p2, vvvv = 0xf0, p2|8, vvvv|8
		}
		b = append(b, 0x62, p0|s.opmap, s.w<<7|vvvv<<3|4|s.pp, p2)
	}
	b = append(b, s.opcode)
	if rng == nil || s.has {
		b = append(b, modrm)
	}
	return b
}

// sample is an instruction with what it needs to run.
type sample struct {
	code []byte
	in   insn.Inst
	lin  uint64 // address of its memory operand, if it has one
}

// instance makes a random instruction of an entry.
func (g *generator) instance(e *insn.Encoding) (s sample, ok bool) {
	skels := g.skels[e]
	for range 40 {
		code := skels[g.rng.IntN(len(skels))].bytes(nil, g.rng, g.mode, g.ripOnly)
		for len(code) < insn.MaxLen {
			code = append(code, byte(g.rng.Uint32()))
		}
		if insn.Decode(code, g.mode, &s.in) == nil && s.in.Enc == e {
			s.code = code[:s.in.Len]
			return s, true
		}
	}
	return s, false
}

type generator struct {
	rng   *rand.Rand
	mode  insn.Mode
	skels map[*insn.Encoding][]skeleton
	m     *checkMachine

	at      uint64 // where the instruction will be
	ripOnly bool   // memory operands are RIP-relative
}

// value is a random number of the kinds that are interesting for arithmetic.
func (g *generator) value() uint64 {
	r := g.rng
	switch r.IntN(8) {
	case 0:
		return uint64(int64(r.IntN(33) - 16))
	case 1:
		return 1<<r.IntN(64) + uint64(r.IntN(3)) - 1
	case 2:
		return ^uint64(0) << r.IntN(64)
	case 3:
		return uint64(int64(int32(r.Uint32())))
	case 4:
		return r.Uint64() & r.Uint64() & r.Uint64()
	}
	return r.Uint64()
}

// target is a random address for an operand of size bytes: mostly in the
// read-write pages, sometimes across their end, read-only, or not mapped.
func (g *generator) target(size uint64) uint64 {
	r := g.rng
	d := g.m.data
	a := d + 256 + r.Uint64N(dataRW-512-size)
	switch r.IntN(24) {
	case 0:
		a = d + dataRW - r.Uint64N(size+2)
	case 1:
		a = d + dataRW + r.Uint64N(x86.PageSize-size)
	case 2:
		a = d + dataSize + r.Uint64N(64) - min(size, 32)
	case 3:
		a = d + x86.PageSize - r.Uint64N(size+1) // page crossing
	}
	switch r.IntN(4) {
	case 0, 1:
		return a &^ 63
	case 2:
		return a &^ 15
	}
	return a
}

// place makes the memory operand of s point to lin, by changing registers or
// the displacement. It reports whether that was possible.
func (g *generator) place(s *sample, gpr *[16]uint64, lin uint64) bool {
	in := &s.in
	m := &in.Mem
	off := lin
	if m.Seg == x86.FS {
		off -= g.m.hostFS
	}
	wide := in.AddrSize == 64
	disp := uint64(m.Disp)
	switch {
	case m.VSIB:
		return false
	case m.Base == insn.RIPReg:
		disp = off - (g.at + uint64(in.Len))
		return g.setDisp(s, disp)
	case m.Base == insn.NoReg && m.Index == insn.NoReg:
		return g.setDisp(s, off)
	case m.Base == insn.NoReg:
		d := off - disp
		if d%uint64(m.Scale) != 0 {
			return false
		}
		gpr[m.Index] = d / uint64(m.Scale)
	case m.Index == insn.NoReg:
		gpr[m.Base] = off - disp
	case m.Base == m.Index:
		d := off - disp
		if d%uint64(m.Scale+1) != 0 {
			return false
		}
		gpr[m.Base] = d / uint64(m.Scale+1)
	default:
		gpr[m.Base] = off - disp - gpr[m.Index]*uint64(m.Scale)
	}
	if g.mode == insn.Mode32 {
		for i := range gpr {
			gpr[i] &= 0xffffffff
		}
	} else if !wide && m.Base < 16 {
		gpr[m.Base] = gpr[m.Base]&0xffffffff | g.rng.Uint64()<<32
	}
	return true
}

// setDisp patches the displacement.
func (g *generator) setDisp(s *sample, v uint64) bool {
	in := &s.in
	b := s.code[in.DispOff : in.DispOff+in.DispLen]
	switch len(b) {
	case 4:
		if in.AddrSize == 64 && uint64(int64(int32(v))) != v {
			return false
		}
		binary.LittleEndian.PutUint32(b, uint32(v))
	case 8:
		binary.LittleEndian.PutUint64(b, v)
	default:
		return false
	}
	if insn.Decode(s.code, g.mode, in) != nil {
		return false
	}
	return true
}

// effective is the effective address that the registers give, as a check.
func (g *generator) effective(s *sample, gpr *[16]uint64) uint64 {
	m := &s.in.Mem
	a := uint64(m.Disp)
	switch {
	case m.Base < 16:
		a += gpr[m.Base]
	case m.Base == insn.RIPReg:
		a += g.at + uint64(s.in.Len)
	}
	if m.Index < 16 {
		a += gpr[m.Index] * uint64(m.Scale)
	}
	if s.in.AddrSize == 32 {
		a &= 0xffffffff
	}
	if m.Seg == x86.FS && g.mode == insn.Mode64 {
		a += g.m.hostFS
	}
	return a
}
