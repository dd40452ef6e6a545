// Package irqchip is the interrupt hardware of a PC: the pair of 8259A
// interrupt controllers, one I/O APIC and a local APIC per processor.
//
// Sources: Intel 8259A data sheet (order 231468); Intel 82093AA I/O APIC data
// sheet (order 290566); Intel SDM vol. 3A, chapter 11 "Advanced Programmable
// Interrupt Controller"; Intel MultiProcessor Specification 1.4, section 3.6
// (virtual wire mode).
//
// One mutex guards all of it. Devices may therefore hold their own locks when
// they set a line, and nothing here ever calls a device. Chip.Notify is called
// without that mutex.
package irqchip

import (
	"sync"

	"ring3/internal/bus"
	"ring3/internal/timer"
)

// Line is an interrupt input as a device sees it. Set drives it high or low;
// setting it to what it is has no effect.
type Line interface{ Set(level bool) }

// Fixed addresses of a PC.
const (
	PortPIC1 = 0x20 // 2 ports
	PortPIC2 = 0xa0 // 2 ports
	PortELCR = 0x4d0
	// IOAPICBase and LAPICBase are the usual physical addresses, one page each.
	IOAPICBase = 0xfec00000
	LAPICBase  = 0xfee00000

	// Pins is the number of I/O APIC inputs, global system interrupts 0 to 23.
	Pins = 24
	// TimerPin is the I/O APIC pin of IRQ0 of the ISA bus, as on every PC; pin 0
	// has the INTR output of the 8259A.
	TimerPin = 2
)

// Config describes a Chip.
type Config struct {
	CPUs  int // local APICs, with IDs 0 to CPUs-1; at most 255
	Clock timer.Clock
}

// Chip is all interrupt hardware of a machine.
type Chip struct {
	// Notify, when set, is called when processor cpu should look at its local
	// APIC again: something became pending that was not. It may be called
	// from any goroutine, with locks of devices held, and must not block. Set
	// it before the machine runs.
	Notify func(cpu int)

	clock timer.Clock

	mu     sync.Mutex
	high   [Pins]int // number of sources that drive a line high
	pic    picPair
	ioapic ioapic
	lapics []*LocalAPIC
	intr   bool // output of the 8259A pair, as distributed last
}

// New returns a Chip in its reset state.
func New(cfg Config) *Chip {
	c := &Chip{clock: cfg.Clock}
	c.ioapic.chip = c
	for i := range max(cfg.CPUs, 1) {
		c.lapics = append(c.lapics, newLocalAPIC(c, i))
	}
	c.Reset()
	return c
}

// Reset is the RESET# input. Lines keep their levels: devices reset
// themselves.
func (c *Chip) Reset() {
	c.mu.Lock()
	c.pic.reset()
	c.ioapic.reset()
	for _, l := range c.lapics {
		l.powerOn()
	}
	for irq := range c.high {
		if c.high[irq] > 0 {
			c.drive(irq, true)
		}
	}
	c.unlock()
}

// CPU returns the local APIC of processor n.
func (c *Chip) CPU(n int) *LocalAPIC { return c.lapics[n] }

// Line returns a new source on ISA interrupt irq (0 to 15, wired to both the
// 8259A pair and the I/O APIC) or on I/O APIC pin irq (16 to 23). The line is
// high while any of its sources is.
func (c *Chip) Line(irq int) Line {
	if irq < 0 || irq >= Pins || irq == cascadeIRQ {
		panic("irqchip: no such line")
	}
	return &line{chip: c, irq: irq}
}

type line struct {
	chip  *Chip
	irq   int
	level bool // guarded by chip.mu
}

// Set implements Line.
func (l *line) Set(level bool) {
	c := l.chip
	c.mu.Lock()
	if l.level == level {
		c.mu.Unlock()
		return
	}
	l.level = level
	before := c.high[l.irq] > 0
	if level {
		c.high[l.irq]++
	} else {
		c.high[l.irq]--
	}
	if after := c.high[l.irq] > 0; after != before {
		c.drive(l.irq, after)
	}
	c.unlock()
}

// drive changes the level of a wire. c.mu is held.
func (c *Chip) drive(irq int, level bool) {
	if irq < 16 {
		c.pic.set(irq, level)
	}
	if irq == 0 {
		irq = TimerPin
	}
	c.ioapic.set(irq, level)
}

// PulseNMI is a short pulse on the NMI line, which goes to LINT1 of every
// local APIC.
func (c *Chip) PulseNMI() {
	c.mu.Lock()
	for _, l := range c.lapics {
		l.lint1()
	}
	c.unlock()
}

// SendMSI delivers a message-signalled interrupt: a write of data to addr, in
// the page of a local APIC (SDM vol. 3A, section 11.11).
func (c *Chip) SendMSI(addr uint64, data uint32) {
	c.mu.Lock()
	c.deliver(message{
		dest:    uint32(addr>>12) & 0xff, // bits 12-19
		logical: addr&(1<<2) != 0,
		lowest:  addr&(1<<3) != 0,
		mode:    uint8(data>>8) & 7,
		vector:  uint8(data),
		level:   data&(1<<15) != 0,
	})
	c.unlock()
}

// PIC returns the 8259A pair's three port ranges: master, slave (two ports
// each) and the edge/level control registers (two ports).
func (c *Chip) PIC() (master, slave, elcr bus.Device) {
	return picPort{c, 0}, picPort{c, 1}, elcrPort{c}
}

// IOAPIC returns the I/O APIC's register page.
func (c *Chip) IOAPIC() bus.Device { return ioapicPage{c} }

// distribute passes the 8259A pair's output on where it is an ordinary
// interrupt: pin 0 of the I/O APIC and LINT0, unless they are ExtINT.
func (c *Chip) distribute() {
	out := c.pic.output()
	if out == c.intr {
		return
	}
	c.intr = out
	c.ioapic.set(0, out)
	if out {
		for _, l := range c.lapics {
			l.lint0()
		}
	}
}

// unlock publishes what changed, releases c.mu, and notifies.
func (c *Chip) unlock() {
	c.distribute()
	var kick [256 / 64]uint64
	kicked := false
	for i, l := range c.lapics {
		if l.publish() {
			kick[i/64] |= 1 << (i % 64)
			kicked = true
		}
	}
	c.mu.Unlock()
	if !kicked || c.Notify == nil {
		return
	}
	for i := range c.lapics {
		if kick[i/64]&(1<<(i%64)) != 0 {
			c.Notify(i)
		}
	}
}

// PendingInterrupt reports whether processor 0 has an interrupt to
// acknowledge. It takes no lock.
func (c *Chip) PendingInterrupt() bool { return c.lapics[0].PendingInterrupt() }

// Acknowledge takes the interrupt that processor 0 is to deliver now.
func (c *Chip) Acknowledge() (vector uint8, ok bool) { return c.lapics[0].Acknowledge() }

// TimerVector is the vector that the timer of processor 0's local APIC
// interrupts with.
func (c *Chip) TimerVector() uint8 {
	c.mu.Lock()
	defer c.mu.Unlock()
	return uint8(c.lapics[0].lvt[lvtTimer])
}
