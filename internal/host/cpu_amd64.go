package host

import (
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// CPUID executes the instruction.
//
//go:noescape
func CPUID(leaf, sub uint32) (eax, ebx, ecx, edx uint32)

func xgetbv() uint64

// TSC reads the time-stamp counter.
func TSC() uint64

// SpinUntil reads *addr until it is want, at most for ticks of the time-stamp
// counter, and reports whether it was. Keep ticks to some ten microseconds:
// it is assembly, which the Go scheduler cannot interrupt.
//
//go:noescape
func SpinUntil(addr *uint32, want uint32, ticks uint64) bool

// Pauses executes PAUSE n times.
func Pauses(n uint32)

// XCR0 is the set of extended-state components that the host kernel has
// enabled, 0 without XSAVE.
func XCR0() uint64 {
	if _, _, ecx, _ := CPUID(1, 0); ecx>>27&1 == 0 { // OSXSAVE
		return 0
	}
	return xgetbv()
}

// XSaveSize is the size in bytes of the standard-format XSAVE image of all
// enabled components (SDM vol. 1, section 13.2).
func XSaveSize() uint32 {
	_, ebx, _, _ := CPUID(0xd, 0)
	return ebx
}

// HasFSGSBASE reports whether the kernel lets user mode execute RDFSBASE and
// its kin: AT_HWCAP2 bit 1.
func HasFSGSBASE() bool {
	aux, err := unix.Auxv()
	if err != nil {
		return false
	}
	for _, a := range aux {
		if a[0] == 26 /* AT_HWCAP2 */ {
			return a[1]>>1&1 != 0
		}
	}
	return false
}

// MinSigStack is the size in bytes of the largest signal frame: AT_MINSIGSTKSZ.
func MinSigStack() int {
	if aux, err := unix.Auxv(); err == nil {
		for _, a := range aux {
			if a[0] == 51 {
				return int(a[1])
			}
		}
	}
	return 2048
}

// CPUIDFaults reports whether CPUID can be made to fault in user mode. Setting
// this thread to the mode it is in succeeds only where the mode can be set.
func CPUIDFaults() bool {
	_, _, errno := unix.RawSyscall(unix.SYS_ARCH_PRCTL, 0x1012 /* ARCH_SET_CPUID */, 1, 0)
	return errno == 0
}

// MaxMaps is vm.max_map_count.
func MaxMaps() int {
	b, err := os.ReadFile("/proc/sys/vm/max_map_count")
	if err == nil {
		if n, err := strconv.Atoi(strings.TrimSpace(string(b))); err == nil && n > 0 {
			return n
		}
	}
	return 65530 // the kernel's default
}
