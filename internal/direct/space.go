package direct

import (
	"ring3/internal/mmu"
	"ring3/internal/x86"
)

// space is one guest address space: what its stub has mapped.
type space struct {
	key    uint64 // address of the PML4
	id     uint32 // index in Engine.byID
	p      *proc
	pcid   uint16 // that it last ran under
	used   uint64 // Engine.clock of the last Run
	leaves map[uint64]*leaf
	recent *leaf // of the last look-up
	maps   int   // host mappings, counting neighbours that merge as one
	pages  int

	stale      bool     // everything must be compared with the page tables
	stalePages []uint64 // only these pages; at most maxStalePages
	// gone are pages that have no entry any more but are still mapped: the
	// stub must unmap them before it runs.
	gone []uint64
	// weak are pages that have lost the right to be written, likewise.
	weak []uint64

	cpuids []uint64 // what the stub knows of; see cpuid.go
}

const maxStalePages = 32

// leaf holds the entries of 2 MiB of address space: what one last-level page
// table covers.
type leaf struct {
	base    uint64
	n       int // entries present
	entries [512]entry
}

// entry is one page that a stub has mapped: the guest-physical page and flag
// bits below it; 0 when nothing is mapped.
type entry uint64

const (
	entPresent entry = 1 << 0
	entWrite   entry = 1 << 1
	entExec    entry = 1 << 2
	entPrivate entry = 1 << 3 // the private copy is mapped, not RAM
	entWXBoth  entry = 1 << 4 // writable and executable, unscanned

	entAddr entry = 0x000ffffffffff000
)

func (e entry) gpa() uint64 { return uint64(e & entAddr) }

// serves reports whether the mapping is enough for an access.
func (e entry) serves(acc mmu.Access) bool {
	return e != 0 && (acc&mmu.Write == 0 || e&entWrite != 0) && (acc&mmu.Fetch == 0 || e&entExec != 0)
}

// hasNode reports whether the reverse map knows the entry.
func (e entry) hasNode() bool { return e&(entWrite|entExec) != 0 }

// merges reports whether the host kernel keeps a and b, which is mapped right
// behind a, as one mapping: same rights, contiguous in the same file. (RAM is
// not contiguous in the memfd around the hole below 4 GiB, so neither in
// guest-physical addresses.)
func merges(a, b entry) bool {
	const rights = entPresent | entWrite | entExec | entPrivate | entWXBoth
	return a&entPresent != 0 && a&entPrivate == 0 && a&rights == b&rights && a.gpa()+x86.PageSize == b.gpa()
}

const leafShift = 21

func (s *space) leaf(gva uint64) *leaf {
	base := gva >> leafShift << leafShift
	if l := s.recent; l != nil && l.base == base {
		return l
	}
	l := s.leaves[base]
	if l != nil {
		s.recent = l
	}
	return l
}

func index(gva uint64) int { return int(gva >> 12 & 511) }

func (s *space) get(gva uint64) entry {
	if l := s.leaf(gva); l != nil {
		return l.entries[index(gva)]
	}
	return 0
}

// set replaces the entry of a page and keeps the books: counts, reverse map.
// It does not make the stub do anything.
func (e *Engine) set(s *space, gva uint64, ent entry) {
	l := s.leaf(gva)
	if l == nil {
		if ent == 0 {
			return
		}
		l = &leaf{base: gva >> leafShift << leafShift}
		s.leaves[l.base] = l
		s.recent = l
	}
	i := index(gva)
	old := l.entries[i]
	if old == ent {
		return
	}
	var before, after entry
	if i > 0 {
		before = l.entries[i-1]
	} else {
		before = s.get(gva - x86.PageSize)
	}
	if i < 511 {
		after = l.entries[i+1]
	} else {
		after = s.get(gva + x86.PageSize)
	}
	s.maps += mapsOf(before, ent, after) - mapsOf(before, old, after)
	l.entries[i] = ent
	if old == 0 {
		l.n++
		s.pages++
	}
	if ent == 0 {
		l.n--
		s.pages--
		if l.n == 0 {
			delete(s.leaves, l.base)
			if s.recent == l {
				s.recent = nil
			}
		}
	}
	if old.hasNode() && (!ent.hasNode() || ent.gpa() != old.gpa()) {
		e.rmap.remove(e.mem, old.gpa(), s.id, gva)
	}
	if ent.hasNode() && (!old.hasNode() || ent.gpa() != old.gpa()) {
		e.rmap.add(e.mem, ent.gpa(), s.id, gva)
	}
	if (old|ent)&entPrivate != 0 {
		e.listCPUIDs(s, gva, ent)
	}
}

// mapsOf is the number of mappings that the page x adds between its
// neighbours a and b.
func mapsOf(a, x, b entry) int {
	if x == 0 {
		return 0
	}
	n := 1
	if merges(a, x) {
		n--
	}
	if merges(x, b) {
		n--
	}
	return n
}

// drop forgets a page; the stub unmaps it before it next runs.
func (e *Engine) drop(s *space, gva uint64) {
	if s.get(gva) == 0 {
		return
	}
	e.stats.PagesDropped++
	e.set(s, gva, 0)
	s.gone = append(s.gone, gva)
}

// weaken takes the right to write away from a page.
func (e *Engine) weaken(s *space, gva uint64, ent entry) {
	e.stats.PagesWeakened++
	e.set(s, gva, ent&^entWrite)
	s.weak = append(s.weak, gva)
}
