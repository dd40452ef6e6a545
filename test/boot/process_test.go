package boot

import (
	"bufio"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

// buildRing3 builds the command.
func buildRing3(t *testing.T) string {
	t.Helper()
	bin := filepath.Join(t.TempDir(), "ring3")
	cmd := exec.Command("go", "build", "-o", bin, "ring3/cmd/ring3")
	if b, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("go build: %v\n%s", err, b)
	}
	return bin
}

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

// TestFootprintAndKill starts a machine with the ring3 command, looks at the
// memory that monitor and stubs use beside guest RAM, kills the monitor with
// SIGKILL, and looks for what is left.
func TestFootprintAndKill(t *testing.T) {
	kernel(t, "cloud") // fetched before the clock runs
	bin := buildRing3(t)
	cmd := exec.Command(bin, "run", "--", "sh", "-c", "i=0; while [ $i -lt 300 ]; do ls / >/dev/null; i=$((i+1)); done; echo ready; sleep 1000")
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer cmd.Process.Kill()
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
	case <-time.After(3 * time.Minute):
		t.Fatal("the guest does not get ready")
	}
	pids := family(cmd.Process.Pid)
	if len(pids) < 3 {
		t.Fatalf("monitor and stubs are %v: fewer than expected", pids)
	}
	var total uint64
	for _, pid := range pids {
		n := footprint(t, pid)
		total += n
		if pid == cmd.Process.Pid {
			t.Logf("monitor: %.1f MiB beside guest RAM", float64(n)/(1<<20))
			if n > 64<<20 {
				t.Errorf("the monitor uses %d MiB beside guest RAM, more than 64", n>>20)
			}
		}
	}
	t.Logf("monitor and %d stubs: %.1f MiB beside guest RAM", len(pids)-1, float64(total)/(1<<20))

	if err := cmd.Process.Signal(syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	cmd.Wait()
	for _, pid := range pids {
		for end := time.Now().Add(10 * time.Second); alive(pid); time.Sleep(10 * time.Millisecond) {
			if time.Now().After(end) {
				t.Errorf("process %d outlives its monitor", pid)
				break
			}
		}
	}
}

// alive reports whether a process exists and is not a zombie that waits for
// its new parent.
func alive(pid int) bool {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return false
	}
	rest := string(b[strings.LastIndexByte(string(b), ')')+1:])
	return !strings.HasPrefix(rest, " Z")
}
