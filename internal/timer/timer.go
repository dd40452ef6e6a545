// Package timer is where devices get the time: the guest's time-stamp
// counter, a monotonic clock in nanoseconds, and one-shot timers.
//
// The guest's TSC is the host's TSC, offset 0, so that RDTSC in guest code
// needs no trap (SDM vol. 3B, section 18.17 "Time-Stamp Counter"). Devices
// with a crystal of their own (8254, RTC, ACPI PM timer, local APIC bus clock)
// count nanoseconds of CLOCK_MONOTONIC instead, whose rate the host keeps.
package timer

import (
	"math"
	"math/bits"
)

// Clock is the time as a virtual machine sees it.
type Clock interface {
	// TSC returns the guest's time-stamp counter.
	TSC() uint64
	// Hz returns the best estimate of the TSC's frequency so far. It may get
	// better while the clock runs: what the guest is told once (CPUID,
	// paravirtual clock) must be read once.
	Hz() uint64
	// Nanos returns the monotonic time in nanoseconds since the clock started.
	Nanos() int64
	// NewTimer returns a stopped timer that calls fn when it expires, on a
	// thread of the clock's and with no lock held. fn must not block; it may
	// still be called once, late, after Stop or a second Set.
	NewTimer(fn func()) Timer
}

// Timer is a one-shot timer.
type Timer interface {
	// Set arms the timer for Clock.Nanos() >= at, replacing what it was set
	// to. A time in the past expires at once, on the clock's thread.
	Set(at int64)
	// Stop disarms it.
	Stop()
}

// Never is a time that a timer may be set to and that does not come.
const Never = math.MaxInt64

// NanosAt returns when c's TSC will reach tsc, in c.Nanos() time, rounded up,
// or the present when it already has. It saturates at Never.
func NanosAt(c Clock, tsc uint64) int64 {
	now, ns := c.TSC(), c.Nanos() // in this order: rather a little late than early
	if tsc <= now {
		return ns
	}
	d := Scale(tsc-now, 1e9, c.Hz())
	if d >= uint64(Never-ns) {
		return Never
	}
	return ns + int64(d) + 1
}

// Scale returns v*mul/div without intermediate overflow, rounded down and
// saturating at the largest uint64. div must not be 0.
func Scale(v, mul, div uint64) uint64 {
	hi, lo := bits.Mul64(v, mul)
	if hi >= div {
		return math.MaxUint64
	}
	q, _ := bits.Div64(hi, lo, div)
	return q
}
