package main

import (
	"context"
	"io"
	"sync"
)

// lateWriter is a writer to a port of a machine that does not exist yet, or of the
// one after it.
type lateWriter struct {
	mu      sync.Mutex
	w       io.Writer
	changed chan struct{} // closed when w changes; nil if nobody waits
}

func (l *lateWriter) set(w io.Writer) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.w = w
	if l.changed != nil {
		close(l.changed)
		l.changed = nil
	}
}

// Write implements io.Writer.
func (l *lateWriter) Write(p []byte) (int, error) {
	l.mu.Lock()
	w := l.w
	l.mu.Unlock()
	if w == nil {
		return 0, io.ErrClosedPipe
	}
	return w.Write(p)
}

// next returns a channel that is closed when the machine is another.
func (l *lateWriter) next() <-chan struct{} {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.changed == nil {
		l.changed = make(chan struct{})
	}
	return l.changed
}

// keptLine is a writer to a serial line that outlasts the machine: what one does not
// take before it reboots is lost, what comes later is for the next.
type keptLine struct {
	ctx  context.Context // of the session
	line *lateWriter
}

// Write implements io.Writer. Its error is that of the context.
func (k keptLine) Write(p []byte) (int, error) {
	next := k.line.next()
	if _, err := k.line.Write(p); err == nil {
		return len(p), nil
	}
	select {
	case <-next:
		return len(p), nil
	case <-k.ctx.Done():
		return 0, context.Cause(k.ctx)
	}
}
