package interp

import (
	"ring3/internal/cpu"
	"ring3/internal/mmu"
	"ring3/internal/x86"
	"ring3/internal/x86/insn"
)

// modeInfo is what the handlers need to know of the operating mode, computed
// by modeChanged.
type modeInfo struct {
	is64    bool
	real    bool // CR0.PE clear, or virtual-8086 mode: segments have no types
	bits    insn.Mode
	id      uint64 // part of the key of the jump cache
	csBase  uint64 // 0 in 64-bit mode
	linMask uint64 // linear addresses have 32 bits outside long mode
	ipMask  uint64
	acc     mmu.Access // mmu.User at CPL 3

	alignCheck bool // CR0.AM, RFLAGS.AC and CPL 3

	// Values that translations were cached under.
	cr0, cr3, cr4, efer uint64
}

// Bits that change what a translation allows.
const (
	pagingCR0  = x86.CR0PG | x86.CR0WP | x86.CR0PE
	pagingCR4  = x86.CR4PSE | x86.CR4PAE | x86.CR4PGE | x86.CR4SMEP | x86.CR4SMAP | x86.CR4PCIDE | x86.CR4LA57
	pagingEFER = x86.EFERLMA | x86.EFERNX
)

// modeChanged recomputes what is cached of the mode; it is called after every
// change of CPL, CS, control registers and EFER, and drops translations that
// the new mode makes invalid.
func (c *CPU) modeChanged() {
	m := &c.mode
	if (c.CR0^m.cr0)&pagingCR0|(c.CR4^m.cr4)&pagingCR4|(c.EFER^m.efer)&pagingEFER != 0 {
		c.flushTLB(Flush{Kind: FlushAll})
	} else if c.CR3 != m.cr3 {
		// There are no tags for PCIDs, so a switch that does not flush
		// flushes here all the same.
		c.flushTLB(Flush{Kind: FlushNonGlobal})
	}
	m.cr0, m.cr3, m.cr4, m.efer = c.CR0, c.CR3, c.CR4, c.EFER

	cs := &c.Seg[x86.CS]
	m.is64 = c.Code64()
	m.real = c.CR0&x86.CR0PE == 0 || c.RFLAGS&x86.FlagVM != 0
	m.csBase, m.ipMask = cs.Base, 0xffffffff
	switch {
	case m.is64:
		m.bits, m.csBase, m.ipMask = insn.Mode64, 0, ^uint64(0)
	case cs.Attr&cpu.AttrDB != 0:
		m.bits = insn.Mode32
	default:
		m.bits = insn.Mode16
	}
	m.linMask = 0xffffffff
	if c.LongMode() {
		m.linMask = ^uint64(0)
	}
	m.acc = 0
	m.id = uint64(m.bits) >> 4 // 1, 2 or 4
	if c.CPL == 3 {
		m.acc = mmu.User
		m.id |= 8
	}
	c.code.setKeys(m.id)
	c.selectTLB()
}

// selectTLB puts the translations of the current privilege into effect.
func (c *CPU) selectTLB() {
	t := &c.tlb
	class := classSuper
	switch {
	case c.CPL == 3:
		class = classUser
	case c.RFLAGS&x86.FlagAC != 0 && c.CR4&x86.CR4SMAP != 0:
		class = classSuperAC
	}
	c.mode.alignCheck = c.CPL == 3 && c.RFLAGS&x86.FlagAC != 0 && c.CR0&x86.CR0AM != 0
	t.r, t.w, t.x = &t.read[class], &t.write[class], &t.exec[class]
	if c.mode.alignCheck || c.DR[7]&0xff != 0 || c.watch != nil {
		t.r, t.w = &t.none, &t.none
	}
}

// Invalidate is INVLPG of an address, executed elsewhere: in translated code. It
// does not tell other engines.
func (c *CPU) Invalidate(lin uint64) { c.flushTLB(Flush{Kind: FlushPage, Addr: lin}) }

// flushTLB drops cached translations. It does not tell other engines.
func (c *CPU) flushTLB(f Flush) {
	c.stat.Flushes++
	switch f.Kind {
	case FlushAll:
		c.tlb.flushAll()
		c.code.dropKeys(true)
	case FlushPage:
		c.tlb.flushPage(f.Addr)
		c.code.dropKeys(true)
	default:
		c.tlb.flushNonGlobal()
		c.code.dropKeys(false)
	}
	c.code.setKeys(c.mode.id)
}

// segLin applies segmentation to an access of size bytes at offset off of a
// segment (SDM vol. 3A, sections 5.3 to 5.5).
func (c *CPU) segLin(seg uint8, off uint64, size int, write bool) (lin uint64, ok bool) {
	s := &c.Seg[seg]
	if c.mode.is64 {
		if seg >= x86.FS {
			off += s.Base
		}
		if !x86.Canonical(off) || !x86.Canonical(off+uint64(max(size, 1)-1)) {
			return 0, c.segFault(seg)
		}
		return off, true
	}
	off &= 0xffffffff
	if !c.mode.real {
		if s.Unusable || s.Attr&cpu.AttrP == 0 {
			return 0, c.segFault(seg)
		}
		code := s.Attr&cpu.AttrCode != 0
		if write && (code || s.Attr&cpu.AttrWritable == 0) ||
			!write && code && s.Attr&cpu.AttrWritable == 0 {
			return 0, c.raise(x86.VecGP, 0)
		}
	}
	if !inLimit(s, off, uint64(max(size, 1))) {
		return 0, c.segFault(seg)
	}
	return (s.Base + off) & 0xffffffff, true
}

func inLimit(s *cpu.Segment, off, size uint64) bool {
	last := off + size - 1
	if s.Attr&(cpu.AttrCode|cpu.AttrDown) == cpu.AttrDown {
		top := uint64(0xffff)
		if s.Attr&cpu.AttrDB != 0 {
			top = 0xffffffff
		}
		return off > uint64(s.Limit) && last <= top
	}
	if s.Limit == 0xffffffff {
		return true // offsets wrap around in a flat segment
	}
	return last <= uint64(s.Limit)
}

func (c *CPU) segFault(seg uint8) bool {
	if seg == x86.SS {
		return c.raise(x86.VecSS, 0)
	}
	return c.raise(x86.VecGP, 0)
}

// stackMask is the part of RSP that stack operations use.
func (c *CPU) stackMask() uint64 {
	switch {
	case c.mode.is64:
		return ^uint64(0)
	case c.Seg[x86.SS].Attr&cpu.AttrDB != 0:
		return 0xffffffff
	}
	return 0xffff
}

// setSP sets the part of RSP that stack operations use.
func (c *CPU) setSP(v, mask uint64) {
	switch mask {
	case 0xffff:
		c.GPR[x86.RSP] = c.GPR[x86.RSP]&^0xffff | v&0xffff
	default:
		c.GPR[x86.RSP] = v & mask
	}
}

// push pushes size bytes; RSP changes only on success.
func (c *CPU) push(v uint64, size int) bool {
	mask := c.stackMask()
	sp := (c.GPR[x86.RSP] - uint64(size)) & mask
	lin, ok := c.segLin(x86.SS, sp, size, true)
	if !ok || !c.store(lin, uint8(size), v) {
		return false
	}
	c.setSP(sp, mask)
	return true
}

// pop pops size bytes; RSP changes only on success.
func (c *CPU) pop(size int) (uint64, bool) {
	v, ok := c.peek(0, size)
	if ok {
		mask := c.stackMask()
		c.setSP(c.GPR[x86.RSP]+uint64(size), mask)
	}
	return v, ok
}

// peek reads size bytes at offset off from the top of the stack.
func (c *CPU) peek(off uint64, size int) (uint64, bool) {
	sp := (c.GPR[x86.RSP] + off) & c.stackMask()
	lin, ok := c.segLin(x86.SS, sp, size, false)
	if !ok {
		return 0, false
	}
	return c.load(lin, uint8(size))
}

// memLin is the linear address of the memory operand of inst after the checks
// of segLin. RIP must be that of the next instruction.
func (c *CPU) memLin(inst *insn.Inst, size int, write bool) (lin uint64, ok bool) {
	o := op{base: noReg, index: noReg}
	lowerMem(inst, &o)
	o.amode &^= amSeg
	return c.segLin(o.seg, c.ea(&o), size, write)
}
