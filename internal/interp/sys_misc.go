package interp

import (
	"ring3/internal/cpu"
	"ring3/internal/x86"
	"ring3/internal/x86/insn"
)

// popf is POPF with the value v already popped (SDM vol. 2B, POPF, table 4-17).
func (c *CPU) popf(v uint64, opsize int) bool {
	mask := uint64(flagsUser)
	if c.CPL <= c.iopl() || !c.protected() {
		mask |= x86.FlagIF
	}
	if c.CPL == 0 {
		mask |= x86.FlagIOPL
	}
	if opsize == 16 {
		mask &= 0xffff
	} else {
		// RF is cleared, and so are VIF and VIP.
		mask |= x86.FlagRF | x86.FlagVIF | x86.FlagVIP
		v &^= x86.FlagRF | x86.FlagVIF | x86.FlagVIP
	}
	c.setFlags(c.flags()&^mask | v&mask)
	return true
}

// ifAllowed checks the privilege to change RFLAGS.IF.
func (c *CPU) ifAllowed() bool {
	if c.protected() && c.CPL > c.iopl() {
		return c.raise(x86.VecGP, 0)
	}
	return true
}

// cli is CLI.
func (c *CPU) cli() bool {
	if !c.ifAllowed() {
		return false
	}
	c.RFLAGS &^= x86.FlagIF
	return true
}

// sti is STI: interrupts are held back for one more instruction if they were
// off.
func (c *CPU) sti() bool {
	if !c.ifAllowed() {
		return false
	}
	if c.RFLAGS&x86.FlagIF == 0 {
		c.RFLAGS |= x86.FlagIF
		c.InterruptShadow = true
	}
	return true
}

// ioAllowed checks IN and OUT against IOPL and the I/O permission bitmap
// (SDM vol. 1, section 19.5).
func (c *CPU) ioAllowed(port uint16, size int) bool {
	if !c.protected() || c.CPL <= c.iopl() {
		return true
	}
	// 16-bit TSSs have no bitmap.
	if c.TR.Unusable || c.TR.Attr&cpu.AttrP == 0 || c.TR.Attr&0xf&^2 != sysTSSAvail || c.TR.Limit < 0x67 {
		return c.raise(x86.VecGP, 0)
	}
	base, ok := c.readSys(c.wrap(c.TR.Base+0x66), 2)
	if !ok {
		return false
	}
	off := base + uint64(port/8)
	// Two bytes are always read, so the bitmap ends with a byte of ones.
	if off+1 > uint64(c.TR.Limit) {
		return c.raise(x86.VecGP, 0)
	}
	bits, ok := c.readSys(c.wrap(c.TR.Base+off), 2)
	if !ok {
		return false
	}
	if bits>>(port&7)&(1<<size-1) != 0 {
		return c.raise(x86.VecGP, 0)
	}
	return true
}

// hlt is HLT.
func (c *CPU) hlt() bool {
	if !c.supervisor() {
		return false
	}
	c.Halted = true
	return true
}

// wbinvd is WBINVD, WBNOINVD and INVD: the caches are not the guest's.
func (c *CPU) wbinvd() bool { return c.supervisor() }

// Results of KVM hypercalls (KVM documentation, "Linux KVM Hypercall").
const (
	kvmENOSYS = -1000
	kvmEPERM  = -1
)

// vmcall is VMCALL and VMMCALL: a KVM hypercall, none of which exists.
func (c *CPU) vmcall() bool {
	ret := int64(kvmENOSYS)
	if c.CPL != 0 {
		ret = kvmEPERM
	}
	c.GPR[x86.RAX] = uint64(ret)
	if !c.Code64() {
		c.GPR[x86.RAX] &= 0xffffffff
	}
	return true
}

// monitorOp is MONITOR, MWAIT, MONITORX and MWAITX: CPUID shows none of them.
func (c *CPU) monitorOp(*insn.Inst) bool { return c.raise(x86.VecUD, 0) }

// umip checks SGDT, SIDT, SLDT, STR and SMSW under user-mode instruction
// prevention (SDM vol. 3A, section 2.5).
func (c *CPU) umip() bool {
	if c.CR4&x86.CR4UMIP != 0 && c.CPL != 0 {
		return c.raise(x86.VecGP, 0)
	}
	return true
}

// zf sets ZF for the instructions that look at selectors.
func (c *CPU) zf(on bool) {
	f := c.flags() &^ x86.FlagZF
	if on {
		f |= x86.FlagZF
	}
	c.setFlags(f)
}

// visible is what LAR, LSL, VERR and VERW have in common: it finds the
// descriptor of sel and checks that CPL and RPL may see it. systems is the set
// of system types that count. ok is false when a fault was raised.
func (c *CPU) visible(sel, systems uint16) (d descriptor, seen, ok bool) {
	if !c.protected() {
		return d, false, c.raise(x86.VecUD, 0)
	}
	if null(sel) {
		return d, false, true
	}
	d, found, ok := c.readDescriptor(sel)
	if !ok || !found {
		return d, false, ok
	}
	if d.system() && systems>>d.typ()&1 == 0 {
		return d, false, true
	}
	if !d.system() && d.code() && d.conforming() {
		return d, true, true
	}
	return d, c.CPL <= d.dpl() && uint8(sel)&3 <= d.dpl(), true
}

// lar is LAR: it sets ZF, and when that is set returns the access rights and
// true. Otherwise a fault may be pending.
func (c *CPU) lar(sel uint16) (v uint32, ok bool) {
	types := uint16(1<<sysTSS16Avail | 1<<sysLDT | 1<<sysTSS16Busy | 1<<sysCallGate16 | 1<<sysTaskGate |
		1<<sysTSSAvail | 1<<sysTSSBusy | 1<<sysCallGate)
	if c.LongMode() {
		types = 1<<sysLDT | 1<<sysTSSAvail | 1<<sysTSSBusy | 1<<sysCallGate
	}
	d, seen, ok := c.visible(sel, types)
	if !ok {
		return 0, false
	}
	c.zf(seen)
	return uint32(d.raw>>32) & 0x00f0ff00, seen
}

// lsl is LSL: like lar, with the limit in bytes.
func (c *CPU) lsl(sel uint16) (v uint32, ok bool) {
	types := uint16(1<<sysTSS16Avail | 1<<sysLDT | 1<<sysTSS16Busy | 1<<sysTSSAvail | 1<<sysTSSBusy)
	if c.LongMode() {
		types = 1<<sysLDT | 1<<sysTSSAvail | 1<<sysTSSBusy
	}
	d, seen, ok := c.visible(sel, types)
	if !ok {
		return 0, false
	}
	c.zf(seen)
	return d.limit(), seen
}

// verr is VERR, with write VERW.
func (c *CPU) verr(sel uint16, write bool) bool {
	d, seen, ok := c.visible(sel, 0)
	if !ok {
		return false
	}
	if write {
		seen = seen && d.writable()
	} else {
		seen = seen && d.readable()
	}
	c.zf(seen)
	return true
}

func (c *CPU) lgdt(base uint64, limit uint16) bool { return c.loadTable(&c.GDTR, base, limit) }
func (c *CPU) lidt(base uint64, limit uint16) bool { return c.loadTable(&c.IDTR, base, limit) }

func (c *CPU) loadTable(t *cpu.Table, base uint64, limit uint16) bool {
	if !c.supervisor() {
		return false
	}
	if c.Code64() && !x86.Canonical(base) {
		return c.raise(x86.VecGP, 0)
	}
	*t = cpu.Table{Base: base, Limit: limit}
	return true
}

// lldt is LLDT.
func (c *CPU) lldt(sel uint16) bool {
	if !c.protected() {
		return c.raise(x86.VecUD, 0)
	}
	if !c.supervisor() {
		return false
	}
	if null(sel) {
		c.LDTR = cpu.Segment{Sel: sel, Unusable: true}
		return true
	}
	d, ok := c.systemSegment(sel, 1<<sysLDT)
	if !ok {
		return false
	}
	c.LDTR = d.segment(sel)
	return true
}

// ltr is LTR.
func (c *CPU) ltr(sel uint16) bool {
	if !c.protected() {
		return c.raise(x86.VecUD, 0)
	}
	if !c.supervisor() {
		return false
	}
	if null(sel) {
		return c.raise(x86.VecGP, 0)
	}
	types := uint16(1<<sysTSSAvail | 1<<sysTSS16Avail)
	if c.LongMode() {
		types = 1 << sysTSSAvail
	}
	d, ok := c.systemSegment(sel, types)
	if !ok || !c.setBusy(&d, true) {
		return false
	}
	c.TR = d.segment(sel)
	return true
}

// systemSegment reads and checks the descriptor for LLDT and LTR.
func (c *CPU) systemSegment(sel, types uint16) (d descriptor, ok bool) {
	if sel&4 != 0 {
		return d, c.raise(x86.VecGP, errSel(sel, 0))
	}
	if d, ok = c.fetchDescriptor(sel, x86.VecGP, 0); !ok {
		return d, false
	}
	if !d.system() || types>>d.typ()&1 == 0 {
		return d, c.raise(x86.VecGP, errSel(sel, 0))
	}
	if c.LongMode() {
		found, ok := c.readHigh(sel, &d)
		if !ok {
			return d, false
		}
		if !found || d.high>>40&0x1f != 0 || !x86.Canonical(d.base()) {
			return d, c.raise(x86.VecGP, errSel(sel, 0))
		}
	}
	if !d.present() {
		return d, c.raise(x86.VecNP, errSel(sel, 0))
	}
	return d, true
}
