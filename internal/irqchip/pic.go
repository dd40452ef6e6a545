package irqchip

// cascadeIRQ is the master's input that has the slave's output.
const cascadeIRQ = 2

// 8259A command words (data sheet, figures 7 and 8).
const (
	icw1Init  = 1 << 4 // of the even port: this is ICW1
	icw1Level = 1 << 3 // LTIM: all inputs level-triggered
	icw1Sngl  = 1 << 1 // no cascade: no ICW3
	icw1IC4   = 1 << 0 // ICW4 follows

	icw4SFNM = 1 << 4 // special fully nested mode
	icw4AEOI = 1 << 1 // automatic end of interrupt

	ocw3     = 1 << 3 // of the even port, with icw1Init clear: this is OCW3
	ocw3ESMM = 1 << 6 // bit 5 is to be taken
	ocw3SMM  = 1 << 5 // special mask mode
	ocw3Poll = 1 << 2
	ocw3RR   = 1 << 1 // bit 0 is to be taken
	ocw3RIS  = 1 << 0 // reads of the even port give ISR, not IRR
)

// elcrMask has the inputs that may be level-triggered: not the timer, the
// keyboard, the cascade, the RTC and the coprocessor (82371SB data sheet,
// section 2.5.3).
var elcrMask = [2]uint8{0xf8, 0xde}

// pic is one 8259A.
type pic struct {
	lines uint8 // input levels
	irr   uint8 // latched edges; level-triggered requests come from lines
	isr   uint8
	imr   uint8
	elcr  uint8 // 1: level-triggered
	base  uint8 // vector of input 0
	low   uint8 // input of lowest priority, 0-7; 7 after initialization
	init  uint8 // next ICW expected: 2-4, 0 when initialized

	icw4Next  bool
	single    bool
	ltim      bool
	autoEOI   bool
	rotateEOI bool // rotate on automatic EOI
	sfnm      bool
	smm       bool // special mask mode
	readISR   bool
	poll      bool
}

// requests returns the inputs that ask for service.
//
// An edge stays latched until it is acknowledged even if the line drops before
// that. The data sheet has such a request end as a spurious IRQ7; a slow
// virtual CPU would lose short pulses that way.
func (p *pic) requests() uint8 {
	level := p.level()
	return p.irr&^level | p.lines&level
}

func (p *pic) level() uint8 {
	if p.ltim {
		return 0xff
	}
	return p.elcr
}

func (p *pic) set(n int, level bool) {
	bit := uint8(1) << n
	switch {
	case !level:
		p.lines &^= bit
	case p.lines&bit == 0:
		p.lines |= bit
		p.irr |= bit
	}
}

// rank is the priority of an input: 0 is highest.
func (p *pic) rank(n int) int { return (n - int(p.low) - 1) & 7 }

// highest returns the input of highest priority in set, or -1.
func (p *pic) highest(set uint8) int {
	best := -1
	for n := range 8 {
		if set&(1<<n) != 0 && (best < 0 || p.rank(n) < p.rank(best)) {
			best = n
		}
	}
	return best
}

// pending returns the input that drives the output, or -1.
func (p *pic) pending(master bool) int {
	asking := p.requests() &^ p.imr
	if asking == 0 {
		return -1
	}
	n := p.highest(asking)
	inService := p.isr
	if p.smm {
		inService &^= p.imr
	}
	if p.sfnm && master && n == cascadeIRQ {
		inService &^= 1 << cascadeIRQ // further requests of the slave pass
	}
	if s := p.highest(inService); s >= 0 && p.rank(s) <= p.rank(n) {
		return -1
	}
	return n
}

// accept is the INTA sequence for input n.
func (p *pic) accept(n int) {
	p.irr &^= 1 << n
	if !p.autoEOI {
		p.isr |= 1 << n
	} else if p.rotateEOI {
		p.low = uint8(n)
	}
}

// picPair is the two 8259A of a PC, the slave's output on the master's
// input 2.
type picPair struct{ chips [2]pic }

// reset leaves everything masked and at the vectors of a PC's firmware, which
// is what an operating system finds.
func (pp *picPair) reset() {
	pp.chips[0] = pic{low: 7, imr: 0xff, base: 0x08}
	pp.chips[1] = pic{low: 7, imr: 0xff, base: 0x70}
}

func (pp *picPair) set(irq int, level bool) {
	pp.chips[irq/8].set(irq%8, level)
	pp.cascade()
}

// cascade passes the slave's output on. It is not latched by the master.
func (pp *picPair) cascade() {
	m := &pp.chips[0]
	m.irr &^= 1 << cascadeIRQ
	m.lines &^= 1 << cascadeIRQ
	if pp.chips[1].pending(false) >= 0 {
		m.set(cascadeIRQ, true)
	}
}

// output is the level of the master's INTR output.
func (pp *picPair) output() bool { return pp.chips[0].pending(true) >= 0 }

// acknowledge is the pair's INTA cycle. Without a request it is a spurious
// interrupt: input 7, not in service.
func (pp *picPair) acknowledge() uint8 {
	m, s := &pp.chips[0], &pp.chips[1]
	n := m.pending(true)
	switch {
	case n < 0:
		return m.base + 7
	case n != cascadeIRQ:
		m.accept(n)
		return m.base + uint8(n)
	}
	m.accept(cascadeIRQ)
	vector := s.base + 7
	if n := s.pending(false); n >= 0 {
		s.accept(n)
		vector = s.base + uint8(n)
	}
	pp.cascade()
	return vector
}

func (pp *picPair) write(i int, port uint64, v uint8) {
	p := &pp.chips[i]
	switch {
	case port == 1:
		p.writeData(v)
	case v&icw1Init != 0:
		p.icw1(v)
	case v&ocw3 != 0:
		p.ocw3(v)
	default:
		p.ocw2(v)
	}
	pp.cascade()
}

func (p *pic) icw1(v uint8) {
	*p = pic{
		lines: p.lines, elcr: p.elcr, base: p.base, low: 7, init: 2,
		icw4Next: v&icw1IC4 != 0, single: v&icw1Sngl != 0, ltim: v&icw1Level != 0,
	}
}

func (p *pic) writeData(v uint8) {
	switch p.init {
	case 2:
		p.base = v & 0xf8
		switch {
		case !p.single:
			p.init = 3
		case p.icw4Next:
			p.init = 4
		default:
			p.init = 0
		}
	case 3: // the wiring is fixed
		p.init = 0
		if p.icw4Next {
			p.init = 4
		}
	case 4:
		p.sfnm, p.autoEOI = v&icw4SFNM != 0, v&icw4AEOI != 0
		p.init = 0
	default:
		p.imr = v
	}
}

// ocw2 is rotation and end of interrupt: bits 5-7 R, SL and EOI, 0-2 the input.
func (p *pic) ocw2(v uint8) {
	n := int(v & 7)
	switch v >> 5 {
	case 0: // rotate in automatic EOI mode: clear
		p.rotateEOI = false
	case 4:
		p.rotateEOI = true
	case 1, 5: // non-specific EOI, 5 rotates
		set := p.isr
		if p.smm {
			set &^= p.imr
		}
		if n = p.highest(set); n < 0 {
			return
		}
		p.isr &^= 1 << n
		if v>>5 == 5 {
			p.low = uint8(n)
		}
	case 3: // specific EOI
		p.isr &^= 1 << n
	case 6: // set priority
		p.low = uint8(n)
	case 7: // rotate on specific EOI
		p.isr &^= 1 << n
		p.low = uint8(n)
	}
}

func (p *pic) ocw3(v uint8) {
	if v&ocw3ESMM != 0 {
		p.smm = v&ocw3SMM != 0
	}
	if v&ocw3RR != 0 {
		p.readISR = v&ocw3RIS != 0
	}
	p.poll = v&ocw3Poll != 0
}

func (pp *picPair) read(i int, port uint64) uint8 {
	p := &pp.chips[i]
	switch {
	case p.poll:
		p.poll = false
		return pp.pollRead(i)
	case port == 1:
		return p.imr
	case p.readISR:
		return p.isr
	}
	return p.requests()
}

// pollRead acknowledges by reading: bit 7 tells whether there was a request,
// bits 0-2 which.
func (pp *picPair) pollRead(i int) uint8 {
	p := &pp.chips[i]
	n := p.pending(i == 0)
	if n < 0 {
		return 0
	}
	p.accept(n)
	pp.cascade()
	return 0x80 | uint8(n)
}

// picPort is the bus.Device of one 8259A.
type picPort struct {
	c *Chip
	i int
}

// Read implements bus.Device.
func (d picPort) Read(off uint64, p []byte) {
	d.c.mu.Lock()
	for i := range p {
		p[i] = 0xff
		if o := off + uint64(i); o < 2 {
			p[i] = d.c.pic.read(d.i, o)
		}
	}
	d.c.unlock()
}

// Write implements bus.Device.
func (d picPort) Write(off uint64, p []byte) {
	d.c.mu.Lock()
	for i, v := range p {
		if o := off + uint64(i); o < 2 {
			d.c.pic.write(d.i, o, v)
		}
	}
	d.c.unlock()
}

// elcrPort is the bus.Device of the edge/level control registers.
type elcrPort struct{ c *Chip }

// Read implements bus.Device.
func (d elcrPort) Read(off uint64, p []byte) {
	d.c.mu.Lock()
	for i := range p {
		p[i] = 0xff
		if o := off + uint64(i); o < 2 {
			p[i] = d.c.pic.chips[o].elcr
		}
	}
	d.c.mu.Unlock()
}

// Write implements bus.Device.
func (d elcrPort) Write(off uint64, p []byte) {
	d.c.mu.Lock()
	for i, v := range p {
		if o := off + uint64(i); o < 2 {
			d.c.pic.chips[o].elcr = v & elcrMask[o]
			d.c.pic.cascade()
		}
	}
	d.c.unlock()
}
