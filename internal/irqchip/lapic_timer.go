package irqchip

import "ring3/internal/timer"

// BusHz is the rate of the local APIC timer before its divider: CPUID may tell
// the guest (leaf 0x15 ECX, hypervisor leaf 0x40000010 EBX in kHz).
const BusHz = 1_000_000_000

// minPeriod bounds how often a periodic timer really interrupts, in
// nanoseconds; a guest may ask for a nanosecond.
const minPeriod = 100_000

// Timer modes, bits 17-18 of the LVT entry (SDM vol. 3A, section 11.5.4).
const (
	timerOneShot  = 0
	timerPeriodic = 1
	timerDeadline = 2
)

// apicTimer counts down from an initial count at BusHz over a divider, or
// waits for the TSC to reach a deadline. The count is never stored: it follows
// from the time since the initial count was loaded.
type apicTimer struct {
	t        timer.Timer
	divide   uint32 // register: bits 0, 1 and 3
	initial  uint32
	start    int64  // when initial was loaded
	running  bool   // the count has not interrupted yet, or is periodic
	deadline uint64 // TSC; 0: disarmed
	next     int64  // when t expires; timer.Never when it does not
	last     int64  // when it expired last
}

func (t *apicTimer) reset() {
	t.t.Stop()
	*t = apicTimer{t: t.t, next: timer.Never}
}

// mode of the timer of l.
func (l *LocalAPIC) timerMode() uint32 { return l.lvt[lvtTimer] >> 17 & 3 }

// divisor decodes the divide configuration register
// (SDM vol. 3A, figure 11-10): 0 is 2, 1 is 4, ... 6 is 128, 7 is 1.
func (t *apicTimer) divisor() int64 {
	n := t.divide&3 | t.divide>>1&4
	return 1 << ((n + 1) & 7)
}

// period is the time from the initial count to 0, in nanoseconds.
func (t *apicTimer) period() int64 { return int64(t.initial) * t.divisor() * (1e9 / BusHz) }

func (t *apicTimer) readInitial(l *LocalAPIC) uint32 {
	if l.timerMode() == timerDeadline {
		return 0
	}
	return t.initial
}

// current is the current-count register.
func (t *apicTimer) current(l *LocalAPIC) uint32 {
	mode := l.timerMode()
	if t.initial == 0 || mode > timerPeriodic {
		return 0
	}
	past := l.chip.clock.Nanos() - t.start
	if mode == timerPeriodic {
		past %= t.period()
	} else if past >= t.period() {
		return 0
	}
	return t.initial - uint32(past/t.divisor())
}

// load writes the initial count: the count starts anew, 0 stops it. In
// TSC-deadline mode the write is ignored.
func (t *apicTimer) load(l *LocalAPIC, v uint32) {
	if l.timerMode() == timerDeadline {
		return
	}
	t.initial, t.start, t.running, t.last = v, l.chip.clock.Nanos(), v != 0, 0
	t.arm(l)
}

// setDivide changes the rate from here on; the count goes on from where it is.
func (t *apicTimer) setDivide(l *LocalAPIC, v uint32) {
	left := t.current(l)
	t.divide = v
	if left != 0 {
		t.start = l.chip.clock.Nanos() - int64(t.initial-left)*t.divisor()
	} else {
		t.start = l.chip.clock.Nanos() - t.period() // stays at 0
	}
	t.arm(l)
}

// configure follows a change of the LVT entry. Changing to or from
// TSC-deadline mode disarms the timer (SDM vol. 3A, section 11.5.4.1).
func (t *apicTimer) configure(l *LocalAPIC, old uint32) {
	if was := old >> 17 & 3; was != l.timerMode() && (was == timerDeadline || l.timerMode() == timerDeadline) {
		t.initial, t.running, t.deadline = 0, false, 0
	}
	if old&lvtMasked != 0 {
		t.drop(l)
	}
	t.arm(l)
}

// drop forgets what expired while the entry was masked: it does not interrupt
// later.
func (t *apicTimer) drop(l *LocalAPIC) {
	clock := l.chip.clock
	if clock.TSC() >= t.deadline {
		t.deadline = 0
	}
	if l.timerMode() == timerOneShot && clock.Nanos() >= t.start+t.period() {
		t.running = false
	}
}

// readDeadline is IA32_TSC_DEADLINE: 0 when disarmed or past.
func (t *apicTimer) readDeadline(l *LocalAPIC) uint64 {
	if l.timerMode() != timerDeadline || l.chip.clock.TSC() >= t.deadline {
		return 0
	}
	return t.deadline
}

// setDeadline writes IA32_TSC_DEADLINE: 0 disarms, a time that is past
// interrupts at once. In other modes the write is ignored.
func (t *apicTimer) setDeadline(l *LocalAPIC, tsc uint64) {
	if l.timerMode() != timerDeadline {
		return
	}
	t.deadline = tsc
	if tsc != 0 && l.chip.clock.TSC() >= tsc {
		t.deadline = 0
		l.local(lvtTimer)
	}
	t.arm(l)
}

// arm sets the host timer to the next expiry that interrupts, which may be
// past already.
func (t *apicTimer) arm(l *LocalAPIC) {
	next := t.nextExpiry(l)
	if next == t.next {
		return
	}
	t.next = next
	if next == timer.Never {
		t.t.Stop()
		return
	}
	t.t.Set(next)
}

func (t *apicTimer) nextExpiry(l *LocalAPIC) int64 {
	if l.lvt[lvtTimer]&lvtMasked != 0 {
		return timer.Never
	}
	clock := l.chip.clock
	switch l.timerMode() {
	case timerDeadline:
		if t.deadline != 0 {
			return timer.NanosAt(clock, t.deadline)
		}
	case timerOneShot:
		if t.running {
			return t.start + t.period()
		}
	case timerPeriodic:
		if t.running {
			p := t.period()
			n := (clock.Nanos()-t.start)/p + 1
			return max(t.start+n*p, t.last+minPeriod)
		}
	}
	return timer.Never
}

// expire is called by the host timer, which may be early, or late and no
// longer wanted.
func (l *LocalAPIC) expire() {
	c := l.chip
	c.mu.Lock()
	defer c.unlock()
	t := &l.timer
	if t.next == timer.Never {
		return
	}
	now := c.clock.Nanos()
	due := now >= t.next
	if l.timerMode() == timerDeadline {
		due = c.clock.TSC() >= t.deadline
	}
	t.next = timer.Never // whatever comes is to be set again
	if due {
		t.deadline, t.last = 0, now
		t.running = t.running && l.timerMode() == timerPeriodic
		l.local(lvtTimer)
	}
	t.arm(l)
}
