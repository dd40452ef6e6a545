package interp

import (
	"bytes"
	"fmt"
	"math"

	"ring3/internal/cpu"
	"ring3/internal/native"
)

// randomFPU fills an XSAVE image with values that vector and x87 instructions
// may meet.
func (g *generator) randomFPU(f *cpu.FPU) {
	r, h := g.rng, g.m.x.Host()
	clear(f.Area[:])
	fcw := uint16(0x7f | r.IntN(4)<<10 | []int{0, 2, 3}[r.IntN(3)]<<8)
	mxcsr := uint32(0x1f80) | uint32(r.IntN(4))<<13
	if r.IntN(4) == 0 {
		mxcsr |= 0x8040 & r.Uint32() // FTZ, DAZ
	}
	if r.IntN(10) == 0 {
		fcw &^= uint16(r.IntN(64))
		mxcsr &^= uint32(r.IntN(64)) << 7
	}
	le.PutUint16(f.Area[offFCW:], fcw)
	le.PutUint16(f.Area[offFSW:], uint16(r.IntN(8)<<11|r.IntN(16)<<8&0x4700))
	if r.IntN(3) != 0 {
		f.Area[4] = byte(r.Uint32()) | byte(r.Uint32())
	}
	le.PutUint32(f.Area[offMXCSR:], mxcsr)
	for i := range 8 {
		le.PutUint64(f.Area[offST+i*16:], r.Uint64()|1<<63)
		exp := uint16(r.IntN(40) + 0x3fff - 20)
		switch r.IntN(12) {
		case 0:
			exp = uint16(r.Uint32())
		case 1:
			exp = 0x7fff
		case 2:
			exp = 0
			le.PutUint64(f.Area[offST+i*16:], r.Uint64()>>r.IntN(64))
		case 3:
			le.PutUint64(f.Area[offST+i*16:], 1<<63)
		}
		le.PutUint16(f.Area[offST+i*16+8:], exp|uint16(r.IntN(2)<<15))
	}
	vector := func(b []byte) {
		switch r.IntN(4) {
		case 0:
			for i := 0; i < len(b); i += 4 {
				le.PutUint32(b[i:], math.Float32bits(g.float32()))
			}
		case 1:
			for i := 0; i < len(b); i += 8 {
				le.PutUint64(b[i:], math.Float64bits(g.float64()))
			}
		default:
			for i := 0; i < len(b); i += 8 {
				le.PutUint64(b[i:], g.value())
			}
		}
	}
	for i := range 16 {
		vector(f.Area[offXMM+i*16:][:16])
		if o := h.Offset[native.CompAVX]; o != 0 {
			vector(f.Area[o+i*16:][:16])
		}
		if o := h.Offset[native.CompZMMHi256]; o != 0 {
			vector(f.Area[o+i*32:][:32])
			vector(f.Area[h.Offset[native.CompHi16ZMM]+i*64:][:64])
		}
	}
	if o := h.Offset[native.CompOpmask]; o != 0 {
		for i := range 8 {
			le.PutUint64(f.Area[o+i*8:], g.value())
		}
	}
	le.PutUint64(f.Area[offBV:], h.XCR0)
}

func (g *generator) float32() float32 {
	switch g.rng.IntN(8) {
	case 0:
		return math.Float32frombits(g.rng.Uint32())
	case 1:
		return float32(g.rng.IntN(9) - 4)
	case 2:
		return float32(math.Inf(g.rng.IntN(2)*2 - 1))
	}
	return float32(g.rng.NormFloat64() * 1000)
}

func (g *generator) float64() float64 {
	switch g.rng.IntN(8) {
	case 0:
		return math.Float64frombits(g.rng.Uint64())
	case 1:
		return float64(g.rng.IntN(9) - 4)
	case 2:
		return math.Inf(g.rng.IntN(2)*2 - 1)
	}
	return g.rng.NormFloat64() * 1e6
}

// fpuDifference names the first difference of two images, but for the x87
// pointers, which processors keep differently.
func (m *checkMachine) fpuDifference(want, got *cpu.FPU) string {
	part := func(name string, comp, off, n int) string {
		a, b := want.Area[off:off+n], got.Area[off:off+n]
		if want.Area[offBV]>>comp&1 == 0 && got.Area[offBV]>>comp&1 == 0 || bytes.Equal(a, b) {
			return ""
		}
		return fmt.Sprintf("%s is %x, want %x", name, b, a)
	}
	d := part("x87 control, status and tags", 0, 0, 5)
	if d == "" {
		d = part("MXCSR", 0, offMXCSR, 4)
	}
	for i := 0; i < 8 && d == ""; i++ {
		d = part(fmt.Sprintf("ST(%d)", i), 0, offST+i*16, 10)
	}
	h := m.x.Host()
	for i := 0; i < 16 && d == ""; i++ {
		d = part(fmt.Sprintf("XMM%d", i), native.CompSSE, offXMM+i*16, 16)
		if o := h.Offset[native.CompAVX]; o != 0 && d == "" {
			d = part(fmt.Sprintf("upper YMM%d", i), native.CompAVX, o+i*16, 16)
		}
		if o := h.Offset[native.CompZMMHi256]; o != 0 && d == "" {
			d = part(fmt.Sprintf("upper ZMM%d", i), native.CompZMMHi256, o+i*32, 32)
		}
		if o := h.Offset[native.CompHi16ZMM]; o != 0 && d == "" {
			d = part(fmt.Sprintf("ZMM%d", i+16), native.CompHi16ZMM, o+i*64, 64)
		}
	}
	if o := h.Offset[native.CompOpmask]; o != 0 && d == "" {
		d = part("opmasks", native.CompOpmask, o, 64)
	}
	return d
}
