package main

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"
	"golang.org/x/sys/unix"

	"ring3/internal/kernelstore"
)

// needKernel makes sure that there is something to boot.
func needKernel(t *testing.T) {
	t.Helper()
	if testing.Short() {
		t.Skip("boots a kernel")
	}
	store, err := kernelstore.Open("")
	if err == nil {
		_, err = store.Ensure(context.Background(), kernelstore.Cloud, nil)
	}
	if err == nil {
		_, err = store.FetchBusyBox(context.Background(), nil)
	}
	if err != nil {
		t.Fatal(err)
	}
}

// TestBoot runs testdata/boot: real boots of the default kernel.
func TestBoot(t *testing.T) {
	needKernel(t)
	base, err := os.UserCacheDir()
	if err != nil {
		t.Fatal(err)
	}
	testscript.Run(t, testscript.Params{
		Dir: "testdata/boot",
		Setup: func(e *testscript.Env) error {
			e.Setenv("XDG_CACHE_HOME", base)
			return setUpScript(e)
		},
		Cmds: scriptCommands,
	})
}

// terminal is ring3 on a pseudo-terminal.
type terminal struct {
	t             *testing.T
	cmd           *exec.Cmd
	master, slave *os.File

	patience time.Duration // how long to wait for some output

	mu     sync.Mutex
	output bytes.Buffer
	also   io.Writer // gets the output too, unless nil
}

func startOnTerminal(t *testing.T, rows, cols uint16, args ...string) *terminal {
	t.Helper()
	master, err := os.OpenFile("/dev/ptmx", os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Skipf("no pseudo-terminals on this host: %v", err)
	}
	t.Cleanup(func() { master.Close() })
	n, err := unix.IoctlGetInt(int(master.Fd()), unix.TIOCGPTN)
	if err == nil {
		err = unix.IoctlSetPointerInt(int(master.Fd()), unix.TIOCSPTLCK, 0)
	}
	if err != nil {
		t.Fatal(err)
	}
	slave, err := os.OpenFile(fmt.Sprintf("/dev/pts/%d", n), os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { slave.Close() })
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	c := &terminal{t: t, patience: 100 * time.Second, master: master, slave: slave}
	c.resize(rows, cols)
	c.cmd = &exec.Cmd{Path: self, Args: append([]string{"ring3"}, args...), Stdin: slave, Stdout: slave, Stderr: slave,
		SysProcAttr: &syscall.SysProcAttr{Setsid: true, Setctty: true}}
	if err := c.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.cmd.Process.Kill() })
	go io.Copy(c, master)
	return c
}

func (c *terminal) Write(p []byte) (int, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.also != nil {
		c.also.Write(p)
	}
	return c.output.Write(p)
}

// copyTo sends what comes from now on to w too.
func (c *terminal) copyTo(w io.Writer) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.also = w
}

func (c *terminal) resize(rows, cols uint16) {
	c.t.Helper()
	if err := unix.IoctlSetWinsize(int(c.master.Fd()), unix.TIOCSWINSZ, &unix.Winsize{Row: rows, Col: cols}); err != nil {
		c.t.Fatal(err)
	}
}

func (c *terminal) keys(s string) {
	c.t.Helper()
	if _, err := io.WriteString(c.master, s); err != nil {
		c.t.Fatal(err)
	}
}

// expect waits for s in the output and drops all up to its end.
func (c *terminal) expect(s string) {
	c.t.Helper()
	for deadline := time.Now().Add(c.patience); ; {
		c.mu.Lock()
		i := strings.Index(c.output.String(), s)
		if i >= 0 {
			c.output.Next(i + len(s))
		}
		rest := c.output.String()
		c.mu.Unlock()
		if i >= 0 {
			return
		}
		if time.Now().After(deadline) {
			c.t.Fatalf("no %q in %q", s, rest)
		}
		time.Sleep(20 * time.Millisecond)
	}
}

// end waits for ring3 and checks its exit status and the terminal.
func (c *terminal) end(status int) {
	c.t.Helper()
	c.cmd.Wait()
	if got := c.cmd.ProcessState.ExitCode(); got != status {
		c.t.Errorf("exit status %d, want %d", got, status)
	}
	s, err := unix.IoctlGetTermios(int(c.slave.Fd()), unix.TCGETS)
	if err != nil {
		c.t.Fatal(err)
	}
	if s.Lflag&unix.ICANON == 0 || s.Lflag&unix.ECHO == 0 || s.Oflag&unix.OPOST == 0 {
		c.t.Error("the terminal was not restored")
	}
}

const prompt = "~# "

// A shell on a terminal: window size, keys that make signals, escape key.
func TestTerminalShell(t *testing.T) {
	needKernel(t)
	c := startOnTerminal(t, 33, 101, "run")
	c.expect(prompt)
	c.keys("stty size\r")
	c.expect("33 101\r\n")
	c.expect(prompt)
	c.resize(40, 120)
	time.Sleep(time.Second) // the guest hears of it over its control port
	c.keys("stty size\r")
	c.expect("40 120\r\n")
	c.expect(prompt)
	c.keys("sleep 1000\r")
	time.Sleep(time.Second)
	c.keys("\x03")
	c.expect(prompt)
	c.keys("echo st$?at\r")
	c.expect("st130at")
	c.keys("\x01h")
	c.expect("Ctrl-A x")
	c.keys("\x01s")
	c.expect("wall time")
	c.keys("exit\r")
	c.end(0)
}

func TestTerminalStop(t *testing.T) {
	needKernel(t)
	c := startOnTerminal(t, 24, 80, "run")
	c.expect("Linux version")
	c.keys(strings.Repeat("typed ahead\r", 1000) + "\x01x")
	c.end(0)
}

func TestTerminalSignal(t *testing.T) {
	needKernel(t)
	c := startOnTerminal(t, 24, 80, "run")
	c.expect("Linux version")
	c.cmd.Process.Signal(unix.SIGTERM)
	c.end(128 + int(unix.SIGTERM))
}

func TestTerminalCommand(t *testing.T) {
	needKernel(t)
	c := startOnTerminal(t, 30, 90, "run", "--tty", "--", "sh", "-c", "tty; stty size; read x; exit 9")
	c.expect("/dev/ttyS1\r\n30 90\r\n")
	c.keys("\r")
	c.end(9)
}

// Nothing of a machine outlives its monitor, whatever kills it.
func TestKillLeavesNothing(t *testing.T) {
	needKernel(t)
	// Orphans become children of this process, so that they can be counted.
	if err := unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0); err != nil {
		t.Fatal(err)
	}
	defer unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 0, 0, 0, 0)
	dir := t.TempDir()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	cmd := &exec.Cmd{Path: self, Args: []string{"ring3", "run", "--", "sh", "-c", "echo up; while :; do :; done"},
		Stdout: w, Stderr: os.Stderr, Env: append(os.Environ(), "TMPDIR="+dir)}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	w.Close()
	r.SetReadDeadline(time.Now().Add(100 * time.Second))
	if _, err := io.ReadFull(r, make([]byte, 3)); err != nil {
		cmd.Process.Kill()
		t.Fatalf("the guest's command does not start: %v", err)
	}
	cmd.Process.Kill()
	cmd.Wait()
	for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		if _, err := unix.Wait4(-1, nil, unix.WNOHANG, nil); err == unix.ECHILD {
			break
		}
		if time.Now().After(deadline) {
			t.Fatal("a process of the machine lives 10 s after its monitor was killed")
		}
	}
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		t.Errorf("temporary file left: %s", e.Name())
	}
}
