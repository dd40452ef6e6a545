package hostcheck

import (
	"errors"
	"os"
	"strings"

	"golang.org/x/sys/unix"
)

var kernelChecks = []check{
	{"host kernel", hostKernel},
	{"privileges", privileges},
	{"memfd", memfd},
	{"executable mappings", execMapping},
	{"running a memfd", execMemfd},
	{"seccomp filters", seccompFilter},
	{"address space", addressSpace},
}

func hostKernel() Result {
	var u unix.Utsname
	if err := unix.Uname(&u); err != nil {
		return fail("use a Linux host", "%v", err)
	}
	return ok("%s %s", unix.ByteSliceToString(u.Sysname[:]), unix.ByteSliceToString(u.Release[:]))
}

func privileges() Result {
	return info("user id %d: neither root nor user namespaces needed", os.Getuid())
}

// memfdExec creates a memory file that may be executed. Kernels before 6.3 do
// not know the flag and allow it anyway.
func memfdExec() (*os.File, error) {
	fd, err := unix.MemfdCreate("ring3-check", unix.MFD_CLOEXEC|unix.MFD_EXEC)
	if errors.Is(err, unix.EINVAL) {
		fd, err = unix.MemfdCreate("ring3-check", unix.MFD_CLOEXEC)
	}
	if err != nil {
		return nil, err
	}
	return os.NewFile(uintptr(fd), "memfd"), nil
}

const noexecMend = "sysctl vm.memfd_noexec=0 as root (1 does too)"

func memfd() Result {
	f, err := memfdExec()
	if err != nil {
		if noexecSysctl() == "2" {
			return fail(noexecMend, "vm.memfd_noexec=2 forbids executable memory files")
		}
		return fail("allow memfd_create in the sandbox this runs in", "memfd_create: %v", err)
	}
	f.Close()
	if v := noexecSysctl(); v != "" {
		return ok("usable, vm.memfd_noexec=%s", v)
	}
	return ok("usable")
}

func noexecSysctl() string {
	b, err := os.ReadFile("/proc/sys/vm/memfd_noexec")
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(b))
}

// execMapping: guest memory is a memory file, and guest programs run from it.
func execMapping() Result {
	f, err := memfdExec()
	if err == nil {
		defer f.Close()
		err = f.Truncate(int64(os.Getpagesize()))
	}
	if err == nil {
		var p []byte
		p, err = unix.Mmap(int(f.Fd()), 0, os.Getpagesize(), unix.PROT_READ|unix.PROT_EXEC, unix.MAP_SHARED)
		if err == nil {
			unix.Munmap(p)
		}
	}
	if err != nil {
		return fail("allow it in the security module or sandbox this runs in (SELinux: execmem)",
			"a memory file cannot be mapped executable: %v", err)
	}
	return ok("allowed")
}
