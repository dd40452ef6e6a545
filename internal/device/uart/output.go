package uart

import (
	"errors"
	"io"
	"sync"
	"time"
)

// Output is collected for a moment, so that a line of text is one write and
// not eighty.
const (
	maxOutput  = 64 << 10         // bytes that wait before the transmitter is busy
	gatherSize = 4096             // bytes that are written without waiting
	gatherTime = time.Millisecond // for more
	closeTime  = 2 * time.Second  // that Close waits for a writer that blocks
)

var errStuck = errors.New("uart: the output does not take what is sent")

// output sends bytes to a writer from a goroutine.
type output struct {
	w       io.Writer
	drained func() // called without locks when busy ends

	mu     sync.Mutex
	buf    []byte
	full   bool // busy, until run has taken what waits
	active bool // run is not waiting for wake
	closed bool
	err    error
	wake   chan struct{}
	flush  chan struct{} // ends the wait for more
	done   chan struct{}
}

func newOutput(w io.Writer, drained func()) *output {
	o := &output{
		w: w, drained: drained,
		wake: make(chan struct{}, 1), flush: make(chan struct{}, 1), done: make(chan struct{}),
	}
	go o.run()
	return o
}

// put queues a byte; it reports whether there is room for another. What is
// put while busy is lost, as it is in a transmitter.
func (o *output) put(b byte) bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.closed || o.err != nil {
		return true // nobody listens
	}
	if len(o.buf) < maxOutput {
		o.buf = append(o.buf, b)
	}
	if !o.active {
		o.active = true
		signal(o.wake)
	}
	if len(o.buf) == gatherSize {
		signal(o.flush)
	}
	o.full = o.full || len(o.buf) >= maxOutput
	return !o.full
}

func (o *output) busy() bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.full
}

func (o *output) run() {
	defer close(o.done)
	var spare []byte
	for range o.wake {
		for {
			select {
			case <-o.flush:
			case <-time.After(gatherTime):
			}
			data, more := o.take(spare)
			if !more {
				break
			}
			_, err := o.w.Write(data)
			spare = data[:0]
			o.fail(err)
		}
		o.mu.Lock()
		closed := o.closed
		o.mu.Unlock()
		if closed {
			return
		}
	}
}

// fail remembers an error; what is put after it is dropped.
func (o *output) fail(err error) {
	if err == nil {
		return
	}
	o.mu.Lock()
	o.err = err
	o.mu.Unlock()
}

// take takes all that waits, leaving an empty buffer in its place; !more when
// there is nothing, and put has to wake run again.
func (o *output) take(empty []byte) (data []byte, more bool) {
	o.mu.Lock()
	data, o.buf = o.buf, empty
	wasFull := o.full
	o.full = false
	if len(data) == 0 {
		o.buf, o.active = data, false
	}
	o.mu.Unlock()
	if wasFull {
		o.drained()
	}
	return data, len(data) > 0
}

func (o *output) close() error {
	o.mu.Lock()
	o.closed = true
	o.mu.Unlock()
	signal(o.wake)
	signal(o.flush)
	select {
	case <-o.done:
		return o.err
	case <-time.After(closeTime):
		return errStuck
	}
}

func signal(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}
