package interp

import (
	"ring3/internal/cpu"
	"ring3/internal/x86"
)

// Bits of error codes that refer to a descriptor (SDM vol. 3A, section 6.13).
const (
	errEXT = 1 << 0 // the event came from outside the program
	errIDT = 1 << 1 // the index refers to the IDT
)

// Interrupt delivers a maskable interrupt. The caller has checked RFLAGS.IF and
// the interrupt shadow, and Run is not active.
func (c *CPU) Interrupt(vec uint8) { c.outside(vec, eventExternal) }

// NMI delivers a non-maskable interrupt unless one is being handled
// (SDM vol. 3A, section 6.7.1), and reports whether it did.
func (c *CPU) NMI() bool {
	if c.NMIBlocked {
		return false
	}
	c.outside(x86.VecNMI, eventNMI)
	return true
}

// INIT delivers an INIT (see cpu.State.Init). All translations go: the CPU may
// have had its mode changed behind their back.
func (c *CPU) INIT() {
	c.State.Init()
	c.enter()
	c.shutdown = false
	c.flush(Flush{Kind: FlushAll})
	c.exit()
}

// outside delivers an event while Run is not active: State.RFLAGS is whole,
// and stays so.
func (c *CPU) outside(vec uint8, kind eventKind) {
	c.enter()
	c.Halted = false
	c.deliver(vec, false, 0, kind)
	c.exit()
}

// excClass is the class of an exception for double faults (SDM vol. 3A,
// table 6-4).
func excClass(vec uint8) int {
	switch vec {
	case x86.VecDE, x86.VecTS, x86.VecNP, x86.VecSS, x86.VecGP, 21 /* #CP */ :
		return classContributory
	case x86.VecPF:
		return classPageFault
	case x86.VecDF:
		return classDoubleFault
	}
	return classBenign
}

const (
	classBenign = iota
	classContributory
	classPageFault
	classDoubleFault
)

// maxNested is more faults in a row than the delivery of one event can meet
// but in a loop.
const maxNested = 16

// deliver lets the guest handle an event. For faults RIP is that of the
// instruction, else that of the next one. A fault that is met on the way is
// handled in its place, as a double fault where the manual says so (SDM vol. 3A,
// table 6-5). It returns false when the CPU has shut down.
func (c *CPU) deliver(vec uint8, hasErr bool, err uint32, kind eventKind) bool {
	class := classBenign
	if kind == eventFault || kind == eventTrap {
		class = excClass(vec)
	}
	for n := 0; ; n++ {
		c.fault.pending = false
		if c.deliverOnce(vec, hasErr, err, kind) {
			return true
		}
		if n == maxNested {
			// A processor would go on for ever: #AC whose handler is at CPL 3
			// with a misaligned stack.
			c.fault.pending = false
			c.shutdown = true
			return false
		}
		f := c.fault
		c.fault.pending = false
		if f.vector == x86.VecPF {
			c.CR2 = f.cr2
		}
		next := excClass(f.vector)
		switch {
		case class == classDoubleFault && next != classBenign:
			c.shutdown = true
			return false
		case class == classContributory && next == classContributory,
			class == classPageFault && (next == classContributory || next == classPageFault):
			vec, hasErr, err, class = x86.VecDF, true, 0, classDoubleFault
		default:
			vec, hasErr, err, class = f.vector, f.hasErr, f.err, next
		}
		kind = eventFault
	}
}

// deliverOnce goes through the IVT or IDT for one event (SDM vol. 2A, INT n).
// When it returns false nothing has changed but memory under the new stack
// pointer, and the fault is recorded.
func (c *CPU) deliverOnce(vec uint8, hasErr bool, err uint32, kind eventKind) bool {
	var ok bool
	switch {
	case !c.protected():
		ok = c.deliverReal(vec, kind)
	case c.LongMode():
		ok = c.deliverLong(vec, hasErr, err, kind)
	default:
		ok = c.deliverLegacy(vec, hasErr, err, kind)
	}
	if !ok {
		return false
	}
	c.InterruptShadow = false
	if vec == x86.VecDB && kind != eventSoft {
		c.DR[7] &^= dr7GD
	}
	if kind == eventNMI {
		c.NMIBlocked = true
	}
	return true
}

// ext is the EXT bit of error codes raised while delivering an event.
func (k eventKind) ext() uint32 {
	if k == eventSoft {
		return 0
	}
	return errEXT
}

// savedFlags is the flags image that the handler finds on its stack. Faults
// push RF set, so that an instruction breakpoint does not hit twice; those
// that instruction breakpoints themselves raise do not (SDM vol. 3B, 18.3.1.1).
func (c *CPU) savedFlags(vec uint8, kind eventKind) uint64 {
	f := c.flags()
	if kind == eventFault && vec != x86.VecDB {
		f |= x86.FlagRF
	}
	return f
}

// deliverReal is an interrupt in real mode (SDM vol. 3A, section 21.1.4). No
// error codes are pushed there.
func (c *CPU) deliverReal(vec uint8, kind eventKind) bool {
	if uint32(vec)*4+3 > uint32(c.IDTR.Limit) {
		return c.raise(x86.VecGP, uint32(vec)*8+errIDT+kind.ext())
	}
	entry, ok := c.readSys(c.IDTR.Base+uint64(vec)*4, 4)
	if !ok {
		return false
	}
	flags := c.savedFlags(vec, kind)
	s := c.currentStack()
	if !s.push(flags&0xffff, 2) || !s.push(uint64(c.Seg[x86.CS].Sel), 2) || !s.push(c.RIP&0xffff, 2) {
		return false
	}
	s.commit()
	c.setFlags(flags &^ (x86.FlagIF | x86.FlagTF | x86.FlagAC | x86.FlagRF))
	c.realSegment(x86.CS, uint16(entry>>16))
	c.RIP = entry & 0xffff
	c.modeChanged()
	return true
}

// readGate fetches the IDT entry of vec and checks what all gates have in
// common. legal is the set of descriptor types that may be there.
func (c *CPU) readGate(vec uint8, kind eventKind, legal uint16) (d descriptor, ok bool) {
	size := uint32(8)
	if c.LongMode() {
		size = 16
	}
	code := uint32(vec)*8 + errIDT + kind.ext()
	off := uint32(vec) * size
	if off+size-1 > uint32(c.IDTR.Limit) {
		return d, c.raise(x86.VecGP, code)
	}
	d.addr = c.wrap(c.IDTR.Base + uint64(off))
	if d.raw, ok = c.readSys(d.addr, 8); !ok {
		return d, false
	}
	if size == 16 {
		if d.high, ok = c.readSys(d.addr+8, 8); !ok {
			return d, false
		}
	}
	switch {
	case !d.system() || legal>>d.typ()&1 == 0:
		return d, c.raise(x86.VecGP, code)
	case kind == eventSoft && d.dpl() < c.CPL:
		return d, c.raise(x86.VecGP, code)
	case !d.present():
		return d, c.raise(x86.VecNP, code)
	}
	return d, true
}

// gateCode checks the code segment of an interrupt or trap gate and returns
// the privilege level of the handler.
func (c *CPU) gateCode(sel uint16, ext uint32) (d descriptor, cpl uint8, ok bool) {
	if null(sel) {
		return d, 0, c.raise(x86.VecGP, ext)
	}
	if d, ok = c.fetchDescriptor(sel, x86.VecGP, ext); !ok {
		return d, 0, false
	}
	switch {
	case d.system() || !d.code() || d.dpl() > c.CPL:
		return d, 0, c.raise(x86.VecGP, errSel(sel, ext))
	case c.LongMode() && (!d.long() || d.big()):
		return d, 0, c.raise(x86.VecGP, errSel(sel, ext))
	case !d.present():
		return d, 0, c.raise(x86.VecNP, errSel(sel, ext))
	}
	if !c.setAccessed(&d) {
		return d, 0, false
	}
	if d.conforming() {
		return d, c.CPL, true
	}
	return d, d.dpl(), true
}

// deliverLong is an event in long mode (SDM vol. 3A, section 6.14): 16-byte
// gates, an aligned stack, SS and RSP always pushed, SS null after a change of
// privilege.
func (c *CPU) deliverLong(vec uint8, hasErr bool, err uint32, kind eventKind) bool {
	ext := kind.ext()
	gate, ok := c.readGate(vec, kind, 1<<sysIntGate|1<<sysTrapGate)
	if !ok {
		return false
	}
	code, cpl, ok := c.gateCode(gate.gateSel(), ext)
	if !ok {
		return false
	}
	ss, sp := c.Seg[x86.SS], c.GPR[x86.RSP]
	if ist := gate.gateIST(); ist != 0 {
		sp, ok = c.tssStack64(ist1+ist-1, ext)
	} else if cpl < c.CPL {
		sp, ok = c.tssStack64(cpl, ext)
	}
	if !ok {
		return false
	}
	if cpl < c.CPL {
		ss = cpu.NullSS(uint16(cpl), cpl)
	}
	flags := c.savedFlags(vec, kind)
	s := c.inner(ss, sp&^15, true, cpl, ext)
	if !s.push(uint64(c.Seg[x86.SS].Sel), 8) || !s.push(c.GPR[x86.RSP], 8) || !s.push(flags, 8) ||
		!s.push(uint64(c.Seg[x86.CS].Sel), 8) || !s.push(c.RIP, 8) || hasErr && !s.push(uint64(err), 8) {
		return false
	}
	if !x86.Canonical(gate.gateOffset()) {
		return c.raise(x86.VecGP, ext)
	}
	s.commit()
	c.setCode(gate.gateSel(), code, cpl, gate.gateOffset())
	c.handlerFlags(flags, gate.typ() == sysIntGate)
	return true
}

// handlerFlags sets RFLAGS for a handler.
func (c *CPU) handlerFlags(flags uint64, intGate bool) {
	flags &^= x86.FlagTF | x86.FlagNT | x86.FlagRF | x86.FlagVM
	if intGate {
		flags &^= x86.FlagIF
	}
	c.setFlags(flags)
	c.modeChanged()
}

// deliverLegacy is an event in protected mode outside long mode (SDM vol. 3A,
// section 6.12).
func (c *CPU) deliverLegacy(vec uint8, hasErr bool, err uint32, kind eventKind) bool {
	ext := kind.ext()
	gate, ok := c.readGate(vec, kind, 1<<sysTaskGate|1<<sysIntGate16|1<<sysTrapGate16|1<<sysIntGate|1<<sysTrapGate)
	if !ok {
		return false
	}
	if gate.typ() == sysTaskGate {
		return c.taskGateEvent(gate, hasErr, err, kind)
	}
	size, off := 4, gate.gateOffset()
	if gate.typ() <= sysTrapGate16 {
		size, off = 2, off&0xffff
	}
	code, cpl, ok := c.gateCode(gate.gateSel(), ext)
	if !ok {
		return false
	}
	flags := c.savedFlags(vec, kind)
	s := c.currentStack()
	s.err = ext
	n := 3 * size
	if hasErr {
		n += size
	}
	if cpl < c.CPL {
		ss, sp, ok := c.tssStack(cpl, ext)
		if !ok {
			return false
		}
		s = c.inner(ss, sp, false, cpl, errSel(ss.Sel, ext))
		if !s.room(n + 2*size) {
			return false
		}
		if !s.push(uint64(c.Seg[x86.SS].Sel), size) || !s.push(c.GPR[x86.RSP], size) {
			return false
		}
	} else if !s.room(n) {
		return false
	}
	if !s.push(flags, size) || !s.push(uint64(c.Seg[x86.CS].Sel), size) || !s.push(c.RIP, size) ||
		hasErr && !s.push(uint64(err), size) {
		return false
	}
	if !c.checkOffset(code, off, ext) {
		return false
	}
	s.commit()
	c.setCode(gate.gateSel(), code, cpl, off)
	c.handlerFlags(flags, gate.typ()&1 == 0)
	return true
}

// softInt is INT n, and INTO when it traps.
func (c *CPU) softInt(vec uint8) bool { return c.deliverOnce(vec, false, 0, eventSoft) }

// softInt3 is INT3.
func (c *CPU) softInt3() bool { return c.deliverOnce(x86.VecBP, false, 0, eventSoft) }

// icebp is INT1: a debug exception that no DPL stops and that DR6 does not
// tell (SDM vol. 2A, INT n).
func (c *CPU) icebp() bool { return c.deliverOnce(x86.VecDB, false, 0, eventICEBP) }
