// Package mmu walks guest page tables as the processor does: 2-level, PAE and
// 4-level paging, large pages, permission checks with WP, SMEP, SMAP and NX,
// accessed and dirty bits (SDM vol. 3A, chapter 4).
package mmu

import (
	"sync/atomic"

	"ring3/internal/cpu"
	"ring3/internal/guestmem"
	"ring3/internal/x86"
)

// Access describes a memory access. The low bits are those of the page-fault
// error code.
type Access uint32

// Access bits.
const (
	Read  Access = 0
	Write Access = x86.PFWrite
	User  Access = x86.PFUser // made at CPL 3 and not implicitly by the processor
	Fetch Access = x86.PFFetch
	// Implicit supervisor access (descriptor tables, TSS): SMAP applies
	// whatever RFLAGS.AC says (SDM vol. 3A, section 4.6).
	Implicit Access = 1 << 30
	// Probe leaves accessed and dirty bits alone, and so never makes a
	// translation writable whose dirty bit is clear.
	Probe Access = 1 << 31
)

// Translation is the result of a walk.
type Translation struct {
	GPA      uint64 // guest-physical address of the byte asked for
	Shift    uint8  // log2 of the page size: 12, 21, 22 or 30
	Writable bool   // every entry has R/W set
	User     bool   // every entry has U/S set
	Exec     bool   // no entry has XD set (or NX is off)
	Dirty    bool   // the dirty bit is set now
	Global   bool
}

// Walker walks the page tables in a guest memory.
type Walker struct {
	Mem *guestmem.Memory
}

// level is the geometry of one paging-structure level.
type level struct {
	shift uint8
	large bool // PS may map a page here
}

var (
	levels4   = []level{{39, false}, {30, true}, {21, true}, {12, false}}
	levelsPAE = []level{{21, true}, {12, false}}
)

// Walk translates the linear address gva under the paging mode of s. On a
// fault ok is false and code is the #PF error code. With paging off, gva is
// the physical address.
func (w Walker) Walk(s *cpu.State, gva uint64, acc Access) (t Translation, code uint32, ok bool) {
	switch {
	case s.CR0&x86.CR0PG == 0:
		return Translation{GPA: gva & 0xffffffff, Shift: 12, Writable: true, User: true, Exec: true, Dirty: true}, 0, true
	case s.EFER&x86.EFERLMA != 0:
		return w.walk64(s, gva, acc, levels4, s.CR3&x86.CR3Addr, true)
	case s.CR4&x86.CR4PAE != 0:
		gva &= 0xffffffff
		pdpte := s.PDPTE[gva>>30]
		if pdpte&x86.PTEPresent == 0 {
			return t, pfCode(s, acc, false), false
		}
		return w.walk64(s, gva, acc, levelsPAE, pdpte&x86.PTEAddr, false)
	default:
		return w.walk32(s, gva&0xffffffff, acc)
	}
}

func pfCode(s *cpu.State, acc Access, present bool) uint32 {
	code := uint32(acc) & (x86.PFWrite | x86.PFUser)
	if present {
		code |= x86.PFPresent
	}
	// The I/D flag is defined only with NX or SMEP (SDM vol. 3A, 4.7).
	if acc&Fetch != 0 && (s.CR4&x86.CR4SMEP != 0 || s.EFER&x86.EFERNX != 0 && s.CR4&x86.CR4PAE != 0) {
		code |= x86.PFFetch
	}
	return code
}

// physBits is the virtual CPU's MAXPHYADDR; address bits at and above it are
// reserved in paging-structure entries.
const physBits = 46

func (w Walker) walk64(s *cpu.State, gva uint64, acc Access, lv []level, table uint64, long bool) (t Translation, code uint32, ok bool) {
	t.Writable, t.User, t.Exec = true, true, true
	reserved := uint64(0xfffff<<32) &^ (1<<physBits - 1) & (1<<52 - 1)
	if s.EFER&x86.EFERNX == 0 {
		reserved |= x86.PTENX
	}
	var path [4]*uint64
	for i, l := range lv {
		gpa := table + gva>>l.shift&0x1ff*8
		p := w.Mem.Word(gpa)
		if p == nil { // page tables outside RAM read as all ones: not present here, as real chip sets' 0xff would be a reserved-bit fault
			return t, pfCode(s, acc, true) | x86.PFRsvd, false
		}
		e := atomic.LoadUint64(p)
		if e&x86.PTEPresent == 0 {
			return t, pfCode(s, acc, false), false
		}
		path[i] = p
		leaf := l.shift == 12 || l.large && e&x86.PTELarge != 0
		bad := e & reserved
		if !leaf && l.shift == 39 || !l.large && l.shift != 12 {
			bad |= e & x86.PTELarge // PS is reserved in a PML4E
		}
		if leaf && l.shift > 12 {
			bad |= e & (1<<l.shift - 1) &^ 0x1fff // PAT is bit 12 of large pages
		}
		if !long {
			bad |= e & (0x7ff << 52) // PAE: bits 62:52 reserved
		}
		if bad != 0 {
			return t, pfCode(s, acc, true) | x86.PFRsvd, false
		}
		t.Writable = t.Writable && e&x86.PTEWrite != 0
		t.User = t.User && e&x86.PTEUser != 0
		t.Exec = t.Exec && e&x86.PTENX == 0
		if !leaf {
			table = e & x86.PTEAddr
			continue
		}
		t.Shift = l.shift
		mask := uint64(1)<<l.shift - 1
		t.GPA = e&x86.PTEAddr&^mask | gva&mask
		t.Global = e&x86.PTEGlobal != 0 && s.CR4&x86.CR4PGE != 0
		t.Dirty = e&x86.PTEDirty != 0
		if !permitted(s, &t, acc) {
			return t, pfCode(s, acc, true), false
		}
		if acc&Probe == 0 {
			for _, q := range path[:i] {
				setBits64(q, x86.PTEAccessed)
			}
			bits := uint64(x86.PTEAccessed)
			if acc&Write != 0 {
				bits |= x86.PTEDirty
				t.Dirty = true
			}
			setBits64(path[i], bits)
		} else if e&x86.PTEAccessed == 0 {
			// A translation may be cached only once its accessed bit is set.
			return t, pfCode(s, acc, false), false
		}
		return t, 0, true
	}
	panic("BUG: page walk past the last level")
}

func (w Walker) walk32(s *cpu.State, gva uint64, acc Access) (t Translation, code uint32, ok bool) {
	t.Exec = true
	pde := w.word32(s.CR3&0xfffff000 + gva>>22*4)
	if pde == nil {
		return t, pfCode(s, acc, false), false
	}
	e := atomic.LoadUint32(pde)
	if e&x86.PTEPresent == 0 {
		return t, pfCode(s, acc, false), false
	}
	t.Writable, t.User = e&x86.PTEWrite != 0, e&x86.PTEUser != 0
	leaf := pde
	if e&x86.PTELarge != 0 && s.CR4&x86.CR4PSE != 0 {
		if e&(1<<21) != 0 { // reserved in a 4 MiB page
			return t, pfCode(s, acc, true) | x86.PFRsvd, false
		}
		t.Shift = 22
		// PSE-36: bits 20:13 are address bits 39:32 (SDM vol. 3A, table 4-4).
		t.GPA = uint64(e)&0xffc00000 | uint64(e)>>13&0xff<<32 | gva&0x3fffff
	} else {
		leaf = w.word32(uint64(e)&0xfffff000 + gva>>12&0x3ff*4)
		if leaf == nil {
			return t, pfCode(s, acc, false), false
		}
		e = atomic.LoadUint32(leaf)
		if e&x86.PTEPresent == 0 {
			return t, pfCode(s, acc, false), false
		}
		t.Writable = t.Writable && e&x86.PTEWrite != 0
		t.User = t.User && e&x86.PTEUser != 0
		t.Shift = 12
		t.GPA = uint64(e)&0xfffff000 | gva&0xfff
	}
	t.Global = e&x86.PTEGlobal != 0 && s.CR4&x86.CR4PGE != 0
	t.Dirty = e&x86.PTEDirty != 0
	if !permitted(s, &t, acc) {
		return t, pfCode(s, acc, true), false
	}
	if acc&Probe != 0 {
		if e&x86.PTEAccessed == 0 {
			return t, pfCode(s, acc, false), false
		}
		return t, 0, true
	}
	setBits32(pde, x86.PTEAccessed)
	bits := uint32(x86.PTEAccessed)
	if acc&Write != 0 {
		bits |= x86.PTEDirty
		t.Dirty = true
	}
	setBits32(leaf, bits)
	return t, 0, true
}

// permitted applies the access rights of SDM vol. 3A, section 4.6.
func permitted(s *cpu.State, t *Translation, acc Access) bool {
	if acc&User != 0 {
		return t.User && (acc&Write == 0 || t.Writable) && (acc&Fetch == 0 || t.Exec)
	}
	if acc&Fetch != 0 {
		return t.Exec && !(t.User && s.CR4&x86.CR4SMEP != 0)
	}
	if t.User && s.CR4&x86.CR4SMAP != 0 && (acc&Implicit != 0 || s.RFLAGS&x86.FlagAC == 0) {
		return false
	}
	return acc&Write == 0 || t.Writable || s.CR0&x86.CR0WP == 0
}

func setBits64(p *uint64, bits uint64) {
	if atomic.LoadUint64(p)&bits != bits {
		atomic.OrUint64(p, bits)
	}
}

func setBits32(p *uint32, bits uint32) {
	if atomic.LoadUint32(p)&bits != bits {
		atomic.OrUint32(p, bits)
	}
}
