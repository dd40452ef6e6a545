package host

import (
	"fmt"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Spawn executes the ELF image with files as descriptors 0, 1, ... and the
// image itself as the next one, which the program should close; without
// arguments or environment. The process is killed when the calling
// thread ends: call it from a goroutine that is locked to its thread and
// lives as long as the process.
func Spawn(image []byte, files []int) (pid int, err error) {
	fd, err := Memfd("ring3-stub", int64(len(image)), true)
	if err != nil {
		return 0, err
	}
	defer unix.Close(fd)
	if n, err := unix.Pwrite(fd, image, 0); err != nil || n != len(image) {
		return 0, fmt.Errorf("write stub image: %d bytes: %w", n, err)
	}
	attr := &syscall.ProcAttr{
		// A session of its own: signals from the terminal are not for stubs.
		Sys: &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL, Setsid: true},
	}
	for _, f := range files {
		attr.Files = append(attr.Files, uintptr(f))
	}
	// By its new number: its present one may be overwritten by the others.
	attr.Files = append(attr.Files, uintptr(fd))
	pid, err = syscall.ForkExec(fmt.Sprintf("/proc/self/fd/%d", len(files)), []string{"ring3-stub"}, attr)
	if err != nil {
		return 0, fmt.Errorf("execute stub from a memfd (is /proc mounted?): %w", err)
	}
	return pid, nil
}

// Reap collects the child pid if it has ended.
func Reap(pid int) (ended bool, status unix.WaitStatus) {
	for {
		n, err := unix.Wait4(pid, &status, unix.WNOHANG|unix.WALL, nil)
		if err == unix.EINTR {
			continue
		}
		return n == pid || err == unix.ECHILD, status
	}
}

// Kill ends the child pid and collects it.
func Kill(pid int) {
	unix.Kill(pid, unix.SIGKILL)
	for {
		if _, err := unix.Wait4(pid, nil, unix.WALL, nil); err != unix.EINTR {
			return
		}
	}
}

// Signal sends sig to the single-threaded child pid.
func Signal(pid int, sig syscall.Signal) { unix.Tgkill(pid, pid, sig) }

// CPUs is the number of processors this thread may run on.
func CPUs() int {
	var set unix.CPUSet
	if unix.SchedGetaffinity(0, &set) != nil {
		return 1
	}
	return set.Count()
}

// TicksPer measures the time-stamp counter's ticks in d, roughly.
func TicksPer(d time.Duration) uint64 {
	start, t0 := TSC(), time.Now()
	for time.Since(t0) < 200*time.Microsecond {
	}
	n := TSC() - start
	return n * uint64(d) / uint64(time.Since(t0))
}
