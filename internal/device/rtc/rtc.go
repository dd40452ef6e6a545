// Package rtc is a Motorola MC146818 real-time clock with the CMOS memory of a
// PC. It keeps the host's wall-clock time, in UTC, until the guest sets it.
//
// Sources: Motorola MC146818A data sheet (ADI-856-R1); for the memory beyond
// the clock, Ralf Brown's CMOS memory map and the ACPI century register.
package rtc

import (
	"sync"
	"time"

	"ring3/internal/irqchip"
	"ring3/internal/timer"
)

// Where a PC has it.
const (
	Port  = 0x70
	Ports = 2
	IRQ   = 8
	// CenturyRegister is the index that the FADT names: BCD or binary like the
	// others.
	CenturyRegister = 0x32
)

// Register indices (data sheet, figure 13).
const (
	regSeconds = iota
	regSecondsAlarm
	regMinutes
	regMinutesAlarm
	regHours
	regHoursAlarm
	regWeekday // 1 is Sunday
	regDay
	regMonth
	regYear
	regA
	regB
	regC
	regD
)

// Register bits (data sheet, "Registers").
const (
	aUIP  = 1 << 7 // update in progress
	aRate = 0x0f   // periodic interrupt: 32768 Hz >> (rate-1), 1 and 2 as 8 and 9

	bSET = 1 << 7 // halts updates
	bPIE = 1 << 6 // periodic interrupt
	bAIE = 1 << 5 // alarm interrupt
	bUIE = 1 << 4 // update-ended interrupt
	bDM  = 1 << 2 // binary, not BCD
	b24  = 1 << 1 // 24 hours, not 12 with bit 7 for PM

	cIRQF = 1 << 7
	cPF   = 1 << 6 // as bPIE
	cAF   = 1 << 5
	cUF   = 1 << 4

	dVRT = 1 << 7 // the battery is good
)

// uipTime is how long before an update UIP warns (data sheet, figure 15).
const uipTime = 244 * time.Microsecond

// RTC is the clock. It is a bus.Device of two ports: index and data.
type RTC struct {
	irq   irqchip.Line
	clock timer.Clock
	now   func() time.Time
	timer timer.Timer

	mu     sync.Mutex
	index  uint8
	cmos   [128]uint8    // alarm, A, B and memory; time is made when it is read
	offset time.Duration // of the guest's time to the host's
	held   time.Time     // the time while bSET is on
	flags  uint8         // register C without IRQF
	seen   int64         // guest time, in seconds, up to which UF and AF are known
	period int64         // number of the periodic tick up to which PF is known
}

// New returns a clock of a machine with memory bytes of RAM below 4 GiB and
// high above.
func New(irq irqchip.Line, clock timer.Clock, memory, high uint64) *RTC {
	r := &RTC{irq: irq, clock: clock, now: time.Now}
	r.timer = clock.NewTimer(r.expire)
	r.cmos[regA] = 0x26 // 32768 Hz, 1024 Hz
	r.cmos[regB] = b24
	r.setMemory(memory, high)
	r.seen, r.period = r.time().Unix(), r.tick()
	return r
}

// setMemory fills in the sizes that firmware keeps: base memory and extended
// memory in KiB, memory beyond 16 MiB and beyond 4 GiB in 64 KiB.
func (r *RTC) setMemory(memory, high uint64) {
	put := func(v uint64, limit uint64, regs ...int) {
		v = min(v, limit)
		for _, reg := range regs {
			r.cmos[reg] = uint8(v)
			v >>= 8
		}
	}
	beyond := func(at uint64) uint64 { return max(memory, at) - at }
	put(min(memory>>10, 640), 0xffff, 0x15, 0x16)
	put(beyond(1<<20)>>10, 0xffff, 0x17, 0x18)
	put(beyond(1<<20)>>10, 0xffff, 0x30, 0x31)
	put(beyond(16<<20)>>16, 0xffff, 0x34, 0x35)
	put(high>>16, 0xffffff, 0x5b, 0x5c, 0x5d)
}

// Reset is the RESET# input: interrupts are disabled, the time goes on.
func (r *RTC) Reset() {
	r.mu.Lock()
	r.index = 0
	r.cmos[regB] &^= bPIE | bAIE | bUIE
	r.flags = 0
	r.update()
	r.mu.Unlock()
}

// time is the guest's wall clock.
func (r *RTC) time() time.Time {
	if r.cmos[regB]&bSET != 0 {
		return r.held
	}
	return r.now().Add(r.offset).UTC()
}

// Read implements bus.Device. The index reads as it was written.
func (r *RTC) Read(off uint64, p []byte) {
	r.mu.Lock()
	for i := range p {
		switch off + uint64(i) {
		case 0:
			p[i] = r.index
		case 1:
			p[i] = r.readReg(int(r.index & 0x7f))
		default:
			p[i] = 0xff
		}
	}
	r.mu.Unlock()
}

// Write implements bus.Device. Bit 7 of the index masks NMI on a PC; it is
// kept and has no effect.
func (r *RTC) Write(off uint64, p []byte) {
	r.mu.Lock()
	for i, v := range p {
		switch off + uint64(i) {
		case 0:
			r.index = v
		case 1:
			r.writeReg(int(r.index&0x7f), v)
		}
	}
	r.mu.Unlock()
}

func (r *RTC) readReg(reg int) uint8 {
	switch reg {
	case regA:
		v := r.cmos[regA]
		if t := r.time(); r.cmos[regB]&bSET == 0 && time.Second-time.Duration(t.Nanosecond()) <= uipTime {
			v |= aUIP
		}
		return v
	case regC:
		r.collect()
		v := r.flags
		if v&r.cmos[regB]&(bPIE|bAIE|bUIE) != 0 {
			v |= cIRQF
		}
		r.flags = 0
		r.update()
		return v
	case regD:
		return dVRT
	case regSecondsAlarm, regMinutesAlarm, regHoursAlarm:
		return r.cmos[reg]
	}
	if v, ok := r.field(r.time(), reg); ok {
		return v
	}
	return r.cmos[reg]
}

func (r *RTC) writeReg(reg int, v uint8) {
	switch reg {
	case regA:
		r.collect()
		r.cmos[regA] = v &^ aUIP
		r.period = r.tick()
	case regB:
		r.collect()
		t := r.time()
		old := r.cmos[regB]
		if v&bSET != 0 {
			v &^= bUIE // SET clears it
			if old&bSET == 0 {
				r.held = t
			}
		}
		r.cmos[regB] = v
		if old&bSET != 0 && v&bSET == 0 {
			r.offset = r.held.Sub(r.now())
			r.seen = r.held.Unix()
		}
	case regC, regD:
		return
	case regSecondsAlarm, regMinutesAlarm, regHoursAlarm:
		r.collect()
		r.cmos[reg] = v
	default:
		if !r.setField(reg, v) {
			r.cmos[reg] = v
		}
	}
	r.update()
}
