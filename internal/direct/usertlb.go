package direct

import (
	"encoding/binary"

	"ring3/internal/bt"
	"ring3/internal/guestmem"
	"ring3/internal/mmu"
	"ring3/internal/x86"
)

// The kernel's stub has all RAM mapped once more, below where anything folds
// to, for what the user TLB of translated code finds. The guest's own paging
// decides what is entered there; an access of guest code to the window itself,
// at an address that Linux maps nothing at, is not checked.
const (
	window    = 32 << 30
	windowMax = 28 << 30
	flagsAt   = window + windowMax // the page flags, read-only
)

// userMiss identifies misses in a row of one instruction, to notice when they
// do not go away: those of accesses that cross a page, which never hit, and of
// MOVS with two pages that take the same entry.
type userMiss struct {
	rip  uint64
	ea   [2]uint64 // the last two
	stop uint64    // number of the stop
}

// setAC sets RFLAGS.AC.
func (k *Kernel) setAC(ac bool) {
	st := k.e.state
	st.RFLAGS &^= x86.FlagAC
	if ac {
		st.RFLAGS |= x86.FlagAC
	}
}

// modeBits is what of the control registers translations and the user TLB
// depend on.
func (k *Kernel) modeBits() uint64 { return k.e.state.CR0&x86.CR0WP<<32 | k.e.state.CR4 }

// setMode takes over modeBits. The stub must be stopped.
func (k *Kernel) setMode() {
	if k.modeBits() == k.mode {
		return
	}
	st := k.e.state
	k.mode = k.modeBits()
	k.pair.forget()
	k.c.clearUser()
	fsgsbase, smap := st.CR4&x86.CR4FSGSBASE != 0, st.CR4&x86.CR4SMAP != 0
	if fsgsbase != k.c.h.FSGSBase || smap != k.c.h.SMAP {
		k.c.h.FSGSBase, k.c.h.SMAP = fsgsbase, smap
		k.stats.ModeFlushes++
		k.c.flush()
	}
}

// userMiss enters the page of an address in the user TLB. It reports whether
// the access can be tried again; else it must be interpreted.
func (k *Kernel) userMiss(ea uint64, write bool) bool {
	e, st, m := k.e, k.e.state, &k.missed
	k.stats.UserMisses++
	stop := k.stats.Exits + k.stats.Faults
	if m.rip == st.RIP && m.stop+1 == stop && (ea == m.ea[0] || ea == m.ea[1]) {
		m.rip = 0
		return false
	}
	if m.rip != st.RIP || m.stop+1 != stop {
		*m = userMiss{rip: st.RIP, ea: [2]uint64{^ea, ^ea}}
	}
	m.ea[0], m.ea[1], m.stop = ea, m.ea[0], stop
	page := ea &^ (x86.PageSize - 1)
	if ea >= bt.Lowest {
		// The kernel's own memory is mapped by page faults as always.
		k.c.setUser(page, k.salts.of(st.CR3), bt.Delta, true)
		return true
	}
	if ea >= 1<<47 {
		return false
	}
	acc := mmu.Read
	if write {
		acc = mmu.Write
	}
	t, _, ok := e.walk.Walk(st, ea, acc)
	if !ok {
		return false
	}
	gpa := t.GPA &^ (x86.PageSize - 1)
	off, ram := e.mem.Offset(gpa)
	writable := t.Writable && t.Dirty && e.mem.Flags(gpa)&guestmem.PageCode == 0
	if !ram || write && !writable {
		return false
	}
	if writable {
		e.mem.AllowStubWrite(gpa)
	}
	k.c.setUser(page, k.salts.of(st.CR3), window+off-page, writable)
	return true
}

// setUser makes an entry of the user TLB. The stub must be stopped.
func (c *codeCache) setUser(page, salt, delta uint64, write bool) {
	b := c.user[8*int(page/x86.PageSize%bt.UserTLBSize):]
	tag, wtag := -(page/x86.PageSize)-salt, uint64(bt.EmptyUser)
	if write {
		wtag = tag
	}
	binary.LittleEndian.PutUint64(b, tag)
	binary.LittleEndian.PutUint64(b[8*bt.UserTLBSize:], wtag)
	binary.LittleEndian.PutUint64(b[16*bt.UserTLBSize:], delta)
	c.userUsed = true
}

// dropUser empties the entry that a page has in whatever address space.
func (c *codeCache) dropUser(addr uint64) {
	if c.user == nil {
		return
	}
	b := c.user[8*int(addr/x86.PageSize%bt.UserTLBSize):]
	binary.LittleEndian.PutUint64(b, bt.EmptyUser)
	binary.LittleEndian.PutUint64(b[8*bt.UserTLBSize:], bt.EmptyUser)
}

// clearUser empties the user TLB. The stub must be stopped, or waiting.
func (c *codeCache) clearUser() {
	if !c.userUsed || c.user == nil {
		return
	}
	c.userUsed = false
	for i := range 2 * bt.UserTLBSize {
		binary.LittleEndian.PutUint64(c.user[8*i:], bt.EmptyUser)
	}
}
