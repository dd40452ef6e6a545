package host

import (
	"bytes"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"time"

	"golang.org/x/sys/unix"
)

// SchedStat is how long a single-threaded process, or the calling thread with
// pid 0, has run, and how long it has waited for a processor. The kernel may
// count what it is doing at the moment only later.
func SchedStat(pid int) (ran, waited time.Duration, err error) {
	f, err := procFields(pid, "schedstat")
	if err != nil {
		return 0, 0, err
	}
	if len(f) < 2 {
		return 0, 0, errors.New("schedstat: no numbers")
	}
	r, err := strconv.ParseInt(string(f[0]), 10, 64)
	w, err2 := strconv.ParseInt(string(f[1]), 10, 64)
	return time.Duration(r), time.Duration(w), errors.Join(err, err2)
}

// State is what a single-threaded process does, as proc_pid_stat(5) has it: 'R'
// it runs or waits for a processor, 'S' it sleeps, 'T' it was stopped.
func State(pid int) (byte, error) {
	f, err := procFields(pid, "stat")
	if err != nil {
		return 0, err
	}
	// The name in field 2 is a stub's, without spaces.
	if len(f) < 3 || len(f[2]) != 1 {
		return 0, errors.New("stat: no state")
	}
	return f[2][0], nil
}

// LastCPU is the processor that a single-threaded process last ran on.
func LastCPU(pid int) (int, error) {
	f, err := procFields(pid, "stat")
	if err != nil {
		return 0, err
	}
	const processor = 38 // field 39 of proc_pid_stat(5)
	if len(f) <= processor {
		return 0, errors.New("stat: no processor")
	}
	return strconv.Atoi(string(f[processor]))
}

func procFields(pid int, name string) ([][]byte, error) {
	path := "/proc/thread-self/" + name
	if pid != 0 {
		path = fmt.Sprintf("/proc/%d/%s", pid, name)
	}
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	defer unix.Close(fd)
	var b [4096]byte
	n, err := unix.Read(fd, b[:])
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return bytes.Fields(b[:n]), nil
}

// PageTables is the size in bytes of the page tables that the host kernel keeps
// for a process (proc_pid_status(5), VmPTE).
func PageTables(pid int) (uint64, error) {
	f, err := procFields(pid, "status")
	if err != nil {
		return 0, err
	}
	i := slices.IndexFunc(f, func(b []byte) bool { return string(b) == "VmPTE:" })
	if i < 0 || i+1 == len(f) {
		return 0, errors.New("status: no VmPTE")
	}
	kib, err := strconv.ParseUint(string(f[i+1]), 10, 54)
	return kib << 10, err
}
