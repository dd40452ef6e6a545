package direct

import (
	"errors"
	"fmt"

	"golang.org/x/sys/unix"

	"ring3/internal/direct/stub"
	"ring3/internal/guestmem"
	"ring3/internal/host"
	"ring3/internal/x86"
	"ring3/internal/x86/insn"
)

// codeStore knows what the scanner found in the pages of RAM, and keeps the
// private copies of those with patches: in a sparse memfd, each at the offset
// that the page has in RAM. Behind them lie the code of sites.go and the
// answers of cpuid.go.
type codeStore struct {
	fd      int
	answers uint64  // offset
	state   []uint8 // by page of RAM; stClean...
	pages   map[uint64]*codePage
	flips   map[uint64]uint8 // how often a page with code was written to
	tails   map[uint64]tail  // by page: how rescanTail last saw it
}

// tail is an instruction that crosses the end of a page, as it was judged: where
// it starts, in which mode, and what the next page had for its rest.
type tail struct {
	at   int
	mode insn.Mode
	next [insn.MaxLen - 1]byte
}

const maxTails = 1 << 14

// Page states.
const (
	stClean64 = 1 << 0 // nothing in it looks like a sensitive instruction, in 64-bit mode
	stClean32 = 1 << 1 // the same in compatibility mode
	stKnown   = 1 << 2 // pages has it
	stPrivate = 1 << 3 // it has patches, so its private copy is what runs
	stMode64  = 1 << 4 // candidates were judged in 64-bit mode
	stMode32  = 1 << 5
)

// codePage is a page with bytes that look like sensitive instructions.
type codePage struct {
	starts  [2][x86.PageSize / 64]uint64 // bit per byte: instruction starts known for certain, by mode
	unknown [2]int                       // candidates judged by vote only, by mode
	patches [x86.PageSize / 64]uint64    // bit per byte: patched instructions start there
	jumps   []jump                       // patched system calls
	noJumps bool                         // and there shall be none
}

// patched reports whether an instruction patched here starts at offset at,
// which may be behind the page: candidates are looked for a little beyond.
func (p *codePage) patched(at int) bool {
	return at < x86.PageSize && p.patches[at/64]>>(at%64)&1 != 0
}

func newCodeStore(ram uint64) (*codeStore, error) {
	answers := ram + sitesShared
	fd, err := host.Memfd("ring3-code", int64(answers+stub.AnswersSize), false)
	if err != nil {
		return nil, err
	}
	return &codeStore{fd: fd, answers: answers, state: make([]uint8, ram/x86.PageSize),
		pages: map[uint64]*codePage{}, flips: map[uint64]uint8{}, tails: map[uint64]tail{}}, nil
}

func (c *codeStore) close() error { return unix.Close(c.fd) }

// forget drops what is known of a page whose bytes change.
func (c *codeStore) forget(m *guestmem.Memory, gpa uint64) {
	off, ok := m.Offset(gpa)
	if !ok {
		return
	}
	st := &c.state[off/x86.PageSize]
	if *st&stKnown != 0 {
		delete(c.pages, gpa)
	}
	if *st&stPrivate != 0 {
		unix.Fallocate(c.fd, unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, int64(off), x86.PageSize)
	}
	*st = 0
	delete(c.tails, gpa)
}

// setPrivate writes the private copy: bytes with every patch applied.
func (c *codeStore) setPrivate(off uint64, bytes []byte, p *codePage, sites uint64) error {
	b := make([]byte, x86.PageSize)
	copy(b, bytes)
	for at := range b {
		if p.patched(at) {
			b[at] = trapByte
		}
	}
	p.apply(b, sites)
	if n, err := unix.Pwrite(c.fd, b, int64(off)); err != nil || n != len(b) {
		return errors.Join(fmt.Errorf("writing a patched code page: %d bytes", n), err)
	}
	c.state[off/x86.PageSize] |= stPrivate
	return nil
}

// trapByte is HLT: one byte, so that it fits any instruction, also the last
// byte of a page; #GP at CPL 3, so that nothing else is needed to have the
// original instruction interpreted.
const trapByte = 0xf4

// pageState is the state of the page of RAM at gpa.
func (e *Engine) pageState(gpa uint64) *uint8 {
	off, ok := e.mem.Offset(gpa)
	if !ok {
		panic("BUG: code page outside RAM")
	}
	return &e.code.state[off/x86.PageSize]
}

func (e *Engine) private(gpa uint64) bool { return *e.pageState(gpa)&stPrivate != 0 }
