package direct

import (
	"os/exec"
	"syscall"
	"testing"
	"time"

	"ring3/internal/host"
)

// TestHadTime: a process that was stopped has had no time to obey a kick; one
// that runs, and one that sleeps, has.
func TestHadTime(t *testing.T) {
	start := func(args ...string) *proc {
		cmd := exec.Command(args[0], args[1:]...)
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { cmd.Process.Kill(); cmd.Wait() })
		return &proc{pid: cmd.Process.Pid}
	}
	// had waits until what hadTime says is as wanted.
	had := func(p *proc, want bool, what string) {
		t.Helper()
		var ran time.Duration
		for deadline := time.Now().Add(10 * time.Second); time.Now().Before(deadline); time.Sleep(20 * time.Millisecond) {
			if p.hadTime(&ran) == want {
				return
			}
		}
		state, err := host.State(p.pid)
		t.Errorf("%s: not %v; state %c, %v", what, want, state, err)
	}
	busy := start("sh", "-c", "while :; do :; done")
	had(busy, true, "busy")
	had(start("sleep", "100"), true, "asleep")
	if err := syscall.Kill(busy.pid, syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	had(busy, false, "stopped")
	var ran time.Duration
	for range 3 {
		if time.Sleep(20 * time.Millisecond); busy.hadTime(&ran) {
			t.Error("stopped, and had time")
		}
	}
}
