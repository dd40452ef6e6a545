package host

import (
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Futex operations; not private: the words are shared with other processes.
const (
	futexWait = 0
	futexWake = 1
)

// FutexWait sleeps while *addr is val, at most d. It may return early.
func FutexWait(addr *uint32, val uint32, d time.Duration) {
	ts := unix.NsecToTimespec(int64(d))
	unix.Syscall6(unix.SYS_FUTEX, uintptr(unsafe.Pointer(addr)), futexWait, uintptr(val),
		uintptr(unsafe.Pointer(&ts)), 0, 0)
}

// FutexWake wakes one sleeper on addr.
func FutexWake(addr *uint32) {
	unix.RawSyscall6(unix.SYS_FUTEX, uintptr(unsafe.Pointer(addr)), futexWake, 1, 0, 0, 0)
}
