package hostcheck

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"runtime"

	"golang.org/x/sys/unix"
)

// execMemfd: stubs are started from a memory file.
func execMemfd() Result {
	const exitStatus = 42
	f, err := memfdExec()
	if err != nil {
		return fail("see memfd", "no memory file: %v", err)
	}
	defer f.Close()
	if _, err := f.Write(exitProgram(exitStatus)); err != nil {
		return fail("see memfd", "%v", err)
	}
	cmd := exec.Command("/proc/self/fd/3")
	cmd.ExtraFiles = []*os.File{f}
	err = cmd.Run()
	var exit *exec.ExitError
	if !errors.As(err, &exit) || exit.ExitCode() != exitStatus {
		return fail("mount /proc, and allow it in the security module or sandbox this runs in",
			"a program in a memory file does not run: %v", err)
	}
	return ok("works")
}

// exitProgram is the smallest static program: it exits with status.
func exitProgram(status byte) []byte {
	const (
		base   = 0x400000
		header = 64 + 56 // ELF header, one program header
	)
	code := []byte{
		0xb8, 60, 0, 0, 0, // mov $SYS_exit, %eax
		0xbf, status, 0, 0, 0, // mov $status, %edi
		0x0f, 0x05, // syscall
	}
	var b bytes.Buffer
	w := func(vs ...any) {
		for _, v := range vs {
			binary.Write(&b, binary.LittleEndian, v)
		}
	}
	b.WriteString("\x7fELF\x02\x01\x01")
	b.Write(make([]byte, 9))
	w(uint16(2), uint16(62), uint32(1), uint64(base+header), uint64(64), uint64(0)) // ET_EXEC, EM_X86_64
	w(uint32(0), uint16(64), uint16(56), uint16(1), uint16(0), uint16(0), uint16(0))
	w(uint32(1), uint32(5)) // PT_LOAD, read and execute
	w(uint64(0), uint64(base), uint64(base), uint64(header+len(code)), uint64(header+len(code)), uint64(0x1000))
	b.Write(code)
	return b.Bytes()
}

// ProbeCommand is the argument with which the program starts itself for a check
// that changes its process for good; main must then call Probe and exit.
const ProbeCommand = "probe-seccomp"

// seccompFilter: stubs run under a filter that turns system calls into SIGSYS.
func seccompFilter() Result {
	self, err := os.Executable()
	if err != nil {
		return fail("mount /proc", "%v", err)
	}
	out, err := exec.Command(self, ProbeCommand).CombinedOutput()
	if err != nil {
		return fail("a host kernel with CONFIG_SECCOMP_FILTER, and a sandbox that allows prctl and seccomp",
			"%v %s", err, bytes.TrimSpace(out))
	}
	return ok("usable without privileges")
}

// Probe asks whether filters can trap, and puts itself under one as a trial. The
// trial uses an error instead of a trap, since Go's runtime owns SIGSYS.
func Probe() error {
	const dataNr, retAllow, retErrno = 0, unix.SECCOMP_RET_ALLOW, unix.SECCOMP_RET_ERRNO
	runtime.LockOSThread()
	if err := actionAvailable(unix.SECCOMP_RET_TRAP); err != nil {
		return fmt.Errorf("trapping filters: %w", err)
	}
	if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
		return fmt.Errorf("no_new_privs: %w", err)
	}
	err := setFilter([]unix.SockFilter{
		{Code: unix.BPF_LD | unix.BPF_W | unix.BPF_ABS, K: dataNr},
		{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, K: unix.SYS_GETPPID, Jf: 1},
		{Code: unix.BPF_RET | unix.BPF_K, K: retErrno | uint32(unix.EXDEV)},
		{Code: unix.BPF_RET | unix.BPF_K, K: retAllow},
	})
	if err != nil {
		return fmt.Errorf("filter: %w", err)
	}
	if _, _, err := unix.RawSyscall(unix.SYS_GETPPID, 0, 0, 0); err != unix.EXDEV {
		return errors.New("the filter is not obeyed")
	}
	return nil
}
