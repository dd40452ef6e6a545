package vsock

import (
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// maxPath is what a Unix socket's address has room for, bytes (unix(7)), less
// the longest "_PORT".
const maxPath = 107 - len("_4294967295")

// bind makes the socket for connections to the guest, for this user alone. One
// that nobody listens at, left by a monitor that was killed, is replaced.
func bind(path string) (*net.UnixListener, error) {
	if len(path) > maxPath {
		return nil, fmt.Errorf("%d bytes are too long for the path of a Unix socket, at most %d", len(path), maxPath)
	}
	addr := &net.UnixAddr{Name: path, Net: "unix"}
	if abandoned(path) {
		if err := os.Remove(path); err != nil {
			return nil, err
		}
	}
	l, err := net.ListenUnix("unix", addr)
	if errors.Is(err, syscall.EADDRINUSE) {
		return nil, errors.New("something is there already")
	}
	if err != nil {
		return nil, reason(err)
	}
	if err := os.Chmod(path, 0o600); err != nil {
		l.Close()
		return nil, err
	}
	return l, nil
}

// abandoned reports whether path is a socket that nobody listens at.
func abandoned(path string) bool {
	if st, err := os.Lstat(path); err != nil || st.Mode().Type() != fs.ModeSocket {
		return false
	}
	c, err := net.Dial("unix", path)
	if err == nil {
		c.Close()
	}
	return errors.Is(err, syscall.ECONNREFUSED)
}

// reason leaves out of a network error what the message has anyway.
func reason(err error) error {
	var op *net.OpError
	var sys *os.SyscallError
	switch {
	case errors.As(err, &sys):
		return sys.Err
	case errors.As(err, &op):
		return op.Err
	}
	return err
}

// helloTimeout is how long a program on the host may take to say what it wants.
const helloTimeout = 10 * time.Second

// accept takes connections of the host until the device is closed.
func (d *Device) accept() {
	for {
		s, err := d.listen.AcceptUnix()
		if err != nil {
			if d.ctx.Err() != nil {
				return
			}
			// No descriptor is left, for example. The caller waits.
			select {
			case <-time.After(100 * time.Millisecond):
				continue
			case <-d.ctx.Done():
				return
			}
		}
		d.mu.Lock()
		full := d.closed || len(d.callers)+len(d.conns) >= MaxConns
		if !full {
			d.callers[s] = true
		}
		d.mu.Unlock()
		if full {
			s.Close()
			continue
		}
		d.run.Go(func() { d.hello(s) })
	}
}

// hello learns which port a connection of the host is for, and asks the guest.
func (d *Device) hello(s *net.UnixConn) {
	s.SetReadDeadline(time.Now().Add(helloTimeout))
	port, err := readConnect(s)
	s.SetReadDeadline(time.Time{})
	d.mu.Lock()
	defer d.mu.Unlock()
	delete(d.callers, s)
	if err != nil || d.closed || !d.driver || len(d.conns) >= MaxConns {
		s.Close()
		return
	}
	k := key{guest: port, host: d.nextPort}
	for d.conns[k] != nil {
		k.host++
	}
	d.nextPort = max(k.host+1, firstPort)
	c := d.add(k, s)
	c.state, c.want = requested, wantRequest
	c.expire = time.AfterFunc(requestTimeout, func() {
		d.mu.Lock()
		defer d.mu.Unlock()
		if c.state == requested {
			d.reset(c)
		}
	})
	d.enqueue(c)
}

// readConnect reads "CONNECT PORT\n", and nothing behind it.
func readConnect(s net.Conn) (port uint32, err error) {
	var line []byte
	b := make([]byte, 1)
	for {
		if _, err := s.Read(b); err != nil {
			return 0, err
		}
		if b[0] == '\n' {
			break
		}
		if line = append(line, b[0]); len(line) > len("CONNECT 4294967295") {
			return 0, errors.New("too long")
		}
	}
	number, ok := strings.CutPrefix(string(line), "CONNECT ")
	n, err := strconv.ParseUint(number, 10, 32)
	if !ok || err != nil || n == anyPort {
		return 0, errors.New("not CONNECT and a port")
	}
	return uint32(n), nil
}
