package interp

import (
	"encoding/binary"

	"ring3/internal/cpu"
	"ring3/internal/x86"
	"ring3/internal/x86/insn"
)

// XSAVE state components and the fixed part of the area (SDM vol. 1,
// sections 13.1 and 13.4).
const (
	compX87     = 0
	compSSE     = 1
	compAVX     = 2
	compOpmask  = 5
	compZMMHi   = 6
	compHi16ZMM = 7

	xsLegacy    = 512 // legacy region; the header follows
	xsHeader    = 64
	xsBV        = 512 // XSTATE_BV
	xsCompBV    = 520 // XCOMP_BV
	xsCompacted = 1 << 63
	xsMXCSR     = 24
	xsMXCSRMask = 28
	xsST        = 32
	xsXMM       = 160
	xsXMMEnd    = 416

	mxcsrInit = 0x1f80
	fcwInit   = 0x37f
)

// xgetbv is XGETBV.
func (c *CPU) xgetbv() bool {
	if c.CR4&x86.CR4OSXSAVE == 0 {
		return c.raise(x86.VecUD, 0)
	}
	v := c.XCR0
	switch uint32(c.GPR[x86.RCX]) {
	case 0:
	case 1: // XCR0 and what is not in its initial state
		if a, _, _, _ := c.Env.CPUID(0xd, 1); a>>2&1 == 0 {
			return c.raise(x86.VecGP, 0)
		}
		v &= inUse(c.Env.SyncFPU())
	default:
		return c.raise(x86.VecGP, 0)
	}
	c.GPR[x86.RAX] = v & 0xffffffff
	c.GPR[x86.RDX] = v >> 32
	return true
}

// xsetbv is XSETBV.
func (c *CPU) xsetbv() bool {
	if c.CR4&x86.CR4OSXSAVE == 0 {
		return c.raise(x86.VecUD, 0)
	}
	if !c.supervisor() {
		return false
	}
	v := c.GPR[x86.RAX]&0xffffffff | c.GPR[x86.RDX]<<32
	if uint32(c.GPR[x86.RCX]) != 0 || !c.validXCR0(v) {
		return c.raise(x86.VecGP, 0)
	}
	c.XCR0 = v
	return true
}

// validXCR0 applies the rules of SDM vol. 1, section 13.3.
func (c *CPU) validXCR0(v uint64) bool {
	lo, _, _, hi := c.Env.CPUID(0xd, 0)
	if v&^(uint64(hi)<<32|uint64(lo)) != 0 || v&1 == 0 || v&6 == 4 {
		return false
	}
	const avx512 = 1<<compOpmask | 1<<compZMMHi | 1<<compHi16ZMM
	return v&avx512 == 0 || v&avx512 == avx512 && v&(1<<compAVX) != 0
}

// inUse is XINUSE: the components that are not in their initial state.
func inUse(f *cpu.FPU) uint64 { return binary.LittleEndian.Uint64(f.Area[xsBV:]) }

func setInUse(f *cpu.FPU, v uint64) { binary.LittleEndian.PutUint64(f.Area[xsBV:], v) }

// xsaveOp executes the FXSAVE and XSAVE families on the image of the state.
// lin is the linear address of the operand.
func (c *CPU) xsaveOp(inst *insn.Inst, lin uint64) bool {
	op := inst.Op
	wide := inst.Mode == insn.Mode64 && inst.Rex&8 != 0
	align := uint64(63)
	if op == insn.OpFXSAVE || op == insn.OpFXRSTOR {
		align = 15
		if c.CR0&(x86.CR0EM|x86.CR0TS) != 0 {
			return c.raise(x86.VecNM, 0)
		}
	} else {
		// XSAVES and XRSTORS are not shown by CPUID.
		if c.CR4&x86.CR4OSXSAVE == 0 || op == insn.OpXSAVES || op == insn.OpXRSTORS {
			return c.raise(x86.VecUD, 0)
		}
		if c.CR0&x86.CR0TS != 0 {
			return c.raise(x86.VecNM, 0)
		}
	}
	if lin&align != 0 {
		return c.raise(x86.VecGP, 0)
	}
	rfbm := c.XCR0 & (c.GPR[x86.RAX]&0xffffffff | c.GPR[x86.RDX]<<32)
	t := xstate{c: c, f: c.Env.SyncFPU(), lin: lin, wide: wide, regs16: c.Code64()}
	switch op {
	case insn.OpFXSAVE:
		return t.fxsave()
	case insn.OpFXRSTOR:
		return t.fxrstor()
	case insn.OpXSAVE:
		return t.xsave(rfbm, false)
	case insn.OpXSAVEOPT:
		return t.xsave(rfbm, true)
	case insn.OpXSAVEC:
		return t.xsavec(rfbm)
	case insn.OpXRSTOR:
		return t.xrstor(rfbm)
	}
	return c.raise(x86.VecUD, 0)
}

// xstate is one save or restore.
type xstate struct {
	c      *CPU
	f      *cpu.FPU
	lin    uint64
	wide   bool // REX.W: 64-bit instruction and data pointers
	regs16 bool // 64-bit mode: all vector registers, else the first eight
}

// component tells where a component lies in the standard format, and whether
// the compacted one aligns it to 64 bytes.
func (c *CPU) component(i int) (off, size uint32, align bool) {
	size, off, flags, _ := c.Env.CPUID(0xd, uint32(i))
	if off+size > cpu.XSAVEAreaSize {
		return 0, 0, false
	}
	return off, size, flags>>1&1 != 0
}

// part is the number of bytes of a component that the mode lets one reach:
// outside 64-bit mode only registers 0 to 7 exist.
func (t *xstate) part(i int, size uint32) uint32 {
	if t.regs16 {
		return size
	}
	switch i {
	case compAVX, compZMMHi:
		return size / 2
	case compHi16ZMM:
		return 0
	}
	return size
}

// legacy is the legacy region of the area with everything that can be saved:
// an initial component reads as such.
func (t *xstate) legacy() (img [xsXMMEnd]byte) {
	use := inUse(t.f)
	copy(img[:], t.f.Area[:xsXMMEnd])
	if use>>compX87&1 == 0 {
		clear(img[:xsMXCSR])
		clear(img[xsST:xsXMM])
		binary.LittleEndian.PutUint16(img[0:], fcwInit)
	}
	if use>>compSSE&1 == 0 {
		clear(img[xsXMM:xsXMMEnd])
	}
	if !t.wide {
		// 32-bit pointers with selectors, which this CPU no longer saves
		// (CPUID.7.0:EBX bit 13).
		clear(img[12:16])
		clear(img[20:24])
	}
	return img
}

// saveX87, saveSSE and saveMXCSR store the parts of the legacy region.
func (t *xstate) saveX87(img []byte) bool {
	return t.c.writeBytes(t.lin, img[:xsMXCSR]) && t.c.writeBytes(t.lin+xsST, img[xsST:xsXMM])
}

func (t *xstate) saveSSE(img []byte) bool {
	end := xsXMMEnd
	if !t.regs16 {
		end = xsXMM + 128
	}
	return t.c.writeBytes(t.lin+xsXMM, img[xsXMM:end])
}

func (t *xstate) saveMXCSR(img []byte) bool {
	return t.c.writeBytes(t.lin+xsMXCSR, img[xsMXCSR:xsST])
}

// fxsave is FXSAVE (SDM vol. 2A). With EFER.FFXSR the kernel's 64-bit form
// leaves the XMM registers out (AMD APM vol. 2, section 11.4.4).
func (t *xstate) fxsave() bool {
	img := t.legacy()
	return t.saveX87(img[:]) && t.saveMXCSR(img[:]) && (t.ffxsr() || t.saveSSE(img[:]))
}

func (t *xstate) ffxsr() bool {
	return t.c.EFER&x86.EFERFFXSR != 0 && t.regs16 && t.c.CPL == 0
}

// xsave is XSAVE in the standard format. XSAVEOPT leaves out components in
// their initial state.
func (t *xstate) xsave(rfbm uint64, opt bool) bool {
	c := t.c
	old, ok := c.readLin(t.lin+xsBV, 8)
	if !ok {
		return false
	}
	use := inUse(t.f)
	write := rfbm
	if opt {
		write &= use
	}
	img := t.legacy()
	if write>>compX87&1 != 0 && !t.saveX87(img[:]) ||
		rfbm&(1<<compSSE|1<<compAVX) != 0 && !t.saveMXCSR(img[:]) ||
		write>>compSSE&1 != 0 && !t.saveSSE(img[:]) {
		return false
	}
	var zero [cpu.XSAVEAreaSize]byte
	for i := compAVX; i < 63; i++ {
		if write>>i == 0 {
			break
		}
		if write>>i&1 == 0 {
			continue
		}
		off, size, _ := c.component(i)
		n := t.part(i, size)
		src := t.f.Area[off : off+n]
		if use>>i&1 == 0 {
			src = zero[:n]
		}
		if !c.writeBytes(t.lin+uint64(off), src) {
			return false
		}
	}
	return c.writeLin(t.lin+xsBV, 8, old&^rfbm|use&rfbm)
}

// xsavec is XSAVEC: the compacted format, without initial components.
func (t *xstate) xsavec(rfbm uint64) bool {
	c := t.c
	use := inUse(t.f)
	img := t.legacy()
	if binary.LittleEndian.Uint32(img[xsMXCSR:]) != mxcsrInit {
		use |= 1 << compSSE
	}
	write := rfbm & use
	if write>>compX87&1 != 0 && !t.saveX87(img[:]) ||
		write>>compSSE&1 != 0 && (!t.saveMXCSR(img[:]) || !t.saveSSE(img[:])) {
		return false
	}
	at := uint64(xsLegacy + xsHeader)
	for i := compAVX; i < 63; i++ {
		if rfbm>>i&1 == 0 {
			continue
		}
		off, size, align := c.component(i)
		if align {
			at = (at + 63) &^ 63
		}
		if write>>i&1 != 0 && !c.writeBytes(t.lin+at, t.f.Area[off:off+t.part(i, size)]) {
			return false
		}
		at += uint64(size)
	}
	return c.writeLin(t.lin+xsBV, 8, write) && c.writeLin(t.lin+xsCompBV, 8, rfbm|xsCompacted)
}
