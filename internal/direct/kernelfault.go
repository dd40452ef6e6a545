package direct

import (
	"ring3/internal/bt"
	"ring3/internal/mmu"
	"ring3/internal/x86"
)

// pageFault maps the page at a host address if the guest may access it.
func (k *Kernel) pageFault(addr uint64, code uint32) (mapped bool, err error) {
	e, s := k.e, k.s
	g := bt.Unfold(addr)
	page := addr &^ (x86.PageSize - 1)
	if g < bt.Lowest || !s.p.outside(page) {
		return false, nil
	}
	f := fault{e.state.RIP, addr, code}
	if f == e.lastFault {
		if e.repeats++; e.repeats > maxRepeats {
			e.repeats = 0
			return false, nil
		}
	} else {
		e.lastFault, e.repeats = f, 0
	}
	var acc mmu.Access
	if code&x86.PFWrite != 0 {
		acc = mmu.Write
	}
	t, _, ok := e.walk.Walk(e.state, g, acc)
	if _, ram := e.mem.Offset(t.GPA); !ok || !ram || t.User {
		return false, nil
	}
	gpa := t.GPA &^ (x86.PageSize - 1)
	ent := entPresent | entry(gpa)
	isCode := e.isCode(gpa)
	switch {
	case acc == mmu.Write && (isCode || !t.Writable):
		return false, nil
	case t.Writable && t.Dirty && !isCode:
		ent |= entWrite
		e.mem.AllowStubWrite(gpa)
	}
	if err := e.unmapGone(s); err != nil {
		return false, err
	}
	if err := e.evict(s); err != nil {
		return false, err
	}
	if !t.Global {
		k.c.local[page>>leafShift<<leafShift] = true
	}
	first, n := k.grow(page, ent)
	return true, e.install(s, first, n, ent-entry(page-first))
}

// grow extends a mapping to what is contiguous with it in the same 2 MiB.
func (k *Kernel) grow(page uint64, ent entry) (first uint64, n int) {
	e, s := k.e, k.s
	t, ok := e.table(page)
	if !ok {
		return page, 1
	}
	fits := func(a uint64) bool {
		want := ent + entry(a-page) // wraps for a below page, as it should
		if s.get(a) != 0 || !s.p.outside(a) || !t.allows(index(a), want) ||
			(t.pte(index(a))^t.pte(index(page)))&x86.PTEGlobal != 0 {
			return false
		}
		gpa := want.gpa()
		if _, ram := e.mem.Offset(gpa); !ram || gpa>>32 != ent.gpa()>>32 {
			return false
		}
		if ent&entWrite != 0 {
			if e.isCode(gpa) {
				return false
			}
			e.mem.AllowStubWrite(gpa)
			return true
		}
		const wd = x86.PTEWrite | x86.PTEDirty
		return t.pte(index(a))&wd != wd || e.isCode(gpa)
	}
	lo := page &^ (1<<leafShift - 1)
	hi := lo + 1<<leafShift
	first, end := page, page+x86.PageSize
	for first > lo && fits(first-x86.PageSize) {
		first -= x86.PageSize
	}
	for end < hi && fits(end) {
		end += x86.PageSize
	}
	return first, int((end - first) / x86.PageSize)
}
