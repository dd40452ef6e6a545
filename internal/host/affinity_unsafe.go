package host

import (
	"fmt"
	"unsafe"

	"golang.org/x/sys/unix"
)

// CPUSet is a set of processors.
type CPUSet = unix.CPUSet

// Affinity is the set of processors that the thread tid may run on, 0 for the
// calling thread (sched_getaffinity(2)).
func Affinity(tid int) (set CPUSet, err error) {
	if err := unix.SchedGetaffinity(tid, &set); err != nil {
		return set, fmt.Errorf("sched_getaffinity: %w", err)
	}
	return set, nil
}

// SetAffinity moves a thread to the processors of set (sched_setaffinity(2)).
func SetAffinity(tid int, set *CPUSet) error {
	if err := unix.SchedSetaffinity(tid, set); err != nil {
		return fmt.Errorf("sched_setaffinity: %w", err)
	}
	return nil
}

// CurrentCPU is the processor that the calling thread is running on
// (getcpu(2)).
func CurrentCPU() (int, error) {
	var cpu uint32
	_, _, errno := unix.RawSyscall(unix.SYS_GETCPU, uintptr(unsafe.Pointer(&cpu)), 0, 0)
	if errno != 0 {
		return 0, fmt.Errorf("getcpu: %w", errno)
	}
	return int(cpu), nil
}
