package main

import (
	"context"
	"io"
	"os"
	"sync"
	"time"

	"ring3/internal/console"
)

// startInput connects standard input. Without a terminal, a command's input
// is guestjob's business.
func (s *session) startInput(ctx context.Context) {
	switch {
	case s.o.life.detach:
	case s.term != nil && s.isJob():
		go s.typeKeys(ctx, &s.ports.job)
	case s.term != nil:
		go s.typeKeys(ctx, keptLine{ctx, &s.ports.console})
	case !s.isJob():
		go s.pipeConsole(ctx, keptLine{ctx, &s.ports.console})
	}
}

// keysAhead is how many reads of the keyboard wait for a guest that does not
// read; more keys are lost, as on a real machine, but never the escape key.
const keysAhead = 256

// typeKeys passes on what is typed, and obeys the escape key.
func (s *session) typeKeys(ctx context.Context, guest io.Writer) {
	queue := make(chan []byte, keysAhead)
	go func() {
		for {
			select {
			case keys := <-queue:
				guest.Write(keys)
			case <-ctx.Done():
				return
			}
		}
	}()
	var escape console.Escape
	buf := make([]byte, 4096)
	for {
		n, err := os.Stdin.Read(buf)
		for rest := buf[:n]; len(rest) > 0; {
			var keys []byte
			var action console.Action
			keys, action, rest = escape.Next(rest)
			if len(keys) > 0 {
				select {
				case queue <- keys:
				default:
				}
			}
			s.act(action)
		}
		if err != nil {
			return
		}
	}
}

// act does what the escape key asked for.
func (s *session) act(a console.Action) {
	switch a {
	case console.Stop:
		s.stop(errStopKey)
	case console.Stats:
		go s.showStats()
	case console.Help:
		os.Stderr.WriteString(console.EscapeHelp)
	}
}

const (
	endOfFile = "\x04"                 // Ctrl-D
	calm      = 500 * time.Millisecond // a console that waits for input is silent this long
)

// pipeConsole feeds the console from something that is not a terminal. To an
// unknown guest it passes the bytes as they come. The built-in userland gets
// them once its shell has printed a prompt, since a booting kernel loses
// input; and their end is told by Ctrl-D whenever the console is silent, since
// one that comes while a command runs is lost too.
func (s *session) pipeConsole(ctx context.Context, guest io.Writer) {
	if s.builtIn() {
		select {
		case <-s.quiet.prompt:
		case <-ctx.Done():
			return
		}
	}
	last := &lastByte{}
	_, err := io.Copy(io.MultiWriter(guest, last), os.Stdin)
	if err != nil || !s.builtIn() {
		return
	}
	if last.seen && last.b != '\n' {
		io.WriteString(guest, "\n") // a shell runs a last line without an end too
	}
	for s.quiet.wait(ctx, calm) {
		io.WriteString(guest, endOfFile)
		s.quiet.touch()
	}
}

// lastByte is a writer that notes the last byte.
type lastByte struct {
	b    byte
	seen bool
}

func (l *lastByte) Write(p []byte) (int, error) {
	if len(p) > 0 {
		l.b, l.seen = p[len(p)-1], true
	}
	return len(p), nil
}

// quietClock is a writer that notes when the console was last written to, and
// when the built-in userland's shell has printed its first prompt, which ends in
// "# " and a request for the cursor's position.
type quietClock struct {
	prompt chan struct{} // closed at the first prompt

	mu   sync.Mutex
	last time.Time
	seen bool
	hash bool // the last byte was '#'
}

func newQuietClock() *quietClock { return &quietClock{prompt: make(chan struct{})} }

// Write implements io.Writer and never fails.
func (q *quietClock) Write(p []byte) (int, error) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.last = time.Now()
	for _, b := range p {
		if q.seen {
			break
		}
		if q.hash && b == ' ' {
			q.seen = true
			close(q.prompt)
		}
		q.hash = b == '#'
	}
	return len(p), nil
}

func (q *quietClock) touch() {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.last = time.Now()
}

// wait returns true once nothing has happened for d, or false when ctx ends.
func (q *quietClock) wait(ctx context.Context, d time.Duration) bool {
	for {
		q.mu.Lock()
		left := d - time.Since(q.last)
		q.mu.Unlock()
		if left <= 0 {
			return ctx.Err() == nil
		}
		select {
		case <-time.After(left):
		case <-ctx.Done():
			return false
		}
	}
}
