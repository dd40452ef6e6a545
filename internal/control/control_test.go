package control

import (
	"bytes"
	"io"
	"net"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"ring3/internal/console"
)

// handler notes what it is asked for.
type handler struct {
	calls chan string
	hub   console.Hub
	input chanWriter
}

// chanWriter is a writer to a channel.
type chanWriter chan string

func (c chanWriter) Write(p []byte) (int, error) {
	c <- string(p)
	return len(p), nil
}

func (h *handler) Stop(d time.Duration)  { h.calls <- "stop " + d.String() }
func (h *handler) Kill()                 { h.calls <- "kill" }
func (h *handler) Resize(rows, cols int) { h.calls <- "resize" }
func (h *handler) Attach(conn net.Conn) {
	h.calls <- "attach"
	h.hub.Attach(conn, h.input)
}

func listen(t testing.TB) (*Server, *handler, string) {
	path := filepath.Join(t.TempDir(), "control.sock")
	h := &handler{calls: make(chan string, 100), input: make(chanWriter, 1)}
	s, err := Listen(path, h)
	if err != nil {
		t.Fatal(err)
	}
	return s, h, path
}

func TestRequests(t *testing.T) {
	s, h, path := listen(t)
	for want, r := range map[string]Request{
		"stop 3s": {Op: Stop, Timeout: 3 * time.Second}, "kill": {Op: Kill}, "resize": {Op: Resize, Rows: 25, Cols: 80},
	} {
		c, err := Ask(path, r)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		if got := <-h.calls; got != want {
			t.Errorf("%+v: %s", r, got)
		}
	}
	for _, bad := range []Request{{}, {Op: "reboot"}, {Op: Stop, Timeout: -1}, {Op: Resize}, {Op: Resize, Rows: 1, Cols: MaxWindow + 1}} {
		if _, err := Ask(path, bad); err == nil || !strings.Contains(err.Error(), "no such operation") {
			t.Errorf("%+v: %v", bad, err)
		}
	}
	c, err := Ask(path, Request{Op: Kill})
	if err != nil {
		t.Fatal(err)
	}
	ended := make(chan bool)
	go func() { Wait(c); close(ended) }()
	if err := s.Close(); err != nil {
		t.Error(err)
	}
	<-ended
	if _, err := Ask(path, Request{Op: Kill}); err == nil {
		t.Error("a closed server answers")
	}
}

// All who are attached see the console, to its last byte; who does not read is
// left out and holds nobody up.
func TestAttach(t *testing.T) {
	s, h, path := listen(t)
	var conns []net.Conn
	for range 3 {
		c, err := Ask(path, Request{Op: Attach})
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		<-h.calls
		conns = append(conns, c)
	}
	io.WriteString(conns[0], "typed")
	if s := <-h.input; s != "typed" {
		t.Errorf("input %q", s)
	}
	// Attach is called before it has joined; what it shows tells when it has.
	for _, c := range conns {
		for b := make([]byte, 1); b[0] != '#'; {
			h.hub.Write([]byte("#"))
			c.SetReadDeadline(time.Now().Add(time.Second))
			c.Read(b)
		}
		c.SetReadDeadline(time.Time{})
	}
	got := make(chan string)
	for _, c := range conns[:2] {
		go func() {
			b, _ := io.ReadAll(c)
			got <- strings.Trim(string(b), "#")
		}()
	}
	for range 300 {
		h.hub.Write(bytes.Repeat([]byte("x"), 10000))
		time.Sleep(time.Millisecond)
	}
	h.hub.Write([]byte("the last"))
	s.Close()
	for range 2 {
		if b := <-got; len(b) != 3000008 || !strings.HasSuffix(b, "xthe last") {
			t.Errorf("%d bytes, %.20q at the end", len(b), b[max(0, len(b)-20):])
		}
	}
}

// FuzzRequest: whatever somebody says, the next one is served.
func FuzzRequest(f *testing.F) {
	s, h, path := listen(f)
	f.Cleanup(func() { s.Close() })
	f.Add([]byte(`{"op": "stop", "timeout": 1}`))
	f.Add([]byte(`{"op": "resize", "rows": 1e9}`))
	f.Fuzz(func(t *testing.T, in []byte) {
		c, err := net.Dial("unix", path)
		if err != nil {
			t.Fatal(err)
		}
		c.Write(append(in, '\n'))
		c.Close()
		next, err := Ask(path, Request{Op: Kill})
		if err != nil {
			t.Fatal(err)
		}
		next.Close()
		for len(h.calls) > 0 {
			<-h.calls
		}
	})
}
