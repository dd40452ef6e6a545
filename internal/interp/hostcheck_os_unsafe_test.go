package interp

import (
	"unsafe"

	"golang.org/x/sys/unix"
)

// mmapAt reserves memory at an address, if that is free.
func mmapAt(addr, size uintptr) (unsafe.Pointer, error) {
	return unix.MmapPtr(-1, 0, *(*unsafe.Pointer)(unsafe.Pointer(&addr)), size, unix.PROT_NONE,
		unix.MAP_PRIVATE|unix.MAP_ANONYMOUS|unix.MAP_FIXED_NOREPLACE)
}

// hostFSBase is IA32_FS_BASE of this thread (arch_prctl(2)).
func hostFSBase() uint64 {
	const archGetFS = 0x1003
	var base uint64
	unix.Syscall(unix.SYS_ARCH_PRCTL, archGetFS, uintptr(unsafe.Pointer(&base)), 0)
	return base
}
