package rtc

import (
	"sync"
	"testing"
	"time"

	"ring3/internal/timer"
	"ring3/internal/timer/timertest"
)

type irqLine struct {
	mu    sync.Mutex
	level bool
}

func (l *irqLine) Set(level bool) {
	l.mu.Lock()
	l.level = level
	l.mu.Unlock()
}

type rig struct {
	*RTC
	t     *testing.T
	irq   irqLine
	clock *timertest.Clock
}

var start = time.Date(2024, 2, 29, 23, 59, 58, 0, time.UTC) // a Thursday

func newRig(t *testing.T) *rig {
	r := &rig{t: t, clock: timertest.New(1e9)}
	r.RTC = New(&r.irq, r.clock, 2<<30, 1<<30)
	r.RTC.now = func() time.Time { return start.Add(time.Duration(r.clock.Nanos())) }
	r.RTC.seen = start.Unix()
	return r
}

func (r *rig) out(reg, v byte) { r.Write(0, []byte{reg}); r.Write(1, []byte{v}) }

func (r *rig) in(reg byte) byte {
	b := []byte{0}
	r.Write(0, []byte{reg})
	r.Read(1, b)
	return b[0]
}

func (r *rig) want(what string, regs map[byte]byte) {
	r.t.Helper()
	for reg, want := range regs {
		if got := r.in(reg); got != want {
			r.t.Errorf("%s: register %#x is %#x, want %#x", what, reg, got, want)
		}
	}
}

func TestTime(t *testing.T) {
	r := newRig(t)
	r.want("BCD, 24 hours", map[byte]byte{0: 0x58, 2: 0x59, 4: 0x23, 6: 5, 7: 0x29, 8: 2, 9: 0x24, 0x32: 0x20, 13: 0x80})
	r.out(regB, bDM)
	r.want("binary, 12 hours", map[byte]byte{0: 58, 2: 59, 4: 0x80 | 11, 6: 5, 7: 29, 8: 2, 9: 24, 0x32: 20})
	r.clock.Advance(3e9)
	r.want("next day", map[byte]byte{0: 1, 2: 0, 4: 12, 6: 6, 7: 1, 8: 3})
}

func TestUIP(t *testing.T) {
	r := newRig(t)
	if r.in(regA)&aUIP != 0 {
		t.Error("UIP at the start of a second")
	}
	r.clock.Advance(int64(time.Second - 200*time.Microsecond))
	if r.in(regA)&aUIP == 0 {
		t.Error("no UIP 200 us before an update")
	}
	r.out(regB, b24|bSET)
	if r.in(regA)&aUIP != 0 {
		t.Error("UIP while SET")
	}
}

func TestSet(t *testing.T) {
	r := newRig(t)
	r.out(regB, b24|bSET|bUIE)
	r.want("SET clears UIE", map[byte]byte{regB: b24 | bSET})
	for reg, v := range map[byte]byte{0x32: 0x19, 9: 0x99, 8: 0x12, 7: 0x24, 4: 0x18, 2: 0x30, 0: 0x00} {
		r.out(reg, v)
	}
	r.clock.Advance(10e9)
	r.want("held", map[byte]byte{0: 0})
	r.out(regB, b24)
	r.clock.Advance(5e9)
	r.want("runs", map[byte]byte{0: 5, 2: 0x30, 4: 0x18, 6: 6, 7: 0x24, 8: 0x12, 9: 0x99, 0x32: 0x19})
}

func TestMemorySize(t *testing.T) {
	r := newRig(t)
	r.want("memory", map[byte]byte{
		0x15: 640 & 0xff, 0x16: 640 >> 8, 0x17: 0xff, 0x18: 0xff, 0x30: 0xff, 0x31: 0xff,
		0x34: 0x00, 0x35: 0x7f, 0x5b: 0x00, 0x5c: 0x40, 0x5d: 0,
	})
	r.out(0x40, 0x77)
	r.want("memory keeps", map[byte]byte{0x40: 0x77, 0xc0: 0x77})
}

func TestUpdateInterrupt(t *testing.T) {
	r := newRig(t)
	r.clock.Advance(100e6)
	r.in(regC)
	r.out(regB, b24|bUIE)
	r.clock.Advance(899e6)
	if r.irq.level {
		t.Error("interrupt before the second")
	}
	r.clock.Advance(2e6)
	if !r.irq.level {
		t.Fatal("no interrupt")
	}
	if got := r.in(regC); got&^cPF != cIRQF|cUF {
		t.Errorf("register C %#x", got)
	}
	if r.irq.level {
		t.Error("reading register C does not end the interrupt")
	}
	r.clock.Advance(1e9)
	if !r.irq.level {
		t.Error("no interrupt in the next second")
	}
}

func TestAlarm(t *testing.T) {
	for _, c := range []struct {
		name    string
		h, m, s byte
		after   int64 // seconds from the start, 23:59:58
	}{
		{"at midnight", 0x00, 0x00, 0x00, 2},
		{"every minute", 0xff, 0xff, 0x10, 12},
		{"every second", 0xc0, 0xc0, 0xc0, 1},
		{"tomorrow evening", 0x23, 0x59, 0x58, 86400},
	} {
		t.Run(c.name, func(t *testing.T) {
			r := newRig(t)
			r.out(regHoursAlarm, c.h)
			r.out(regMinutesAlarm, c.m)
			r.out(regSecondsAlarm, c.s)
			r.in(regC)
			r.out(regB, b24|bAIE)
			r.clock.Advance(c.after*1e9 - 1e6)
			if r.irq.level {
				t.Fatal("early")
			}
			r.clock.Advance(2e6)
			if !r.irq.level || r.in(regC)&cAF == 0 {
				t.Error("no alarm")
			}
		})
	}
	r := newRig(t)
	r.out(regSecondsAlarm, 0x7f) // no such second
	r.out(regB, b24|bAIE)
	if r.clock.Armed() != 0 {
		t.Error("waits for an alarm that cannot come")
	}
}

func TestPeriodic(t *testing.T) {
	r := newRig(t)
	r.out(regB, b24|bPIE)
	n := 0
	for range 1000 { // 1024 Hz for a second
		r.clock.Advance(1e6)
		if r.irq.level {
			n++
			if r.in(regC)&cPF == 0 {
				t.Fatal("no PF")
			}
		}
	}
	if n < 950 {
		t.Errorf("%d interrupts in a second that was looked at 1000 times", n)
	}
	r.out(regA, 0x20)
	r.in(regC)
	r.clock.Advance(1e9)
	if r.irq.level {
		t.Error("interrupts at rate 0")
	}
}

func TestReset(t *testing.T) {
	r := newRig(t)
	r.out(regB, b24|bUIE)
	r.clock.Advance(3e9)
	r.Reset()
	if r.irq.level || r.in(regB) != b24 {
		t.Error("interrupts enabled after reset")
	}
}

func TestRealClock(t *testing.T) {
	clock, err := timer.NewHost()
	if err != nil {
		t.Fatal(err)
	}
	defer clock.Close()
	r := New(&irqLine{}, clock, 1<<28, 0)
	r.cmos[regB] |= bDM
	v, _ := r.field(r.time(), regYear)
	if int(v) != time.Now().UTC().Year()%100 {
		t.Errorf("year %d", v)
	}
}

func FuzzAccess(f *testing.F) {
	f.Add([]byte{0x0b, 0x72, 0x05, 0xff, 0x80, 200, 0x0a, 0x2f})
	f.Fuzz(func(t *testing.T, in []byte) {
		clock := timertest.New(1e9)
		r := New(&irqLine{}, clock, 1<<32, 0)
		for ; len(in) >= 2; in = in[2:] {
			r.Write(0, []byte{in[0] & 0x7f})
			if in[0]&0x80 != 0 {
				clock.Advance(int64(in[1]) * 1e7)
				r.Read(uint64(in[1]&3), make([]byte, 1<<(in[1]&3)))
				continue
			}
			r.Write(1, []byte{in[1]})
			r.Read(1, make([]byte, 1))
		}
	})
}
