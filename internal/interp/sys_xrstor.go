package interp

import (
	"encoding/binary"

	"ring3/internal/cpu"
	"ring3/internal/x86"
)

// A restore reads everything into a copy of the image first, so that a fault
// leaves the state alone.

// fxrstor is FXRSTOR (SDM vol. 2A).
func (t *xstate) fxrstor() bool {
	var img [xsXMMEnd]byte
	if !t.c.readBytes(t.lin, img[:]) || !t.mxcsrOK(img[xsMXCSR:]) {
		return false
	}
	t.loadX87(img[:])
	copy(t.f.Area[xsMXCSR:xsMXCSRMask], img[xsMXCSR:])
	use := inUse(t.f) | 1<<compX87
	if !t.ffxsr() {
		t.loadSSE(img[:], use)
		use |= 1 << compSSE
	}
	setInUse(t.f, use)
	return true
}

// mxcsrOK raises #GP for an MXCSR image with reserved bits.
func (t *xstate) mxcsrOK(img []byte) bool {
	mask := binary.LittleEndian.Uint32(t.f.Area[xsMXCSRMask:])
	if mask == 0 {
		mask = 0xffbf // SDM vol. 1, section 11.6.6
	}
	if binary.LittleEndian.Uint32(img)&^mask != 0 {
		return t.c.raise(x86.VecGP, 0)
	}
	return true
}

func (t *xstate) loadX87(img []byte) {
	copy(t.f.Area[:xsMXCSR], img[:xsMXCSR])
	if !t.wide {
		clear(t.f.Area[12:16])
		clear(t.f.Area[20:24])
	}
	copy(t.f.Area[xsST:xsXMM], img[xsST:xsXMM])
}

// loadSSE loads the XMM registers that the mode has; use tells whether the
// others in the image mean anything.
func (t *xstate) loadSSE(img []byte, use uint64) {
	end := xsXMMEnd
	if !t.regs16 {
		end = xsXMM + 128
		if use>>compSSE&1 == 0 {
			clear(t.f.Area[end:xsXMMEnd])
		}
	}
	copy(t.f.Area[xsXMM:end], img[xsXMM:end])
}

// xrstor is XRSTOR in the standard and the compacted format (SDM vol. 1,
// sections 13.8.1 and 13.8.2).
func (t *xstate) xrstor(rfbm uint64) bool {
	c := t.c
	var img [xsLegacy + xsHeader]byte
	if !c.readBytes(t.lin, img[:]) {
		return false
	}
	bv := binary.LittleEndian.Uint64(img[xsBV:])
	compBV := binary.LittleEndian.Uint64(img[xsCompBV:])
	compact := compBV&xsCompacted != 0
	if !c.xrstorHeader(&img, bv, compBV) {
		return false
	}
	load := rfbm & bv
	loadMXCSR := rfbm&(1<<compSSE|1<<compAVX) != 0
	if compact {
		loadMXCSR = load>>compSSE&1 != 0
	}
	if loadMXCSR && !t.mxcsrOK(img[xsMXCSR:]) {
		return false
	}
	var ext cpu.FPU // the new extended components, in the standard format
	at := uint64(xsLegacy + xsHeader)
	for i := compAVX; i < 63; i++ {
		if compact && compBV>>i&1 == 0 || !compact && load>>i&1 == 0 {
			continue
		}
		off, size, align := c.component(i)
		src := uint64(off)
		if compact {
			if align {
				at = (at + 63) &^ 63
			}
			src = at
			at += uint64(size)
		}
		if load>>i&1 != 0 && !c.readBytes(t.lin+src, ext.Area[off:off+t.part(i, size)]) {
			return false
		}
	}
	t.commit(rfbm, load, img[:], &ext)
	switch {
	case loadMXCSR:
		copy(t.f.Area[xsMXCSR:xsMXCSRMask], img[xsMXCSR:])
	case compact && rfbm>>compSSE&1 != 0:
		binary.LittleEndian.PutUint32(t.f.Area[xsMXCSR:], mxcsrInit)
	}
	return true
}

// xrstorHeader raises #GP for a header that the instruction does not accept.
func (c *CPU) xrstorHeader(img *[xsLegacy + xsHeader]byte, bv, compBV uint64) bool {
	bad := false
	if compBV&xsCompacted != 0 {
		a, _, _, _ := c.Env.CPUID(0xd, 1)
		comps := compBV &^ xsCompacted
		bad = a>>1&1 == 0 || comps&^c.XCR0 != 0 || bv&^comps != 0
		for _, b := range img[xsCompBV+8:] {
			bad = bad || b != 0
		}
	} else {
		bad = bv&^c.XCR0 != 0 || compBV != 0 || binary.LittleEndian.Uint64(img[xsCompBV+8:]) != 0
	}
	if bad {
		return c.raise(x86.VecGP, 0)
	}
	return true
}

// commit takes over the components of rfbm: those of load from img and ext,
// the others become initial.
func (t *xstate) commit(rfbm, load uint64, img []byte, ext *cpu.FPU) {
	use := inUse(t.f)
	if load>>compX87&1 != 0 {
		t.loadX87(img)
		use |= 1 << compX87
	} else if rfbm>>compX87&1 != 0 {
		use &^= 1 << compX87
		clear(t.f.Area[:xsMXCSR])
		clear(t.f.Area[xsST:xsXMM])
		binary.LittleEndian.PutUint16(t.f.Area[0:], fcwInit)
	}
	if load>>compSSE&1 != 0 {
		t.loadSSE(img, use)
		use |= 1 << compSSE
	} else if rfbm>>compSSE&1 != 0 {
		if t.regs16 || use>>compSSE&1 == 0 {
			use &^= 1 << compSSE
			clear(t.f.Area[xsXMM:xsXMMEnd])
		} else {
			clear(t.f.Area[xsXMM : xsXMM+128])
		}
	}
	for i := compAVX; i < 63; i++ {
		if rfbm>>i&1 == 0 {
			continue
		}
		off, size, _ := t.c.component(i)
		n := t.part(i, size)
		dst := t.f.Area[off : off+size]
		if use>>i&1 == 0 {
			clear(dst)
		}
		switch {
		case load>>i&1 != 0:
			copy(dst[:n], ext.Area[off:off+n])
			use |= 1 << i
		case n == size:
			clear(dst)
			use &^= 1 << i
		default:
			clear(dst[:n])
		}
	}
	setInUse(t.f, use)
}
