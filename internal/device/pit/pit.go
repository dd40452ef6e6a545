// Package pit is the Intel 8254 interval timer of a PC and its system control
// port B, which gates the third counter to the speaker.
//
// Sources: Intel 8254 data sheet (order 231164); IBM PC AT Technical
// Reference, "System Timers"; ICH9 data sheet, section 13.7.1 "NMI_SC".
//
// A counter is never decremented: what it shows follows from the time since it
// was loaded. A count written to a running counter in modes 2 and 3 takes
// effect at once instead of at the end of the period.
package pit

import (
	"sync"

	"ring3/internal/irqchip"
	"ring3/internal/timer"
)

// Where a PC has it.
const (
	Port     = 0x40
	Ports    = 4
	PortB    = 0x61
	IRQ      = 0
	channels = 3
)

// Hz is the rate of all three counters: 14.31818 MHz / 12.
const Hz = 1_193_182

// minPeriod bounds how often counter 0 interrupts, in nanoseconds.
const minPeriod = 100_000

// PIT is the timer. It is a bus.Device of Ports ports; ControlB is another.
type PIT struct {
	irq   irqchip.Line
	clock timer.Clock
	timer timer.Timer

	mu      sync.Mutex
	ch      [channels]counter
	speaker bool
	next    int64 // when timer expires, timer.Never if it does not
	last    int64 // when counter 0 interrupted last
}

// New returns a timer whose counter 0 drives irq.
func New(irq irqchip.Line, clock timer.Clock) *PIT {
	p := &PIT{irq: irq, clock: clock}
	p.timer = clock.NewTimer(p.expire)
	p.Reset()
	return p
}

// Reset leaves the counters stopped, which is one of the things that power on
// may do.
func (p *PIT) Reset() {
	p.mu.Lock()
	for i := range p.ch {
		p.ch[i] = counter{gate: i != 2, access: accessBoth}
	}
	p.speaker = false
	p.update()
	p.mu.Unlock()
}

// now is the time in ticks of Hz.
func (p *PIT) now() uint64 { return timer.Scale(uint64(p.clock.Nanos()), Hz, 1e9) }

// Read implements bus.Device. The control word at offset 3 cannot be read.
func (p *PIT) Read(off uint64, b []byte) {
	p.mu.Lock()
	now := p.now()
	for i := range b {
		b[i] = 0xff
		if o := off + uint64(i); o < channels {
			b[i] = p.ch[o].read(now)
		}
	}
	p.mu.Unlock()
}

// Write implements bus.Device.
func (p *PIT) Write(off uint64, b []byte) {
	p.mu.Lock()
	now := p.now()
	for i, v := range b {
		switch o := off + uint64(i); {
		case o < channels:
			p.ch[o].write(v, now)
			if o == 0 {
				p.update()
			}
		case o == channels:
			p.control(v, now)
		}
	}
	p.mu.Unlock()
}

// control writes the control word: bits 6-7 select the counter, 3 is the
// read-back command, which counters obey whose bit 1, 2 or 3 is set.
func (p *PIT) control(v uint8, now uint64) {
	if v>>6 < channels {
		p.ch[v>>6].control(v, now)
		if v>>6 == 0 {
			p.update()
		}
		return
	}
	for i := range p.ch {
		if v&(2<<i) == 0 {
			continue
		}
		if v&(1<<5) == 0 {
			p.ch[i].latchCount(now)
		}
		if v&(1<<4) == 0 {
			p.ch[i].latchStatus(now)
		}
	}
}

// update drives IRQ0 and sets the host timer to the next rising edge of
// counter 0's output. p.mu is held.
func (p *PIT) update() {
	now := p.now()
	c := &p.ch[0]
	p.irq.Set(c.out(now))
	next := int64(timer.Never)
	if edge, ok := c.nextEdge(now); ok {
		next = int64(timer.Scale(edge, 1e9, Hz)) + 1
		if c.periodic() {
			next = max(next, p.last+minPeriod)
		}
	}
	p.next = next
	if next == timer.Never {
		p.timer.Stop()
		return
	}
	p.timer.Set(next)
}

// expire is called by the host timer: the output of counter 0 has risen.
func (p *PIT) expire() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if now := p.clock.Nanos(); now >= p.next {
		p.last = now
		p.irq.Set(false) // modes 2 to 4 go low for a moment before
		p.irq.Set(true)
	}
	p.update()
}

// ControlB returns the bus.Device of PortB.
func (p *PIT) ControlB() PortBDevice { return PortBDevice{p} }

// PortBDevice is system control port B.
type PortBDevice struct{ p *PIT }

// Bits of port B.
const (
	bGate    = 1 << 0 // of counter 2
	bSpeaker = 1 << 1
	bRefresh = 1 << 4 // toggles every 15 us
	bOut     = 1 << 5 // output of counter 2
)

// Read implements bus.Device.
func (d PortBDevice) Read(off uint64, b []byte) {
	p := d.p
	p.mu.Lock()
	defer p.mu.Unlock()
	for i := range b {
		b[i] = 0xff
	}
	if off != 0 || len(b) == 0 {
		return
	}
	now := p.now()
	var v uint8
	if p.ch[2].gate {
		v |= bGate
	}
	if p.speaker {
		v |= bSpeaker
	}
	if now/18&1 != 0 {
		v |= bRefresh
	}
	if p.ch[2].out(now) {
		v |= bOut
	}
	b[0] = v
}

// Write implements bus.Device.
func (d PortBDevice) Write(off uint64, b []byte) {
	if off != 0 || len(b) == 0 {
		return
	}
	p := d.p
	p.mu.Lock()
	p.ch[2].setGate(b[0]&bGate != 0, p.now())
	p.speaker = b[0]&bSpeaker != 0
	p.mu.Unlock()
}
