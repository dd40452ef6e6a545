package irqchip

import (
	"testing"

	"ring3/internal/x86"
)

func TestTimerOneShot(t *testing.T) {
	r := newRig(t, 1)
	r.x2(0)
	r.wrmsr(0, x2First+regDivide, 3) // by 16
	r.wrmsr(0, x2First+regTimer, 0xec)
	r.wrmsr(0, x2First+regInitial, 1000) // 16 us
	r.clock.Advance(8_000)
	if v := r.rdmsr(0, x2First+regCurrent); v != 500 {
		t.Errorf("current count %d, want 500", v)
	}
	r.wantNone(0)
	r.clock.Advance(8_000)
	r.wantVector(0, 0xec)
	r.wrmsr(0, x2First+regEOI, 0)
	if v := r.rdmsr(0, x2First+regCurrent); v != 0 {
		t.Errorf("current count %d, want 0", v)
	}
	r.clock.Advance(1e9)
	r.wantNone(0)
}

func TestTimerPeriodic(t *testing.T) {
	r := newRig(t, 1)
	r.x2(0)
	r.wrmsr(0, x2First+regDivide, 0xb) // by 1
	r.wrmsr(0, x2First+regTimer, 1<<17|0xec)
	r.wrmsr(0, x2First+regInitial, 1_000_000)
	for range 3 {
		r.clock.Advance(999_000)
		r.wantNone(0)
		r.clock.Advance(1_000)
		r.wantVector(0, 0xec)
		r.wrmsr(0, x2First+regEOI, 0)
	}
	r.clock.Advance(250_000)
	if v := r.rdmsr(0, x2First+regCurrent); v != 750_000 {
		t.Errorf("current count %d, want 750000", v)
	}
	r.wrmsr(0, x2First+regTimer, lvtMasked|1<<17|0xec)
	if r.clock.Armed() != 0 {
		t.Error("a masked timer wakes the host")
	}
	r.clock.Advance(1_000_000)
	r.wrmsr(0, x2First+regTimer, 1<<17|0xec)
	r.wantNone(0)
	r.clock.Advance(750_000)
	r.wantVector(0, 0xec)
	r.wrmsr(0, x2First+regEOI, 0)
	r.wrmsr(0, x2First+regInitial, 0)
	r.clock.Advance(1e9)
	r.wantNone(0)
}

// A guest may ask for an interrupt every nanosecond; the host does not wake up
// as often.
func TestTimerPeriodicMinimum(t *testing.T) {
	r := newRig(t, 1)
	r.x2(0)
	r.wrmsr(0, x2First+regDivide, 0xb)
	r.wrmsr(0, x2First+regTimer, 1<<17|0xec)
	r.wrmsr(0, x2First+regInitial, 1)
	n := 0
	for range 1000 {
		r.clock.Advance(1_000)
		if _, ok := r.CPU(0).Acknowledge(); ok {
			n++
			r.wrmsr(0, x2First+regEOI, 0)
		}
	}
	if n < 9 || n > 11 {
		t.Errorf("%d interrupts in a millisecond, want 10", n)
	}
}

func TestTimerDivide(t *testing.T) {
	for i, want := range []int64{2, 4, 8, 16, 32, 64, 128, 1} {
		a := apicTimer{divide: uint32(i&3 | i&4<<1)}
		if got := a.divisor(); got != want {
			t.Errorf("divide configuration %d: %d, want %d", i, got, want)
		}
	}
	r := newRig(t, 1)
	r.x2(0)
	r.wrmsr(0, x2First+regTimer, 0xec)
	r.wrmsr(0, x2First+regDivide, 0xb)
	r.wrmsr(0, x2First+regInitial, 1000)
	r.clock.Advance(500)
	r.wrmsr(0, x2First+regDivide, 0) // by 2: the other 500 take twice as long
	r.clock.Advance(998)
	r.wantNone(0)
	r.clock.Advance(2)
	r.wantVector(0, 0xec)
}

func TestTimerDeadline(t *testing.T) {
	r := newRig(t, 1)
	r.x2(0)
	r.wrmsr(0, x86.MSRTSCDeadline, 1000)
	if v := r.rdmsr(0, x86.MSRTSCDeadline); v != 0 {
		t.Errorf("deadline %d set in one-shot mode", v)
	}
	r.wrmsr(0, x2First+regTimer, timerDeadline<<17|0xec)
	at := r.clock.TSC() + tscHz/1000
	r.wrmsr(0, x86.MSRTSCDeadline, at)
	if v := r.rdmsr(0, x86.MSRTSCDeadline); v != at {
		t.Errorf("deadline reads %d, want %d", v, at)
	}
	r.clock.Advance(999_000)
	r.wantNone(0)
	r.clock.Advance(1_100)
	r.wantVector(0, 0xec)
	r.wrmsr(0, x2First+regEOI, 0)
	if v := r.rdmsr(0, x86.MSRTSCDeadline); v != 0 {
		t.Errorf("deadline reads %d after it passed", v)
	}
	r.wrmsr(0, x86.MSRTSCDeadline, 1) // past
	r.wantVector(0, 0xec)
	r.wrmsr(0, x2First+regEOI, 0)
	r.wrmsr(0, x86.MSRTSCDeadline, r.clock.TSC()+1000)
	r.wrmsr(0, x86.MSRTSCDeadline, 0) // disarm
	r.clock.Advance(1e9)
	r.wantNone(0)
	r.wrmsr(0, x86.MSRTSCDeadline, ^uint64(0)) // never
	r.clock.Advance(1e9)
	r.wantNone(0)
	// Leaving the mode disarms.
	r.wrmsr(0, x86.MSRTSCDeadline, r.clock.TSC()+1000)
	r.wrmsr(0, x2First+regTimer, 0xec)
	r.wrmsr(0, x2First+regTimer, timerDeadline<<17|0xec)
	r.clock.Advance(1e9)
	r.wantNone(0)
	// While masked it passes without an interrupt.
	r.wrmsr(0, x86.MSRTSCDeadline, r.clock.TSC()+1000)
	r.wrmsr(0, x2First+regTimer, lvtMasked|timerDeadline<<17|0xec)
	r.clock.Advance(1e9)
	r.wrmsr(0, x2First+regTimer, timerDeadline<<17|0xec)
	r.wantNone(0)
	if v := r.rdmsr(0, x86.MSRTSCDeadline); v != 0 {
		t.Errorf("deadline reads %d", v)
	}
}
