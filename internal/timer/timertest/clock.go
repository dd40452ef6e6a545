// Package timertest provides a clock for tests that only moves when told.
package timertest

import (
	"sync"

	"ring3/internal/timer"
)

// Clock is a timer.Clock under the control of a test. Its TSC counts
// TSCHz ticks a second from 0.
type Clock struct {
	mu     sync.Mutex
	now    int64
	hz     uint64
	timers []*manual
}

// New returns a clock at time 0 whose TSC runs at hz.
func New(hz uint64) *Clock { return &Clock{hz: hz} }

// TSC implements timer.Clock.
func (c *Clock) TSC() uint64 { return timer.Scale(uint64(c.Nanos()), c.hz, 1e9) }

// Hz implements timer.Clock.
func (c *Clock) Hz() uint64 { return c.hz }

// Nanos implements timer.Clock.
func (c *Clock) Nanos() int64 {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.now
}

// Advance moves the clock by d nanoseconds and calls what expires, in order,
// each at its own time.
func (c *Clock) Advance(d int64) {
	c.mu.Lock()
	end := c.now + d
	for {
		var first *manual
		for _, t := range c.timers {
			if t.armed && t.at <= end && (first == nil || t.at < first.at) {
				first = t
			}
		}
		if first == nil {
			break
		}
		first.armed = false
		c.now = max(c.now, first.at)
		c.mu.Unlock()
		first.fn()
		c.mu.Lock()
	}
	c.now = end
	c.mu.Unlock()
}

// Armed returns how many timers are armed.
func (c *Clock) Armed() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	n := 0
	for _, t := range c.timers {
		if t.armed {
			n++
		}
	}
	return n
}

type manual struct {
	c     *Clock
	fn    func()
	at    int64
	armed bool
}

// NewTimer implements timer.Clock.
func (c *Clock) NewTimer(fn func()) timer.Timer {
	t := &manual{c: c, fn: fn}
	c.mu.Lock()
	c.timers = append(c.timers, t)
	c.mu.Unlock()
	return t
}

// Set implements timer.Timer.
func (t *manual) Set(at int64) {
	t.c.mu.Lock()
	t.at, t.armed = at, at != timer.Never
	t.c.mu.Unlock()
}

// Stop implements timer.Timer.
func (t *manual) Stop() {
	t.c.mu.Lock()
	t.armed = false
	t.c.mu.Unlock()
}
