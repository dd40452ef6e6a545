package direct

import (
	"errors"
	"slices"
	"sync/atomic"

	"ring3/internal/bt"
	"ring3/internal/x86"
)

// FlushKind says which cached translations the guest invalidated
// (SDM vol. 3A, section 4.10.4).
type FlushKind uint8

// Flush kinds.
const (
	FlushAll       FlushKind = iota // everything, global translations included
	FlushNonGlobal                  // everything but global translations
	FlushPCID                       // the non-global translations of one PCID
	FlushPage                       // one linear address in one PCID (INVLPG)
)

// Flush is one invalidation.
type Flush struct {
	Kind FlushKind
	PCID uint16
	Addr uint64
}

// Flush tells the engine that the guest invalidated translations. It only
// marks; revalidation waits until the address space runs again.
func (e *Engine) Flush(f Flush) {
	e.stats.Flushes++
	if f.Kind == FlushPage && f.Addr >= userTop {
		return // nothing there is ever mapped in a stub
	}
	e.settle()
	for _, s := range e.spaces {
		switch {
		case f.Kind <= FlushNonGlobal:
			s.stale = true
		case s.pcid != f.PCID:
		case f.Kind == FlushPCID || len(s.stalePages) >= maxStalePages:
			s.stale = true
		default:
			s.stalePages = append(s.stalePages, f.Addr&^(x86.PageSize-1))
		}
	}
}

// settle makes sure that the stub that ran last is stopped as it says: from
// here on the guest kernel may use memory for something else that the stub
// has mapped. A liar is killed at once; the next Run in its address space
// reports that.
func (e *Engine) settle() {
	s := e.cur
	if s == nil || s.p.unproven == 0 && !s.p.waits {
		return
	}
	if err := errors.Join(s.p.park(), s.p.prove()); err != nil {
		e.lie = e.died(s, err)
		e.lieKey, e.lied = s.key, true
	}
}

// freshen compares what is mapped with the page tables, as far as flushes
// demand it. The guest's page tables are those of the current CR3.
func (e *Engine) freshen(s *space) {
	if pcid := e.pcid(); s.pcid != pcid {
		// Entries made under one PCID are nothing that the processor could
		// have cached under another.
		s.pcid, s.stale = pcid, true
	}
	if s.stale {
		e.stats.Revalidations++
		for _, l := range s.leaves {
			e.checkLeaf(s, l)
		}
		s.stale = false
	} else {
		for _, gva := range s.stalePages {
			if l := s.leaf(gva); l != nil && l.entries[index(gva)] != 0 {
				e.stats.PageChecks++
				t, ok := e.table(gva)
				e.check(s, gva, l.entries[index(gva)], &t, ok)
			}
		}
	}
	s.stalePages = s.stalePages[:0]
}

// checkLeaf drops the entries that the page tables no longer justify.
func (e *Engine) checkLeaf(s *space, l *leaf) {
	t, ok := e.table(l.base)
	for i, left := 0, l.n; left > 0; i++ {
		ent := l.entries[i]
		if ent == 0 {
			continue
		}
		left--
		e.stats.PagesChecked++
		e.check(s, l.base+uint64(i)*x86.PageSize, ent, &t, ok)
	}
}

// check takes from a mapping what its page table t, if ok, does not justify any
// more. A process that forks loses the right to write only.
func (e *Engine) check(s *space, gva uint64, ent entry, t *table, ok bool) {
	switch i := index(gva); {
	case ok && t.allows(i, ent):
	case ok && ent&(entWrite|entExec) == entWrite && t.allows(i, ent&^entWrite):
		e.weaken(s, gva, ent)
	default:
		e.drop(s, gva)
	}
}

// table is the guest's translation of 2 MiB of its address space: either a
// large page or a page table, with the rights of the levels above.
type table struct {
	need   uint64 // PTE bits that every entry must have
	rights uint64 // PTE bits R/W, U/S set when all upper levels have them; NX set when any has
	large  uint64 // the entry of a large page (as if of 2 MiB); 0: ptes
	ptes   *[512]uint64
}

// table walks the upper levels for the 2 MiB at gva. Entries that would fault
// for any reason give ok false.
func (e *Engine) table(gva uint64) (t table, ok bool) {
	t.rights = x86.PTEWrite | x86.PTEUser
	t.need = x86.PTEPresent | x86.PTEUser | x86.PTEAccessed
	if e.cfg.kernel {
		t.need &^= x86.PTEUser
		gva = bt.Unfold(gva)
	}
	next := e.pml4()
	for shift := 39; shift >= 21; shift -= 9 {
		w := e.mem.Word(next + gva>>shift&511*8)
		if w == nil {
			return t, false
		}
		v := atomic.LoadUint64(w)
		if v&t.need != t.need {
			return t, false
		}
		t.rights = t.rights&v | (t.rights|v)&x86.PTENX
		if v&x86.PTELarge != 0 {
			if shift == 39 {
				return t, false
			}
			mask := uint64(1)<<shift - 1
			t.large = v&^(mask&x86.PTEAddr) | gva&mask&^(1<<21-1)
			return t, v&mask&^0x1fff == 0 // no reserved bits; bit 12 is PAT
		}
		next = v & x86.PTEAddr
	}
	t.ptes = e.ptes(next)
	return t, t.ptes != nil
}

// pte is the entry of page i of the 2 MiB, with the rights of all levels, or
// 0 when it faults or was never accessed.
func (t *table) pte(i int) uint64 {
	v := t.large
	if v != 0 {
		v += uint64(i) * x86.PageSize
	} else {
		v = atomic.LoadUint64(&t.ptes[i])
	}
	if v&t.need != t.need || v&(0x3f<<46) != 0 { // address bits above MAXPHYADDR
		return 0
	}
	if t.need&x86.PTEUser == 0 && v&t.rights&x86.PTEUser != 0 {
		return 0 // the kernel's own accesses to user pages are interpreted
	}
	return v&^(x86.PTEWrite|x86.PTENX) | v&t.rights&x86.PTEWrite | (v|t.rights)&x86.PTENX
}

// allows reports whether the page tables still justify a mapping. Linux does
// not flush when it clears an accessed bit, but after a flush the next access
// must set it again, so an entry whose bit is clear goes too.
func (t *table) allows(i int, ent entry) bool {
	v := t.pte(i)
	switch {
	case v == 0 || v&x86.PTEAddr != ent.gpa():
		return false
	case ent&entWrite != 0 && v&(x86.PTEWrite|x86.PTEDirty) != x86.PTEWrite|x86.PTEDirty:
		return false
	case ent&entExec != 0 && v&x86.PTENX != 0:
		return false
	}
	return true
}

// unmapGone stages the unmapping of everything dropped, and the protection of
// everything weakened, adjacent pages in one call. What was weakened and then
// dropped is unmapped last.
func (e *Engine) unmapGone(s *space) error {
	if len(s.gone)+len(s.weak) == 0 {
		return nil
	}
	err := errors.Join(runs(s.weak, func(gva, size uint64) error { return s.p.mprotect(gva, size, protRead) }),
		runs(s.gone, s.p.munmap))
	s.gone, s.weak = s.gone[:0], s.weak[:0]
	return err
}

// runs calls do for each run of adjacent pages, which it sorts.
func runs(pages []uint64, do func(gva, size uint64) error) error {
	slices.Sort(pages)
	for i := 0; i < len(pages); {
		j := i + 1
		for j < len(pages) && pages[j]-pages[j-1] <= x86.PageSize {
			j++
		}
		if err := do(pages[i], pages[j-1]-pages[i]+x86.PageSize); err != nil {
			return err
		}
		i = j
	}
	return nil
}
