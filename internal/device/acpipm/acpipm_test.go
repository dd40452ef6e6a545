package acpipm

import (
	"encoding/binary"
	"testing"

	"ring3/internal/timer/timertest"
)

type irqLine struct{ level bool }

func (l *irqLine) Set(level bool) { l.level = level }

type rig struct {
	*PM
	t     *testing.T
	irq   irqLine
	clock *timertest.Clock
	offs  int
}

func newRig(t *testing.T) *rig {
	r := &rig{t: t, clock: timertest.New(1e9)}
	r.PM = New(&r.irq, r.clock, func() { r.offs++ })
	return r
}

func (r *rig) out16(off uint64, v uint16) {
	r.Write(off, binary.LittleEndian.AppendUint16(nil, v))
}

func (r *rig) in16(off uint64) uint16 {
	var b [2]byte
	r.Read(off, b[:])
	return binary.LittleEndian.Uint16(b[:])
}

func (r *rig) in32(off uint64) uint32 {
	var b [4]byte
	r.Read(off, b[:])
	return binary.LittleEndian.Uint32(b[:])
}

func TestTimer(t *testing.T) {
	r := newRig(t)
	if v := r.in32(TimerBlock); v != 0 {
		t.Errorf("timer %d at 0", v)
	}
	r.clock.Advance(1e9)
	if v := r.in32(TimerBlock); v != TimerHz {
		t.Errorf("timer %d after a second", v)
	}
	var b [1]byte
	r.Read(TimerBlock+2, b[:])
	if want := byte(TimerHz >> 16 & 0xff); b[0] != want {
		t.Errorf("byte 2 is %#x, want %#x", b[0], want)
	}
	r.clock.Advance(1200e9) // 1201 s: beyond 2^32 ticks
	if v, want := r.in32(TimerBlock), uint32(1201*TimerHz%(1<<32)); v != want {
		t.Errorf("timer %#x, want %#x", v, want)
	}
}

func TestTimerEvent(t *testing.T) {
	r := newRig(t)
	r.out16(EventBlock+2, evtTimer)
	r.clock.Advance(599e9)
	if r.irq.level {
		t.Fatal("early") // 2^31 ticks are 599.93 s
	}
	r.clock.Advance(1e9)
	if !r.irq.level || r.in16(EventBlock)&evtTimer == 0 {
		t.Fatal("no SCI when the top bit changed")
	}
	r.out16(EventBlock, evtTimer)
	if r.irq.level || r.in16(EventBlock) != 0 {
		t.Error("status not cleared")
	}
	r.clock.Advance(600e9)
	if !r.irq.level {
		t.Error("no SCI when the top bit changed back")
	}
}

func TestPowerButton(t *testing.T) {
	r := newRig(t)
	r.PressPowerButton()
	if r.irq.level {
		t.Error("SCI while disabled")
	}
	if v := r.in16(EventBlock); v != evtPowerButton {
		t.Errorf("status %#x", v)
	}
	r.out16(EventBlock+2, evtPowerButton|evtGlobal)
	if !r.irq.level {
		t.Error("no SCI")
	}
	if v := r.in16(EventBlock + 2); v != evtPowerButton|evtGlobal {
		t.Errorf("enable %#x", v)
	}
	r.out16(EventBlock+2, 0xffff)
	if v := r.in16(EventBlock + 2); v != enWritable {
		t.Errorf("enable %#x, want %#x", v, enWritable)
	}
	r.out16(EventBlock, evtPowerButton)
	if r.irq.level {
		t.Error("SCI after the status was cleared")
	}
}

func TestPowerOff(t *testing.T) {
	r := newRig(t)
	if v := r.in16(ControlBlock); v != cntSCI {
		t.Errorf("control %#x: the machine is in ACPI mode from the start", v)
	}
	r.out16(ControlBlock, cntSCI|SleepTypeS5<<cntSleepTypeShift)
	if r.offs != 0 {
		t.Error("off without SLP_EN")
	}
	if v := r.in16(ControlBlock); v != cntSCI|SleepTypeS5<<cntSleepTypeShift {
		t.Errorf("control %#x", v)
	}
	r.out16(ControlBlock, cntSCI|1<<cntSleepTypeShift|cntSleepEn)
	if r.offs != 0 {
		t.Error("off in another sleep state")
	}
	r.out16(ControlBlock, cntSCI|SleepTypeS5<<cntSleepTypeShift|cntSleepEn)
	if r.offs != 1 {
		t.Error("still on")
	}
	if v := r.in16(ControlBlock); v&cntSleepEn != 0 {
		t.Error("SLP_EN reads 1")
	}
}

func TestGPE(t *testing.T) {
	r := newRig(t)
	r.TriggerGPE(9)
	r.out16(GPE0Block+2, 1<<9)
	if !r.irq.level || r.in16(GPE0Block) != 1<<9 {
		t.Error("no SCI")
	}
	r.out16(GPE0Block, 1<<9)
	if r.irq.level || r.in16(GPE0Block) != 0 {
		t.Error("status not cleared")
	}
	r.TriggerGPE(9)
	r.Reset()
	if r.irq.level {
		t.Error("SCI after reset")
	}
}

func FuzzAccess(f *testing.F) {
	f.Add([]byte{0, 1, 8, 2, 0x24, 0xff, 4, 0x34})
	f.Fuzz(func(t *testing.T, in []byte) {
		r := newRig(t)
		for ; len(in) >= 2; in = in[2:] {
			n := 1 << (in[0] >> 6)
			off := uint64(in[0] & 0x3f)
			b := make([]byte, n)
			b[n-1] = in[1]
			r.Write(off, b)
			r.Read(off, b)
			r.clock.Advance(int64(in[1]) << 30)
			if in[1] == 7 {
				r.PressPowerButton()
			}
		}
	})
}
