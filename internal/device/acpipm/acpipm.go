// Package acpipm is the fixed hardware of ACPI: power management events and
// control, the PM timer, one block of general-purpose events.
//
// Source: ACPI Specification 6.5, section 4.8 "ACPI Register Model". The
// machine is always in ACPI mode: there is no SMI command port.
package acpipm

import (
	"encoding/binary"
	"sync"

	"ring3/internal/irqchip"
	"ring3/internal/timer"
)

// Layout of the port range; the FADT repeats it.
const (
	Port  = 0x600
	Ports = 0x28

	EventBlock   = 0x00 // PM1a_STS and PM1a_EN, 2 bytes each
	ControlBlock = 0x04 // PM1a_CNT, 2 bytes
	TimerBlock   = 0x08 // PM_TMR, 4 bytes
	GPE0Block    = 0x20 // GPE0_STS and GPE0_EN, GPE0Size/2 bytes each
	GPE0Size     = 4

	IRQ = 9 // SCI: level-triggered

	// SleepTypeS5 is SLP_TYP of power-off, which _S5 names.
	SleepTypeS5 = 5
)

// TimerHz is the rate of the PM timer (section 4.8.2.1).
const TimerHz = 3_579_545

// Bits of PM1 status and enable (tables 4.16 and 4.17) and control (4.18).
const (
	evtTimer       = 1 << 0 // the timer's top bit changed
	evtGlobal      = 1 << 5
	evtPowerButton = 1 << 8
	evtRTC         = 1 << 10 // can be enabled, as drivers check, and never comes
	stsWake        = 1 << 15

	enWritable  = evtTimer | evtGlobal | evtPowerButton | evtRTC
	stsWritable = enWritable | stsWake

	cntSCI      = 1 << 0 // SCI_EN: always on
	cntWritable = 1<<1 | cntSleepType
	cntSleepEn  = 1 << 13

	cntSleepType      = 7 << 10
	cntSleepTypeShift = 10
)

// PM is the register block. It is a bus.Device of Ports ports.
type PM struct {
	irq      irqchip.Line
	clock    timer.Clock
	powerOff func()
	timer    timer.Timer

	mu    sync.Mutex
	sts   uint16
	en    uint16
	cnt   uint16
	gpe   [GPE0Size]uint8 // status, then enable
	wraps uint64          // of the timer's top bit, up to which sts is known
}

// New returns the registers of a machine that powerOff turns off. It is called
// without locks held.
func New(irq irqchip.Line, clock timer.Clock, powerOff func()) *PM {
	p := &PM{irq: irq, clock: clock, powerOff: powerOff}
	p.timer = clock.NewTimer(p.expire)
	return p
}

// Reset is power on. The timer goes on.
func (p *PM) Reset() {
	p.mu.Lock()
	p.sts, p.en, p.cnt, p.gpe = 0, 0, 0, [GPE0Size]uint8{}
	p.wraps = p.ticks() >> 31
	p.update()
	p.mu.Unlock()
}

// PressPowerButton asks the guest to shut down; it may ignore that.
func (p *PM) PressPowerButton() {
	p.mu.Lock()
	p.sts |= evtPowerButton
	p.update()
	p.mu.Unlock()
}

// TriggerGPE raises general-purpose event n, which must be below
// GPE0Size/2*8.
func (p *PM) TriggerGPE(n int) {
	p.mu.Lock()
	p.gpe[n/8] |= 1 << (n % 8)
	p.update()
	p.mu.Unlock()
}

// ticks is the PM timer without its limit to 32 bits.
func (p *PM) ticks() uint64 {
	return timer.Scale(uint64(p.clock.Nanos()), TimerHz, 1e9)
}

// Read implements bus.Device.
func (p *PM) Read(off uint64, b []byte) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if off >= TimerBlock && off < TimerBlock+4 {
		var t [8]byte
		binary.LittleEndian.PutUint64(t[:], p.ticks()&0xffffffff)
		clear(b)
		copy(b, t[off-TimerBlock:4])
		return
	}
	for i := range b {
		b[i] = p.readByte(off + uint64(i))
	}
}

func (p *PM) readByte(off uint64) uint8 {
	switch off {
	case EventBlock, EventBlock + 1:
		p.collect()
		return pick(p.sts, off)
	case EventBlock + 2, EventBlock + 3:
		return pick(p.en, off)
	case ControlBlock, ControlBlock + 1:
		return pick(p.cnt|cntSCI, off)
	}
	if n := off - GPE0Block; off >= GPE0Block && n < GPE0Size {
		return p.gpe[n]
	}
	return 0
}

// pick returns byte off&1 of v.
func pick(v uint16, off uint64) uint8 { return uint8(v >> (8 * (off & 1))) }

// Write implements bus.Device.
func (p *PM) Write(off uint64, b []byte) {
	p.mu.Lock()
	off5 := false
	for i, v := range b {
		off5 = p.writeByte(off+uint64(i), v) || off5
	}
	p.update()
	p.mu.Unlock()
	if off5 {
		p.powerOff()
	}
}

// writeByte reports whether the machine is to be turned off.
func (p *PM) writeByte(off uint64, v uint8) (powerOff bool) {
	w := uint16(v) << (8 * (off & 1))
	mask := uint16(0xff) << (8 * (off & 1))
	switch off {
	case EventBlock, EventBlock + 1:
		p.collect()
		p.sts &^= w & stsWritable // written ones clear
	case EventBlock + 2, EventBlock + 3:
		p.collect()
		p.en = p.en&^mask | w&enWritable
	case ControlBlock, ControlBlock + 1:
		p.cnt = p.cnt&^mask | w&cntWritable
		return w&cntSleepEn != 0 && p.cnt&cntSleepType>>cntSleepTypeShift == SleepTypeS5
	}
	if n := off - GPE0Block; off >= GPE0Block && n < GPE0Size {
		if n < GPE0Size/2 {
			p.gpe[n] &^= v
		} else {
			p.gpe[n] = v
		}
	}
	return false
}

// collect sets the timer's status when its top bit changed.
func (p *PM) collect() {
	if w := p.ticks() >> 31; w != p.wraps {
		p.wraps = w
		p.sts |= evtTimer
	}
}

// update drives the SCI, and wakes the host at the timer's next event if that
// is enabled. p.mu is held.
func (p *PM) update() {
	level := p.sts&p.en&enWritable != 0
	for i := range GPE0Size / 2 {
		level = level || p.gpe[i]&p.gpe[i+GPE0Size/2] != 0
	}
	p.irq.Set(level)
	if p.en&evtTimer == 0 || p.sts&evtTimer != 0 {
		p.timer.Stop()
		return
	}
	p.timer.Set(int64(timer.Scale((p.wraps+1)<<31, 1e9, TimerHz)) + 1)
}

func (p *PM) expire() {
	p.mu.Lock()
	p.collect()
	p.update()
	p.mu.Unlock()
}
