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
	// APIC again: something became pending that was not, or with ipi, another
	// processor has sent it something and may wait for what comes of it. It may
	// be called from any goroutine, with locks of devices held, and must not
	// block. Set it before the machine runs.
	Notify func(cpu int, ipi bool)

	clock timer.Clock

	mu     sync.Mutex
	high   [Pins]int // number of sources that drive a line high
	pic    picPair
	ioapic ioapic
	lapics []*LocalAPIC
	intr   bool   // output of the 8259A pair, as distributed last
	called cpuSet // by IPIs of others since the last unlock
}

// cpuSet is a set of processors.
type cpuSet [256 / 64]uint64

func (s *cpuSet) add(i int)      { s[i/64] |= 1 << (i % 64) }
func (s *cpuSet) has(i int) bool { return s[i/64]&(1<<(i%64)) != 0 }

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
	kick, called := c.called, c.called
	for i, l := range c.lapics {
		if l.publish() {
			kick.add(i)
		}
	}
	c.called = cpuSet{}
	c.mu.Unlock()
	if kick == (cpuSet{}) || c.Notify == nil {
		return
	}
	for i := range c.lapics {
		if kick.has(i) {
			c.Notify(i, called.has(i))
		}
	}
}
