package pvclock

import (
	"encoding/binary"
	"errors"
	"math"
	"math/bits"
	"testing"
	"time"

	"ring3/internal/timer/timertest"
	"ring3/internal/x86"
)

// ram is guest memory of a few KiB that checks the version protocol.
type ram struct {
	b      [4096]byte
	writes int
}

func (m *ram) WriteAt(p []byte, gpa uint64) error {
	if gpa > uint64(len(m.b)) || uint64(len(p)) > uint64(len(m.b))-gpa {
		return errors.New("no memory there")
	}
	m.writes++
	copy(m.b[gpa:], p)
	return nil
}

var le = binary.LittleEndian

// guestNanos is what a guest computes.
func guestNanos(info []byte, tsc uint64) uint64 {
	delta := tsc - le.Uint64(info[8:])
	if s := int8(info[28]); s >= 0 {
		delta <<= s
	} else {
		delta >>= -s
	}
	hi, lo := bits.Mul64(delta, uint64(le.Uint32(info[24:])))
	return le.Uint64(info[16:]) + hi<<32 + lo>>32
}

func TestSystemTime(t *testing.T) {
	for _, hz := range []uint64{100e6, 999_999_999, 1e9, 1_700_000_003, 2_445_404_145, 5e9} {
		clock := timertest.New(hz)
		clock.Advance(77e9)
		m := &ram{}
		c := New(m, clock, 2)
		if !c.WriteMSR(1, x86.MSRKVMSystemTimeNew, 0x100|msrEnable) {
			t.Fatal("#GP")
		}
		info := m.b[0x100 : 0x100+timeInfoSize]
		if v := le.Uint32(info); v == 0 || v&1 != 0 {
			t.Errorf("version %d", v)
		}
		if info[29] != flagStable {
			t.Errorf("flags %#x", info[29])
		}
		const day = 86400e9
		clock.Advance(day)
		got := guestNanos(info, clock.TSC())
		if d := math.Abs(float64(got) - day); d/day > 1e-9 {
			t.Errorf("%d Hz: off by %.0f ns in a day", hz, d)
		}
		if v, _ := c.ReadMSR(1, x86.MSRKVMSystemTimeNew); v != 0x101 {
			t.Errorf("MSR reads %#x", v)
		}
		if v, _ := c.ReadMSR(0, x86.MSRKVMSystemTimeNew); v != 0 {
			t.Errorf("MSR of the other processor reads %#x", v)
		}
	}
}

func TestVersionAdvances(t *testing.T) {
	m := &ram{}
	c := New(m, timertest.New(2e9), 1)
	c.WriteMSR(0, x86.MSRKVMSystemTimeNew, 1)
	first := le.Uint32(m.b[:])
	c.WriteMSR(0, x86.MSRKVMSystemTimeNew, 1)
	if second := le.Uint32(m.b[:]); second == first || second&1 != 0 {
		t.Errorf("versions %d, %d", first, second)
	}
}

func TestWallClock(t *testing.T) {
	clock := timertest.New(2e9)
	m := &ram{}
	c := New(m, clock, 1)
	start := time.Date(2024, 5, 6, 7, 8, 9, 123456789, time.UTC)
	c.now = func() time.Time { return start.Add(time.Duration(clock.Nanos())) }
	clock.Advance(5e9)
	if !c.WriteMSR(0, x86.MSRKVMWallClockNew, 0x200) {
		t.Fatal("#GP")
	}
	got := time.Unix(int64(le.Uint32(m.b[0x204:])), int64(le.Uint32(m.b[0x208:])))
	if !got.Equal(start) {
		t.Errorf("wall clock %v, want %v", got, start)
	}
}

func TestDisabledAndBad(t *testing.T) {
	m := &ram{}
	c := New(m, timertest.New(2e9), 1)
	if !c.WriteMSR(0, x86.MSRKVMSystemTimeNew, 0x100) || m.writes != 0 {
		t.Error("disabled: must write nothing")
	}
	for _, gpa := range []uint64{4092, 1 << 40, ^uint64(0) &^ 3, ^uint64(0) &^ 31} {
		if !c.WriteMSR(0, x86.MSRKVMSystemTimeNew, gpa|msrEnable) || !c.WriteMSR(0, x86.MSRKVMWallClockNew, gpa) {
			t.Errorf("%#x: #GP", gpa)
		}
	}
	if c.WriteMSR(0, x86.MSRKVMSystemTimeNew, 3) || c.WriteMSR(0, x86.MSRKVMWallClockNew, 1) || c.WriteMSR(0, 0x10, 0) {
		t.Error("no #GP")
	}
	if _, ok := c.ReadMSR(0, 0x10); ok || IsMSR(0x10) || !IsMSR(x86.MSRKVMWallClockNew) {
		t.Error("answers other MSRs")
	}
	c.Reset()
	if v, _ := c.ReadMSR(0, x86.MSRKVMSystemTimeNew); v != 0 {
		t.Error("MSR set after reset")
	}
}

func FuzzMSR(f *testing.F) {
	f.Add(uint64(0xff1), uint64(0xffc))
	f.Fuzz(func(t *testing.T, system, wall uint64) {
		c := New(&ram{}, timertest.New(2e9), 1)
		c.WriteMSR(0, x86.MSRKVMSystemTimeNew, system)
		c.WriteMSR(0, x86.MSRKVMWallClockNew, wall)
	})
}
