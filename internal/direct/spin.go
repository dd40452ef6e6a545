package direct

import (
	"sync/atomic"
	"time"

	"ring3/internal/direct/stub"
)

// Waiting for the other side of the hand-over: spin for a while, then sleep in
// a futex. Spinning saves microseconds when the other side answers soon, and
// takes a processor from somebody when it does not. So each side spins for as
// long as answers have been taking lately, and hardly at all when that is too
// long to be worth it.

// spinner learns how long answers take, and whether spinning finds them.
type spinner struct {
	max     uint64 // longest spin worth while, in TSC ticks; 0: never spin
	average uint64 // of the last answers, in TSC ticks
	// After spinning in vain several times in a row, the next 2, 6, 14 times
	// are not spun at all: probably the other side waits for this processor.
	misses uint8
	skip   uint8
}

// Longest spins. The monitor holds a processor of the Go scheduler while it
// spins. A stub waits for the guest kernel, which takes longer.
const (
	monitorSpin = 30 * time.Microsecond
	stubSpin    = 150 * time.Microsecond
	// leastSpin is spun although answers take too long: it notices when they
	// become fast. slackSpin is added to what they take when they are fast.
	leastSpin = 2 // microseconds
	slackSpin = 10
)

// answered records that an answer took d ticks, and was found by spinning.
func (s *spinner) answered(d uint64, found bool) {
	d = min(d, 8*s.max)
	s.average = (7*s.average + d) / 8
	switch {
	case found:
		s.misses = 0
	case s.skip > 0:
		s.skip--
	default:
		s.misses = min(s.misses+1, 4)
		s.skip = 1<<s.misses - 2
	}
}

// budget is how long to spin now.
func (s *spinner) budget(microsecond uint64) uint64 {
	switch {
	case s.max == 0 || s.skip > 0:
		return 0
	case s.average > s.max:
		return leastSpin * microsecond
	}
	return min(2*s.average+slackSpin*microsecond, s.max)
}

// quiet makes a stopped stub stop spinning: another one is going to run, and
// needs the processor.
func (p *proc) quiet() {
	if p.waits {
		return
	}
	c := p.ctl
	if p.e.spinServe.max != 0 && atomic.LoadUint32(&c.StubSleeps) == 0 && p.ready() == nil {
		atomic.CompareAndSwapUint32(&c.Cmd, stub.CmdNone, stub.CmdSleep)
	}
}
