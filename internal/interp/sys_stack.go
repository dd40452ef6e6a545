package interp

import (
	"ring3/internal/cpu"
	"ring3/internal/x86"
)

// stack is a stack being filled or emptied by an instruction that may still
// fault: RSP is changed only when the instruction is sure to complete.
type stack struct {
	c    *CPU
	seg  cpu.Segment
	sp   uint64
	mask uint64 // of the stack pointer: 16, 32 or 64 bits
	flat bool   // 64-bit mode: no base, no limit
	cpl  uint8  // privilege of the accesses
	// err is the error code of #SS when an access leaves the segment.
	err uint32
}

// stackMask is the range of the stack pointer for a stack segment.
func stackMask(ss *cpu.Segment, code64 bool) uint64 {
	switch {
	case code64:
		return ^uint64(0)
	case ss.Attr&cpu.AttrDB != 0:
		return 0xffffffff
	}
	return 0xffff
}

// currentStack is the stack in use.
func (c *CPU) currentStack() stack {
	c64 := c.Code64()
	return stack{
		c: c, seg: c.Seg[x86.SS], sp: c.GPR[x86.RSP],
		mask: stackMask(&c.Seg[x86.SS], c64), flat: c64, cpl: c.CPL,
	}
}

// inner is a stack that a transfer to privilege cpl switches to.
func (c *CPU) inner(ss cpu.Segment, sp uint64, code64 bool, cpl uint8, err uint32) stack {
	return stack{c: c, seg: ss, sp: sp, mask: stackMask(&ss, code64), flat: code64, cpl: cpl, err: err}
}

// lin checks size bytes at sp and returns their linear address.
func (s *stack) lin(sp uint64, size int) (uint64, bool) {
	sp &= s.mask
	if s.flat {
		if !x86.Canonical(sp) || !x86.Canonical(sp+uint64(size)-1) {
			return 0, s.c.raise(x86.VecSS, s.err)
		}
		return sp, true
	}
	if s.seg.Unusable {
		return 0, s.c.raise(x86.VecSS, s.err)
	}
	last := sp + uint64(size) - 1
	limit := uint64(s.seg.Limit)
	if s.seg.Attr&cpu.AttrDown != 0 && s.seg.Attr&cpu.AttrCode == 0 {
		top := uint64(0xffff)
		if s.seg.Attr&cpu.AttrDB != 0 {
			top = 0xffffffff
		}
		if sp <= limit || last > top {
			return 0, s.c.raise(x86.VecSS, s.err)
		}
	} else if last > limit {
		return 0, s.c.raise(x86.VecSS, s.err)
	}
	return s.c.wrap(s.seg.Base + sp), true
}

func (s *stack) push(v uint64, size int) bool {
	sp := s.sp - uint64(size)
	lin, ok := s.lin(sp, size)
	if !ok {
		return false
	}
	// Pushes on the stack of another privilege are made with that privilege
	// (SDM vol. 3A, section 4.6.1).
	if s.cpl == s.c.CPL {
		ok = s.c.writeLin(lin, size, v)
	} else {
		ok = s.c.writeSys(lin, size, v)
	}
	if ok {
		s.sp = s.sp&^s.mask | sp&s.mask
	}
	return ok
}

func (s *stack) pop(size int) (uint64, bool) {
	lin, ok := s.lin(s.sp, size)
	if !ok {
		return 0, false
	}
	v, ok := s.c.readLin(lin, size)
	if ok {
		s.sp = s.sp&^s.mask | (s.sp+uint64(size))&s.mask
	}
	return v, ok
}

// skip drops n bytes, as RET n does.
func (s *stack) skip(n uint64) { s.sp = s.sp&^s.mask | (s.sp+n)&s.mask }

// room checks that n bytes can be pushed, before anything is.
func (s *stack) room(n int) bool {
	if s.flat {
		_, ok := s.lin(s.sp-uint64(n), n)
		return ok
	}
	// A stack may wrap around at the end of its segment, but no item may
	// straddle it: the pushes themselves check the rest.
	_, ok := s.lin(s.sp-uint64(n), 1)
	return ok
}

// commit makes s the stack in use.
func (s *stack) commit() {
	c := s.c
	c.Seg[x86.SS] = s.seg
	switch s.mask {
	case 0xffff:
		c.GPR[x86.RSP] = c.GPR[x86.RSP]&^0xffff | s.sp&0xffff
	case 0xffffffff:
		c.GPR[x86.RSP] = s.sp & 0xffffffff
	default:
		c.GPR[x86.RSP] = s.sp
	}
}

// outerSP sets the stack pointer popped by a return to another stack.
func (c *CPU) outerSP(sp uint64, ss *cpu.Segment, code64 bool) {
	switch stackMask(ss, code64) {
	case 0xffff:
		c.GPR[x86.RSP] = c.GPR[x86.RSP]&0xffff0000 | sp&0xffff
	case 0xffffffff:
		c.GPR[x86.RSP] = sp & 0xffffffff
	default:
		c.GPR[x86.RSP] = sp
	}
}

// tssStack reads the stack of privilege level cpl from a 16- or 32-bit TSS
// (SDM vol. 3A, sections 7.2.1 and 7.6) and checks the segment.
func (c *CPU) tssStack(cpl uint8, ext uint32) (ss cpu.Segment, sp uint64, ok bool) {
	ptr, off, size := uint64(cpl)*8+4, uint64(4), 4
	if c.TR.Attr&0xf == sysTSS16Busy || c.TR.Attr&0xf == sysTSS16Avail {
		ptr, off, size = uint64(cpl)*4+2, 2, 2
	}
	if ptr+off+1 > uint64(c.TR.Limit) {
		return ss, 0, c.raise(x86.VecTS, errSel(c.TR.Sel, ext))
	}
	if sp, ok = c.readSys(c.wrap(c.TR.Base+ptr), size); !ok {
		return ss, 0, false
	}
	sel, ok := c.readSys(c.wrap(c.TR.Base+ptr+off), 2)
	if !ok {
		return ss, 0, false
	}
	ss, ok = c.checkSS(uint16(sel), cpl, x86.VecTS, ext, false)
	return ss, sp, ok
}

// tssStack64 reads stack pointer number n of a 64-bit TSS: 0 to 2 are RSP0 to
// RSP2, ist1 and up the interrupt stacks (SDM vol. 3A, section 7.7).
func (c *CPU) tssStack64(n uint8, ext uint32) (sp uint64, ok bool) {
	off := uint64(n)*8 + 4
	if off+7 > uint64(c.TR.Limit) {
		return 0, c.raise(x86.VecTS, errSel(c.TR.Sel, ext))
	}
	if sp, ok = c.readSys(c.TR.Base+off, 8); !ok {
		return 0, false
	}
	if !x86.Canonical(sp) {
		return 0, c.raise(x86.VecSS, ext)
	}
	return sp, true
}

// ist1 is the number of the first interrupt stack for tssStack64.
const ist1 = 4
