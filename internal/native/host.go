package native

import (
	"ring3/internal/host"
	"ring3/internal/x86"
)

// Numbers of the XSAVE state components that this package loads
// (SDM vol. 1, section 13.1).
const (
	CompX87      = 0
	CompSSE      = 1
	CompAVX      = 2
	CompOpmask   = 5
	CompZMMHi256 = 6
	CompHi16ZMM  = 7
)

// loadable are the components that a snippet gets. PKRU is not among them: it
// would govern the monitor's own accesses. AMX tiles are not part of cpu.FPU.
const loadable = 1<<CompX87 | 1<<CompSSE | 1<<CompAVX | 1<<CompOpmask | 1<<CompZMMHi256 | 1<<CompHi16ZMM

// Host is what the host CPU offers.
type Host struct {
	// XCR0 as the host's kernel has set it, cut to what this package loads.
	XCR0 uint64
	// fullXCR0 is not cut.
	fullXCR0 uint64
	// Offset are the places of the components in the standard format of the
	// XSAVE area, in bytes; not the same on all CPUs (SDM vol. 1, 13.5).
	Offset [8]int
	// MXCSRMask are the MXCSR bits that may be set (SDM vol. 1, 11.6.6).
	MXCSRMask uint32
}

// probe reads what does not change while the process runs.
func probe() (h Host, ok bool) {
	h.fullXCR0 = host.XCR0()
	h.XCR0 = h.fullXCR0 & loadable
	h.Offset[CompSSE] = 160
	for i := CompAVX; i < len(h.Offset); i++ {
		if h.XCR0>>i&1 == 0 {
			continue
		}
		_, off, _, _ := host.CPUID(0xd, uint32(i))
		h.Offset[i] = int(off)
	}
	return h, h.XCR0&3 == 3
}

// loadedFlags are the RFLAGS bits that a snippet gets from the Context: those
// that instructions of user mode act on, without TF, which would trap, and AC,
// which would make the host check the alignment in signal handlers.
const loadedFlags = x86.FlagsArith | x86.FlagDF
