package cpuid

import (
	"encoding/binary"
	"os"
)

// Regs are the registers that CPUID returns.
type Regs struct{ A, B, C, D uint32 }

// Host is a CPU as a table is made from: the one that this program runs on, or
// a recorded one in tests.
type Host struct {
	CPUID func(leaf, sub uint32) Regs
	// XCR0 as the operating system has set it.
	XCR0 uint64
	// FSGSBASE: the operating system lets user code use RDFSBASE and so on.
	FSGSBASE bool
}

func execute(leaf, sub uint32) (a, b, c, d uint32)
func readXCR0() uint64

// ReadHost describes the CPU of this machine.
func ReadHost() Host {
	h := Host{CPUID: func(leaf, sub uint32) Regs {
		a, b, c, d := execute(leaf, sub)
		return Regs{a, b, c, d}
	}}
	if h.CPUID(1, 0).C>>27&1 != 0 {
		h.XCR0 = readXCR0()
	}
	const hwcap2FSGSBASE = 1 << 1
	h.FSGSBASE = auxv(26 /* AT_HWCAP2 */)&hwcap2FSGSBASE != 0
	return h
}

// auxv looks up an entry of the auxiliary vector that the kernel gave this
// process; 0 when it is not there.
func auxv(tag uint64) uint64 {
	raw, err := os.ReadFile("/proc/self/auxv")
	if err != nil {
		return 0
	}
	for ; len(raw) >= 16; raw = raw[16:] {
		if binary.NativeEndian.Uint64(raw) == tag {
			return binary.NativeEndian.Uint64(raw[8:])
		}
	}
	return 0
}

// vendor families: where AMD and Intel differ, the guest's CPU is like the
// host's.
func isAMD(h Host) bool {
	switch h.CPUID(0, 0).B {
	case 0x68747541, 0x6f677948: // AuthenticAMD, HygonGenuine
		return true
	}
	return false
}
