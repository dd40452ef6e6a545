package irqchip

import "ring3/internal/x86"

// IA32_APIC_BASE (SDM vol. 3A, figures 11-5 and 11-26): bits 12-51 are the
// address of the register page.
const (
	baseBSP      = 1 << 8
	baseX2       = 1 << 10
	baseEnable   = 1 << 11
	baseReserved = 0xfff00000000002ff
)

// MSR numbers within the x2APIC range.
const x2First = x86.MSRX2APICFirst

// IsMSR reports whether the local APIC answers an MSR.
func IsMSR(msr uint32) bool {
	return msr == x86.MSRAPICBase || msr == x86.MSRTSCDeadline ||
		msr >= x86.MSRX2APICFirst && msr <= x86.MSRX2APICLast
}

// Base returns the guest-physical address of the register page and whether it
// is there at all: the local APIC may be disabled, or in x2APIC mode.
func (l *LocalAPIC) Base() (addr uint64, mmio bool) {
	l.chip.mu.Lock()
	defer l.chip.mu.Unlock()
	return l.base &^ 0xfff, l.enabled() && !l.x2()
}

// ReadMSR is RDMSR; !ok is a #GP.
func (l *LocalAPIC) ReadMSR(msr uint32) (v uint64, ok bool) {
	l.chip.mu.Lock()
	defer l.chip.mu.Unlock()
	switch {
	case msr == x86.MSRAPICBase:
		return l.base, true
	case msr == x86.MSRTSCDeadline:
		return l.timer.readDeadline(l), true
	case !IsMSR(msr) || !l.x2():
		return 0, false
	}
	switch reg := msr - x2First; reg {
	case regEOI, regSelfIPI: // write only
		return 0, false
	case regICR:
		return l.icr, true
	default:
		w, ok := l.readReg(reg)
		return uint64(w), ok
	}
}

// WriteMSR is WRMSR; !ok is a #GP.
func (l *LocalAPIC) WriteMSR(msr uint32, v uint64) (ok bool) {
	l.chip.mu.Lock()
	defer l.chip.unlock()
	switch {
	case msr == x86.MSRAPICBase:
		return l.writeBase(v)
	case msr == x86.MSRTSCDeadline:
		l.timer.setDeadline(l, v)
		return true
	case !IsMSR(msr) || !l.x2():
		return false
	}
	return l.writeX2(msr-x2First, v)
}

// writeBase changes mode. Not every transition is allowed
// (SDM vol. 3A, section 11.12.5).
func (l *LocalAPIC) writeBase(v uint64) bool {
	const mode = baseEnable | baseX2
	if v&baseReserved != 0 || v&mode == baseX2 {
		return false
	}
	switch from, to := l.base&mode, v&mode; {
	case from == to:
	case from == 0 && to == mode: // disabled to x2APIC
		return false
	case from == mode && to == baseEnable: // x2APIC to xAPIC
		return false
	case to == 0:
		l.id = uint32(l.n)
		l.base = v
		l.resetRegisters()
	case to == mode:
		l.id = uint32(l.n) // whatever xAPIC software wrote
		l.icr &= 0xffffffff
	}
	l.base = v
	return true
}

// writeX2 writes a register in x2APIC mode. Setting reserved bits and writing
// read-only registers is a #GP (SDM vol. 3A, section 11.12.1.3).
func (l *LocalAPIC) writeX2(reg uint32, v uint64) bool {
	switch reg {
	case regICR:
		if v&icrReserved != 0 {
			return false
		}
		l.icr = v & (0xffffffff<<32 | icrWritable)
		l.send(v>>32, true)
		return true
	case regSelfIPI:
		if v&^0xff != 0 {
			return false
		}
		l.sendSelf(uint8(v))
		return true
	}
	if v&^x2Writable(reg) != 0 {
		return false
	}
	return l.writeReg(reg, uint32(v))
}

// x2Writable returns the bits of a register that are not reserved.
func x2Writable(reg uint32) uint64 {
	switch reg {
	case regTPR:
		return 0xff
	case regSVR:
		return svrWritable
	case regInitial:
		return 0xffffffff
	case regDivide:
		return 0xb
	}
	if reg >= regTimer && reg <= regError {
		// Software may write back the status bits that it read.
		return uint64(lvtWritable[reg-regTimer] | 1<<12 | 1<<14)
	}
	return 0 // EOI and ESR: only 0 may be written
}
