package direct

import (
	"encoding/binary"

	"ring3/internal/cpu"
	"ring3/internal/direct/stub"
)

// Offsets in an XSAVE image (SDM vol. 1, sections 10.5.1 and 13.4).
const (
	xMXCSR     = 24
	xMXCSRMask = 28
	xSoftware  = 464 // to 511: free for software; signal frames use it
	xStateBV   = 512
	xReserved  = 520 // XCOMP_BV and reserved bytes, zero in standard format
	xExtended  = 576
)

// FPU is the guest's extended state in the monitor, for reading and writing.
// The engine loads it again before guest code runs.
//
// While a stub is stopped, the guest's extended state lies in its signal
// frame, where the host kernel saved it. It moves only when somebody asks
// here or another stub has to continue with it.
func (e *Engine) FPU() *cpu.FPU {
	if s := e.fpuHome; s != nil {
		e.fpuHome = nil
		e.stats.FPUMoves++
		if err := s.p.park(); err != nil { // it is in the registers
			e.lie, e.lieKey, e.lied = e.died(s, err), s.key, true
			return e.fpu
		}
		copy(e.fpu.Area[:e.xsize], s.p.fpuImage(e.xsize))
		sanitizeFPU(&e.fpu.Area, e.xmask, e.mxcsr)
	}
	return e.fpu
}

// sanitizeFPU makes an image that XRSTOR accepts of one that a guest may have
// written to (SDM vol. 1, section 13.8.1).
func sanitizeFPU(a *[cpu.XSAVEAreaSize]byte, xmask uint64, mxcsrMask uint32) {
	le := binary.LittleEndian
	le.PutUint32(a[xMXCSR:], le.Uint32(a[xMXCSR:])&mxcsrMask)
	le.PutUint32(a[xMXCSRMask:], mxcsrMask)
	clear(a[xSoftware:xStateBV])
	le.PutUint64(a[xStateBV:], le.Uint64(a[xStateBV:])&xmask)
	clear(a[xReserved:xExtended])
}

// placeFPU makes the stub of s load the live extended state when it resumes.
func (e *Engine) placeFPU(s *space) {
	p := s.p
	if e.fpuHome == s {
		return // it lies in the frame of the last stop
	}
	if e.fpuHome != nil {
		e.FPU()
	} else {
		sanitizeFPU(&e.fpu.Area, e.xmask, e.mxcsr)
	}
	copy(p.slot[stub.SlotXSave:], e.fpu.Area[:e.xsize])
	p.fpuAddr = p.base + stub.XSaveOff
	p.sp = p.base + stub.AreaSize - 64
	e.fpuHome = s
}

// lift moves the extended state out of a signal frame that lies low in the
// signal stack: the guest's RSP was inside, or kicks nested. Otherwise the
// next frames, which go below, would not fit, and the host kernel kills a
// process whose signal frame does not fit.
func (e *Engine) lift(s *space) {
	if s.p.sp < s.p.base+stub.StackOff+stub.StackSize/2 {
		e.FPU()
		e.placeFPU(s)
	}
}
