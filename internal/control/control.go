// Package control is how other processes speak with the monitor of a machine:
// over a Unix socket in the machine's directory, one request for each
// connection.
//
//	client	{"op": "stop", "timeout": 10000000000}\n
//	monitor	{}\n		or {"error": "why not"}\n
//
// Operations are stop, kill, resize and attach. After attach the connection is
// the serial console: bytes in both directions, until either side closes it.
// After the others the monitor keeps the connection open until it ends.
package control

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"sync"
	"time"
)

// Operations.
const (
	Stop   = "stop"   // press the power button, and kill the machine after Timeout
	Kill   = "kill"   // end the machine at once
	Resize = "resize" // tell the console its size
	Attach = "attach" // be the console
)

// Request is what a client asks for.
type Request struct {
	Op      string        `json:"op"`
	Timeout time.Duration `json:"timeout,omitempty"` // of Stop
	Rows    int           `json:"rows,omitempty"`    // of Resize
	Cols    int           `json:"cols,omitempty"`
}

// response is the monitor's answer.
type response struct {
	Error string `json:"error,omitempty"`
}

// Limits.
const (
	maxRequest   = 4096             // bytes
	maxConns     = 64               // at the same time
	timeout      = 10 * time.Second // of a request and its answer
	lastWords    = time.Second      // for what is left to be sent at the end
	MaxWindow    = 10000            // rows and columns of a console
	maxAnswerLen = 4096             // bytes
)

// Handler does what is asked for. Its methods must not block, but Attach.
type Handler interface {
	Stop(timeout time.Duration)
	Kill()
	Resize(rows, cols int)
	Attach(conn net.Conn) // returns when either side is done
}

// Server listens for requests.
type Server struct {
	l     *net.UnixListener
	h     Handler
	run   sync.WaitGroup
	mu    sync.Mutex
	conns map[*net.UnixConn]bool // nil when closed
}

// Listen begins to serve at a path that nothing is at.
func Listen(path string, h Handler) (*Server, error) {
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		return nil, err
	}
	if err := os.Chmod(path, 0o600); err != nil {
		l.Close()
		return nil, err
	}
	s := &Server{l: l, h: h, conns: map[*net.UnixConn]bool{}}
	s.run.Go(s.accept)
	return s, nil
}

// Close ends all connections. Who is attached gets the last of the console.
func (s *Server) Close() error {
	err := s.l.Close()
	s.mu.Lock()
	for c := range s.conns {
		c.SetWriteDeadline(time.Now().Add(lastWords))
		c.CloseRead()
	}
	s.conns = nil
	s.mu.Unlock()
	s.run.Wait()
	return err
}

func (s *Server) accept() {
	for {
		c, err := s.l.AcceptUnix()
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil { // no descriptor is left, for example
			time.Sleep(100 * time.Millisecond)
			continue
		}
		s.mu.Lock()
		full := s.conns == nil || len(s.conns) >= maxConns
		if !full {
			s.conns[c] = true
		}
		s.mu.Unlock()
		if full {
			c.Close()
			continue
		}
		s.run.Go(func() {
			s.serve(c)
			c.Close()
			s.mu.Lock()
			delete(s.conns, c)
			s.mu.Unlock()
		})
	}
}

func (s *Server) serve(c net.Conn) {
	c.SetDeadline(time.Now().Add(timeout))
	// Byte by byte: what comes behind the line is for Attach.
	line, err := readLine(c, maxRequest)
	if err != nil {
		return
	}
	var r Request
	if err := json.Unmarshal(line, &r); err != nil {
		answer(c, "no request: "+err.Error())
		return
	}
	switch {
	case r.Op == Stop && r.Timeout >= 0:
		s.h.Stop(r.Timeout)
	case r.Op == Kill:
		s.h.Kill()
	case r.Op == Resize && r.Rows > 0 && r.Cols > 0 && r.Rows <= MaxWindow && r.Cols <= MaxWindow:
		s.h.Resize(r.Rows, r.Cols)
	case r.Op == Attach:
		answer(c, "")
		c.SetDeadline(time.Time{})
		s.h.Attach(c)
		return
	default:
		answer(c, fmt.Sprintf("%s: there is no such operation", line))
		return
	}
	answer(c, "")
	c.SetDeadline(time.Time{})
	io.Copy(io.Discard, c) // the client waits for the end, or goes
}

func answer(c net.Conn, message string) {
	b, _ := json.Marshal(response{message}) // cannot fail
	c.Write(append(b, '\n'))
}

func readLine(r io.Reader, limit int) ([]byte, error) {
	var line []byte
	for b := make([]byte, 1); ; {
		if _, err := io.ReadFull(r, b); err != nil {
			return nil, err
		}
		if b[0] == '\n' {
			return line, nil
		}
		if line = append(line, b[0]); len(line) > limit {
			return nil, errors.New("the line is too long")
		}
	}
}

// Ask makes a request to the monitor that listens at path, and returns the
// connection when it was granted.
func Ask(path string, r Request) (net.Conn, error) {
	c, err := net.Dial("unix", path)
	if err != nil {
		return nil, err
	}
	c.SetDeadline(time.Now().Add(timeout))
	b, err := json.Marshal(r)
	if err == nil {
		_, err = c.Write(append(b, '\n'))
	}
	var a response
	if err == nil {
		b, err = readLine(c, maxAnswerLen)
	}
	if err == nil {
		err = json.Unmarshal(b, &a)
	}
	if err == nil && a.Error != "" {
		err = errors.New(a.Error)
	}
	if err != nil {
		c.Close()
		return nil, err
	}
	c.SetDeadline(time.Time{})
	return c, nil
}

// Wait waits until the monitor at the other end of c has closed it.
func Wait(c net.Conn) { io.Copy(io.Discard, bufio.NewReader(c)) }
