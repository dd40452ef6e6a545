package interp

import (
	"unsafe"

	"ring3/internal/guestmem"
	"ring3/internal/mmu"
	"ring3/internal/x86"
)

const (
	tlbBits  = 10
	tlbSize  = 1 << tlbBits
	codeBits = 8
	pageMask = x86.PageSize - 1
	// noTag is never the address of a page.
	noTag = 1
)

// tlbEntry translates one 4 KiB page for one kind of access; larger pages are
// entered piecewise.
type tlbEntry struct {
	tag  uint64         // linear address of the page, or noTag
	page unsafe.Pointer // where the monitor has it
}

type tlbArray [tlbSize]tlbEntry

// codeEntry translates a page for instruction fetches.
type codeEntry struct {
	tag    uint64
	gpa    uint64
	page   unsafe.Pointer
	global bool
}

// A class is a privilege that translations are valid for. With SMAP a
// supervisor access may touch user pages or not, by RFLAGS.AC.
const (
	classSuper = iota
	classSuperAC
	classUser
	numClasses
)

// tlb caches translations, like the processor's. An entry for reading exists
// only for pages whose accessed bit is set, one for writing only where the
// dirty bit is set and nothing was derived from the page as code
// (guestmem.PageCode), so that a hit needs no further look.
type tlb struct {
	r, w  *tlbArray // the class in effect, or none
	x     *[1 << codeBits]codeEntry
	read  [numClasses]tlbArray
	write [numClasses]tlbArray
	exec  [numClasses][1 << codeBits]codeEntry
	// none has no entries: it is in effect while every access needs the
	// checks of the slow way (alignment checks, data breakpoints).
	none tlbArray

	// Entries to drop on a flush that spares global translations. When they
	// were too many for the list, the flush drops everything.
	nonGlobal  []*uint64
	ngOverflow bool
	// Large pages have entries that INVLPG of any address in them must drop:
	// one bit per hash of a 2 or 4 MiB, and of a 1 GiB region.
	big, huge uint64
}

const maxNonGlobal = 1024

func (t *tlb) reset() {
	t.nonGlobal = make([]*uint64, 0, maxNonGlobal)
	t.none.clear()
	t.flushAll()
}

func (a *tlbArray) clear() {
	for i := range a {
		a[i].tag = noTag
	}
}

func (t *tlb) flushAll() {
	for i := range t.read {
		t.read[i].clear()
		t.write[i].clear()
		for j := range t.exec[i] {
			t.exec[i][j].tag = noTag
		}
	}
	t.nonGlobal = t.nonGlobal[:0]
	t.ngOverflow = false
	t.big, t.huge = 0, 0
}

func (t *tlb) flushNonGlobal() {
	if t.ngOverflow {
		t.flushAll()
		return
	}
	for _, p := range t.nonGlobal {
		*p = noTag
	}
	t.nonGlobal = t.nonGlobal[:0]
}

func (t *tlb) flushPage(lin uint64) {
	if t.big>>(lin>>21&63)&1 != 0 || t.big>>(lin>>22&63)&1 != 0 || t.huge>>(lin>>30&63)&1 != 0 {
		t.flushAll()
		return
	}
	page := lin &^ pageMask
	for i := range t.read {
		if e := &t.read[i][tlbIndex(lin)]; e.tag == page {
			e.tag = noTag
		}
		if e := &t.write[i][tlbIndex(lin)]; e.tag == page {
			e.tag = noTag
		}
		if e := &t.exec[i][codeIndex(lin)]; e.tag == page {
			e.tag = noTag
		}
	}
}

func tlbIndex(lin uint64) uint64  { return lin >> 12 % tlbSize }
func codeIndex(lin uint64) uint64 { return lin >> 12 % (1 << codeBits) }

// note remembers what a flush must know about a new entry.
func (t *tlb) note(tag *uint64, lin uint64, tr *mmu.Translation) {
	if !tr.Global {
		if len(t.nonGlobal) < maxNonGlobal {
			t.nonGlobal = append(t.nonGlobal, tag)
		} else {
			t.ngOverflow = true
		}
	}
	switch tr.Shift {
	case 21:
		t.big |= 1 << (lin >> 21 & 63)
	case 22:
		t.big |= 1 << (lin >> 22 & 63)
	case 30:
		t.huge |= 1 << (lin >> 30 & 63)
	}
}

// fill enters a translation of the page of lin for reading or writing.
func (c *CPU) fill(lin uint64, tr *mmu.Translation, write bool) {
	page := c.Mem.Page(tr.GPA)
	a := c.tlb.r
	if write {
		if c.Mem.Flags(tr.GPA)&guestmem.PageCode != 0 {
			return
		}
		a = c.tlb.w
	}
	if page == nil || a == &c.tlb.none {
		return
	}
	e := &a[tlbIndex(lin)]
	e.tag, e.page = lin&^pageMask, page
	c.tlb.note(&e.tag, lin, tr)
}

// PageBecameCode drops cached permission to write to the page.
func (c *CPU) PageBecameCode(gpa uint64) {
	page := c.Mem.Page(gpa)
	for i := range c.tlb.write {
		for j := range c.tlb.write[i] {
			if e := &c.tlb.write[i][j]; e.page == page {
				e.tag = noTag
			}
		}
	}
}

// The loads and stores below hit the cache when the page of the last byte has
// the tag that the page of the first byte leads to: one comparison finds
// misses and page crossings alike.

func (c *CPU) load8(a uint64) (uint64, bool) {
	e := &c.tlb.r[a>>12%tlbSize]
	if e.tag == a&^pageMask {
		return uint64(*(*uint8)(unsafe.Add(e.page, a&pageMask))), true
	}
	return c.readSlow(a, 1)
}

func (c *CPU) load16(a uint64) (uint64, bool) {
	e := &c.tlb.r[a>>12%tlbSize]
	if e.tag == (a+1)&^pageMask {
		return uint64(*(*uint16)(unsafe.Add(e.page, a&pageMask))), true
	}
	return c.readSlow(a, 2)
}

func (c *CPU) load32(a uint64) (uint64, bool) {
	e := &c.tlb.r[a>>12%tlbSize]
	if e.tag == (a+3)&^pageMask {
		return uint64(*(*uint32)(unsafe.Add(e.page, a&pageMask))), true
	}
	return c.readSlow(a, 4)
}

func (c *CPU) load64(a uint64) (uint64, bool) {
	e := &c.tlb.r[a>>12%tlbSize]
	if e.tag == (a+7)&^pageMask {
		return *(*uint64)(unsafe.Add(e.page, a&pageMask)), true
	}
	return c.readSlow(a, 8)
}

func (c *CPU) store8(a, v uint64) bool {
	e := &c.tlb.w[a>>12%tlbSize]
	if e.tag == a&^pageMask {
		*(*uint8)(unsafe.Add(e.page, a&pageMask)) = uint8(v)
		return true
	}
	return c.writeSlow(a, 1, v)
}

func (c *CPU) store16(a, v uint64) bool {
	e := &c.tlb.w[a>>12%tlbSize]
	if e.tag == (a+1)&^pageMask {
		*(*uint16)(unsafe.Add(e.page, a&pageMask)) = uint16(v)
		return true
	}
	return c.writeSlow(a, 2, v)
}

func (c *CPU) store32(a, v uint64) bool {
	e := &c.tlb.w[a>>12%tlbSize]
	if e.tag == (a+3)&^pageMask {
		*(*uint32)(unsafe.Add(e.page, a&pageMask)) = uint32(v)
		return true
	}
	return c.writeSlow(a, 4, v)
}

func (c *CPU) store64(a, v uint64) bool {
	e := &c.tlb.w[a>>12%tlbSize]
	if e.tag == (a+7)&^pageMask {
		*(*uint64)(unsafe.Add(e.page, a&pageMask)) = v
		return true
	}
	return c.writeSlow(a, 8, v)
}

// load reads size bytes, 1, 2, 4 or 8.
func (c *CPU) load(a uint64, size uint8) (uint64, bool) {
	switch size {
	case 1:
		return c.load8(a)
	case 2:
		return c.load16(a)
	case 4:
		return c.load32(a)
	}
	return c.load64(a)
}

// store writes size bytes, 1, 2, 4 or 8.
func (c *CPU) store(a uint64, size uint8, v uint64) bool {
	switch size {
	case 1:
		return c.store8(a, v)
	case 2:
		return c.store16(a, v)
	case 4:
		return c.store32(a, v)
	}
	return c.store64(a, v)
}

// readable is the monitor's address of the rest of the page at a if the cache
// has it for reading; n is the length of that rest.
func (c *CPU) readable(a uint64) (p unsafe.Pointer, n uint64) {
	e := &c.tlb.r[a>>12%tlbSize]
	if e.tag == a&^pageMask {
		return unsafe.Add(e.page, a&pageMask), x86.PageSize - a&pageMask
	}
	return nil, 0
}

// writable is the same for writing.
func (c *CPU) writable(a uint64) (p unsafe.Pointer, n uint64) {
	e := &c.tlb.w[a>>12%tlbSize]
	if e.tag == a&^pageMask {
		return unsafe.Add(e.page, a&pageMask), x86.PageSize - a&pageMask
	}
	return nil, 0
}

// hostGet and hostPut access guest memory at a monitor address.
func hostGet(p unsafe.Pointer, size uint8) uint64 {
	switch size {
	case 1:
		return uint64(*(*uint8)(p))
	case 2:
		return uint64(*(*uint16)(p))
	case 4:
		return uint64(*(*uint32)(p))
	}
	return *(*uint64)(p)
}

func hostPut(p unsafe.Pointer, size uint8, v uint64) {
	switch size {
	case 1:
		*(*uint8)(p) = uint8(v)
	case 2:
		*(*uint16)(p) = uint16(v)
	case 4:
		*(*uint32)(p) = uint32(v)
	default:
		*(*uint64)(p) = v
	}
}

// at is the monitor's address of the byte of RAM at gpa, nil outside RAM.
func (c *CPU) at(gpa uint64) unsafe.Pointer {
	p := c.Mem.Page(gpa)
	if p == nil {
		return nil
	}
	return unsafe.Add(p, gpa&pageMask)
}

func bytesAt(p unsafe.Pointer, n uint64) []byte { return unsafe.Slice((*byte)(p), n) }
