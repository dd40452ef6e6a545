package irqchip

// readReg reads a register of the set that both modes share. c.mu is held.
func (l *LocalAPIC) readReg(reg uint32) (v uint32, ok bool) {
	switch reg {
	case regID:
		if l.x2() {
			return l.id, true
		}
		return l.id << 24, true
	case regVersion:
		return lapicVersion, true
	case regTPR:
		return uint32(l.tpr), true
	case regPPR:
		return uint32(l.ppr()), true
	case regLDR:
		return l.ldrValue(), true
	case regSVR:
		return l.svr, true
	case regESR:
		return l.esr, true
	case regInitial:
		return l.timer.readInitial(l), true
	case regCurrent:
		return l.timer.current(l), true
	case regDivide:
		return l.timer.divide, true
	}
	switch {
	case reg >= regISR && reg < regISR+8:
		return l.isr[reg-regISR], true
	case reg >= regTMR && reg < regTMR+8:
		return l.tmr[reg-regTMR], true
	case reg >= regIRR && reg < regIRR+8:
		return l.irr[reg-regIRR], true
	case reg >= regTimer && reg <= regError:
		return l.lvt[reg-regTimer], true
	}
	return 0, false
}

// ldrValue is the logical ID: 8 bits at the top in xAPIC mode, cluster and
// bit derived from the ID in x2APIC mode (SDM vol. 3A, section 11.12.10.2).
func (l *LocalAPIC) ldrValue() uint32 {
	if l.x2() {
		return l.id>>4<<16 | 1<<(l.id&0xf)
	}
	return l.ldr
}

// writeReg writes a register of the set that both modes share, ignoring bits
// that cannot be written. c.mu is held.
func (l *LocalAPIC) writeReg(reg, v uint32) (ok bool) {
	switch reg {
	case regTPR:
		l.tpr = uint8(v)
	case regEOI:
		l.endOfInterrupt()
	case regSVR:
		l.svr = v & svrWritable
		if v&svrEnable == 0 {
			for i := range l.lvt {
				l.lvt[i] |= lvtMasked
			}
			l.timer.arm(l)
		}
	case regESR:
		l.esr, l.errors = l.errors, 0
	case regInitial:
		l.timer.load(l, v)
	case regDivide:
		l.timer.setDivide(l, v&0xb)
	default:
		if reg < regTimer || reg > regError {
			return false
		}
		l.writeLVT(int(reg-regTimer), v)
	}
	return true
}

func (l *LocalAPIC) writeLVT(i int, v uint32) {
	v &= lvtWritable[i]
	if l.svr&svrEnable == 0 {
		v |= lvtMasked
	}
	old := l.lvt[i]
	l.lvt[i] = v
	if i == lvtTimer {
		l.timer.configure(l, old)
	}
}

// Read implements bus.Device: the register page of xAPIC mode. Registers are
// 32 bits wide at multiples of 16 (SDM vol. 3A, section 11.4.1).
func (l *LocalAPIC) Read(off uint64, p []byte) {
	l.chip.mu.Lock()
	defer l.chip.unlock()
	if !l.enabled() || l.x2() {
		put(p, ^uint64(0))
		return
	}
	var v uint32
	if off&0xc == 0 && off < 0x400 {
		v = l.readMMIO(uint32(off >> 4))
	}
	put(p, uint64(v>>(8*(off&3))))
}

func (l *LocalAPIC) readMMIO(reg uint32) uint32 {
	switch reg {
	case regDFR:
		return l.dfr
	case regICR:
		return uint32(l.icr)
	case regICR2:
		return uint32(l.icr >> 32)
	case regAPR, regRRD, regEOI:
		return 0
	}
	v, ok := l.readReg(reg)
	if !ok {
		l.fail(esrRegister)
	}
	return v
}

// Write implements bus.Device. Anything but a whole register is ignored.
func (l *LocalAPIC) Write(off uint64, p []byte) {
	if off&0xf != 0 || off >= 0x400 || len(p) < 4 {
		return
	}
	l.chip.mu.Lock()
	defer l.chip.unlock()
	if l.enabled() && !l.x2() {
		l.writeMMIO(uint32(off>>4), uint32(get(p)))
	}
}

func (l *LocalAPIC) writeMMIO(reg, v uint32) {
	switch reg {
	case regID:
		l.id = v >> 24
	case regLDR:
		l.ldr = v & 0xff000000
	case regDFR:
		l.dfr = v | 0x0fffffff
	case regICR:
		l.icr = l.icr&^0xffffffff | uint64(v&icrWritable)
		l.send(l.icr>>56, false)
	case regICR2:
		l.icr = l.icr&0xffffffff | uint64(v&0xff000000)<<32
	case regVersion, regAPR, regPPR, regRRD, regCurrent:
		// read only
	default:
		if !l.writeReg(reg, v) {
			l.fail(esrRegister)
		}
	}
}
