package direct

import (
	"fmt"
	"slices"
	"sync/atomic"

	"golang.org/x/sys/unix"

	"ring3/internal/bt"
	"ring3/internal/direct/stub"
	"ring3/internal/guestmem"
	"ring3/internal/mmu"
	"ring3/internal/x86"
	"ring3/internal/x86/insn"
)

// Layout of the translation cache, a memfd that the stub maps for execution
// and the monitor for writing: the jump table and the user TLB (package bt), then code.
const (
	cacheSize = 64 << 20
	cacheOff  = 2 << 20 // from the base of the stub area
	jumpsOff  = 0
	codeOff   = 16 * bt.TableSize
)

// cached is a translation in the cache.
type cached struct {
	*bt.Block
	host uint64
	gpa  uint64
	gpa2 uint64 // page of the rest of an instruction that crosses, 0 none
	dead bool
	// The exits of other blocks that jump here.
	from []exitRef
	size int   // of the code
	unit *Unit // see kernelverify.go
}

// overlaps reports whether the block depends on any of the n bytes at gpa,
// which lie in one page. A block that ends at an instruction that it left out
// depends on the bytes of that one too.
func (b *cached) overlaps(gpa, n uint64) bool {
	return b.gpa2 != 0 && gpa&^(x86.PageSize-1) == b.gpa2 && gpa < b.gpa2+insn.MaxLen ||
		b.gpa < gpa+n && gpa < b.gpa+b.Len+insn.MaxLen
}

// exitRef is an exit by number.
type exitRef struct {
	b *cached
	i int
}

// codeCache holds all translations.
type codeCache struct {
	mem      []byte
	base     uint64 // host address in the stub
	used     uint32
	h        bt.Host
	lookup   *cached // and lookupAC: for indirect branches
	lookupAC *cached
	blocks   map[uint64]*cached   // by bt.Key
	pages    map[uint64][]*cached // by guest-physical page
	va       map[uint64]codePlace // by page of RIP
	order    []*cached            // by host address
	exits    []exitRef
	slow     map[uint64]bool                  // instructions that access user memory
	page     [x86.PageSize + insn.MaxLen]byte // what is being translated

	// What flushes left to compare: everything, or what is not global; and
	// the 2 MiB of the stub's addresses with mappings that are not global.
	stale, staleLocal bool
	local             map[uint64]bool
	vaLocal           map[uint64]bool // pages of va that are not global
	user              []byte          // the user TLB, which the stub fills too
	userUsed          bool            // the user TLB is not empty
}

// codePlace is what a page of code was translated from.
type codePlace struct {
	gpa    uint64
	global bool
}

func (c *codeCache) init(mem []byte) {
	c.mem = mem
	c.slow, c.local = map[uint64]bool{}, map[uint64]bool{}
}

func (c *codeCache) close() error { return unix.Munmap(c.mem) }

// place sets the addresses and empties the cache.
func (c *codeCache) place(area uint64, p *stub.Program, slot []byte) {
	c.user = slot[stub.SlotUserTLB:][:24*bt.UserTLBSize]
	c.base = area + cacheOff
	control := uint32(area)
	c.h = bt.Host{
		ExitID:  control + stub.ExitIDOff,
		Scratch: control + stub.ScratchOff,
		IF:      control + stub.IFOff,
		Want:    control + stub.WantOff,
		Mask:    control + stub.MaskOff,
		TSCAux:  control + stub.TSCAuxOff,
		PopMask: control + stub.PopMaskOff,
		IFMask:  control + stub.IFMaskOff,
		Upper:   control + stub.UpperOff,
		CR:      control + stub.CROff,
		Sel:     control + stub.GSelOff,
		FS:      control + stub.GFSOff,
		GS:      control + stub.GGSOff,
		Kernel:  control + stub.GKernelOff,
		Exit:    p.Exit,
		Sysret:  p.Sysret,
		Iret:    p.Iret,
		SetCR3:  p.SetCR3,
		SaveX:   p.SaveX,
		CheckX:  p.CheckX,
		LoadX:   p.LoadX,
		Invlpg:  p.Invlpg,
		Frame:   control + stub.FrameOff,

		Jumps:  uint32(c.base + jumpsOff),
		Lookup: c.base + codeOff,

		UserRead:  control + stub.UserTLBOff,
		UserWrite: control + stub.UserTLBOff + 8*bt.UserTLBSize,
		UserDelta: control + stub.UserTLBOff + 16*bt.UserTLBSize,

		UserMissRead:  p.UserMissRead,
		UserMissWrite: p.UserMissWrite,

		UserIndex: control + stub.UserIndexOff,
		UserSalt:  control + stub.UserSaltOff,
		UserPage:  control + stub.UserPageOff,
		DFMask:    control + stub.DFMaskOff,
		Room:      control + stub.RoomOff,
	}
	c.flush()
}

// flush forgets all translations. The stub must be stopped.
func (c *codeCache) flush() {
	c.blocks, c.pages, c.va = map[uint64]*cached{}, map[uint64][]*cached{}, map[uint64]codePlace{}
	c.vaLocal = map[uint64]bool{}
	c.order, c.exits = nil, nil
	for i := range bt.TableSize {
		c.setTag(i, bt.EmptyTag(i), 0)
	}
	c.used = codeOff
	c.userUsed = true
	c.clearUser()
	c.lookup = c.add(bt.Lookup(&c.h, 0))
	c.h.LookupAC = c.base + uint64(c.used)
	c.lookupAC = c.add(bt.LookupAC(&c.h, uint32(len(c.exits))))
}

// add puts a translation, made for this place, into the cache.
func (c *codeCache) add(b *bt.Block) *cached {
	x := &cached{Block: b, host: c.base + uint64(c.used)}
	n := copy(c.mem[c.used:], b.Code)
	b.Code, x.size = nil, n
	b.Marks, b.Exits = slices.Clone(b.Marks), slices.Clone(b.Exits) // to size
	c.order = append(c.order, x)
	c.used = (c.used + uint32(n) + 15) &^ 15
	for i := range b.Exits {
		c.exits = append(c.exits, exitRef{x, i})
	}
	return x
}

// find is the translation with the code at a host address.
func (c *codeCache) find(at uint64) (b *cached, m bt.Mark, ok bool) {
	off := at - c.base
	if off < codeOff || off >= uint64(c.used) {
		return nil, m, false
	}
	lo, hi := 0, len(c.order)
	for lo+1 < hi {
		if mid := (lo + hi) / 2; c.order[mid].host <= at {
			lo = mid
		} else {
			hi = mid
		}
	}
	b = c.order[lo]
	return b, b.At(uint32(at - b.host)), true
}

// block is the translation at rip for RFLAGS.AC as ac says, nil when there can
// be none.
func (k *Kernel) block(rip uint64, ac bool) *cached {
	c := &k.c
	if b := c.blocks[bt.Key(rip, ac)]; b != nil && b.RIP == rip {
		return b
	}
	if rip < bt.Lowest {
		return nil
	}
	e := k.e
	t, _, ok := e.walk.Walk(e.state, rip, mmu.Fetch)
	if !ok {
		return nil
	}
	n := x86.PageSize - rip&(x86.PageSize-1)
	ram, err := e.mem.Slice(t.GPA, n)
	if err != nil {
		return nil
	}
	// A copy: what is decoded must be what is translated, and a stub that
	// lies about its stops writes to RAM meanwhile.
	code := c.page[:copy(c.page[:], ram)]
	if v, ok := c.va[rip>>12]; ok && v.gpa != t.GPA&^(x86.PageSize-1) {
		k.dropVA(rip >> 12)
	}
	if c.used+bt.MaxCode > cacheSize {
		k.stats.Flushes++
		c.flush()
	}
	limit, gpa2 := bt.MaxInsts, uint64(0)
	if n < insn.MaxLen {
		var in insn.Inst
		if insn.Decode(code, insn.Mode64, &in) == insn.ErrTruncated {
			if code, gpa2, ok = k.crossing(rip, code); !ok {
				return nil
			}
			limit = 1
		}
	}
	k.stats.Translated++
	b := c.add(bt.Translate(&c.h, rip, ac, code, c.base+uint64(c.used), uint32(len(c.exits)), limit, func(a uint64) bool { return c.slow[a] }))
	k.stats.made(b)
	b.gpa, b.gpa2 = t.GPA, gpa2
	c.blocks[bt.Key(rip, ac)] = b
	k.uses(b, rip>>12, b.gpa, t.Global)
	if k.Translated != nil {
		k.translated(b, code)
	}
	return b
}

// crossing reads the code at rip, whose page ends with code, on into the next.
func (k *Kernel) crossing(rip uint64, code []byte) (both []byte, gpa2 uint64, ok bool) {
	e := k.e
	next := rip + uint64(len(code))
	t, _, ok := e.walk.Walk(e.state, next, mmu.Fetch)
	if !ok {
		return nil, 0, false
	}
	more, err := e.mem.Slice(t.GPA, insn.MaxLen)
	if err != nil {
		return nil, 0, false
	}
	if v, ok := k.c.va[next>>12]; ok && v.gpa != t.GPA {
		k.dropVA(next >> 12)
	}
	e.mem.MarkCode(t.GPA)
	k.c.place2(next>>12, t.GPA, t.Global)
	return append(code, more...), t.GPA, true
}

// place2 records where a page of code is.
func (c *codeCache) place2(page, gpa uint64, global bool) {
	c.va[page] = codePlace{gpa, global}
	if !global {
		c.vaLocal[page] = true
	}
}

// uses enters a block in the books of its pages.
func (k *Kernel) uses(b *cached, page, gpa uint64, global bool) {
	gpa &^= x86.PageSize - 1
	k.e.mem.MarkCode(gpa)
	k.c.place2(page, gpa, global)
	k.c.pages[gpa] = append(k.c.pages[gpa], b)
	if b.gpa2 != 0 && b.gpa2 != gpa {
		k.c.pages[b.gpa2] = append(k.c.pages[b.gpa2], b)
	}
}

// leave serves an exit: rip is the target when the exit is that of the jump
// table.
func (k *Kernel) leave(id uint32, rip uint64) (step bool, err error) {
	c := &k.c
	if int(id) >= len(c.exits) {
		return false, fmt.Errorf("%w: exit %d of %d", errDied, id, len(c.exits))
	}
	x := c.exits[id]
	st := k.e.state
	exit := &x.b.Exits[x.i]
	k.setAC(exit.AC)
	if x.b == c.lookup || x.b == c.lookupAC {
		k.stats.Misses++
		st.RIP = rip
		if k.whole = true; k.alone {
			return false, nil
		}
		gen := c.lookup
		if b := k.block(rip, exit.AC); b != nil && b.N != 0 && c.lookup == gen {
			c.enter(rip, -bt.Key(rip, exit.AC), b.host)
		}
		return false, nil
	}
	st.RIP = exit.RIP
	k.stats.Left[exit.Kind]++
	switch exit.Kind {
	case bt.ExitChain:
	case bt.ExitUser, bt.ExitUserWrite:
		return !k.userMiss(atomic.LoadUint64(&k.s.p.ctl.Scratch[4]), exit.Kind == bt.ExitUserWrite), nil
	default:
		k.vector = exit.Kind == bt.ExitVector
		return true, nil
	}
	if k.whole = true; k.alone {
		return false, nil
	}
	gen := c.lookup
	if b := k.block(exit.RIP, exit.AC); b != nil && b.N != 0 && c.lookup == gen && !x.b.dead && !c.patched(x, b.host) {
		k.stats.Chained++
		b.from = append(b.from, x)
		c.patch(x, b.host)
	}
	return false, nil
}

// enter enters an address into the jump table. Where both of its places are
// taken, it takes the second: one that had it as its first has another.
func (c *codeCache) enter(rip, tag, host uint64) {
	places := bt.Indices(rip)
	i := places[0]
	if t := c.tag(i); t != tag && t != bt.EmptyTag(i) {
		i = places[1]
	}
	c.setTag(i, tag, host)
}

// patch makes an exit jump to a host address.
func (c *codeCache) patch(x exitRef, to uint64) {
	e := &x.b.Exits[x.i]
	at := x.b.host + uint64(e.Patch)
	c.put32(at-c.base, uint32(to-(at+4)))
}

// patched reports whether it does already: a stub that lies about its exits
// says so as often as it likes.
func (c *codeCache) patched(x exitRef, to uint64) bool {
	at := x.b.host + uint64(x.b.Exits[x.i].Patch)
	return c.get32(at-c.base) == uint32(to-(at+4))
}

// drop forgets a translation.
func (c *codeCache) drop(b *cached) {
	if b.dead || b == c.lookup || b == c.lookupAC {
		return
	}
	b.dead = true
	for _, x := range b.from {
		if !x.b.dead {
			c.patch(x, x.b.host+uint64(x.b.Exits[x.i].Stub))
		}
	}
	b.from = nil
	key := bt.Key(b.RIP, b.AC)
	for _, i := range bt.Indices(b.RIP) {
		if c.tag(i) == -key {
			c.setTag(i, bt.EmptyTag(i), 0)
		}
	}
	if c.blocks[key] == b {
		delete(c.blocks, key)
	}
	c.unlist(b, b.gpa&^(x86.PageSize-1))
	if b.gpa2 != 0 {
		c.unlist(b, b.gpa2)
	}
}

// unlist takes a block out of the list of a guest-physical page.
func (c *codeCache) unlist(b *cached, page uint64) {
	l := c.pages[page]
	for i, o := range l {
		if o == b {
			l[i] = l[len(l)-1]
			l[len(l)-1] = nil
			c.pages[page] = l[:len(l)-1]
			break
		}
	}
	if len(c.pages[page]) == 0 {
		delete(c.pages, page)
	}
}

// dropVA drops the translations of one page of addresses.
func (k *Kernel) dropVA(page uint64) {
	c := &k.c
	v := c.va[page]
	delete(c.va, page)
	delete(c.vaLocal, page)
	for _, b := range slices.Clone(c.pages[v.gpa]) {
		if b.RIP>>12 == page || b.gpa2 != 0 && b.RIP>>12+1 == page {
			k.stats.Dropped++
			k.stats.Moved++
			c.drop(b)
		}
	}
}

var _ guestmem.CodeUser = (*Kernel)(nil)

// settle makes sure that the stub is stopped before the books change. A stub
// that is not goes, and the next Run says so.
func (k *Kernel) settle() {
	if k.e.settle(); k.s != nil && k.e.cur == nil {
		k.s, k.c.user = nil, nil
		k.c.flush()
	}
}

// DropCode implements guestmem.CodeUser.
func (k *Kernel) DropCode(gpa uint64, n int) (left bool) {
	k.settle()
	c := &k.c
	page := gpa &^ (x86.PageSize - 1)
	for _, b := range slices.Clone(c.pages[page]) {
		if b.overlaps(gpa, uint64(n)) {
			k.stats.Dropped++
			k.stats.Written++
			c.drop(b)
		}
	}
	return len(c.pages[page]) != 0
}

// PageBecameCode implements guestmem.CodeUser.
func (k *Kernel) PageBecameCode(gpa uint64) {
	k.c.clearUser()
	k.pair.forget()
}

// RevokeStubWrite implements guestmem.CodeUser.
func (k *Kernel) RevokeStubWrite(gpa uint64) {
	k.c.clearUser()
	k.pair.forget()
	k.e.RevokeStubWrite(gpa)
}

// Flush tells that the guest invalidated translations.
func (k *Kernel) Flush(f Flush) {
	k.settle()
	s := k.s
	if s == nil {
		return
	}
	k.salts.flush(f)
	k.pair.forget()
	switch f.Kind {
	case FlushPage:
		k.c.dropUser(f.Addr)
		if f.Addr < bt.Lowest {
			return
		}
		if len(s.stalePages) < maxStalePages {
			s.stalePages = append(s.stalePages, bt.Fold(f.Addr)&^(x86.PageSize-1))
			return
		}
		s.stale, k.c.stale = true, true
	case FlushAll:
		s.stale, k.c.stale = true, true
	default:
		k.c.staleLocal = true
	}
}

// freshen compares mappings and translations with the page tables, as far as
// flushes demand it.
func (k *Kernel) freshen() {
	e, s, c := k.e, k.s, &k.c
	if c.staleLocal && !c.stale {
		if e.state.CR4&x86.CR4PGE == 0 {
			s.stale, c.stale = true, true
		} else {
			for base := range c.local {
				l := s.leaves[base]
				if l != nil {
					e.checkLeaf(s, l)
				}
				if l == nil || k.allGlobal(l) {
					delete(c.local, base)
				}
			}
		}
	}
	for _, a := range s.stalePages {
		// The page may have been part of a large one, which goes as a whole.
		if l := s.leaf(a); l != nil {
			e.checkLeaf(s, l)
		}
		k.checkVA(bt.Unfold(a) >> 12)
	}
	if c.stale {
		for page := range c.va {
			k.checkVA(page)
		}
	} else if c.staleLocal {
		for page := range c.vaLocal {
			k.checkVA(page)
		}
	}
	c.stale, c.staleLocal = false, false
	s.pcid = e.pcid()
	e.freshen(s)
}

// allGlobal reports whether all mappings of a leaf, just compared, are global in
// the page tables by now: flushes of others spare them from here on.
func (k *Kernel) allGlobal(l *leaf) bool {
	t, ok := k.e.table(l.base)
	for i, left := 0, l.n; ok && left > 0; i++ {
		if l.entries[i] == 0 {
			continue
		}
		left--
		ok = t.pte(i)&x86.PTEGlobal != 0
	}
	return ok
}

// checkVA drops the translations of a page that is not where it was.
func (k *Kernel) checkVA(page uint64) {
	v, ok := k.c.va[page]
	if !ok {
		return
	}
	t, _, ok := k.e.walk.Walk(k.e.state, page<<12, mmu.Fetch|mmu.Probe)
	if !ok || t.GPA != v.gpa {
		k.dropVA(page)
	}
}
