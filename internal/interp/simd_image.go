package interp

import (
	"ring3/internal/cpu"
	"ring3/internal/native"
)

// vecImage gives access to vector and mask registers in an XSAVE image in
// standard format (SDM vol. 1, sections 13.4 and 13.5).
type vecImage struct {
	fpu  *cpu.FPU
	host *native.Host
}

// maxVec is the size of a ZMM register in bytes.
const maxVec = 64

// parts are the pieces of vector register n that the host has: component,
// offset in the image, offset in the register, length.
func (v vecImage) parts(n uint8, f func(comp, img, reg, size int)) {
	if n >= 16 {
		if o := v.host.Offset[native.CompHi16ZMM]; o != 0 {
			f(native.CompHi16ZMM, o+int(n-16)*64, 0, 64)
		}
		return
	}
	i := int(n)
	f(native.CompSSE, offXMM+i*16, 0, 16)
	if o := v.host.Offset[native.CompAVX]; o != 0 {
		f(native.CompAVX, o+i*16, 16, 16)
	}
	if o := v.host.Offset[native.CompZMMHi256]; o != 0 {
		f(native.CompZMMHi256, o+i*32, 32, 32)
	}
}

// get reads vector register n.
func (v vecImage) get(n uint8) (r [maxVec]byte) {
	v.parts(n, func(comp, img, reg, size int) {
		if v.inUse(comp) {
			copy(r[reg:reg+size], v.fpu.Area[img:])
		}
	})
	return r
}

// set writes vector register n.
func (v vecImage) set(n uint8, r *[maxVec]byte) {
	v.parts(n, func(comp, img, reg, size int) {
		v.use(comp)
		copy(v.fpu.Area[img:img+size], r[reg:])
	})
}

// zeroLower executes VZEROUPPER and VZEROALL outside 64-bit mode, where they
// spare the registers that only 64-bit mode has (SDM vol. 2C, VZEROALL).
func (c *CPU) zeroLower(op *nativeOp, fpu *cpu.FPU) bool {
	v := vecImage{fpu, c.simd.x.Host()}
	var upper [8][maxVec]byte
	for i := range upper {
		upper[i] = v.get(uint8(i + 8))
	}
	if f := c.callNative(op, fpu, 0); f.Raised {
		return c.nativeFault(f)
	}
	for i := range upper {
		v.set(uint8(i+8), &upper[i])
	}
	return true
}

// mask reads opmask register n.
func (v vecImage) mask(n uint8) uint64 {
	if !v.inUse(native.CompOpmask) {
		return 0
	}
	return le.Uint64(v.fpu.Area[v.host.Offset[native.CompOpmask]+int(n)*8:])
}

func (v vecImage) setMask(n uint8, k uint64) {
	v.use(native.CompOpmask)
	le.PutUint64(v.fpu.Area[v.host.Offset[native.CompOpmask]+int(n)*8:], k)
}

func (v vecImage) inUse(comp int) bool { return v.fpu.Area[offBV]>>comp&1 != 0 }

// use makes the image of a component valid that is in its initial
// configuration, in which the image has any contents.
func (v vecImage) use(comp int) {
	if v.inUse(comp) {
		return
	}
	off, size := v.host.Offset[comp], componentSize[comp]
	clear(v.fpu.Area[off : off+size])
	v.fpu.Area[offBV] |= 1 << comp
}

var componentSize = [8]int{
	native.CompSSE: 256, native.CompAVX: 256, native.CompOpmask: 64,
	native.CompZMMHi256: 512, native.CompHi16ZMM: 1024,
}

// mmx reads MMX register n. The image has the x87 registers in the order of
// the stack, MMX instructions name them by their number (SDM vol. 1, 9.2.2).
func (v vecImage) mmx(n uint8) (r [maxVec]byte) {
	if v.inUse(native.CompX87) {
		top := v.fpu.Area[offFSW+1] >> 3 & 7
		copy(r[:8], v.fpu.Area[offST+int((n-top)&7)*16:])
	}
	return r
}

// signMask has a bit for each of n elements of size bytes whose sign bit is set.
func signMask(r *[maxVec]byte, n, size int) (m uint64) {
	for i := range n {
		m |= uint64(r[(i+1)*size-1]>>7) << i
	}
	return m
}
