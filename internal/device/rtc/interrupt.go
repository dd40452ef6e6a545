package rtc

import (
	"time"

	"ring3/internal/timer"
)

// crystal is the time base of the periodic interrupt, in Hz.
const crystal = 32768

// minPeriod bounds how often the periodic interrupt wakes the host, in
// nanoseconds: the fastest rate of the chip is 122 us.
const minPeriod = 100_000

// tickLength is the period of the periodic interrupt in crystal cycles, or 0
// (data sheet, table 5).
func (r *RTC) tickLength() int64 {
	rate := r.cmos[regA] & aRate
	switch rate {
	case 0:
		return 0
	case 1, 2:
		rate += 7
	}
	return 1 << (rate - 1)
}

// tick counts periods since the clock started.
func (r *RTC) tick() int64 {
	n := r.tickLength()
	if n == 0 {
		return 0
	}
	return int64(timer.Scale(uint64(r.clock.Nanos()), crystal, 1e9)) / n
}

// collect sets the flags of what happened since it was called last.
func (r *RTC) collect() {
	if tick := r.tick(); tick != r.period {
		r.period = tick
		r.flags |= cPF
	}
	if r.cmos[regB]&bSET != 0 {
		return
	}
	now := r.time().Unix()
	if now == r.seen {
		return
	}
	r.flags |= cUF
	if now > r.seen && r.alarmBetween(r.seen, now) {
		r.flags |= cAF
	}
	r.seen = now // the host's clock may have been set back
}

// alarmBetween reports whether the alarm goes off after second a, up to b.
func (r *RTC) alarmBetween(a, b int64) bool {
	next := r.nextAlarm(a)
	return next != 0 && next <= b
}

// nextAlarm returns the first second after a that matches the alarm
// registers, or 0. Values from 0xc0 match everything.
func (r *RTC) nextAlarm(a int64) int64 {
	match := func(v uint8, encoded uint8) bool { return v >= 0xc0 || v == encoded }
	possible := func(v uint8, encode func(int) uint8, n int) bool {
		for i := range n {
			if match(v, encode(i)) {
				return true
			}
		}
		return false
	}
	if !possible(r.cmos[regHoursAlarm], r.encodeHour, 24) ||
		!possible(r.cmos[regMinutesAlarm], r.encode, 60) ||
		!possible(r.cmos[regSecondsAlarm], r.encode, 60) {
		return 0
	}
	t := time.Unix(a+1, 0).UTC()
	end := t.Add(25 * time.Hour)
	for t.Before(end) {
		switch {
		case !match(r.cmos[regHoursAlarm], r.encodeHour(t.Hour())):
			t = t.Truncate(time.Hour).Add(time.Hour)
		case !match(r.cmos[regMinutesAlarm], r.encode(t.Minute())):
			t = t.Truncate(time.Minute).Add(time.Minute)
		case !match(r.cmos[regSecondsAlarm], r.encode(t.Second())):
			t = t.Add(time.Second)
		default:
			return t.Unix()
		}
	}
	return 0
}

// update drives the interrupt line and sets the host timer to the next enabled
// interrupt. r.mu is held.
func (r *RTC) update() {
	enabled := r.cmos[regB] & (bPIE | bAIE | bUIE)
	r.irq.Set(r.flags&enabled != 0)
	next := int64(timer.Never)
	if enabled&bPIE&^r.flags != 0 {
		if n := r.tickLength(); n != 0 {
			next = int64(timer.Scale(uint64((r.tick()+1)*n), 1e9, crystal)) + 1
			next = max(next, r.clock.Nanos()+minPeriod)
		}
	}
	if enabled&(bAIE|bUIE)&^r.flags != 0 && r.cmos[regB]&bSET == 0 {
		next = min(next, r.nextSecond(enabled&bUIE&^r.flags != 0))
	}
	if next == timer.Never {
		r.timer.Stop()
		return
	}
	r.timer.Set(next)
}

// nextSecond is when to look at the wall clock again: at the next second, or
// at the next alarm but in a minute at the latest, since the host's wall clock
// may be set.
func (r *RTC) nextSecond(every bool) int64 {
	t := r.time()
	wait := time.Second - time.Duration(t.Nanosecond())
	if !every {
		at := r.nextAlarm(r.seen)
		if at == 0 {
			return timer.Never
		}
		wait = min(max(time.Unix(at, 0).Sub(t), 0), time.Minute)
	}
	return r.clock.Nanos() + int64(wait)
}

func (r *RTC) expire() {
	r.mu.Lock()
	r.collect()
	r.update()
	r.mu.Unlock()
}
