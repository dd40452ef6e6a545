package agent

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"sync"
	"syscall"
	"time"
)

// ErrNobody says that nobody listens in the guest, or not yet.
var ErrNobody = errors.New("no agent listens in the guest")

// answerTimeout is how long the monitor may take to say whether an agent
// listens. It waits for the guest less long than that.
const answerTimeout = 30 * time.Second

// Dial connects to the agent of the guest whose socket device has the Unix
// socket path.
func Dial(path string) (net.Conn, error) {
	c, err := net.Dial("unix", path)
	if err != nil {
		return nil, err
	}
	c.SetDeadline(time.Now().Add(answerTimeout))
	fmt.Fprintf(c, "CONNECT %d\n", Port)
	var line []byte
	for b := make([]byte, 1); len(line) < 32 && (len(line) == 0 || line[len(line)-1] != '\n'); {
		if _, err := c.Read(b); err != nil {
			c.Close()
			return nil, ErrNobody
		}
		line = append(line, b[0])
	}
	if !strings.HasPrefix(string(line), "OK ") {
		c.Close()
		return nil, errProtocol
	}
	c.SetDeadline(time.Time{})
	return c, nil
}

// FailedError says why the guest could not start a command.
type FailedError struct {
	Status int // as a shell tells it: 127 if there is no such command, else 126
	Reason string
}

func (e *FailedError) Error() string { return e.Reason }

// Session is one command, seen from the host.
type Session struct {
	conn io.ReadWriter
	out  frameWriter

	mu     sync.Mutex
	space  *sync.Cond // room or ended
	flying int        // bytes of standard input that are not taken
	ended  bool
}

// Start has the agent at the other end of conn run a command. The caller closes
// conn, which ends the command too.
func Start(conn io.ReadWriter, c Command) (*Session, error) {
	b, err := json.Marshal(c)
	if err != nil {
		return nil, err
	}
	if len(b) > MaxFrame {
		return nil, fmt.Errorf("the command and its environment are %d bytes, at most %d", len(b), MaxFrame)
	}
	s := &Session{conn: conn, out: frameWriter{w: conn}}
	s.space = sync.NewCond(&s.mu)
	return s, s.out.send(kindStart, b)
}

// Signal sends a signal to the command's process group.
func (s *Session) Signal(sig syscall.Signal) { s.out.send(kindSignal, []byte{byte(sig)}) }

// Resize tells the command's terminal its size.
func (s *Session) Resize(rows, cols int) {
	s.out.send(kindResize, le.AppendUint16(le.AppendUint16(nil, uint16(rows)), uint16(cols)))
}

// Run passes the streams on until the command has ended, and returns its exit
// status. stdin may be nil. A read of it that blocks then goes on; its goroutine
// ends with it. A command that could not be started is a *FailedError.
func (s *Session) Run(stdin io.Reader, stdout, stderr io.Writer) (status int, err error) {
	go s.feed(stdin)
	defer func() {
		s.mu.Lock()
		s.ended = true
		s.space.Broadcast()
		s.mu.Unlock()
	}()
	in := bufio.NewReaderSize(s.conn, MaxFrame)
	for {
		kind, data, err := readFrame(in)
		switch {
		case err != nil:
			return 0, fmt.Errorf("the guest's agent is gone: %w", err)
		case kind == kindTaken && len(data) == 4:
			s.mu.Lock()
			s.flying -= int(le.Uint32(data))
			s.space.Broadcast()
			s.mu.Unlock()
		case kind == kindStdout:
			_, err = stdout.Write(data)
		case kind == kindStderr:
			_, err = stderr.Write(data)
		case kind == kindExit && len(data) == 1:
			return int(data[0]), nil
		case kind == kindFailed && len(data) > 1:
			return 0, &FailedError{int(data[0]), string(data[1:])}
		default:
			err = errProtocol
		}
		if err != nil {
			return 0, err
		}
	}
}

// feed sends standard input.
func (s *Session) feed(stdin io.Reader) {
	buf := make([]byte, piece)
	for stdin != nil {
		n, err := stdin.Read(buf)
		s.mu.Lock()
		for s.flying+n > Window && !s.ended {
			s.space.Wait()
		}
		s.flying += n
		ended := s.ended
		s.mu.Unlock()
		if ended || n > 0 && s.out.send(kindStdin, buf[:n]) != nil {
			return
		}
		if err != nil {
			break
		}
	}
	s.out.send(kindStdin, nil)
}
