package direct

import (
	"encoding/binary"
	"errors"

	"golang.org/x/sys/unix"

	"ring3/internal/direct/stub"
	"ring3/internal/x86"
	"ring3/internal/x86/insn"
)

// A system call by signal costs microseconds. A SYSCALL instruction that was
// executed a few times is therefore replaced, in the private copy of its page,
// by a short jump of the same two bytes to an island in the padding behind a
// function nearby, where there is room for an indirect jump:
//
//	X:       jmp island          was: syscall
//	island:  jmp [pointer i]     was: nop or int3, behind a ret or jmp
//
// Pointer i, in an area at a low address that is the same in all stubs, leads
// to code that loads RCX with the return address of site i in this address
// space, as SYSCALL does, and jumps to the stub's routine (stub.Program.Fast).
// Since the jump is where the instruction was and as long, the address behind
// it, restarts (RIP less 2) and jumps to it need no thought.

const (
	maxSites = x86.PageSize/8 - 1 // the last return address is the routine's
	siteCode = 16                 // bytes of code per site
	// The low area: pointers, code, and the return addresses, which are a page
	// of the stub's slot.
	sitesPointers = 0
	sitesCode     = x86.PageSize
	sitesShared   = sitesCode + 2*x86.PageSize
	sitesReturns  = sitesShared
	sitesSize     = sitesReturns + x86.PageSize

	// Programs have memory from 2 MiB on, klibc's, or from 4 MiB.
	lowest    = 1 << 20
	lowRegion = 2 << 20

	hotSite  = 4       // traps after which a site is patched
	coldSite = 255     // heat of one that cannot be
	maxHeat  = 1 << 12 // sites counted
)

// island is the instruction there: jmp [disp32], FF /4 with an absolute
// address (SDM vol. 2A, table 2-7: no base, no index).
const islandLen = 7

// jump is a patched SYSCALL.
type jump struct {
	at, island uint16 // offsets in the page
	site       uint16
}

// sites are the patched system calls of an engine.
type sites struct {
	base uint64 // of the low area
	off  bool   // a guest has memory nearby
	near bool   // so it seems
	heat map[uint64]uint8
	free []uint16
}

func (e *Engine) newSites() error {
	var r uint64
	random(&r)
	s := &e.sites
	s.base = lowest + r%(lowRegion-lowest-sitesSize)&^(x86.PageSize-1)
	s.heat = map[uint64]uint8{}
	b := make([]byte, sitesShared)
	for i := range maxSites {
		s.free = append(s.free, uint16(maxSites-1-i))
		code := sitesCode + siteCode*i
		binary.LittleEndian.PutUint64(b[8*i:], s.base+uint64(code))
		c := b[code:]
		copy(c, []byte{0x48, 0x8b, 0x0c, 0x25}) // mov rcx, [return i]
		binary.LittleEndian.PutUint32(c[4:], uint32(s.base+sitesReturns+uint64(8*i)))
		copy(c[8:], []byte{0xff, 0x24, 0x25}) // jmp [return maxSites]
		binary.LittleEndian.PutUint32(c[11:], uint32(s.base+sitesReturns+8*maxSites))
	}
	if n, err := unix.Pwrite(e.code.fd, b, int64(e.mem.Size())); err != nil || n != len(b) {
		return errors.Join(errors.New("writing the code of system-call sites"), err)
	}
	return nil
}

// within reports whether a page is part of the low area.
func (s *sites) within(gva uint64) bool {
	return s.base != 0 && !s.off && gva-s.base < sitesSize
}

// beside reports whether an address is so close to the low area that a program
// with memory there may have some in the area. Reads of the area do not fault.
func (s *sites) beside(gva uint64) bool { return s.base != 0 && !s.off && gva < lowRegion }

// mapSites stages the mapping of the low area.
func (p *proc) mapSites() error {
	s := &p.e.sites
	if s.base == 0 || s.off {
		return nil
	}
	p.setReturn(maxSites, p.z.prog.Fast)
	if err := p.mmap(s.base, sitesShared, protRead|protExec, stub.FDCode, p.e.mem.Size()); err != nil {
		return err
	}
	return p.mmap(s.base+sitesReturns, x86.PageSize, protRead|protWrite, stub.FDControl, uint64(p.index*stub.SlotSize+stub.SlotReturns))
}

func (p *proc) setReturn(site int, addr uint64) {
	binary.LittleEndian.PutUint64(p.slot[stub.SlotReturns+8*site:], addr)
}

// trapped counts a SYSCALL at gva that came by signal, and patches it when
// there were enough.
func (e *Engine) trapped(s *space, gva uint64) error {
	ent := s.get(gva)
	at := int(gva % x86.PageSize)
	if e.sites.off || ent&entExec == 0 || ent&entWXBoth != 0 || at > x86.PageSize-2 {
		return nil
	}
	gpa := ent.gpa()
	h := e.sites.heat[gpa+uint64(at)]
	if h == coldSite {
		return nil
	}
	if h++; h < hotSite {
		if len(e.sites.heat) > maxHeat {
			clear(e.sites.heat)
		}
		e.sites.heat[gpa+uint64(at)] = h
		return nil
	}
	e.sites.heat[gpa+uint64(at)] = coldSite
	return e.patchSite(gva, gpa, at)
}

// patchSite replaces the SYSCALL at offset at of the page gpa if it can.
func (e *Engine) patchSite(gva, gpa uint64, at int) error {
	p := e.code.pages[gpa]
	if len(e.sites.free) == 0 || p != nil && (p.noJumps || p.jumpAt(at) >= 0) {
		return nil
	}
	c := codeBytes{mode: insn.Mode64}
	c.b = append(c.b, e.page(gpa)[:]...)
	if c.b[at] != 0x0f || c.b[at+1] != 0x05 {
		return nil
	}
	if p == nil {
		p = &codePage{}
	}
	island := c.island(p, at)
	if island < 0 {
		return nil
	}
	st := e.pageState(gpa)
	if *st&stKnown == 0 {
		e.code.pages[gpa] = p
		*st |= stKnown
	}
	n := len(e.sites.free) - 1
	p.jumps = append(p.jumps, jump{uint16(at), uint16(island), e.sites.free[n]})
	e.sites.free = e.sites.free[:n]
	e.stats.Sites++
	if *st&stPrivate == 0 {
		e.dropMappings(gpa, entExec) // they map RAM itself
	} else if !e.eachMapping(gpa, func(s *space, gva uint64) { e.placeReturns(s, gva, p) }) {
		return e.unjump(gpa)
	}
	return e.writePrivate(gpa, p)
}

// writePrivate writes the private copy of a page anew.
func (e *Engine) writePrivate(gpa uint64, p *codePage) error {
	off, _ := e.mem.Offset(gpa)
	return e.code.setPrivate(off, e.page(gpa)[:], p, e.sites.base)
}

// island finds padding that a short jump at offset at reaches: behind a RET or
// JMP, up to a multiple of 16, with no instruction in it that is known to be
// executed or patched. It looks behind only, where decoding from a known
// instruction cannot be out of step.
func (c *codeBytes) island(p *codePage, at int) int {
	var starts [x86.PageSize / 64]uint64
	c.descend(&starts, at)
	var in insn.Inst
	for i := at; i < x86.PageSize && i <= at+2+127; {
		if c.decode(i, &in) != nil {
			return -1
		}
		end := in.Op == insn.OpRET || in.Op == insn.OpJMP && in.NArg == 1
		i += int(in.Len)
		if !end {
			continue
		}
		pad := i
		for i < x86.PageSize && i%16 != 0 && c.decode(i, &in) == nil && (in.Op == insn.OpNOP || in.Op == insn.OpINT3) {
			i += int(in.Len)
		}
		if i%16 == 0 && i <= x86.PageSize && i-pad >= islandLen && pad <= at+2+127 && p.unused(&starts, pad, i) {
			return pad
		}
	}
	return -1
}

// unused reports whether nothing is known to be executed or patched in a
// stretch of the page.
func (p *codePage) unused(starts *[x86.PageSize / 64]uint64, from, to int) bool {
	for i := from; i < to; i++ {
		if (starts[i/64]|p.starts[0][i/64]|p.patches[i/64])>>(i%64)&1 != 0 {
			return false
		}
	}
	for _, j := range p.jumps {
		if int(j.island) < to && int(j.island)+islandLen > from {
			return false
		}
	}
	return true
}

// jumpAt is the index of the jump whose SYSCALL or island is at an offset, -1
// for none.
func (p *codePage) jumpAt(at int) int {
	for i, j := range p.jumps {
		if int(j.at) == at || int(j.island) == at {
			return i
		}
	}
	return -1
}

// apply writes the jumps of a page into its private copy.
func (p *codePage) apply(b []byte, base uint64) {
	for _, j := range p.jumps {
		b[j.at], b[j.at+1] = 0xeb, byte(int(j.island)-int(j.at)-2)
		i := b[j.island : j.island+islandLen]
		copy(i, []byte{0xff, 0x24, 0x25})
		binary.LittleEndian.PutUint32(i[3:], uint32(base+sitesPointers+8*uint64(j.site)))
	}
}

// eachMapping calls f for each private mapping of a page; it is false when an
// address space has more than one, whose return addresses differ.
func (e *Engine) eachMapping(gpa uint64, f func(s *space, gva uint64)) bool {
	off, _ := e.mem.Offset(gpa)
	seen := map[uint32]bool{}
	for i := e.rmap.head[off/x86.PageSize]; i != 0; i = e.rmap.nodes[i].next {
		n := &e.rmap.nodes[i]
		s := e.byID[n.space]
		if s.get(n.gva)&entPrivate == 0 {
			continue
		}
		if seen[n.space] {
			return false
		}
		seen[n.space] = true
		f(s, n.gva)
	}
	return true
}

// mapJumps prepares that the page gpa is mapped at gva in s.
func (e *Engine) mapJumps(s *space, gva, gpa uint64) error {
	p := e.code.pages[gpa]
	if p == nil || len(p.jumps) == 0 {
		return nil
	}
	twice := false
	e.eachMapping(gpa, func(o *space, at uint64) { twice = twice || o == s && at != gva })
	if twice {
		return e.unjump(gpa)
	}
	e.placeReturns(s, gva, p)
	return nil
}

func (e *Engine) placeReturns(s *space, gva uint64, p *codePage) {
	gva &^= x86.PageSize - 1
	for _, j := range p.jumps {
		s.p.setReturn(int(j.site), gva+uint64(j.at)+2)
	}
}

// unjump takes the jumps of a page back, for good.
func (e *Engine) unjump(gpa uint64) error {
	p := e.code.pages[gpa]
	e.releaseSites(p)
	p.noJumps = true
	return e.writePrivate(gpa, p)
}

// releaseSites gives the sites of a page back.
func (e *Engine) releaseSites(p *codePage) {
	for _, j := range p.jumps {
		e.sites.free = append(e.sites.free, j.site)
	}
	p.jumps = nil
}

// sitesCollide reports whether the guest has memory of its own beside the low
// area; see collides.
func (e *Engine) sitesCollide() bool {
	if e.sites.off {
		return false
	}
	t, ok := e.table(e.sites.base)
	for i := 0; ok && i < lowRegion/x86.PageSize; i++ {
		if t.pte(i) != 0 {
			return true
		}
	}
	return false
}

// dropSites does without patched system calls from now on.
func (e *Engine) dropSites() error {
	for gpa, p := range e.code.pages {
		if len(p.jumps) != 0 {
			if err := e.unjump(gpa); err != nil {
				return err
			}
		}
	}
	for _, s := range e.spaces {
		if err := s.p.munmap(e.sites.base, sitesSize); err != nil {
			return err
		}
	}
	e.sites.off = true
	return nil
}

// jumps reports whether the page at gva may have patched system calls: single
// steps over one would show.
func (e *Engine) jumps(s *space, gva uint64) bool {
	ent := s.get(gva)
	if ent&entPrivate == 0 {
		return false
	}
	p := e.code.pages[ent.gpa()]
	return p != nil && len(p.jumps) != 0
}

// precise is the guest's RIP for the one of a stop that may have come on the
// way from a patched SYSCALL to the stub. That is not executed yet, and RCX its
// own to change; the way itself may be another one when the guest goes on.
func (e *Engine) precise(s *space, rip uint64) uint64 {
	if i := (rip - e.sites.base - sitesCode) / siteCode; e.sites.within(rip) && i < maxSites {
		return binary.LittleEndian.Uint64(s.p.slot[stub.SlotReturns+8*i:]) - 2
	}
	if i := e.island(s, rip); i != 0 {
		return i
	}
	return rip
}

// island is the address of the SYSCALL whose island is at rip, 0 for none.
func (e *Engine) island(s *space, rip uint64) uint64 {
	if !e.jumps(s, rip) {
		return 0
	}
	p := e.code.pages[s.get(rip).gpa()]
	if i := p.jumpAt(int(rip % x86.PageSize)); i >= 0 {
		return rip&^(x86.PageSize-1) + uint64(p.jumps[i].at)
	}
	return 0
}
