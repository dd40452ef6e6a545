package hostcheck

import (
	"os"
	"runtime"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

var limitChecks = []check{
	{"vm.max_map_count", maxMapCount},
	{"CPUs", cpus},
	{"memory", memory},
}

// Addresses that a guest's programs use and a host process must be able to map.
const (
	lowAddress  = 0x10000          // the usual vm.mmap_min_addr
	highAddress = 0x7fff_f000_0000 // just below the 47-bit limit
)

// addressSpace: a stub's address space holds a guest program's, wherever its
// parts are, and ring3 reserves far more than it uses.
func addressSpace() Result {
	var r unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_AS, &r); err == nil && r.Cur != unix.RLIM_INFINITY {
		return fail("ulimit -v unlimited", "limited to %d MiB", r.Cur>>20)
	}
	page := uintptr(os.Getpagesize())
	for _, a := range []uintptr{lowAddress, highAddress} {
		// Past the runtime's own bookkeeping: the page is never touched.
		_, _, err := unix.Syscall6(unix.SYS_MMAP, a, page, unix.PROT_NONE,
			unix.MAP_PRIVATE|unix.MAP_ANONYMOUS|unix.MAP_FIXED_NOREPLACE, ^uintptr(0), 0)
		switch {
		case err == unix.EEXIST:
			// taken by this process, so it can be mapped
		case err != 0 && a == lowAddress:
			return warn("sysctl vm.mmap_min_addr=65536 as root", "address %#x cannot be mapped: %v", a, err)
		case err != 0:
			return fail("none known", "address %#x cannot be mapped: %v", a, err)
		default:
			unix.Syscall(unix.SYS_MUNMAP, a, page, 0)
		}
	}
	return ok("unlimited")
}

const (
	defaultMapCount = 65530
	leastMapCount   = 4096
)

// maxMapCount: every run of pages that a guest program uses is one mapping.
func maxMapCount() Result {
	n, err := strconv.Atoi(readLine("/proc/sys/vm/max_map_count"))
	mend := "sysctl vm.max_map_count=65530 as root"
	switch {
	case err != nil:
		return warn("mount /proc", "unknown: %v", err)
	case n < leastMapCount:
		return fail(mend, "%d mappings in a process", n)
	case n < defaultMapCount:
		return warn(mend, "%d mappings in a process: large guest programs will be slow", n)
	}
	return ok("%d", n)
}

func cpus() Result {
	n := runtime.NumCPU()
	if quota, period, found := strings.Cut(readLine("/sys/fs/cgroup/cpu.max"), " "); found && quota != "max" {
		q, err1 := strconv.ParseFloat(quota, 64)
		p, err2 := strconv.ParseFloat(period, 64)
		if err1 == nil && err2 == nil && p > 0 {
			return ok("%d, limited to the time of %.1f", n, q/p)
		}
	}
	if n == 1 {
		return warn("give it two: one for the guest, one for its devices", "1")
	}
	return ok("%d", n)
}

// guestMemory is what a guest of the default size needs, in MiB, with ring3.
const guestMemory = 512 + 64

func memory() Result {
	have, limit := availableMiB(), ""
	if n, err := strconv.ParseUint(readLine("/sys/fs/cgroup/memory.max"), 10, 64); err == nil && n>>20 < have {
		have, limit = n>>20, " (limit of the control group)"
	}
	if have == 0 {
		return warn("mount /proc", "unknown")
	}
	if have < guestMemory {
		return warn("free some, or give guests less with --memory", "%d MiB available%s", have, limit)
	}
	return ok("%d MiB available%s", have, limit)
}

// availableMiB reads MemAvailable, 0 if it cannot.
func availableMiB() uint64 {
	b, _ := os.ReadFile("/proc/meminfo")
	for line := range strings.Lines(string(b)) {
		if rest, found := strings.CutPrefix(line, "MemAvailable:"); found {
			n, _ := strconv.ParseUint(strings.Fields(rest)[0], 10, 64)
			return n >> 10
		}
	}
	return 0
}

// readLine returns the first line of a file, "" if it cannot be read.
func readLine(name string) string {
	b, _ := os.ReadFile(name)
	line, _, _ := strings.Cut(string(b), "\n")
	return strings.TrimSpace(line)
}
