package direct

import (
	"ring3/internal/guestmem"
	"ring3/internal/x86"
	"ring3/internal/x86/insn"
)

// modeBits are the decoder's mode of the running code and its bits in a page
// state.
func (e *Engine) modeBits() (mode insn.Mode, clean, judged uint8, i int) {
	if e.state.Seg[x86.CS].Sel == selCS32 {
		return insn.Mode32, stClean32, stMode32, 1
	}
	return insn.Mode64, stClean64, stMode64, 0
}

// prepareExec makes the page of RAM at gpa, about to be executed at gva,
// executable: scanned, patched, marked as code and nowhere writable. both is
// set when the page is one of those that are mapped writable and executable
// without a scan.
func (e *Engine) prepareExec(gva, gpa uint64) (both bool, err error) {
	if e.hasMapping(gpa, entWXBoth) {
		return true, nil
	}
	if e.mem.Flags(gpa)&guestmem.PageStubWrite != 0 && e.hasMapping(gpa, entWrite) {
		e.stats.WXFlips++
	}
	e.mem.MarkCode(gpa)
	rip := e.state.RIP
	entry := int(rip - gva)
	if rip-gva >= x86.PageSize {
		// The instruction at RIP starts in the page before and goes on here:
		// that page can be judged only now.
		entry = -1
		if rip < gva && gva-rip < insn.MaxLen {
			if entry, err = e.rescanTail(rip, gva); err != nil {
				return false, err
			}
		}
	}
	return false, e.scan(gva, gpa, entry)
}

// scan judges the candidates of a page, given that an instruction starts at
// offset entry (unknown if negative).
func (e *Engine) scan(gva, gpa uint64, entry int) error {
	mode, clean, judged, mi := e.modeBits()
	st := e.pageState(gpa)
	if *st&clean != 0 {
		return nil
	}
	p := e.code.pages[gpa]
	if p != nil && *st&judged != 0 && (p.unknown[mi] == 0 || entry < 0 || p.starts[mi][entry/64]>>(entry%64)&1 != 0) {
		return nil // nothing new to learn
	}
	e.stats.Scans++
	c := codeBytes{mode: mode}
	c.b = append(c.b, e.page(gpa)[:]...)
	c.b = append(c.b, e.nextBytes(gva)...)
	list := c.candidates(nil)
	if len(list) == 0 {
		if len(c.b) > x86.PageSize || !c.open() {
			*st |= clean // else its end was not judged
		}
		return nil
	}
	e.stats.ScansCandidate++
	if p == nil {
		p = &codePage{}
		e.code.pages[gpa] = p
		*st |= stKnown
	}
	if entry >= 0 {
		c.descend(&p.starts[mi], entry)
	}
	changed := false
	p.unknown[mi] = 0
	if c.open() && len(c.b) == x86.PageSize {
		p.unknown[mi]++ // the end of the page was not judged
	}
	for _, i := range list {
		v, start := c.certain(&p.starts[mi], int(i))
		if v == unknown {
			p.unknown[mi]++
			if s, ok := c.vote(int(i), e.bytesBefore(gva)); ok && s < x86.PageSize {
				v, start = yes, s
			}
		}
		switch {
		case v == yes && start < x86.PageSize && !p.patched(start):
			p.patches[start/64] |= 1 << (start % 64)
			changed = true
			e.stats.Patches++
		case v == no:
			// A vote may have said yes before code was seen to run through.
			if old, ok := p.voted(&c, int(i)); ok {
				p.patches[old/64] &^= 1 << (old % 64)
				changed = true
			}
		}
	}
	*st |= judged
	if !changed {
		return nil
	}
	if *st&stPrivate == 0 {
		e.dropMappings(gpa, entExec) // they map RAM itself
	} else {
		e.relistCPUIDs(gpa)
	}
	return e.writePrivate(gpa, p)
}

// voted finds a patch that stands for the candidate at offset i.
func (p *codePage) voted(c *codeBytes, i int) (at int, ok bool) {
	var in insn.Inst
	for s := i; s >= 0 && s > i-insn.MaxLen; s-- {
		if p.patched(s) && c.decode(s, &in) == nil && c.isCandidate(&in, s, i) {
			return s, true
		}
	}
	return 0, false
}

// nextBytes are the first bytes of the page behind gva, if it is there.
func (e *Engine) nextBytes(gva uint64) []byte {
	b := e.pageAt(gva + x86.PageSize)
	return b[:min(len(b), insn.MaxLen-1)]
}

// bytesBefore are the last bytes of the page before gva, if it is there.
func (e *Engine) bytesBefore(gva uint64) []byte {
	b := e.pageAt(gva - x86.PageSize)
	return b[max(0, len(b)-voteSpan):]
}

// pageAt is the page that user code sees at gva, nil if it is absent or was
// never used.
func (e *Engine) pageAt(gva uint64) []byte {
	t, ok := e.table(gva)
	if !ok {
		return nil
	}
	pte := t.pte(index(gva))
	if pte == 0 {
		return nil
	}
	if _, ram := e.mem.Offset(pte & x86.PTEAddr); !ram {
		return nil
	}
	return e.page(pte & x86.PTEAddr)[:]
}

// rescanTail judges the page of rip again, whose last instruction goes on in
// the page gva, and says where in that page the next instruction starts.
func (e *Engine) rescanTail(rip, gva uint64) (entry int, err error) {
	t, ok := e.table(rip)
	if !ok {
		return -1, nil
	}
	pte := t.pte(index(rip))
	gpa := pte & x86.PTEAddr
	if _, ram := e.mem.Offset(gpa); pte == 0 || !ram {
		return -1, nil
	}
	mode, clean, judged, _ := e.modeBits()
	next := e.nextBytes(rip &^ (x86.PageSize - 1))
	seen := tail{at: int(rip % x86.PageSize), mode: mode}
	copy(seen.next[:], next)
	if st := e.pageState(gpa); *st&(clean|judged) == 0 || e.code.tails[gpa] != seen {
		*st &^= clean | judged
		if err := e.scan(rip&^(x86.PageSize-1), gpa, seen.at); err != nil {
			return -1, err
		}
		if len(e.code.tails) == maxTails {
			clear(e.code.tails)
		}
		e.code.tails[gpa] = seen
	}
	b := append(e.page(gpa)[seen.at:], next...)
	var in insn.Inst
	if insn.Decode(b[:min(len(b), insn.MaxLen)], mode, &in) != nil {
		return -1, nil
	}
	return int(rip + uint64(in.Len) - gva), nil
}

// clean reports whether a page can be executed as it is in RAM, without
// knowing where it is entered: nothing in it looks like a sensitive
// instruction, or nothing that does was found to be one.
func (e *Engine) clean(gva, gpa uint64) bool {
	_, clean, judged, _ := e.modeBits()
	st := e.pageState(gpa)
	if *st&(clean|judged) == 0 && e.mem.Flags(gpa)&guestmem.PageStubWrite == 0 {
		e.mem.MarkCode(gpa) // first, so that changes of what is found out are told
		if e.scan(gva, gpa, -1) != nil {
			return false
		}
	}
	return *st&(clean|judged) != 0 && *st&stPrivate == 0
}

// scanned reports whether a page was scanned in the current mode.
func (e *Engine) scanned(gpa uint64) bool {
	_, clean, judged, _ := e.modeBits()
	return *e.pageState(gpa)&(clean|judged) != 0
}

// maxFlips is how often a page may change from executed to written before it
// is mapped both ways, unscanned.
const maxFlips = 8

// prepareWrite makes the page of RAM at gpa writable: executable nowhere. both
// is set when it has changed sides too often and stays executable.
func (e *Engine) prepareWrite(gpa uint64) (both bool) {
	if e.hasMapping(gpa, entWXBoth) {
		return true
	}
	if e.mem.Flags(gpa)&guestmem.PageCode != 0 && e.hasMapping(gpa, entExec) {
		if len(e.code.flips) > 4096 {
			clear(e.code.flips)
		}
		if e.code.flips[gpa]++; e.code.flips[gpa] > maxFlips {
			delete(e.code.flips, gpa)
			e.stats.WXUnscanned++
			both = true
		}
	}
	e.mem.AllowStubWrite(gpa)
	return both
}

// hasMapping reports whether some stub maps the page with any of the rights.
func (e *Engine) hasMapping(gpa uint64, rights entry) bool {
	off, _ := e.mem.Offset(gpa)
	for i := e.rmap.head[off/x86.PageSize]; i != 0; i = e.rmap.nodes[i].next {
		n := &e.rmap.nodes[i]
		if e.byID[n.space].get(n.gva)&rights != 0 {
			return true
		}
	}
	return false
}
