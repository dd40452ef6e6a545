package guestjob

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand"
	"runtime"
	"strings"
	"testing"
	"testing/iotest"
	"time"
)

// guest plays the guest's part: it asks for standard input n times, or to its
// end if n is negative.
type guest struct {
	host    *Host
	job     io.Reader // ttyS1, from the host
	control *bufio.Reader
	stdin   bytes.Buffer
	ended   bool
	other   []string // control lines that are not about stdin
	largest int
	chunks  int
}

func (g *guest) take(n int) error {
	for ; n != 0; n-- {
		io.WriteString(g.host, "want\n")
		for {
			line, err := g.control.ReadString('\n')
			if err != nil {
				return err
			}
			var size int
			if _, err := fmt.Sscanf(line, "stdin %d\n", &size); err != nil {
				g.other = append(g.other, line)
				continue
			}
			if size == 0 {
				g.ended = true
				return nil
			}
			g.largest, g.chunks = max(g.largest, size), g.chunks+1
			if _, err := io.CopyN(&g.stdin, g.job, int64(size)); err != nil {
				return err
			}
			break
		}
	}
	return nil
}

// connect starts a host on stdin. stop ends it and returns the error of Run.
func connect(t *testing.T, stdin io.Reader) (g *guest, stop func() error) {
	t.Helper()
	jobR, jobW := io.Pipe()
	ctlR, ctlW := io.Pipe()
	h := New(Config{Stdin: stdin, JobIn: jobW, Control: ctlW})
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() {
		done <- h.Run(ctx)
		ctlW.Close()
		jobW.Close()
	}()
	g = &guest{host: h, job: jobR, control: bufio.NewReader(ctlR)}
	return g, func() error {
		cancel()
		ctlR.Close()
		jobR.Close()
		return <-done
	}
}

func noLeaks(t *testing.T) {
	before := runtime.NumGoroutine()
	t.Cleanup(func() {
		for end := time.Now().Add(5 * time.Second); runtime.NumGoroutine() > before; time.Sleep(5 * time.Millisecond) {
			if time.Now().After(end) {
				t.Fatalf("%d goroutines left", runtime.NumGoroutine()-before)
			}
		}
	})
}

func TestStdin(t *testing.T) {
	noLeaks(t)
	want := make([]byte, 300_000)
	rand.New(rand.NewSource(1)).Read(want)
	for name, r := range map[string]io.Reader{
		"whole":    bytes.NewReader(want),
		"with eof": iotest.DataErrReader(bytes.NewReader(want)),
		"halves":   iotest.HalfReader(bytes.NewReader(want)),
	} {
		g, stop := connect(t, r)
		if err := g.take(-1); err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(g.stdin.Bytes(), want) || !g.ended || g.largest > 32768 {
			t.Errorf("%s: %d bytes in %d pieces up to %d, end %v", name, g.stdin.Len(), g.chunks, g.largest, g.ended)
		}
		if err := stop(); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestStdinEmpty(t *testing.T) {
	noLeaks(t)
	g, stop := connect(t, strings.NewReader(""))
	if err := g.take(-1); err != nil || !g.ended || g.chunks != 0 {
		t.Errorf("%v, end %v, %d pieces", err, g.ended, g.chunks)
	}
	stop()
}

// TestStdinUnwanted: nothing is read of what the guest never asks for.
func TestStdinUnwanted(t *testing.T) {
	noLeaks(t)
	r := strings.NewReader("keep this")
	g, stop := connect(t, r)
	io.WriteString(g.host, "exit 0\n")
	<-g.host.Exited()
	if err := stop(); err != nil || r.Len() != 9 {
		t.Errorf("%v, %d bytes left", err, r.Len())
	}
}

// TestStdinError passes a read error up, and an end of input to the guest.
func TestStdinError(t *testing.T) {
	noLeaks(t)
	broken := errors.New("broken")
	g, stop := connect(t, io.MultiReader(strings.NewReader("x"), iotest.ErrReader(broken)))
	if err := g.take(-1); err != nil || !g.ended || g.stdin.String() != "x" {
		t.Errorf("%v, end %v, %q", err, g.ended, g.stdin.String())
	}
	if err := stop(); !errors.Is(err, broken) {
		t.Error(err)
	}
}

// TestStdinClosed: after "closed", no more is read.
func TestStdinClosed(t *testing.T) {
	noLeaks(t)
	r := strings.NewReader(strings.Repeat("x", 100_000))
	g, stop := connect(t, r)
	if err := g.take(1); err != nil {
		t.Fatal(err)
	}
	io.WriteString(g.host, "closed\nwant\n")
	g.host.Resize(1, 2)
	line, err := g.control.ReadString('\n')
	if err != nil || line != "winsize 1 2\n" && !strings.HasPrefix(line, "stdin ") {
		t.Errorf("%q, %v", line, err)
	}
	stop()
	if r.Len() < 100_000-2*chunkSize {
		t.Errorf("only %d bytes left", r.Len())
	}
}

func TestMessages(t *testing.T) {
	noLeaks(t)
	g, stop := connect(t, nil)
	g.host.Resize(24, 80)
	g.host.Resize(0, 80) // unknown size
	g.host.Signal("INT")
	for _, want := range []string{"winsize 24 80\n", "signal INT\n"} {
		if got, err := g.control.ReadString('\n'); err != nil || got != want {
			t.Errorf("%q, %v, want %q", got, err, want)
		}
	}
	if err := g.take(-1); err != nil || !g.ended || g.chunks != 0 { // no stdin: an empty one
		t.Errorf("%v, end %v, %d pieces", err, g.ended, g.chunks)
	}
	for range 100 {
		g.host.Resize(1, 1) // never blocks
	}
	stop()
}

func TestExit(t *testing.T) {
	for in, want := range map[string]int{
		"exit 0\n": 0, "exit 7\nexit 8\n": 7, "exit 137\r\n": 137, "noise\nexit 1\n": 1,
		"exit 256\n": -1, "exit -1\n": -1, "exit x\n": -1, "exit\n": -1, "exit 1": -1, "exit 1 2\n": -1,
		strings.Repeat("x", 1000) + "\nexit 3\n": 3, strings.Repeat("x", 1000) + "exit 3\n": -1,
	} {
		h := New(Config{})
		for i := range len(in) { // a byte at a time, as a UART does
			if n, err := h.Write([]byte{in[i]}); n != 1 || err != nil {
				t.Fatal(n, err)
			}
		}
		got, ok := h.Status()
		if !ok {
			got = -1
		}
		if got != want {
			t.Errorf("%.30q: %d, want %d", in, got, want)
		}
		h2 := New(Config{})
		h2.Write([]byte(in))
		if s, ok2 := h2.Status(); s != max(want, 0) || ok2 != ok {
			t.Errorf("%.30q at once: %d, %v", in, s, ok2)
		}
	}
}

// TestPortError: a port that fails ends Run.
func TestPortError(t *testing.T) {
	noLeaks(t)
	g, stop := connect(t, strings.NewReader("x"))
	g.job.(*io.PipeReader).Close()
	go g.take(1)
	time.Sleep(10 * time.Millisecond)
	if err := stop(); !errors.Is(err, io.ErrClosedPipe) {
		t.Error(err)
	}
}

func FuzzWrite(f *testing.F) {
	f.Add([]byte("want\nclosed\nexit 3\n"))
	f.Fuzz(func(t *testing.T, b []byte) {
		h := New(Config{})
		h.Write(b)
		if len(h.line) > maxLine {
			t.Fatal(len(h.line))
		}
	})
}
