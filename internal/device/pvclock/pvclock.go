// Package pvclock is the KVM paravirtual clock: two MSRs by which a guest says
// where it wants the formula from TSC to nanoseconds, and the time of day at
// which its clock started.
//
// Source: Linux Documentation/virt/kvm/x86/msr.rst, "MSR_KVM_WALL_CLOCK_NEW"
// and "MSR_KVM_SYSTEM_TIME_NEW"; the CPUID bits are in cpuid.rst.
//
// Guest TSC and host TSC are the same and run at one rate, so the formula is
// the same for all processors and never changes: time 0 is when the machine
// was made.
package pvclock

import (
	"encoding/binary"
	"sync"
	"time"

	"ring3/internal/timer"
	"ring3/internal/x86"
)

// Memory is guest-physical memory. WriteAt fails where there is none; any
// address may be asked for.
type Memory interface {
	WriteAt(p []byte, gpa uint64) error
}

// Sizes of the structures in guest memory, and their offsets.
const (
	// version u32, pad u32, tsc_timestamp u64, system_time u64 in ns,
	// tsc_to_system_mul u32, tsc_shift s8, flags u8, 2 bytes of padding
	timeInfoSize = 32
	// version u32, sec u32, nsec u32
	wallClockSize = 12

	// flagStable: the same formula on all processors.
	flagStable = 1 << 0

	msrEnable = 1 << 0 // of MSR_KVM_SYSTEM_TIME_NEW; the address has bits 2-63
)

// Clock is the paravirtual clock of a machine.
type Clock struct {
	mem   Memory
	clock timer.Clock
	now   func() time.Time
	tsc0  uint64
	hz    uint64
	mul   uint32
	shift int8

	mu      sync.Mutex
	wall    uint64   // MSR_KVM_WALL_CLOCK_NEW
	system  []uint64 // MSR_KVM_SYSTEM_TIME_NEW of each processor
	version uint32   // of what was written last, even
}

// New returns the clock of a machine with so many processors.
func New(mem Memory, clock timer.Clock, cpus int) *Clock {
	c := &Clock{mem: mem, clock: clock, now: time.Now, system: make([]uint64, cpus)}
	c.tsc0, c.hz = clock.TSC(), clock.Hz()
	c.mul, c.shift = scale(c.hz)
	return c
}

// Reset forgets what the guest asked for.
func (c *Clock) Reset() {
	c.mu.Lock()
	c.wall = 0
	clear(c.system)
	c.mu.Unlock()
}

// scale returns mul and shift with ns = (ticks << shift) * mul >> 32, mul from
// 2^31 so that it is as precise as it can be. A negative shift is one to the
// right.
func scale(hz uint64) (mul uint32, shift int8) {
	num, den := uint64(1e9), hz
	for num >= den {
		den <<= 1
		shift++
	}
	for num<<1 < den {
		num <<= 1
		shift--
	}
	return uint32(timer.Scale(num, 1<<32, den)), shift
}

// IsMSR reports whether the clock answers an MSR.
func IsMSR(msr uint32) bool {
	return msr == x86.MSRKVMWallClockNew || msr == x86.MSRKVMSystemTimeNew
}

// ReadMSR is RDMSR on processor cpu; !ok is a #GP.
func (c *Clock) ReadMSR(cpu int, msr uint32) (v uint64, ok bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	switch msr {
	case x86.MSRKVMWallClockNew:
		return c.wall, true
	case x86.MSRKVMSystemTimeNew:
		return c.system[cpu], true
	}
	return 0, false
}

// WriteMSR is WRMSR on processor cpu; !ok is a #GP. An address where there is
// no memory is kept and nothing is written.
func (c *Clock) WriteMSR(cpu int, msr uint32, v uint64) (ok bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	switch msr {
	case x86.MSRKVMWallClockNew:
		if v&3 != 0 {
			return false
		}
		c.wall = v
		c.publish(v, c.wallClock())
	case x86.MSRKVMSystemTimeNew:
		if v&2 != 0 {
			return false
		}
		c.system[cpu] = v
		if v&msrEnable != 0 {
			c.publish(v&^3, c.timeInfo())
		}
	default:
		return false
	}
	return true
}

// publish writes a structure that starts with a version: odd while the rest
// changes, another even number after it.
func (c *Clock) publish(gpa uint64, b []byte) {
	if gpa+uint64(len(b)) < gpa {
		return
	}
	var v [4]byte
	binary.LittleEndian.PutUint32(v[:], c.version+1)
	if c.mem.WriteAt(v[:], gpa) != nil || c.mem.WriteAt(b[4:], gpa+4) != nil {
		return
	}
	c.version += 2
	binary.LittleEndian.PutUint32(v[:], c.version)
	_ = c.mem.WriteAt(v[:], gpa) // it was there a moment ago
}

func (c *Clock) timeInfo() []byte {
	b := make([]byte, timeInfoSize)
	binary.LittleEndian.PutUint64(b[8:], c.tsc0)
	// system_time at 16 is 0
	binary.LittleEndian.PutUint32(b[24:], c.mul)
	b[28] = uint8(c.shift)
	b[29] = flagStable
	return b
}

// wallClock is the time of day when system_time was 0.
func (c *Clock) wallClock() []byte {
	up := timer.Scale(c.clock.TSC()-c.tsc0, 1e9, c.hz)
	start := c.now().Add(-time.Duration(up))
	b := make([]byte, wallClockSize)
	binary.LittleEndian.PutUint32(b[4:], uint32(start.Unix()))
	binary.LittleEndian.PutUint32(b[8:], uint32(start.Nanosecond()))
	return b
}
