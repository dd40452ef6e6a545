package irqchip

// message is an interrupt on its way to local APICs.
type message struct {
	dest    uint32
	logical bool
	wide    bool       // dest has 32 bits, from a sender in x2APIC mode; else 8
	lowest  bool       // to one of those addressed, whatever the mode
	from    *LocalAPIC // of an IPI; nil: a device's
	mode    uint8
	vector  uint8
	level   bool
}

// deliver finds the destinations; it reports whether any accepted.
func (c *Chip) deliver(m message) bool {
	if m.lowest || m.mode == modeLowest {
		l := c.arbitrate(m)
		return l != nil && c.hand(m, l)
	}
	accepted := false
	for _, l := range c.lapics {
		if l.matches(m.dest, m.logical, m.wide) {
			accepted = c.hand(m, l) || accepted
		}
	}
	return accepted
}

// hand gives a message to one of its destinations.
func (c *Chip) hand(m message, l *LocalAPIC) bool {
	if m.from != nil && m.from != l {
		c.called.add(l.n)
	}
	return l.receive(m.mode, m.vector, m.level)
}

// arbitrate returns the destination of lowest processor priority.
func (c *Chip) arbitrate(m message) *LocalAPIC {
	var best *LocalAPIC
	for _, l := range c.lapics {
		if l.enabled() && l.svr&svrEnable != 0 && l.matches(m.dest, m.logical, m.wide) &&
			(best == nil || l.ppr() < best.ppr()) {
			best = l
		}
	}
	return best
}

// matches reports whether a destination includes l
// (SDM vol. 3A, sections 11.6.2 and 11.12.10).
func (l *LocalAPIC) matches(dest uint32, logical, wide bool) bool {
	if wide && dest == 0xffffffff || !wide && dest == 0xff {
		return true
	}
	if !logical {
		return dest == l.id
	}
	if l.x2() {
		ldr := l.ldrValue()
		return dest>>16 == ldr>>16 && dest&ldr&0xffff != 0
	}
	mda, ldr := uint8(dest), uint8(l.ldr>>24)
	if l.dfr>>28 == 0xf { // flat model
		return mda&ldr != 0
	}
	return mda>>4 == ldr>>4 && mda&ldr&0xf != 0 // cluster model
}

// send executes the interrupt command in l.icr to dest
// (SDM vol. 3A, section 11.6.1).
func (l *LocalAPIC) send(dest uint64, wide bool) {
	icr := uint32(l.icr)
	m := message{
		dest:    uint32(dest),
		wide:    wide,
		logical: icr&icrLogical != 0,
		mode:    uint8(icr>>8) & 7,
		vector:  uint8(icr),
		from:    l,
	}
	if (m.mode == modeFixed || m.mode == modeLowest) && m.vector < firstVector {
		l.fail(esrSendIllegal)
		return
	}
	if m.mode == modeExtINT || m.mode == 3 {
		return // reserved for IPIs
	}
	if m.mode == modeINIT && icr&icrLevel != 0 && icr&icrAssert == 0 {
		return // INIT level de-assert has no effect since the Pentium 4
	}
	switch icr >> 18 & 3 { // shorthand
	case 0:
		l.chip.deliver(m)
	case 1: // self
		l.chip.hand(m, l)
	default: // 2 all, 3 all but self
		for _, o := range l.chip.lapics {
			if o != l || icr>>18&3 == 2 {
				l.chip.hand(m, o)
			}
		}
	}
}

// sendSelf is a write of the SELF IPI register.
func (l *LocalAPIC) sendSelf(vector uint8) {
	if vector < firstVector {
		l.fail(esrSendIllegal)
		return
	}
	l.accept(vector, false)
}
