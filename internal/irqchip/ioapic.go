package irqchip

import "encoding/binary"

// I/O APIC registers (82093AA data sheet, section 3). The EOI register is of
// the later version 0x20 (ICH data sheets, "EOIR").
const (
	ioregsel = 0x00 // in the page: index of the register in IOWIN, bits 0-7
	iowin    = 0x10
	ioeoi    = 0x40 // write a vector: end of interrupt for it

	ioapicID  = 0x00 // bits 24-27
	ioapicVer = 0x01
	ioapicArb = 0x02
	ioredtbl  = 0x10 // two registers for each pin

	// ioapicVersion: bits 0-7 version, 16-23 index of the last pin.
	ioapicVersion = (Pins-1)<<16 | 0x20
)

// Redirection table entry (82093AA data sheet, section 3.2.4).
//
//	63   56 55            17  16   15   14     13  12   11     10  8 7    0
//	[dest ] [   reserved   ] mask trig rIRR   pol stat destmode mode vector
const (
	rteLogical   = 1 << 11
	rteStatus    = 1 << 12 // delivery pending; always 0 here
	rteRemoteIRR = 1 << 14 // read only
	rteLevel     = 1 << 15
	rteMasked    = 1 << 16
	rteWritable  = 0xff<<56 | 0x1afff // polarity is kept but has no meaning: lines are logical levels
)

type ioapic struct {
	chip  *Chip
	id    uint32
	index uint8
	level [Pins]bool
	rte   [Pins]uint64
}

func (a *ioapic) reset() {
	*a = ioapic{chip: a.chip, level: [Pins]bool{}}
	for i := range a.rte {
		a.rte[i] = rteMasked
	}
}

func rteMode(rte uint64) uint8 { return uint8(rte>>8) & 7 }

// set changes an input. A rising edge on a masked pin is lost, as the data
// sheet says (section 3.2.4, "Interrupt Mask").
func (a *ioapic) set(pin int, level bool) {
	rising := level && !a.level[pin]
	a.level[pin] = level
	if a.rte[pin]&rteLevel != 0 || rising {
		a.service(pin, rising)
	}
}

// service sends the interrupt of a pin if it is due.
func (a *ioapic) service(pin int, rising bool) {
	e := a.rte[pin]
	if e&rteMasked != 0 || rteMode(e) == modeExtINT {
		return // ExtINT: see extINT
	}
	level := e&rteLevel != 0 && (rteMode(e) == modeFixed || rteMode(e) == modeLowest)
	if level {
		if !a.level[pin] || e&rteRemoteIRR != 0 {
			return
		}
	} else if !rising {
		return
	}
	accepted := a.chip.deliver(message{
		dest:    uint32(e >> 56),
		logical: e&rteLogical != 0,
		mode:    rteMode(e),
		vector:  uint8(e),
		level:   level,
	})
	if level && accepted {
		a.rte[pin] |= rteRemoteIRR
	}
}

// eoi is the end of interrupt for a vector: of a broadcast from a local APIC,
// or written to the EOI register.
func (a *ioapic) eoi(vector uint8) {
	for pin := range a.rte {
		if e := a.rte[pin]; uint8(e) == vector && e&rteRemoteIRR != 0 {
			a.rte[pin] &^= rteRemoteIRR
			a.service(pin, false)
		}
	}
}

// extINT reports whether pin 0, which has the 8259A's output, is set up as
// ExtINT for l (MultiProcessor Specification, section 3.6.2.3).
func (a *ioapic) extINT(l *LocalAPIC) bool {
	e := a.rte[0]
	return e&rteMasked == 0 && rteMode(e) == modeExtINT &&
		l.matches(uint32(e>>56), e&rteLogical != 0, false)
}

func (a *ioapic) readReg() uint32 {
	switch a.index {
	case ioapicID, ioapicArb:
		return a.id << 24
	case ioapicVer:
		return ioapicVersion
	}
	if pin := int(a.index-ioredtbl) / 2; a.index >= ioredtbl && pin < Pins {
		return uint32(a.rte[pin] >> (32 * (a.index & 1)))
	}
	return 0xffffffff
}

func (a *ioapic) writeReg(v uint32) {
	if a.index == ioapicID {
		a.id = v >> 24 & 0xf
		return
	}
	pin := int(a.index-ioredtbl) / 2
	if a.index < ioredtbl || pin >= Pins {
		return
	}
	shift := 32 * (a.index & 1)
	mask := uint64(rteWritable) & (0xffffffff << shift)
	e := a.rte[pin]&^mask | uint64(v)<<shift&mask
	if e&rteLevel == 0 {
		e &^= rteRemoteIRR // an edge has none; changing the mode is how it is cleared by hand
	}
	a.rte[pin] = e
	a.service(pin, false)
}

// ioapicPage is the bus.Device.
type ioapicPage struct{ c *Chip }

// Read implements bus.Device.
func (d ioapicPage) Read(off uint64, p []byte) {
	var v uint32
	d.c.mu.Lock()
	switch off {
	case ioregsel:
		v = uint32(d.c.ioapic.index)
	case iowin:
		v = d.c.ioapic.readReg()
	}
	d.c.mu.Unlock()
	put(p, uint64(v))
}

// Write implements bus.Device.
func (d ioapicPage) Write(off uint64, p []byte) {
	v := uint32(get(p))
	d.c.mu.Lock()
	switch off {
	case ioregsel:
		d.c.ioapic.index = uint8(v)
	case iowin:
		d.c.ioapic.writeReg(v)
	case ioeoi:
		d.c.ioapic.eoi(uint8(v))
	}
	d.c.unlock()
}

// get reads up to 8 little-endian bytes.
func get(p []byte) uint64 {
	var b [8]byte
	copy(b[:], p)
	return binary.LittleEndian.Uint64(b[:])
}

// put writes len(p) little-endian bytes of v.
func put(p []byte, v uint64) {
	var b [8]byte
	binary.LittleEndian.PutUint64(b[:], v)
	clear(p[copy(p, b[:]):])
}
