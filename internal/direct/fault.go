package direct

import (
	"errors"
	"fmt"

	"ring3/internal/direct/stub"
	"ring3/internal/guestmem"
	"ring3/internal/mmu"
	"ring3/internal/x86"
)

// fault identifies a page fault, to notice when one does not go away.
type fault struct {
	rip, cr2 uint64
	code     uint32
}

// maxRepeats is how often the same fault at the same instruction may come
// back although it was served. An instruction can touch several pages, and
// pages can be evicted in between, but not that often.
const maxRepeats = 16

// pageFault serves a host page fault of guest code: resume is true when a
// page was mapped and the guest can go on, otherwise x is the exit.
func (e *Engine) pageFault(s *space, cr2 uint64, code uint32) (x Exit, resume bool) {
	f := fault{e.state.RIP, cr2, code}
	if f == e.lastFault {
		if e.repeats++; e.repeats > maxRepeats {
			e.repeats = 0
			return Exit{Kind: ExitNeedStep}, false
		}
	} else {
		e.lastFault, e.repeats = f, 0
	}
	acc := access(code)
	t, pf, ok := e.walk.Walk(e.state, cr2, acc)
	if !ok {
		return Exit{Kind: ExitException, Vector: x86.VecPF, HasErr: true, ErrCode: pf, CR2: cr2}, false
	}
	if _, ram := e.mem.Offset(t.GPA); !ram || !s.p.outside(cr2&^(x86.PageSize-1)) {
		// A device, or a place that a process cannot map.
		return Exit{Kind: ExitNeedStep}, false
	}
	if err := e.mapFault(s, cr2&^(x86.PageSize-1), t, acc); err != nil {
		return Exit{Kind: ExitDied, Err: err}, false
	}
	e.stats.HostFaults++
	return Exit{}, true
}

// mapFault maps the page at gva, whose translation for the access acc is t,
// and present neighbours that fit.
func (e *Engine) mapFault(s *space, gva uint64, t mmu.Translation, acc mmu.Access) error {
	if e.sites.beside(gva) {
		if err := e.dropSites(); err != nil {
			return err
		}
	}
	gpa := t.GPA &^ (x86.PageSize - 1)
	old := s.get(gva)
	ent := entPresent | entry(gpa)
	again := e.scanned(gpa)
	switch {
	case acc&mmu.Fetch != 0:
		ent |= entExec
		if both, err := e.prepareExec(gva, gpa); err != nil {
			return err
		} else if both {
			ent |= entWXBoth
			if t.Writable && t.Dirty {
				ent |= entWrite
			}
		} else if e.private(gpa) {
			ent |= entPrivate
		}
	case acc&mmu.Write != 0:
		ent |= entWrite
		if e.prepareWrite(gpa) {
			ent |= entWXBoth
			if t.Exec {
				ent |= entExec
			}
		}
	case t.Writable && t.Dirty && e.mem.Flags(gpa)&guestmem.PageCode == 0:
		ent |= entWrite
		e.mem.AllowStubWrite(gpa)
	case t.Exec && e.scanned(gpa) && e.mem.Flags(gpa)&guestmem.PageCode != 0:
		// Text that another process runs already.
		ent |= entExec
		if e.private(gpa) {
			ent |= entPrivate
		}
	}
	if old != 0 {
		e.stats.Upgrades++
	}
	if ent&entPrivate != 0 {
		if err := e.mapJumps(s, gva, gpa); err != nil {
			return err
		}
	}
	// Preparing may have dropped mappings, of this very page too.
	if err := e.unmapGone(s); err != nil {
		return err
	}
	if err := e.evict(s); err != nil {
		return err
	}
	first, n := gva, 1
	if ent&(entPrivate|entWXBoth) == 0 && !e.cfg.NoEager {
		first, n = e.grow(s, gva, ent)
	}
	if err := e.install(s, first, n, ent-entry(gva-first)); err != nil {
		return err
	}
	if acc&mmu.Fetch != 0 && again && !e.cfg.NoEager {
		return e.mapText(s, gva)
	}
	return nil
}

// mapText maps what else can be executed in the window of the page at gva, which
// was executed before: by another process, most likely, which this one takes
// after.
func (e *Engine) mapText(s *space, gva uint64) error {
	t, ok := e.table(gva)
	if !ok {
		return nil
	}
	lo := gva &^ (eagerPages*x86.PageSize - 1)
	first, n, start := uint64(0), 0, entry(0)
	flush := func() error {
		if n == 0 {
			return nil
		}
		// What judging the pages has dropped goes first: it may be mapped now.
		if err := e.unmapGone(s); err != nil {
			return err
		}
		m := n
		n = 0
		return e.install(s, first, m, start)
	}
	for a := lo; a < lo+eagerPages*x86.PageSize && s.maps+4 < e.cfg.MaxMaps; a += x86.PageSize {
		ent, err := e.text(s, a, &t)
		if err != nil {
			return err
		}
		if n != 0 && ent == start+entry(a-first) {
			n++
			continue
		}
		if err := flush(); err != nil {
			return err
		}
		if ent != 0 {
			first, n, start = a, 1, ent
		}
	}
	return errors.Join(flush(), e.unmapGone(s))
}

// text is the entry for executing the page at gva, 0 if it cannot be mapped
// along.
func (e *Engine) text(s *space, gva uint64, t *table) (entry, error) {
	ent := entPresent | entExec | entry(t.pte(index(gva))&x86.PTEAddr)
	gpa := ent.gpa()
	if _, ram := e.mem.Offset(gpa); !ram || s.get(gva) != 0 || !s.p.outside(gva) || !t.allows(index(gva), ent) ||
		e.mem.Flags(gpa)&guestmem.PageStubWrite != 0 && e.hasMapping(gpa, entWrite) {
		return 0, nil
	}
	if !e.scanned(gpa) {
		e.mem.MarkCode(gpa) // first, so that changes of what is found out are told
		if err := e.scan(gva, gpa, -1); err != nil {
			return 0, err
		}
	}
	switch {
	case e.mem.Flags(gpa)&guestmem.PageCode == 0:
		return 0, nil
	case e.private(gpa):
		return ent | entPrivate, e.mapJumps(s, gva, gpa)
	}
	return ent, nil
}

// grow extends the page at gva, to be mapped as ent, by neighbours in its
// window that the page tables allow with the same rights, that are contiguous
// in RAM and not mapped yet.
func (e *Engine) grow(s *space, gva uint64, ent entry) (first uint64, n int) {
	t, ok := e.table(gva)
	if !ok {
		return gva, 1
	}
	fits := func(a uint64) bool {
		want := ent + entry(a-gva) // wraps for a below gva, as it should
		if s.get(a) != 0 || !s.p.outside(a) || !t.allows(index(a), want) {
			return false
		}
		gpa := want.gpa()
		if _, ram := e.mem.Offset(gpa); !ram || gpa/(guestmem.HoleEnd) != ent.gpa()/guestmem.HoleEnd {
			return false
		}
		pte := t.pte(index(a))
		switch {
		case ent&entExec != 0:
			if !e.clean(a, gpa) {
				return false
			}
			e.mem.MarkCode(gpa)
		case ent&entWrite != 0:
			// Pages that hold code stay so until they are written to.
			if e.mem.Flags(gpa)&guestmem.PageCode != 0 {
				return false
			}
			e.mem.AllowStubWrite(gpa)
		default:
			// One that would be mapped writable by itself waits for that.
			if pte&(x86.PTEWrite|x86.PTEDirty) == x86.PTEWrite|x86.PTEDirty {
				return false
			}
		}
		return true
	}
	lo := gva &^ (eagerPages*x86.PageSize - 1)
	hi := lo + eagerPages*x86.PageSize
	first, end := gva, gva+x86.PageSize
	for first > lo && fits(first-x86.PageSize) {
		first -= x86.PageSize
	}
	for end < hi && fits(end) {
		end += x86.PageSize
	}
	return first, int((end - first) / x86.PageSize)
}

// eagerPages is the size of the aligned window around a fault in which
// neighbours are mapped along.
const eagerPages = 16

// install maps n pages from gva on, the first as ent, the others contiguous
// with it.
func (e *Engine) install(s *space, gva uint64, n int, ent entry) error {
	prot := protRead
	if ent&entWrite != 0 {
		prot |= protWrite
	}
	if ent&entExec != 0 {
		prot |= protExec
	}
	fd := stub.FDRAM
	off, ok := e.mem.Offset(ent.gpa())
	if !ok {
		return fmt.Errorf("BUG: mapping %#x outside RAM", ent.gpa())
	}
	if ent&entPrivate != 0 {
		fd = stub.FDCode
	}
	for i := range n {
		d := uint64(i) * x86.PageSize
		e.set(s, gva+d, ent+entry(d))
	}
	e.stats.PagesMapped += uint64(n)
	return s.p.mmap(gva, uint64(n)*x86.PageSize, prot, fd, off)
}

const (
	protRead  = 1
	protWrite = 2
	protExec  = 4
)

// evict bounds what a stub has mapped, by host mappings, by pages and by
// leaves: a guest can map its RAM at any number of places, and the books of
// that are memory of the monitor. It drops about half, 2 MiB at a time in
// random order.
func (e *Engine) evict(s *space) error {
	// Growing a mapping adds at most two; unmapping can split one.
	if s.maps+4 < e.cfg.MaxMaps && s.pages < e.maxPages && len(s.leaves) < e.maxLeaves {
		return nil
	}
	e.stats.Evictions++
	for _, l := range s.leaves { // Go iterates over maps in random order
		for i := 0; i < len(l.entries) && l.n > 0; i++ {
			if l.entries[i] != 0 {
				e.drop(s, l.base+uint64(i)*x86.PageSize)
			}
		}
		if s.maps < e.cfg.MaxMaps/2 && s.pages < e.maxPages/2 && len(s.leaves) < e.maxLeaves/2 {
			break
		}
	}
	return e.unmapGone(s)
}

// MapHint tells that an access to gva faulted with this error code and that the
// guest kernel is going to mend it: when it is allowed at the next Run, the page
// is mapped then, without a second host fault.
func (e *Engine) MapHint(gva uint64, code uint32) {
	e.hint, e.hintFor, e.hasHint = gva, access(code), true
	e.sites.near = e.sites.near || e.sites.beside(gva)
}

// access is what was tried, by the error code of a page fault in user code.
func access(code uint32) mmu.Access {
	acc := mmu.User
	if code&x86.PFWrite != 0 {
		acc |= mmu.Write
	}
	if code&x86.PFFetch != 0 {
		acc |= mmu.Fetch
	}
	return acc
}

// followHint maps the hinted page if the page tables now allow the access, which
// is going to be tried again.
func (e *Engine) followHint(s *space) error {
	if !e.hasHint {
		return nil
	}
	e.hasHint = false
	gva := e.hint &^ (x86.PageSize - 1)
	acc := e.hintFor
	if !s.p.outside(gva) || s.get(gva).serves(acc) {
		return nil
	}
	t, _, ok := e.walk.Walk(e.state, gva, acc)
	if _, ram := e.mem.Offset(t.GPA); !ok || !ram {
		return nil
	}
	e.stats.Hints++
	return e.mapFault(s, gva, t, acc)
}
