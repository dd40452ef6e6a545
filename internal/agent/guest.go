package agent

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math"
	"os"
	"os/exec"
	"os/signal"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// GuestCommand is the argument with which the built-in userland starts ring3 as
// the agent; main must then call Guest and exit.
const GuestCommand = "guest-agent"

// RootEnv is the environment variable with the directory that is the root of
// commands, and RootDirEnv that with their directory there, if it exists.
const (
	RootEnv    = "RING3_ROOT"
	RootDirEnv = "RING3_ROOT_DIR"
)

// enterRoot makes the directory in RootEnv, if any, the root.
func enterRoot() error {
	root, dir := os.Getenv(RootEnv), os.Getenv(RootDirEnv)
	os.Unsetenv(RootEnv)
	os.Unsetenv(RootDirEnv)
	if root == "" {
		return nil
	}
	if err := unix.Chroot(root); err != nil {
		return fmt.Errorf("agent: chroot to %s: %w", root, err)
	}
	// The root came as a descriptor, which commands should not have.
	if err := unix.CloseRange(3, math.MaxInt32, unix.CLOSE_RANGE_CLOEXEC); err != nil {
		return fmt.Errorf("agent: close_range: %w", err)
	}
	if os.Chdir(dir) == nil {
		return nil
	}
	return os.Chdir("/")
}

// Guest is the agent: it serves connections of the host, and returns only if it
// cannot.
func Guest() error {
	if err := enterRoot(); err != nil {
		return err
	}
	// A shell has its background jobs ignore these, and commands would inherit
	// that. What is caught here is at its default in them.
	signal.Notify(make(chan os.Signal, 1), syscall.SIGINT, syscall.SIGQUIT)
	fd, err := unix.Socket(unix.AF_VSOCK, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("agent: socket: %w", err)
	}
	if err := unix.Bind(fd, &unix.SockaddrVM{CID: unix.VMADDR_CID_ANY, Port: Port}); err != nil {
		return fmt.Errorf("agent: bind to port %d: %w", Port, err)
	}
	if err := unix.Listen(fd, 16); err != nil {
		return fmt.Errorf("agent: listen: %w", err)
	}
	for {
		conn, from, err := unix.Accept4(fd, unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK)
		switch {
		case err == unix.EINTR || err == unix.ECONNABORTED || err == unix.ECONNRESET:
			continue
		case err != nil:
			return fmt.Errorf("agent: accept: %w", err)
		}
		f := os.NewFile(uintptr(conn), "host")
		if a, ok := from.(*unix.SockaddrVM); !ok || a.CID != unix.VMADDR_CID_HOST {
			f.Close() // the guest's own programs can start commands themselves
			continue
		}
		go serve(f)
	}
}

// hangupGrace is how long a command may take to end when its connection has.
const hangupGrace = 2 * time.Second

// drainGrace is how long a stream may be silent, when the command has ended, and
// others still hold it open.
const drainGrace = 500 * time.Millisecond

// job is one command.
type job struct {
	out   frameWriter
	cmd   *exec.Cmd
	tty   *os.File      // nil without
	stdin *os.File      // of the command, this end; tty if there is one
	end   chan struct{} // closed when the command has ended
	over  atomic.Bool   // likewise

	mu       sync.Mutex
	more     *sync.Cond // input, inputEnd or over
	input    []byte     // for stdin
	writing  int        // bytes that stdin is given now
	inputEnd bool       // no more comes
}

// serve runs the command that the host asks for.
func serve(conn io.ReadWriteCloser) {
	defer conn.Close()
	in := bufio.NewReaderSize(conn, MaxFrame)
	kind, data, err := readFrame(in)
	var c Command
	if err != nil || kind != kindStart || json.Unmarshal(data, &c) != nil || len(c.Args) == 0 {
		return
	}
	j := &job{out: frameWriter{w: conn}, end: make(chan struct{})}
	j.more = sync.NewCond(&j.mu)
	streams, err := j.start(c)
	if err != nil {
		j.out.send(kindFailed, append([]byte{failedStatus(err)}, startError(c, err)...))
		return
	}
	var copies sync.WaitGroup
	for i, f := range streams {
		copies.Go(func() { j.copy(f, byte(kindStdout+i)) })
	}
	go j.feed()
	go j.obey(in)
	state, _ := j.cmd.Process.Wait()
	j.mu.Lock()
	j.over.Store(true)
	j.more.Broadcast()
	j.mu.Unlock()
	close(j.end)
	for _, f := range streams {
		f.SetReadDeadline(time.Now().Add(drainGrace))
	}
	copies.Wait()
	for _, f := range append(streams, j.stdin) {
		f.Close()
	}
	j.out.send(kindExit, []byte{status(state)})
}

// status is an exit status as a shell tells it.
func status(s *os.ProcessState) byte {
	if s == nil {
		return 255 // somebody else has waited for it
	}
	if w := s.Sys().(syscall.WaitStatus); w.Signaled() {
		return byte(128 + int(w.Signal()))
	}
	return byte(s.ExitCode())
}

// failedStatus is what a shell exits with if it cannot start a command.
func failedStatus(err error) byte {
	var path *fs.PathError
	if errors.Is(err, exec.ErrNotFound) || errors.As(err, &path) && path.Op == "fork/exec" && path.Err == syscall.ENOENT {
		return 127
	}
	return 126
}

// startError says why a command was not started.
func startError(c Command, err error) string {
	var path *fs.PathError
	switch {
	case errors.Is(err, exec.ErrNotFound):
		return c.Args[0] + ": not found in the guest"
	case errors.As(err, &path):
		return path.Path + ": " + path.Err.Error()
	}
	return c.Args[0] + ": " + err.Error()
}

// start starts the command. It returns what its output comes from: standard
// output and error, or the terminal.
func (j *job) start(c Command) (streams []*os.File, err error) {
	j.cmd = exec.Command(c.Args[0], c.Args[1:]...)
	j.cmd.Env = append(os.Environ(), c.Env...)
	if j.cmd.Dir = c.Dir; c.Dir != "" {
		// A start that fails does not tell which of the two it was.
		if _, err := os.ReadDir(c.Dir); err != nil {
			return nil, err
		}
	}
	if c.TTY {
		return j.startTerminal(c)
	}
	var theirs, ours []*os.File
	for i := range 3 {
		r, w, err := os.Pipe()
		if err != nil {
			closeAll(append(theirs, ours...))
			return nil, err
		}
		if i == 0 {
			r, w = w, r
		}
		ours, theirs = append(ours, r), append(theirs, w)
	}
	defer closeAll(theirs)
	j.cmd.Stdin, j.cmd.Stdout, j.cmd.Stderr = theirs[0], theirs[1], theirs[2]
	j.cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := j.cmd.Start(); err != nil {
		closeAll(ours)
		return nil, err
	}
	j.stdin = ours[0]
	return ours[1:], nil
}

// startTerminal starts the command on a terminal of its own.
func (j *job) startTerminal(c Command) ([]*os.File, error) {
	master, slave, err := openTerminal()
	if err != nil {
		return nil, err
	}
	defer slave.Close()
	j.tty, j.stdin = master, master
	j.resize(c.Rows, c.Cols)
	j.cmd.Stdin, j.cmd.Stdout, j.cmd.Stderr = slave, slave, slave
	j.cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Setctty: true}
	if err := j.cmd.Start(); err != nil {
		master.Close()
		return nil, err
	}
	return []*os.File{master}, nil
}

func closeAll(files []*os.File) {
	for _, f := range files {
		f.Close()
	}
}

// openTerminal makes a pseudo-terminal, pty(7).
func openTerminal() (master, slave *os.File, err error) {
	master, err = os.OpenFile("/dev/ptmx", os.O_RDWR|unix.O_NOCTTY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, nil, err
	}
	n := 0
	err = control(master, func(fd int) error {
		var err error
		if n, err = unix.IoctlGetInt(fd, unix.TIOCGPTN); err != nil {
			return err
		}
		return unix.IoctlSetPointerInt(fd, unix.TIOCSPTLCK, 0)
	})
	if err == nil {
		slave, err = os.OpenFile(fmt.Sprintf("/dev/pts/%d", n), os.O_RDWR|unix.O_NOCTTY|unix.O_CLOEXEC, 0)
	}
	if err != nil {
		master.Close()
		return nil, nil, err
	}
	return master, slave, nil
}

// control calls fn with the descriptor of f, which stays with the poller.
func control(f *os.File, fn func(fd int) error) error {
	raw, err := f.SyscallConn()
	if err != nil {
		return err
	}
	var ferr error
	err = raw.Control(func(fd uintptr) { ferr = fn(int(fd)) })
	return errors.Join(err, ferr)
}

// copy sends what the command writes. When the command has ended there may be
// more in the pipe; somebody else may also hold it open for ever.
func (j *job) copy(f *os.File, kind byte) {
	buf := make([]byte, piece)
	for {
		if j.over.Load() {
			f.SetReadDeadline(time.Now().Add(drainGrace))
		}
		n, err := f.Read(buf)
		if n > 0 && j.out.send(kind, buf[:n]) != nil {
			j.hangUp()
			return
		}
		if err != nil {
			return
		}
	}
}

// feed gives the command its standard input. What comes when the command has
// closed it is dropped.
func (j *job) feed() {
	closed := false
	for {
		j.mu.Lock()
		for len(j.input) == 0 && !j.inputEnd && !j.over.Load() {
			j.more.Wait()
		}
		b := j.input
		j.input, j.writing = nil, len(b)
		j.mu.Unlock()
		if len(b) == 0 || j.over.Load() {
			break
		}
		if !closed {
			_, err := j.stdin.Write(b)
			closed = err != nil
		}
		j.mu.Lock()
		j.writing = 0
		j.mu.Unlock()
		j.out.send(kindTaken, le.AppendUint32(nil, uint32(len(b))))
	}
	if j.tty == nil {
		j.stdin.Close()
	}
}

// take takes a piece of standard input, or its end; false if there is more than
// the host may send.
func (j *job) take(b []byte) (ok bool) {
	j.mu.Lock()
	defer j.mu.Unlock()
	if j.inputEnd || len(j.input)+len(b)+j.writing > Window {
		return false
	}
	j.input, j.inputEnd = append(j.input, b...), len(b) == 0
	j.more.Broadcast()
	return true
}

// obey does what the host says, until the connection ends, and the command with
// it.
func (j *job) obey(in io.Reader) {
	defer j.hangUp()
	for {
		kind, data, err := readFrame(in)
		switch {
		case err != nil:
			return
		case kind == kindStdin:
			if !j.take(data) {
				return
			}
		case kind == kindResize && len(data) == 4:
			j.resize(le.Uint16(data), le.Uint16(data[2:]))
		case kind == kindSignal && len(data) == 1:
			j.kill(syscall.Signal(data[0]))
		default:
			return
		}
	}
}

func (j *job) resize(rows, cols uint16) {
	if j.tty != nil && rows > 0 && cols > 0 {
		control(j.tty, func(fd int) error {
			return unix.IoctlSetWinsize(fd, unix.TIOCSWINSZ, &unix.Winsize{Row: rows, Col: cols})
		})
	}
}

// kill signals the command's process group, unless it has ended and the number
// may be another's.
func (j *job) kill(sig syscall.Signal) {
	if !j.over.Load() {
		syscall.Kill(-j.cmd.Process.Pid, sig)
	}
}

// hangUp ends the command because its connection has ended.
func (j *job) hangUp() {
	j.kill(syscall.SIGHUP)
	select {
	case <-j.end:
	case <-time.After(hangupGrace):
		j.kill(syscall.SIGKILL)
	}
}
