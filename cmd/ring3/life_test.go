package main

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"
	"golang.org/x/sys/unix"

	"ring3/internal/initramfs"
)

// staticOnce builds ring3 for tests that are not statically linked themselves: a
// guest runs ring3 as its agent.
var staticOnce = sync.OnceValues(func() (string, error) {
	self, err := os.Executable()
	if err != nil {
		return "", err
	}
	program, err := os.ReadFile(self)
	if err != nil || initramfs.Static(program) == nil {
		return self, err
	}
	out := filepath.Join(os.Getenv("XDG_RUNTIME_DIR"), "bin", "ring3")
	cmd := exec.Command("go", "build", "-o", out, ".")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if text, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("go build: %w\n%s", err, text)
	}
	return out, nil
})

func static(t *testing.T) string {
	t.Helper()
	path, err := staticOnce()
	if err != nil {
		t.Fatal(err)
	}
	return path
}

// TestLife runs testdata/life: machines in the background. None of their
// processes may be left in the end.
func TestLife(t *testing.T) {
	needKernel(t)
	ring3 := static(t)
	base, err := os.UserCacheDir()
	if err != nil {
		t.Fatal(err)
	}
	// Monitors and orphans become children of this process, so that they can be
	// counted.
	if err := unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0); err != nil {
		t.Fatal(err)
	}
	defer unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 0, 0, 0, 0)
	t.Run("script", func(t *testing.T) {
		testscript.Run(t, testscript.Params{
			Dir: "testdata/life",
			Setup: func(e *testscript.Env) error {
				e.Setenv("XDG_CACHE_HOME", base)
				if filepath.Base(ring3) == "ring3" {
					e.Setenv("PATH", filepath.Dir(ring3)+":"+e.Getenv("PATH"))
				}
				return setUpScript(e)
			},
			Cmds: scriptCommands,
		})
	})
	for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		if _, err := unix.Wait4(-1, nil, unix.WNOHANG, nil); err == unix.ECHILD {
			break
		}
		if time.Now().After(deadline) {
			t.Fatal("a process of a machine lives 10 s after the last command")
		}
	}
}

// scriptKill9 is "kill9 NAME": the monitor of a machine is killed.
func scriptKill9(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 1 {
		ts.Fatalf("usage: kill9 NAME")
	}
	var state struct{ PID int }
	ts.Check(json.Unmarshal([]byte(ts.ReadFile(filepath.Join(ts.Getenv("XDG_RUNTIME_DIR"), "ring3", args[0], "state.json"))), &state))
	ts.Check(syscall.Kill(state.PID, syscall.SIGKILL))
	// It is gone when its lock is free.
	for deadline := time.Now().Add(10 * time.Second); time.Now().Before(deadline); time.Sleep(5 * time.Millisecond) {
		if ts.Exec("ring3", "ps") == nil && !strings.Contains(ts.ReadFile("stdout"), args[0]) {
			return
		}
	}
	ts.Fatalf("%s still counts as running", args[0])
}

// scriptRemoveAll is "removeall": all machines are killed and removed.
func scriptRemoveAll(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 0 {
		ts.Fatalf("usage: removeall")
	}
	ts.Check(ts.Exec("ring3", "ps", "--all"))
	for _, line := range strings.Split(strings.TrimSpace(ts.ReadFile("stdout")), "\n")[1:] {
		ts.Check(ts.Exec("ring3", "rm", "--force", strings.Fields(line)[0]))
	}
}

// TestTerminals: exec -t, and the console, of a machine in the background.
func TestTerminals(t *testing.T) {
	needKernel(t)
	ring3 := static(t)
	t.Setenv("XDG_RUNTIME_DIR", t.TempDir())
	do := func(args ...string) string {
		cmd := &exec.Cmd{Path: ring3, Args: append([]string{"ring3"}, args...), Stderr: os.Stderr}
		out, err := cmd.Output()
		if err != nil {
			t.Fatalf("ring3 %s: %v", strings.Join(args, " "), err)
		}
		return string(out)
	}
	do("run", "-d", "--name", "t1", "--timeout", "100s")
	defer do("rm", "-f", "t1")

	c := startOnTerminal(t, 30, 90, "exec", "-t", "t1", "--", "sh", "-c", "tty; stty size; read x; stty size; sleep 1000; exit 9")
	c.expect("/dev/pts/")
	c.expect("30 90\r\n")
	c.resize(40, 100)
	time.Sleep(time.Second) // the guest hears of it over its own connection
	c.keys("\r")
	c.expect("40 100\r\n")
	c.keys("\x03")
	c.end(130)

	c = startOnTerminal(t, 31, 91, "console", "t1")
	c.expect("Ctrl-A d leaves it")
	c.keys("\r")
	c.expect(prompt)
	c.keys("stty size\r")
	c.expect("31 91\r\n")
	c.keys("\x01h")
	c.expect("Ctrl-A d ")
	c.keys("x=kept\r\x01d")
	c.end(0)
	c = startOnTerminal(t, 31, 91, "console", "t1")
	c.expect("Ctrl-A d leaves it")
	c.keys("echo it was $x.\r")
	c.expect("it was kept.")
	c.keys("exit\r")
	c.expect("the console of t1 has ended")
	c.end(0)
	if s := do("ps", "--all"); !strings.Contains(s, "ended with status 0") {
		t.Error(s)
	}
}
