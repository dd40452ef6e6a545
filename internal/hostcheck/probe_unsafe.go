package hostcheck

import (
	"unsafe"

	"golang.org/x/sys/unix"
)

// setFilter puts the calling thread under a seccomp filter, for good.
func setFilter(filter []unix.SockFilter) error {
	prog := unix.SockFprog{Len: uint16(len(filter)), Filter: &filter[0]}
	return unix.Prctl(unix.PR_SET_SECCOMP, unix.SECCOMP_MODE_FILTER, uintptr(unsafe.Pointer(&prog)), 0, 0)
}

// actionAvailable asks the kernel whether filters may return action.
func actionAvailable(action uint32) error {
	_, _, err := unix.Syscall(unix.SYS_SECCOMP, unix.SECCOMP_GET_ACTION_AVAIL, 0, uintptr(unsafe.Pointer(&action)))
	if err != 0 {
		return err
	}
	return nil
}
