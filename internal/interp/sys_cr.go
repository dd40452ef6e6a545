package interp

import (
	"ring3/internal/cpu"
	"ring3/internal/x86"
	"ring3/internal/x86/cpuid"
)

const (
	cr0Writable = x86.CR0PE | x86.CR0MP | x86.CR0EM | x86.CR0TS | x86.CR0NE |
		x86.CR0WP | x86.CR0AM | x86.CR0NW | x86.CR0CD | x86.CR0PG
	// cr4Always are the CR4 bits that need no CPUID feature of their own or
	// one that the CPU always shows.
	cr4Always = x86.CR4TSD | x86.CR4DE | x86.CR4PSE | x86.CR4PAE | x86.CR4MCE |
		x86.CR4PGE | x86.CR4PCE | x86.CR4OSFXSR | x86.CR4OSXMMEXCPT
	cr3Reserved = ^uint64(1<<physBits - 1)
	physBits    = cpuid.PhysBits
)

// supervisor raises #GP(0) above CPL 0.
func (c *CPU) supervisor() bool {
	if c.CPL != 0 {
		return c.raise(x86.VecGP, 0)
	}
	return true
}

// readCR is MOV from CRn (SDM vol. 2B).
func (c *CPU) readCR(n uint8) (v uint64, ok bool) {
	switch n {
	case 0:
		v = c.CR0
	case 2:
		v = c.CR2
	case 3:
		v = c.CR3
	case 4:
		v = c.CR4
	case 8:
		v = c.CR8
		// The task priority register is the same thing; in x2APIC mode it may
		// have been written as an MSR.
		if tpr, ok := c.Env.ReadMSR(x86.MSRX2APICFirst + 8); ok {
			v = tpr >> 4 & 0xf
		}
	default:
		return 0, c.raise(x86.VecUD, 0)
	}
	return v, c.supervisor()
}

// writeCR is MOV to CRn. v is the whole register; outside 64-bit mode its upper
// half is ignored.
func (c *CPU) writeCR(n uint8, v uint64) bool {
	if n != 0 && n != 2 && n != 3 && n != 4 && n != 8 {
		return c.raise(x86.VecUD, 0)
	}
	if !c.supervisor() {
		return false
	}
	if !c.Code64() {
		v &= 0xffffffff
	}
	switch n {
	case 0:
		return c.writeCR0(v)
	case 2:
		c.CR2 = v
	case 3:
		return c.writeCR3(v)
	case 4:
		return c.writeCR4(v)
	case 8:
		if v > 15 {
			return c.raise(x86.VecGP, 0)
		}
		c.CR8 = v
		c.Env.SetCR8(v)
	}
	return true
}

// writeCR0 checks and sets CR0, and turns long mode on and off with paging
// (SDM vol. 3A, sections 2.5 and 10.8.5).
func (c *CPU) writeCR0(v uint64) bool {
	if v>>32 != 0 || v&x86.CR0PG != 0 && v&x86.CR0PE == 0 || v&x86.CR0NW != 0 && v&x86.CR0CD == 0 {
		return c.raise(x86.VecGP, 0)
	}
	v = v&cr0Writable | x86.CR0ET
	changed := v ^ c.CR0
	efer := c.EFER
	switch {
	case changed&v&x86.CR0PG != 0 && efer&x86.EFERLME != 0:
		if c.CR4&x86.CR4PAE == 0 || c.Seg[x86.CS].Attr&cpu.AttrL != 0 ||
			c.TR.Attr&0xf == sysTSS16Avail || c.TR.Attr&0xf == sysTSS16Busy {
			return c.raise(x86.VecGP, 0)
		}
		efer |= x86.EFERLMA
	case changed&x86.CR0PG != 0 && v&x86.CR0PG == 0:
		if c.CR4&x86.CR4PCIDE != 0 || c.Code64() {
			return c.raise(x86.VecGP, 0)
		}
		efer &^= x86.EFERLMA
	}
	pae := v&x86.CR0PG != 0 && c.CR4&x86.CR4PAE != 0 && efer&x86.EFERLMA == 0
	if pae && changed&(x86.CR0PG|x86.CR0CD|x86.CR0NW) != 0 && !c.loadPDPTEs(c.CR3) {
		return false
	}
	c.CR0, c.EFER = v, efer
	c.modeChanged()
	if changed&(x86.CR0PG|x86.CR0PE|x86.CR0WP) != 0 {
		c.Env.Flushed(Flush{Kind: FlushAll})
	}
	return true
}

// loadPDPTEs reads the four page-directory-pointer entries of PAE paging
// outside long mode (SDM vol. 3A, section 4.4.1).
func (c *CPU) loadPDPTEs(cr3 uint64) bool {
	const reserved = cr3Reserved | 0x1e6
	var p [4]uint64
	for i := range p {
		if w := c.Mem.Word(cr3&0xffffffe0 + uint64(i)*8); w != nil {
			p[i] = *w
		}
		if p[i]&x86.PTEPresent != 0 && p[i]&reserved != 0 {
			return c.raise(x86.VecGP, 0)
		}
	}
	c.PDPTE = p
	return true
}

func (c *CPU) writeCR3(v uint64) bool {
	pcide := c.CR4&x86.CR4PCIDE != 0
	noFlush := pcide && v&x86.CR3NoFlush != 0
	if pcide {
		v &^= x86.CR3NoFlush
	}
	if v&cr3Reserved != 0 {
		return c.raise(x86.VecGP, 0)
	}
	if c.Paging() && c.CR4&x86.CR4PAE != 0 && !c.LongMode() && !c.loadPDPTEs(v) {
		return false
	}
	c.CR3 = v
	switch {
	case noFlush: // translations of the PCID stay valid
		c.modeChanged()
		return true
	case pcide:
		c.flush(Flush{Kind: FlushPCID, PCID: uint16(v & x86.CR3PCIDMask)})
	default:
		c.flush(Flush{Kind: FlushNonGlobal})
	}
	c.modeChanged()
	return true
}

// cr4Mask is the set of CR4 bits that CPUID allows.
func (c *CPU) cr4Mask() uint64 {
	mask := uint64(cr4Always)
	_, _, f1, d1 := c.Env.CPUID(1, 0)
	_, b7, c7, _ := c.Env.CPUID(7, 0)
	for _, f := range [...]struct {
		reg  uint32
		bit  uint8
		bits uint64
	}{
		{d1, 1, x86.CR4VME | x86.CR4PVI},
		{f1, 17, x86.CR4PCIDE},
		{f1, 26, x86.CR4OSXSAVE},
		{b7, 0, x86.CR4FSGSBASE},
		{b7, 7, x86.CR4SMEP},
		{b7, 20, x86.CR4SMAP},
		{c7, 2, x86.CR4UMIP},
	} {
		if f.reg>>f.bit&1 != 0 {
			mask |= f.bits
		}
	}
	return mask
}

// writeCR4 (SDM vol. 3A, section 2.5, and 4.10.4.1 for what it invalidates).
func (c *CPU) writeCR4(v uint64) bool {
	changed := v ^ c.CR4
	if v&^c.cr4Mask() != 0 || c.LongMode() && v&x86.CR4PAE == 0 {
		return c.raise(x86.VecGP, 0)
	}
	if changed&v&x86.CR4PCIDE != 0 && (!c.LongMode() || c.CR3&x86.CR3PCIDMask != 0) {
		return c.raise(x86.VecGP, 0)
	}
	pae := c.Paging() && v&x86.CR4PAE != 0 && !c.LongMode()
	if pae && changed&(x86.CR4PAE|x86.CR4PGE|x86.CR4PSE|x86.CR4SMEP) != 0 && !c.loadPDPTEs(c.CR3) {
		return false
	}
	c.CR4 = v
	c.modeChanged()
	if changed&(x86.CR4PSE|x86.CR4PAE|x86.CR4PGE|x86.CR4PCIDE|x86.CR4SMEP|x86.CR4SMAP) != 0 {
		c.Env.Flushed(Flush{Kind: FlushAll})
	}
	return true
}

// flush drops cached translations here and in the other engines.
func (c *CPU) flush(f Flush) {
	c.flushTLB(f)
	c.Env.Flushed(f)
}

// clts clears CR0.TS.
func (c *CPU) clts() bool {
	if !c.supervisor() {
		return false
	}
	c.CR0 &^= x86.CR0TS
	return true
}

// lmsw loads the low four bits of CR0; it cannot clear PE.
func (c *CPU) lmsw(v uint16) bool {
	if !c.supervisor() {
		return false
	}
	return c.writeCR0(c.CR0&^0xe | uint64(v)&0xf)
}

// invlpg is INVLPG. The address is not checked, a non-canonical one has no
// translation.
func (c *CPU) invlpg(lin uint64) bool {
	if !c.supervisor() {
		return false
	}
	if c.LongMode() && !x86.Canonical(lin) {
		return true
	}
	f := Flush{Kind: FlushPage, Addr: c.wrap(lin)}
	if c.CR4&x86.CR4PCIDE != 0 {
		f.PCID = uint16(c.CR3 & x86.CR3PCIDMask)
	}
	c.flush(f)
	return true
}

// invpcid is INVPCID (SDM vol. 2A); descLin is the linear address of its
// descriptor.
func (c *CPU) invpcid(kind uint64, descLin uint64) bool {
	if !c.supervisor() {
		return false
	}
	if kind > 3 {
		return c.raise(x86.VecGP, 0)
	}
	pcid, ok := c.readLin(descLin, 8)
	if !ok {
		return false
	}
	addr, ok := c.readLin(c.wrap(descLin+8), 8)
	if !ok {
		return false
	}
	if pcid>>12 != 0 || kind < 2 && c.CR4&x86.CR4PCIDE == 0 && pcid != 0 ||
		kind == 0 && !x86.Canonical(addr) {
		return c.raise(x86.VecGP, 0)
	}
	switch kind {
	case 0: // one address in one PCID, global translations stay
		c.flush(Flush{Kind: FlushPage, PCID: uint16(pcid), Addr: addr})
	case 1: // one PCID
		c.flush(Flush{Kind: FlushPCID, PCID: uint16(pcid)})
	case 2: // everything
		c.flush(Flush{Kind: FlushAll})
	case 3: // everything but global
		c.flush(Flush{Kind: FlushNonGlobal})
	}
	return true
}
