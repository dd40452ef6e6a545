package irqchip

import (
	"math/bits"
	"sync/atomic"
)

// Local APIC register numbers: MMIO offset / 16, and MSR - 0x800
// (SDM vol. 3A, tables 11-1 and 11-6).
const (
	regID      = 0x02
	regVersion = 0x03
	regTPR     = 0x08
	regAPR     = 0x09 // xAPIC only
	regPPR     = 0x0a
	regEOI     = 0x0b
	regRRD     = 0x0c // xAPIC only
	regLDR     = 0x0d
	regDFR     = 0x0e // xAPIC only
	regSVR     = 0x0f
	regISR     = 0x10 // to 0x17
	regTMR     = 0x18 // to 0x1f
	regIRR     = 0x20 // to 0x27
	regESR     = 0x28
	regICR     = 0x30
	regICR2    = 0x31 // xAPIC only
	regTimer   = 0x32 // the local vector table: timer, thermal,
	regError   = 0x37 // performance counters, LINT0, LINT1, error
	regInitial = 0x38
	regCurrent = 0x39
	regDivide  = 0x3e
	regSelfIPI = 0x3f // x2APIC only
)

// Delivery modes (SDM vol. 3A, section 11.6.1).
const (
	modeFixed  = 0
	modeLowest = 1
	modeSMI    = 2
	modeNMI    = 4
	modeINIT   = 5
	modeSIPI   = 6
	modeExtINT = 7
)

// Fields of registers (SDM vol. 3A, chapter 11).
const (
	// version: integrated APIC 0x14, bits 16-23 the last entry of the LVT (no
	// CMCI), bit 24 clear: EOI broadcasts cannot be suppressed.
	lapicVersion = 5<<16 | 0x14

	svrEnable   = 1 << 8
	svrWritable = 0x3ff // bit 9, focus processor checking, has no effect

	lvtMasked = 1 << 16

	esrSendIllegal = 1 << 5 // vector below 16 in the ICR
	esrRecvIllegal = 1 << 6 // vector below 16 received
	esrRegister    = 1 << 7 // no such register (xAPIC mode only)

	icrLogical = 1 << 11
	icrAssert  = 1 << 14
	icrLevel   = 1 << 15
	// icrWritable leaves out delivery status, bit 12, which is always idle.
	icrWritable = 0xcefff
	// icrReserved are bits whose setting in x2APIC mode is a #GP.
	icrReserved = 0xfff32000

	// firstVector is the lowest that an APIC delivers.
	firstVector = 16
)

// lvtWritable are the bits of each entry of the local vector table, from
// regTimer (SDM vol. 3A, figure 11-8). Bits 12 (delivery status) and 14
// (remote IRR) are read only.
var lvtWritable = [6]uint32{
	0x700ff, // timer: vector, mask, mode in bits 17-18
	0x107ff, // thermal sensor: vector, delivery mode, mask
	0x107ff, // performance counters
	0x1a7ff, // LINT0: as well polarity, trigger mode
	0x1a7ff, // LINT1
	0x100ff, // error: vector, mask
}

// Indices of the local vector table.
const (
	lvtTimer = 0
	lvtLINT0 = 3
	lvtLINT1 = 4
	lvtError = 5
)

// Events are what a processor has to look at.
type Events uint32

// Bits of Events.
const (
	EventInterrupt Events = 1 << iota // Acknowledge would give a vector
	EventNMI
	EventINIT
	EventSIPI
)

// vectors is a 256-bit register: ISR, TMR or IRR.
type vectors [8]uint32

func (v *vectors) set(n uint8)      { v[n/32] |= 1 << (n % 32) }
func (v *vectors) clear(n uint8)    { v[n/32] &^= 1 << (n % 32) }
func (v *vectors) has(n uint8) bool { return v[n/32]&(1<<(n%32)) != 0 }

// highest returns the highest vector set, or -1.
func (v *vectors) highest() int {
	for i := len(v) - 1; i >= 0; i-- {
		if v[i] != 0 {
			return 32*i + bits.Len32(v[i]) - 1
		}
	}
	return -1
}

// LocalAPIC is the local APIC of one processor. It is the bus.Device of its
// own 4 KiB page, and answers the MSRs IA32_APIC_BASE, IA32_TSC_DEADLINE and
// those of x2APIC mode. All but Pending locks the Chip.
type LocalAPIC struct {
	chip *Chip
	n    int // processor

	pending atomic.Uint32 // Events, as published last

	// Guarded by chip.mu.
	base     uint64 // IA32_APIC_BASE
	id       uint32 // in xAPIC mode 8 bits
	tpr      uint8
	ldr      uint32 // xAPIC: bits 24-31
	dfr      uint32
	svr      uint32
	icr      uint64
	lvt      [6]uint32
	esr      uint32 // as read
	errors   uint32 // since the last write of the ESR
	isr      vectors
	tmr      vectors
	irr      vectors
	nmi      bool
	init     bool
	sipi     bool
	sipiPage uint8
	timer    apicTimer
}

func newLocalAPIC(c *Chip, n int) *LocalAPIC {
	l := &LocalAPIC{chip: c, n: n}
	l.timer.t = c.clock.NewTimer(l.expire)
	return l
}

// powerOn is the state after RESET#. The boot processor's LINT0 is already in
// virtual wire mode, as firmware leaves it (MultiProcessor Specification,
// section 3.6.2.2).
func (l *LocalAPIC) powerOn() {
	l.base = LAPICBase | baseEnable
	if l.n == 0 {
		l.base |= baseBSP
	}
	l.id = uint32(l.n)
	l.nmi, l.init, l.sipi = false, false, false
	l.resetRegisters()
}

// resetRegisters is what INIT does: all but the ID and IA32_APIC_BASE
// (SDM vol. 3A, sections 11.4.7.1 and 11.4.7.3).
func (l *LocalAPIC) resetRegisters() {
	l.tpr, l.ldr, l.dfr, l.svr, l.icr = 0, 0, 0xffffffff, 0xff, 0
	l.esr, l.errors = 0, 0
	l.isr, l.tmr, l.irr = vectors{}, vectors{}, vectors{}
	for i := range l.lvt {
		l.lvt[i] = lvtMasked
	}
	if l.base&baseBSP != 0 {
		l.lvt[lvtLINT0] = modeExtINT << 8
	}
	l.timer.reset()
}

func (l *LocalAPIC) enabled() bool { return l.base&baseEnable != 0 }
func (l *LocalAPIC) x2() bool      { return l.base&baseX2 != 0 }

// Pending returns what the processor has to look at. It takes no lock.
func (l *LocalAPIC) Pending() Events { return Events(l.pending.Load()) }

// PendingInterrupt reports whether Acknowledge would give a vector. It takes
// no lock.
func (l *LocalAPIC) PendingInterrupt() bool { return l.Pending()&EventInterrupt != 0 }

// TimerVector is the vector that the timer interrupts with.
func (l *LocalAPIC) TimerVector() uint8 {
	l.chip.mu.Lock()
	defer l.chip.mu.Unlock()
	return uint8(l.lvt[lvtTimer])
}

// publish updates what Pending returns, and reports whether there is
// something new.
func (l *LocalAPIC) publish() bool {
	var e Events
	if l.deliverable() >= 0 || l.extINT() {
		e |= EventInterrupt
	}
	if l.nmi {
		e |= EventNMI
	}
	if l.init {
		e |= EventINIT
	}
	if l.sipi {
		e |= EventSIPI
	}
	old := Events(l.pending.Load())
	if e == old {
		return false
	}
	l.pending.Store(uint32(e))
	return e&^old != 0
}

// deliverable returns the vector whose turn it is, or -1.
func (l *LocalAPIC) deliverable() int {
	v := l.irr.highest()
	if v < 0 || !l.enabled() || uint8(v)>>4 <= l.ppr()>>4 {
		return -1
	}
	return v
}

// extINT reports whether the 8259A has an interrupt for this processor: the
// boot processor's INTR pin when the local APIC is disabled, else ExtINT
// through LINT0 or the I/O APIC.
func (l *LocalAPIC) extINT() bool {
	if !l.chip.pic.output() {
		return false
	}
	if !l.enabled() {
		return l.n == 0
	}
	e := l.lvt[lvtLINT0]
	return e&lvtMasked == 0 && e>>8&7 == modeExtINT || l.chip.ioapic.extINT(l)
}

// ppr is the processor priority (SDM vol. 3A, section 11.8.3.1).
func (l *LocalAPIC) ppr() uint8 {
	isr := max(l.isr.highest(), 0)
	if l.tpr>>4 >= uint8(isr)>>4 {
		return l.tpr
	}
	return uint8(isr) & 0xf0
}

// Acknowledge takes the interrupt that the processor is to deliver now: the
// local APIC's own before one of the 8259A pair.
func (l *LocalAPIC) Acknowledge() (vector uint8, ok bool) {
	c := l.chip
	c.mu.Lock()
	defer c.unlock()
	if v := l.deliverable(); v >= 0 {
		l.irr.clear(uint8(v))
		l.isr.set(uint8(v))
		return uint8(v), true
	}
	if l.extINT() {
		return c.pic.acknowledge(), true
	}
	return 0, false
}

// TakeNMI takes a pending NMI.
func (l *LocalAPIC) TakeNMI() bool {
	l.chip.mu.Lock()
	defer l.chip.unlock()
	was := l.nmi
	l.nmi = false
	return was
}

// TakeINIT takes a pending INIT; the local APIC is reset by it, the processor
// then waits for a SIPI unless it is the boot processor.
func (l *LocalAPIC) TakeINIT() bool {
	l.chip.mu.Lock()
	defer l.chip.unlock()
	if !l.init {
		return false
	}
	l.init, l.nmi = false, false
	l.resetRegisters()
	return true
}

// TakeSIPI takes a pending start-up IPI; the processor starts in real mode at
// physical address page<<12. A processor that is not waiting for a SIPI takes
// and ignores it.
func (l *LocalAPIC) TakeSIPI() (page uint8, ok bool) {
	l.chip.mu.Lock()
	defer l.chip.unlock()
	ok = l.sipi
	l.sipi = false
	return l.sipiPage, ok
}

// CR8 is the task priority class, bits 4-7 of the TPR
// (SDM vol. 3A, section 11.8.6).
func (l *LocalAPIC) CR8() uint64 {
	l.chip.mu.Lock()
	defer l.chip.mu.Unlock()
	return uint64(l.tpr >> 4)
}

// SetCR8 sets the task priority class to bits 0-3 of v.
func (l *LocalAPIC) SetCR8(v uint64) {
	l.chip.mu.Lock()
	l.tpr = uint8(v&0xf) << 4
	l.chip.unlock()
}

// receive is the arrival of an interrupt; it reports whether it was accepted.
func (l *LocalAPIC) receive(mode, vector uint8, level bool) bool {
	if !l.enabled() {
		return false
	}
	switch mode {
	case modeFixed, modeLowest:
		return l.accept(vector, level)
	case modeNMI:
		l.nmi = true
	case modeINIT:
		l.init, l.sipi = true, false
	case modeSIPI:
		l.sipi, l.sipiPage = true, vector
	}
	return true // SMI: there is no SMM; ExtINT: see extINT
}

// accept puts a vector in the IRR.
func (l *LocalAPIC) accept(vector uint8, level bool) bool {
	if l.svr&svrEnable == 0 {
		return false
	}
	if vector < firstVector {
		l.fail(esrRecvIllegal)
		return false
	}
	l.irr.set(vector)
	if level {
		l.tmr.set(vector)
	} else {
		l.tmr.clear(vector)
	}
	return true
}

// fail records an error and raises the error interrupt.
func (l *LocalAPIC) fail(bit uint32) {
	if l.errors&bit != 0 {
		return
	}
	l.errors |= bit
	// An error vector below 16 is an error that must not recur here.
	if e := l.lvt[lvtError]; e&lvtMasked == 0 && uint8(e) >= firstVector {
		l.accept(uint8(e), false)
	}
}

// endOfInterrupt ends the interrupt in service of highest priority, and tells
// the I/O APIC if it was level-triggered (SDM vol. 3A, section 11.8.5).
func (l *LocalAPIC) endOfInterrupt() {
	v := l.isr.highest()
	if v < 0 {
		return
	}
	l.isr.clear(uint8(v))
	if l.tmr.has(uint8(v)) {
		l.chip.ioapic.eoi(uint8(v))
	}
}

// local delivers a local interrupt through its entry of the vector table.
func (l *LocalAPIC) local(entry int) {
	if e := l.lvt[entry]; e&lvtMasked == 0 {
		l.receive(uint8(e>>8)&7, uint8(e), false)
	}
}

// lint0 is a rising edge of the 8259A's output.
func (l *LocalAPIC) lint0() { l.local(lvtLINT0) }

// lint1 is a rising edge of the NMI line. With the local APIC disabled it is
// the NMI pin.
func (l *LocalAPIC) lint1() {
	if !l.enabled() {
		l.nmi = true
		return
	}
	l.local(lvtLINT1)
}
