package main

import (
	"bufio"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"
)

// family lists process pid and all its descendants.
func family(pid int) []int {
	all := []int{pid}
	for i := 0; i < len(all); i++ {
		tasks, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/children", all[i]))
		for _, f := range tasks {
			b, _ := os.ReadFile(f)
			for _, s := range strings.Fields(string(b)) {
				n, _ := strconv.Atoi(s)
				all = append(all, n)
			}
		}
	}
	return all
}

// footprint is the memory of a process beside guest RAM, in bytes: private
// pages and its share of others, without the memfd that is guest RAM.
func footprint(t *testing.T, pid int) (bytes uint64) {
	t.Helper()
	f, err := os.Open(fmt.Sprintf("/proc/%d/smaps", pid))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	ram := false
	for sc := bufio.NewScanner(f); sc.Scan(); {
		line := sc.Text()
		if fields := strings.Fields(line); strings.Contains(fields[0], "-") && !strings.HasSuffix(fields[0], ":") {
			ram = strings.Contains(line, "memfd:ring3-ram")
		} else if fields[0] == "Pss:" && !ram {
			kib, _ := strconv.ParseUint(fields[1], 10, 64)
			bytes += kib << 10
		}
	}
	return bytes
}

// ownMemory is the memory of a process that is in no memfd, in bytes: for
// stubs, whose smaps only root may read.
func ownMemory(t *testing.T, pid int) (bytes uint64) {
	t.Helper()
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(status)) {
		if f := strings.Fields(line); len(f) > 1 && (f[0] == "RssAnon:" || f[0] == "RssFile:") {
			kib, _ := strconv.ParseUint(f[1], 10, 64)
			bytes += kib << 10
		}
	}
	return bytes
}

// readyGuest runs ring3 with args until the guest says "ready", and returns the
// monitor's process. It is killed at the end of the test.
func readyGuest(t *testing.T, args ...string) (pid int) {
	t.Helper()
	needKernel(t)
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := &exec.Cmd{Path: self, Stderr: os.Stderr, Args: append([]string{"ring3", "run"}, args...)}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		cmd.Process.Kill()
		cmd.Wait()
	})
	ready := make(chan string, 1)
	go func() {
		line, _ := bufio.NewReader(out).ReadString('\n')
		ready <- line
	}()
	select {
	case line := <-ready:
		if line != "ready\n" {
			t.Fatalf("the guest said %q", line)
		}
	case <-time.After(5 * time.Minute):
		t.Fatal("the guest does not get ready")
	}
	return cmd.Process.Pid
}

// ticks is the processor time of processes, in hundredths of a second.
func ticks(t *testing.T, pids []int) (sum int) {
	t.Helper()
	for _, pid := range pids {
		b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
		if err != nil {
			t.Fatal(err)
		}
		// Behind the name: state is field 3, utime 14, stime 15.
		f := strings.Fields(string(b[strings.LastIndexByte(string(b), ')')+1:]))
		for _, i := range []int{14 - 3, 15 - 3} {
			n, _ := strconv.Atoi(f[i])
			sum += n
		}
	}
	return sum
}

// TestIdle looks at what the virtual CPUs of an idle guest take of the host's:
// one that burns a core would show, whatever else the host does.
func TestIdle(t *testing.T) {
	pid := readyGuest(t, "--cpus", "4", "--", "sh", "-c", "echo ready; sleep 1000")
	pids := family(pid)
	best := 1.0
	for range 2 { // the guest may still have something to do
		before, start := ticks(t, pids), time.Now()
		time.Sleep(time.Second)
		best = min(best, float64(ticks(t, pids)-before)/100/time.Since(start).Seconds())
	}
	t.Logf("%.1f %% of a core in the best of 2 seconds", 100*best)
	if best > 0.2 {
		t.Errorf("an idle guest takes %.0f %% of a core", 100*best)
	}
}

// TestFootprint looks at the memory that a monitor and its stubs use beside
// guest RAM, after the guest has run some hundred processes.
func TestFootprint(t *testing.T) {
	pids := family(readyGuest(t, "--", "sh", "-c",
		"i=0; while [ $i -lt 300 ]; do ls / >/dev/null; i=$((i+1)); done; echo ready; sleep 1000"))
	if len(pids) < 3 {
		t.Fatalf("monitor and stubs are %v: fewer than expected", pids)
	}
	var stubs uint64
	for _, pid := range pids[1:] {
		stubs += ownMemory(t, pid)
	}
	monitor := footprint(t, pids[0])
	t.Logf("beside guest RAM: monitor %.1f MiB, %d stubs %.1f MiB", float64(monitor)/(1<<20), len(pids)-1, float64(stubs)/(1<<20))
	if monitor+stubs > 64<<20 {
		t.Errorf("%d MiB beside guest RAM, more than 64", (monitor+stubs)>>20)
	}
}
