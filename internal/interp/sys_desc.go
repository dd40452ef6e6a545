package interp

import (
	"ring3/internal/cpu"
	"ring3/internal/x86"
)

// Types of system descriptors (SDM vol. 3A, table 3-2). In long mode only the
// LDT and those with sysType386 set exist, and they are 16 bytes long.
const (
	sysTSS16Avail = 1
	sysLDT        = 2
	sysTSS16Busy  = 3
	sysCallGate16 = 4
	sysTaskGate   = 5
	sysIntGate16  = 6
	sysTrapGate16 = 7
	sysTSSAvail   = 9
	sysTSSBusy    = 11
	sysCallGate   = 12
	sysIntGate    = 14
	sysTrapGate   = 15
)

// attrFlatCode and attrFlatData are the access rights that SYSCALL and its
// relatives load without looking at a descriptor; DPL and L or D come on top.
const (
	attrFlatCode = cpu.AttrP | cpu.AttrS | cpu.AttrG | cpu.AttrCode | cpu.AttrWritable | cpu.AttrAccessed
	attrFlatData = cpu.AttrP | cpu.AttrS | cpu.AttrG | cpu.AttrDB | cpu.AttrWritable | cpu.AttrAccessed
)

// descriptor is an entry of the GDT, an LDT or the IDT.
type descriptor struct {
	raw  uint64 // first 8 bytes
	high uint64 // second 8 bytes of system descriptors in long mode
	addr uint64 // linear address
}

// attr is the access-rights word in the layout of cpu.Segment.Attr.
func (d descriptor) attr() uint16   { return uint16(d.raw>>40) & 0xf0ff }
func (d descriptor) typ() uint8     { return uint8(d.raw>>40) & 0xf }
func (d descriptor) dpl() uint8     { return uint8(d.raw>>45) & 3 }
func (d descriptor) system() bool   { return d.raw>>44&1 == 0 }
func (d descriptor) present() bool  { return d.raw>>47&1 != 0 }
func (d descriptor) code() bool     { return d.raw>>43&3 == 3 }
func (d descriptor) data() bool     { return d.raw>>43&3 == 2 }
func (d descriptor) writable() bool { return d.data() && d.raw>>41&1 != 0 }
func (d descriptor) readable() bool { return !d.code() || d.raw>>41&1 != 0 }

// conforming is meaningful for code.
func (d descriptor) conforming() bool { return d.raw>>42&1 != 0 }
func (d descriptor) long() bool       { return d.raw>>53&1 != 0 }
func (d descriptor) big() bool        { return d.raw>>54&1 != 0 }

// base is that of a segment; the upper half is zero but for system descriptors
// in long mode.
func (d descriptor) base() uint64 {
	return d.raw>>16&0xffffff | d.raw>>32&0xff000000 | d.high<<32
}

// limit is in bytes.
func (d descriptor) limit() uint32 {
	l := uint32(d.raw&0xffff | d.raw>>32&0xf0000)
	if d.raw>>55&1 != 0 {
		return l<<12 | 0xfff
	}
	return l
}

// segment is what a segment register holds after loading d.
func (d descriptor) segment(sel uint16) cpu.Segment {
	return cpu.Segment{Sel: sel, Base: d.base(), Limit: d.limit(), Attr: d.attr()}
}

// Gates (SDM vol. 3A, figures 5-8, 6-2 and 6-8).
func (d descriptor) gateSel() uint16    { return uint16(d.raw >> 16) }
func (d descriptor) gateParams() uint8  { return uint8(d.raw>>32) & 0x1f }
func (d descriptor) gateIST() uint8     { return uint8(d.raw>>32) & 7 }
func (d descriptor) gateOffset() uint64 { return d.raw&0xffff | d.raw>>32&0xffff0000 | d.high<<32 }

// null reports a selector that refers to the unused first entry of the GDT.
func null(sel uint16) bool { return sel&^3 == 0 }

// readDescriptor fetches the 8-byte entry that sel refers to. found is false
// behind the limit of the table; ok is false when a fault was raised.
func (c *CPU) readDescriptor(sel uint16) (d descriptor, found, ok bool) {
	base, limit := c.GDTR.Base, uint32(c.GDTR.Limit)
	if sel&4 != 0 {
		if c.LDTR.Unusable || c.LDTR.Attr&cpu.AttrP == 0 {
			return d, false, true
		}
		base, limit = c.LDTR.Base, c.LDTR.Limit
	}
	if uint32(sel|7) > limit {
		return d, false, true
	}
	d.addr = c.wrap(base + uint64(sel&^7))
	d.raw, ok = c.readSys(d.addr, 8)
	return d, true, ok
}

// readHigh fetches the second half of a 16-byte system descriptor. found is
// false when it lies behind the limit of the table.
func (c *CPU) readHigh(sel uint16, d *descriptor) (found, ok bool) {
	limit := uint32(c.GDTR.Limit)
	if sel&4 != 0 {
		limit = c.LDTR.Limit
	}
	if uint32(sel|7)+8 > limit {
		return false, true
	}
	d.high, ok = c.readSys(d.addr+8, 8)
	return true, ok
}

// fetchDescriptor reads the entry of sel and raises vec with the selector and
// ext as error code when it is behind the limit.
func (c *CPU) fetchDescriptor(sel uint16, vec uint8, ext uint32) (d descriptor, ok bool) {
	d, found, ok := c.readDescriptor(sel)
	if ok && !found {
		return d, c.raise(vec, errSel(sel, ext))
	}
	return d, ok
}

// errSel is the error code that names a selector (SDM vol. 3A, section 6.13).
func errSel(sel uint16, ext uint32) uint32 { return uint32(sel&^3) | ext }

// wrap cuts a linear address to the 32 bits it has outside long mode.
func (c *CPU) wrap(lin uint64) uint64 {
	if c.EFER&x86.EFERLMA == 0 {
		return lin & 0xffffffff
	}
	return lin
}

// setAccessed sets the accessed bit of a code or data descriptor in memory,
// as the processor does whenever it loads one into a segment register.
func (c *CPU) setAccessed(d *descriptor) bool {
	if d.raw>>40&cpu.AttrAccessed != 0 {
		return true
	}
	d.raw |= cpu.AttrAccessed << 40
	return c.writeSys(d.addr+5, 1, d.raw>>40&0xff)
}

// setBusy changes the busy bit of a TSS descriptor in memory.
func (c *CPU) setBusy(d *descriptor, busy bool) bool {
	d.raw &^= 2 << 40
	if busy {
		d.raw |= 2 << 40
	}
	return c.writeSys(d.addr+5, 1, d.raw>>40&0xff)
}

// amd reports whether the virtual CPU behaves like AMD's where the vendors
// differ.
func (c *CPU) amd() bool {
	_, b, _, _ := c.Env.CPUID(0, 0)
	return b == 0x68747541 /* Auth */ || b == 0x6f677948 /* Hygo */
}

// nullSegment puts a null selector into a segment register. AMD processors
// without CPUID.80000021:EAX.NullSelectorClearsBase leave base and limit alone.
func (c *CPU) nullSegment(seg uint8, sel uint16) {
	s := &c.Seg[seg]
	n := cpu.Segment{Sel: sel, Unusable: true}
	if s.Base != 0 && c.amd() {
		if top, _, _, _ := c.Env.CPUID(0x80000000, 0); top >= 0x80000021 {
			if a, _, _, _ := c.Env.CPUID(0x80000021, 0); a>>6&1 == 0 {
				n.Base, n.Limit = s.Base, s.Limit
			}
		} else {
			n.Base, n.Limit = s.Base, s.Limit
		}
	}
	*s = n
}

// protected reports protected mode (without virtual-8086 mode, which this CPU
// does not have).
func (c *CPU) protected() bool { return c.CR0&x86.CR0PE != 0 }

// realSegment loads a segment register as real mode does: limit and access
// rights stay (SDM vol. 3A, section 21.1.1).
func (c *CPU) realSegment(seg uint8, sel uint16) {
	s := &c.Seg[seg]
	if s.Unusable {
		*s = cpu.Segment{Limit: 0xffff, Attr: cpu.AttrP | cpu.AttrS | cpu.AttrWritable | cpu.AttrAccessed}
	}
	s.Sel, s.Base = sel, uint64(sel)<<4
}

// loadSegment is MOV to, POP and LDS and so on of a segment register other
// than CS (SDM vol. 2B, MOV; AMD APM vol. 2, section 4.5). Loading SS holds
// interrupts and traps back for one instruction, so that a new stack pointer can
// follow.
func (c *CPU) loadSegment(seg uint8, sel uint16) bool {
	switch {
	case seg == x86.CS || seg > x86.GS:
		return c.raise(x86.VecUD, 0)
	case !c.protected():
		c.realSegment(seg, sel)
		c.InterruptShadow = seg == x86.SS
	case seg == x86.SS:
		s, ok := c.checkSS(sel, c.CPL, x86.VecGP, 0, c.Code64())
		if !ok {
			return false
		}
		c.Seg[x86.SS] = s
		c.InterruptShadow = true
	case null(sel):
		c.nullSegment(seg, sel)
	default:
		d, ok := c.fetchDescriptor(sel, x86.VecGP, 0)
		if !ok {
			return false
		}
		rpl := uint8(sel) & 3
		switch {
		case d.system() || !d.readable():
			return c.raise(x86.VecGP, errSel(sel, 0))
		case !(d.code() && d.conforming()) && (rpl > d.dpl() || c.CPL > d.dpl()):
			return c.raise(x86.VecGP, errSel(sel, 0))
		case !d.present():
			return c.raise(x86.VecNP, errSel(sel, 0))
		}
		if !c.setAccessed(&d) {
			return false
		}
		c.Seg[seg] = d.segment(sel)
	}
	return true
}

// checkSS checks a selector for SS at privilege cpl and returns the contents
// of the register. vec is #GP, or #TS for selectors from a TSS. A null
// selector is fine where the code that follows is 64-bit code below CPL 3.
func (c *CPU) checkSS(sel uint16, cpl, vec uint8, ext uint32, code64 bool) (s cpu.Segment, ok bool) {
	rpl := uint8(sel) & 3
	if null(sel) {
		if code64 && cpl < 3 && rpl == cpl {
			return cpu.NullSS(sel, cpl), true
		}
		return s, c.raise(vec, ext)
	}
	d, ok := c.fetchDescriptor(sel, vec, ext)
	if !ok {
		return s, false
	}
	switch {
	case rpl != cpl || d.system() || !d.writable() || d.dpl() != cpl:
		return s, c.raise(vec, errSel(sel, ext))
	case !d.present():
		return s, c.raise(x86.VecSS, errSel(sel, ext))
	}
	if !c.setAccessed(&d) {
		return s, false
	}
	return d.segment(sel), true
}

// checkCode checks the target of a direct far jump or call, or with gate that
// of a call through a gate to the same privilege, and returns CS.
func (c *CPU) checkCode(sel uint16, d *descriptor) bool {
	rpl := uint8(sel) & 3
	switch {
	case d.system() || !d.code():
		return c.raise(x86.VecGP, errSel(sel, 0))
	case d.conforming() && d.dpl() > c.CPL:
		return c.raise(x86.VecGP, errSel(sel, 0))
	case !d.conforming() && (rpl > c.CPL || d.dpl() != c.CPL):
		return c.raise(x86.VecGP, errSel(sel, 0))
	case !d.present():
		return c.raise(x86.VecNP, errSel(sel, 0))
	case c.LongMode() && d.long() && d.big():
		return c.raise(x86.VecGP, errSel(sel, 0))
	}
	return true
}

// checkOffset checks a new instruction pointer against the segment it is for.
func (c *CPU) checkOffset(d descriptor, off uint64, ext uint32) bool {
	if c.LongMode() && d.long() {
		if !x86.Canonical(off) {
			return c.raise(x86.VecGP, ext)
		}
		return true
	}
	if off > uint64(d.limit()) {
		return c.raise(x86.VecGP, ext)
	}
	return true
}

// setCode loads CS with RPL cpl from a checked descriptor and jumps to off.
// The caller has set the accessed bit and calls modeChanged.
func (c *CPU) setCode(sel uint16, d descriptor, cpl uint8, off uint64) {
	c.Seg[x86.CS] = d.segment(sel&^3 | uint16(cpl))
	c.CPL = cpl
	c.RIP = off
}
