package host

import (
	"runtime"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Futex operations; not private: the words are shared with other processes.
const (
	futexWait = 0
	futexWake = 1
)

// FutexWait sleeps while *addr is val, at most d. It may return early, for a
// signal for one, which the Go runtime sends when it wants the thread to stop.
//
// The Go runtime is not told that the thread sleeps: it would give its P to
// others, and its monitor thread would look every 70 µs whether there is one to
// take, which costs a tenth of a processor. A thread that sleeps here keeps
// other goroutines from running on its P: there must be more of them (see
// KeepProcs).
func FutexWait(addr *uint32, val uint32, d time.Duration) {
	ts := unix.NsecToTimespec(int64(d))
	unix.RawSyscall6(unix.SYS_FUTEX, uintptr(unsafe.Pointer(addr)), futexWait, uintptr(val),
		uintptr(unsafe.Pointer(&ts)), 0, 0)
}

// KeepProcs makes sure that goroutines can run while n threads sleep in
// FutexWait.
func KeepProcs(n int) {
	if least := n + 2; runtime.GOMAXPROCS(0) < least {
		runtime.GOMAXPROCS(least)
	}
}

// FutexWake wakes one sleeper on addr.
func FutexWake(addr *uint32) {
	unix.RawSyscall6(unix.SYS_FUTEX, uintptr(unsafe.Pointer(addr)), futexWake, 1, 0, 0, 0)
}
