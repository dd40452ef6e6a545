// Package guestjob is the host's end of the conversation with the built-in
// userland of package initramfs. The guest has four serial ports:
//
//	ttyS0	console
//	ttyS1	standard input and output of the job, or its terminal
//	ttyS2	standard error of the job
//	ttyS3	control: lines of text, listed at the top of the guest's
//		script, initramfs/rootfs/ring3/session
//
// The machine connects what the guest sends on ttyS1 and ttyS2 to where it is
// to go, what it sends on ttyS3 to Host.Write, and gives Host the inputs of
// ttyS1 and ttyS3. On a terminal, the machine feeds ttyS1 itself, byte by
// byte, and leaves Config.Stdin nil.
package guestjob

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"
	"sync"
)

// chunkSize bounds one piece of standard input, in bytes. The guest's serial
// driver and line discipline hold twice as much while nobody reads.
const chunkSize = 32 << 10

// maxLine bounds a control line. A guest that sends a longer one is not ours;
// the excess is dropped.
const maxLine = 256

// Config connects a Host.
type Config struct {
	Stdin   io.Reader // standard input of the job; nil for none, or if it has a terminal
	JobIn   io.Writer // input of ttyS1; writes may block until the guest reads
	Control io.Writer // input of ttyS3; likewise
}

// Host talks to one guest. Its methods may be called from any goroutine.
type Host struct {
	cfg    Config
	want   chan struct{} // the guest takes another piece
	closed chan struct{} // the job takes no more
	exited chan struct{}
	queue  chan string // control lines to send

	mu     sync.Mutex
	line   []byte // unfinished line from the guest
	status int
	once   [2]sync.Once // closed, exited
}

// New returns a Host. Run makes it work.
func New(cfg Config) *Host {
	if cfg.Stdin == nil {
		cfg.Stdin = strings.NewReader("")
	}
	return &Host{
		cfg:    cfg,
		want:   make(chan struct{}, 1),
		closed: make(chan struct{}),
		exited: make(chan struct{}),
		queue:  make(chan string, 16),
	}
}

// Write takes what the guest sends on ttyS3. It never blocks and never fails:
// lines that make no sense are ignored.
func (h *Host) Write(p []byte) (int, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for rest := p; len(rest) > 0; {
		part, after, complete := bytes.Cut(rest, []byte{'\n'})
		if room := maxLine - len(h.line); len(part) > room {
			part = part[:room]
		}
		h.line = append(h.line, part...)
		if complete {
			h.obey(strings.Fields(string(h.line)))
			h.line = h.line[:0]
		}
		rest = after
	}
	return len(p), nil
}

// obey acts on a line from the guest. h.mu is held.
func (h *Host) obey(f []string) {
	switch {
	case len(f) == 1 && f[0] == "want":
		select {
		case h.want <- struct{}{}:
		default: // it asked before
		}
	case len(f) == 1 && f[0] == "closed":
		h.once[0].Do(func() { close(h.closed) })
	case len(f) == 2 && f[0] == "exit":
		n, err := strconv.Atoi(f[1])
		if err != nil || n < 0 || n > 255 {
			return
		}
		h.once[1].Do(func() { h.status = n; close(h.exited) })
	}
}

// Exited is closed once the guest has told the exit status. All output of the
// job was sent before.
func (h *Host) Exited() <-chan struct{} { return h.exited }

// Status returns the exit status of the job, as a shell tells it: 128 plus its
// number for a signal. Without ok the guest has not told one.
func (h *Host) Status() (status int, ok bool) {
	select {
	case <-h.exited:
		h.mu.Lock()
		defer h.mu.Unlock()
		return h.status, true
	default:
		return 0, false
	}
}

// Resize tells the guest the size of its terminal. It never blocks; if the
// guest is far behind, the message is lost.
func (h *Host) Resize(rows, cols int) {
	if rows > 0 && cols > 0 {
		h.send(fmt.Sprintf("winsize %d %d\n", rows, cols))
	}
}

// Signal has the guest send a signal, such as "INT", to the job's process
// group. It never blocks; if the guest is far behind, the message is lost.
func (h *Host) Signal(name string) { h.send("signal " + name + "\n") }

// PowerOff has the guest switch itself off. It never blocks.
func (h *Host) PowerOff() { h.send("poweroff\n") }

func (h *Host) send(line string) {
	select {
	case h.queue <- line:
	default:
	}
}

// Run sends standard input and messages until ctx ends or the job does, and
// returns the error of reading Stdin or writing to the guest, if any. A read
// from Stdin that blocks when Run returns goes on: its goroutine ends with it.
func (h *Host) Run(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	chunks := make(chan chunk)
	want, closed := h.want, h.closed
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-h.exited:
			return nil
		case <-closed:
			want, closed = nil, nil
		case line := <-h.queue:
			if _, err := io.WriteString(h.cfg.Control, line); err != nil {
				return fmt.Errorf("control port: %w", err)
			}
		case <-want:
			go read(ctx, h.cfg.Stdin, chunks)
		case c := <-chunks:
			if err := h.feed(c); err != nil {
				return err
			}
		}
	}
}

// chunk is a piece of standard input; empty at its end.
type chunk struct {
	data []byte
	err  error
}

// read reads one piece.
func read(ctx context.Context, r io.Reader, to chan<- chunk) {
	var c chunk
	buf := make([]byte, chunkSize)
	n, err := 0, error(nil)
	for n == 0 && err == nil {
		n, err = r.Read(buf)
	}
	c.data = buf[:n]
	if n == 0 && !errors.Is(err, io.EOF) {
		c.err = err
	}
	select {
	case to <- c:
	case <-ctx.Done():
	}
}

// feed announces and sends a piece. A read error is the end of input for the
// guest.
func (h *Host) feed(c chunk) error {
	if _, err := fmt.Fprintf(h.cfg.Control, "stdin %d\n", len(c.data)); err != nil {
		return fmt.Errorf("control port: %w", err)
	}
	if len(c.data) > 0 {
		if _, err := h.cfg.JobIn.Write(c.data); err != nil {
			return fmt.Errorf("job port: %w", err)
		}
	}
	if c.err != nil {
		return fmt.Errorf("standard input: %w", c.err)
	}
	return nil
}
