package pit

import (
	"testing"

	"ring3/internal/timer"
	"ring3/internal/timer/timertest"
)

type irqLine struct {
	level bool
	edges int
}

func (l *irqLine) Set(level bool) {
	if level && !l.level {
		l.edges++
	}
	l.level = level
}

type rig struct {
	*PIT
	t     *testing.T
	irq   irqLine
	clock *timertest.Clock
}

func newRig(t *testing.T) *rig {
	r := &rig{t: t, clock: timertest.New(1e9)}
	r.PIT = New(&r.irq, r.clock)
	return r
}

// ticks lets n ticks of the counters pass.
func (r *rig) ticks(n uint64) {
	target := r.now() + n
	at := int64(timer.Scale(target, 1e9, Hz)) + 1
	r.clock.Advance(at - r.clock.Nanos())
}

func (r *rig) out(off uint64, vs ...byte) {
	for _, v := range vs {
		r.Write(off, []byte{v})
	}
}

func (r *rig) in(off uint64) byte {
	b := []byte{0}
	r.Read(off, b)
	return b[0]
}

func (r *rig) in16(off uint64) uint16 { return uint16(r.in(off)) | uint16(r.in(off))<<8 }

func (r *rig) portB() byte {
	b := []byte{0}
	r.ControlB().Read(0, b)
	return b[0]
}

func TestMode0(t *testing.T) {
	r := newRig(t)
	r.out(3, 0x30)
	r.out(0, 0xe8, 0x03) // 1000
	if r.irq.level {
		t.Error("output high at the start")
	}
	r.ticks(400)
	if v := r.in16(0); v != 600 {
		t.Errorf("count %d, want 600", v)
	}
	r.ticks(599)
	if r.irq.level {
		t.Error("early")
	}
	r.ticks(1)
	if !r.irq.level {
		t.Error("no interrupt")
	}
	r.ticks(10)
	if v := r.in16(0); v != 0xfff6 {
		t.Errorf("count %#x: it goes on from the top", v)
	}
	r.ticks(1 << 20)
	if r.irq.edges != 1 {
		t.Errorf("%d interrupts", r.irq.edges)
	}
}

func TestPeriodic(t *testing.T) {
	for _, mode := range []byte{2, 3} {
		r := newRig(t)
		r.out(3, 0x30|mode<<1)
		r.out(0, 4772&0xff, 4772>>8) // 250 Hz
		before := r.irq.edges
		r.clock.Advance(1e9)
		if n := r.irq.edges - before; n < 249 || n > 251 {
			t.Errorf("mode %d: %d interrupts in a second, want 250", mode, n)
		}
		r.out(3, 0x30) // as Linux stops it
		before = r.irq.edges
		r.clock.Advance(1e9)
		if r.irq.edges != before || r.clock.Armed() != 0 {
			t.Errorf("mode %d: not stopped", mode)
		}
	}
}

func TestPeriodicMinimum(t *testing.T) {
	r := newRig(t)
	r.out(3, 0x34)
	r.out(0, 2, 0)
	r.clock.Advance(10e6)
	if r.irq.edges > 102 {
		t.Errorf("%d interrupts in 10 ms", r.irq.edges)
	}
}

func TestMode4(t *testing.T) {
	r := newRig(t)
	r.out(3, 0x38)
	before := r.irq.edges
	for i := range 3 { // each count starts it anew
		r.out(0, 100, 0)
		r.ticks(100)
		r.ticks(2)
		if n := r.irq.edges - before; n != i+1 {
			t.Fatalf("%d interrupts, want %d", n, i+1)
		}
	}
}

// Linux measures the TSC with counter 2 gated by port B.
func TestCounter2(t *testing.T) {
	r := newRig(t)
	r.ControlB().Write(0, []byte{r.portB()&^bSpeaker | bGate})
	r.out(3, 0xb0)
	r.out(2, 0x9b, 0x2e) // 10 ms
	if r.portB()&bOut != 0 {
		t.Error("output high at the start")
	}
	r.clock.Advance(9_990_000)
	if r.portB()&bOut != 0 {
		t.Error("output high after 9.99 ms")
	}
	r.clock.Advance(20_000)
	if r.portB()&bOut == 0 {
		t.Error("output low after 10.01 ms")
	}
	if r.portB()&3 != bGate {
		t.Errorf("port B %#x", r.portB())
	}
	r.out(2, 0xff, 0xff)
	r.ticks(0x200)
	if v := r.in16(2); v != 0xfdff {
		t.Errorf("count %#x, want 0xfdff", v)
	}
	r.ControlB().Write(0, []byte{0}) // stops
	v := r.in16(2)
	r.ticks(1000)
	if got := r.in16(2); got != v {
		t.Errorf("count %#x, want %#x: the gate is low", got, v)
	}
	r.ControlB().Write(0, []byte{bGate})
	r.ticks(0x10)
	if got := r.in16(2); got != v-0x10 {
		t.Errorf("count %#x, want %#x: it goes on", got, v-0x10)
	}
}

func TestOneShotByGate(t *testing.T) {
	r := newRig(t)
	r.out(3, 0xb2) // counter 2, mode 1
	r.out(2, 100, 0)
	r.ticks(200)
	if r.portB()&bOut == 0 {
		t.Error("output low before the trigger")
	}
	r.ControlB().Write(0, []byte{bGate})
	r.ticks(50)
	if r.portB()&bOut != 0 {
		t.Error("output high after the trigger")
	}
	r.ticks(51)
	if r.portB()&bOut == 0 {
		t.Error("output low at the end")
	}
}

func TestLatchAndReadBack(t *testing.T) {
	r := newRig(t)
	r.out(3, 0x34)
	r.out(0, 0x00, 0x10)
	r.ticks(0x100)
	r.out(3, 0x00) // latch
	r.ticks(0x80)
	r.out(3, 0x00) // a second one is ignored
	if v := r.in16(0); v != 0xf00 {
		t.Errorf("latched %#x, want 0xf00", v)
	}
	r.out(3, 0xc2) // status and count
	if v := r.in(0); v != 0x80|0x34 {
		t.Errorf("status %#x, want 0xb4", v)
	}
	if v := r.in16(0); v != 0xe80 {
		t.Errorf("count %#x, want 0xe80", v)
	}
	r.out(3, 0x70) // counter 1: control word, no count
	r.out(3, 0xe4) // its status
	if v := r.in(1); v != 0x40|0x30 {
		t.Errorf("status %#x, want 0x70", v)
	}
}

func TestAccessAndBCD(t *testing.T) {
	r := newRig(t)
	r.out(3, 0x20|2<<1) // high byte only, mode 2
	r.out(0, 0x12)
	r.ticks(1)
	if v := r.in(0); v != 0x11 {
		t.Errorf("high byte %#x", v)
	}
	r.out(3, 0x31) // mode 0, BCD
	r.out(0, 0x00, 0x10)
	r.ticks(1)
	if v := r.in16(0); v != 0x0999 {
		t.Errorf("BCD count %#x, want 0x999", v)
	}
}

func TestRefreshToggles(t *testing.T) {
	r := newRig(t)
	seen := map[byte]bool{}
	for range 10 {
		seen[r.portB()&bRefresh] = true
		r.clock.Advance(10_000)
	}
	if len(seen) != 2 {
		t.Error("the refresh bit does not toggle")
	}
}

func FuzzAccess(f *testing.F) {
	f.Add([]byte{3, 0x34, 0, 2, 0, 0, 0x43, 0xff})
	f.Fuzz(func(t *testing.T, in []byte) {
		r := newRig(t)
		for ; len(in) >= 2; in = in[2:] {
			n := 1 << (in[0] >> 3 & 3)
			b := make([]byte, n)
			for i := range b {
				b[i] = in[1]
			}
			r.Write(uint64(in[0]&7), b)
			if in[0]&0x20 != 0 {
				r.ControlB().Write(0, b)
			}
			r.Read(uint64(in[0]&7), b)
			r.ControlB().Read(0, b)
			if in[0]&0x40 != 0 {
				r.clock.Advance(int64(in[1]) * 10_000)
			}
		}
	})
}
