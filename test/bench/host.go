package main

import (
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"strings"

	"golang.org/x/sys/unix"
)

// host describes this machine.
type host struct {
	cpu    string
	kernel string
	memory uint64 // bytes
	user   string
	load   string // load averages before the first round
}

func describeHost() host {
	h := host{cpu: cpuModel(), load: loadAverage(), user: "an ordinary user"}
	if os.Geteuid() == 0 {
		h.user = "root"
	}
	var u unix.Utsname
	if unix.Uname(&u) == nil {
		h.kernel = unix.ByteSliceToString(u.Sysname[:]) + " " + unix.ByteSliceToString(u.Release[:])
	}
	var s unix.Sysinfo_t
	if unix.Sysinfo(&s) == nil {
		h.memory = s.Totalram * uint64(s.Unit)
	}
	return h
}

// cpuModel returns the processor's name, family and so on, and whether it is a
// virtual machine's.
func cpuModel() string {
	info, _ := os.ReadFile("/proc/cpuinfo")
	field := map[string]string{}
	for line := range strings.Lines(string(info)) {
		if k, v, ok := strings.Cut(line, ":"); ok {
			field[strings.TrimSpace(k)] = strings.TrimSpace(v)
		}
	}
	s := fmt.Sprintf("%s (family %s, model %s), %d logical CPUs", field["model name"], field["cpu family"], field["model"], runtime.NumCPU())
	if strings.Contains(" "+field["flags"]+" ", " hypervisor ") {
		s += ", itself virtual"
	}
	return s
}

// loadAverage returns the three averages.
func loadAverage() string {
	b, _ := os.ReadFile("/proc/loadavg")
	if f := strings.Fields(string(b)); len(f) > 3 {
		return strings.Join(f[:3], " ")
	}
	return "unknown"
}

// busy reports whether the first of the load averages is that of a machine that
// had something to do.
func busy(load string) bool {
	var one float64
	_, err := fmt.Sscan(load, &one)
	return err == nil && one > 0.7
}

// commit names the state of the sources, or is empty outside of a checkout.
func commit() string {
	id, err := exec.Command("git", "rev-parse", "--short", "HEAD").Output()
	if err != nil {
		return ""
	}
	s := "commit " + strings.TrimSpace(string(id))
	if changed, err := exec.Command("git", "status", "--porcelain").Output(); err == nil && len(changed) > 0 {
		s += " and changes"
	}
	return s
}
