package agent

import (
	"bytes"
	"crypto/rand"
	"errors"
	"io"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// start runs a command through an agent of this process.
func start(t testing.TB, c Command) (*Session, net.Conn) {
	t.Helper()
	host, guest := net.Pipe()
	done := make(chan struct{})
	go func() { defer close(done); serve(guest) }()
	t.Cleanup(func() {
		host.Close()
		select {
		case <-done:
		case <-time.After(30 * time.Second):
			t.Error("the agent does not notice that its connection has ended")
		}
	})
	s, err := Start(host, c)
	if err != nil {
		t.Fatal(err)
	}
	return s, host
}

func TestStreams(t *testing.T) {
	s, _ := start(t, Command{Args: []string{"sh", "-c", `cat; echo "$WHO in $(pwd)" >&2; exit 3`}, Env: []string{"WHO=me"}, Dir: "/"})
	in := make([]byte, 3<<20)
	rand.Read(in)
	var stdout, stderr bytes.Buffer
	status, err := s.Run(bytes.NewReader(in), &stdout, &stderr)
	if status != 3 || err != nil || !bytes.Equal(stdout.Bytes(), in) || stderr.String() != "me in /\n" {
		t.Errorf("status %d, error %v, %d bytes, stderr %q", status, err, stdout.Len(), &stderr)
	}
}

func TestStatus(t *testing.T) {
	for script, want := range map[string]int{"true": 0, "exit 255": 255, "kill -9 $$": 137, "kill -INT $$": 130} {
		s, _ := start(t, Command{Args: []string{"sh", "-c", script}})
		if status, err := s.Run(nil, io.Discard, io.Discard); status != want || err != nil {
			t.Errorf("%s: status %d, error %v", script, status, err)
		}
	}
}

func TestFailed(t *testing.T) {
	dir := t.TempDir()
	plain := filepath.Join(dir, "plain")
	os.WriteFile(plain, nil, 0o644)
	for _, tt := range []struct {
		c      Command
		status int
		reason string
	}{
		{Command{Args: []string{"no-such-command"}}, 127, "no-such-command: not found in the guest"},
		{Command{Args: []string{dir + "/none"}}, 127, dir + "/none: no such file or directory"},
		{Command{Args: []string{plain}}, 126, plain + ": permission denied"},
		{Command{Args: []string{"true"}, Dir: dir + "/none"}, 126, dir + "/none: no such file or directory"},
	} {
		s, _ := start(t, tt.c)
		_, err := s.Run(nil, io.Discard, io.Discard)
		var failed *FailedError
		if !errors.As(err, &failed) || failed.Status != tt.status || failed.Reason != tt.reason {
			t.Errorf("%v: %v", tt.c, err)
		}
	}
}

// A command that reads nothing hears of signals, however much input waits.
func TestSignal(t *testing.T) {
	s, _ := start(t, Command{Args: []string{"sh", "-c", "trap 'echo caught; exit 5' USR1; echo ready; while :; do sleep 0.05; done"}})
	out, w := io.Pipe()
	status := make(chan int, 1)
	go func() {
		n, err := s.Run(bytes.NewReader(make([]byte, 1<<20)), w, io.Discard)
		if err != nil {
			t.Error(err)
		}
		status <- n
		w.Close()
	}()
	if _, err := io.ReadFull(out, make([]byte, 6)); err != nil {
		t.Fatal(err)
	}
	s.Signal(syscall.SIGUSR1)
	if rest, _ := io.ReadAll(out); string(rest) != "caught\n" {
		t.Errorf("output %q", rest)
	}
	if n := <-status; n != 5 {
		t.Errorf("status %d", n)
	}
}

func TestTerminal(t *testing.T) {
	s, _ := start(t, Command{Args: []string{"sh", "-c", "stty size; read line; stty size; echo got $line"}, TTY: true, Rows: 30, Cols: 90})
	out, w := io.Pipe()
	in, keys := io.Pipe()
	go func() {
		s.Run(in, w, io.Discard)
		w.Close()
	}()
	b := make([]byte, 7)
	if _, err := io.ReadFull(out, b); err != nil || string(b) != "30 90\r\n" {
		t.Fatalf("%q %v", b, err)
	}
	s.Resize(40, 100)
	io.WriteString(keys, "words\n")
	if rest, _ := io.ReadAll(out); !strings.HasSuffix(string(rest), "40 100\r\ngot words\r\n") {
		t.Errorf("%q", rest)
	}
}

// The command ends with its connection, even if it ignores SIGHUP.
func TestHangUp(t *testing.T) {
	s, conn := start(t, Command{Args: []string{"sh", "-c", "trap '' HUP; echo $$; while :; do sleep 0.05; done"}})
	out, w := io.Pipe()
	go s.Run(nil, w, io.Discard)
	b := make([]byte, 20)
	n, err := out.Read(b)
	if err != nil {
		t.Fatal(err)
	}
	pid, err := strconv.Atoi(strings.TrimSpace(string(b[:n])))
	if err != nil {
		t.Fatal(err)
	}
	conn.Close()
	for deadline := time.Now().Add(30 * time.Second); syscall.Kill(pid, 0) == nil; time.Sleep(10 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("the command lives on")
		}
	}
}

// What the command leaves behind does not keep the session.
func TestBackground(t *testing.T) {
	s, _ := start(t, Command{Args: []string{"sh", "-c", "sleep 20 & echo out"}})
	var out bytes.Buffer
	began := make(chan struct{})
	go func() {
		if status, err := s.Run(nil, &out, io.Discard); status != 0 || err != nil || out.String() != "out\n" {
			t.Errorf("status %d, error %v, output %q", status, err, &out)
		}
		close(began)
	}()
	select {
	case <-began:
	case <-time.After(15 * time.Second):
		t.Error("it waits for what the command has left behind")
	}
}

// conversation is a connection with something to read, and what was written.
type conversation struct {
	io.Reader
	bytes.Buffer
}

func (c *conversation) Read(p []byte) (int, error) { return c.Reader.Read(p) }
func (c *conversation) Close() error               { return nil }

// FuzzSession: a guest that says anything.
func FuzzSession(f *testing.F) {
	f.Add([]byte{kindStdout, 2, 0, 0, 0, 'h', 'i', kindTaken, 4, 0, 0, 0, 1, 0, 0, 0, kindExit, 1, 0, 0, 0, 9})
	f.Add([]byte{kindFailed, 4, 0, 0, 0, 127, 'n', 'o', 0})
	f.Fuzz(func(t *testing.T, in []byte) {
		s, err := Start(&conversation{Reader: bytes.NewReader(in)}, Command{Args: []string{"x"}})
		if err != nil {
			t.Fatal(err)
		}
		if status, err := s.Run(nil, io.Discard, io.Discard); err == nil && (status < 0 || status > 255) {
			t.Errorf("status %d", status)
		}
	})
}

// FuzzGuest: a host that says anything after a command that does nothing.
func FuzzGuest(f *testing.F) {
	f.Add([]byte{kindStdin, 2, 0, 0, 0, 'h', 'i', kindStdin, 0, 0, 0, 0, kindResize, 4, 0, 0, 0, 1, 0, 1, 0})
	f.Fuzz(func(t *testing.T, in []byte) {
		j := &job{out: frameWriter{w: io.Discard}, end: make(chan struct{})}
		j.over.Store(true) // there is no process
		close(j.end)
		j.more = sync.NewCond(&j.mu)
		j.obey(bytes.NewReader(in))
		if len(j.input) > Window {
			t.Errorf("%d bytes wait", len(j.input))
		}
	})
}
