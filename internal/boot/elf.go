package boot

import (
	"bytes"
	"debug/elf"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math"
	"slices"
)

const (
	elfMagic    = elf.ELFMAG
	elfHdrSize  = 64
	elfPhdrSize = 56
	elfMaxPhdrs = 64
	// elfPrefix is where the program headers must end: a stream is kept so
	// far before loading begins.
	elfPrefix = 64 << 10
)

// Memory is guest-physical memory as far as loading needs it.
type Memory interface {
	// WriteAt writes all of p at guest-physical address gpa.
	WriteAt(p []byte, gpa uint64) error
	// Size is the amount of RAM in bytes.
	Size() uint64
}

// segment is one PT_LOAD program header.
type segment struct {
	off, vaddr, paddr, filesz, memsz uint64
}

// image is what the headers of an ELF kernel say.
type image struct {
	entry    uint64    // guest-physical
	segments []segment // by file offset
	start    uint64    // lowest physical address
	end      uint64    // behind the highest, with bss
	fileEnd  uint64    // file offset behind the last loaded byte
}

// elfHeadLen tells how many bytes of an ELF file hold its header and program
// headers, given at least its first elfHdrSize bytes.
func elfHeadLen(p []byte) (int, error) {
	h, err := elfHeader(p)
	if err != nil {
		return 0, err
	}
	if h.Phentsize != elfPhdrSize || h.Phnum == 0 || h.Phnum > elfMaxPhdrs {
		return 0, fmt.Errorf("damaged ELF file: %d program headers of %d bytes", h.Phnum, h.Phentsize)
	}
	if h.Phoff > elfPrefix-elfMaxPhdrs*elfPhdrSize {
		return 0, fmt.Errorf("damaged ELF file: program headers at offset %#x", h.Phoff)
	}
	return max(elfHdrSize, int(h.Phoff)+int(h.Phnum)*elfPhdrSize), nil
}

func elfHeader(p []byte) (h elf.Header64, err error) {
	if len(p) < elfHdrSize {
		return h, errors.New("truncated ELF file: the file ends inside its header")
	}
	if string(p[:4]) != elfMagic {
		return h, fmt.Errorf("not an ELF file (starts with % x)", p[:4])
	}
	if elf.Class(p[elf.EI_CLASS]) == elf.ELFCLASS32 {
		return h, errors.New("32-bit kernel: only 64-bit kernels can be booted")
	}
	if elf.Class(p[elf.EI_CLASS]) != elf.ELFCLASS64 || elf.Data(p[elf.EI_DATA]) != elf.ELFDATA2LSB {
		return h, errors.New("ELF file is not 64-bit little-endian")
	}
	if err := binary.Read(bytes.NewReader(p), binary.LittleEndian, &h); err != nil {
		return h, err
	}
	if m := elf.Machine(h.Machine); m != elf.EM_X86_64 {
		return h, fmt.Errorf("kernel for another machine: %v, want %v", m, elf.EM_X86_64)
	}
	if t := elf.Type(h.Type); t != elf.ET_EXEC && t != elf.ET_DYN {
		return h, fmt.Errorf("ELF file is not executable: type %v", t)
	}
	return h, nil
}

// parseELF reads header and program headers from head (see elfHeadLen) and
// checks them against a machine with ram bytes of memory: every segment must
// be in RAM between 1 MiB and the device hole, none may overlap another, and
// the entry must be in one.
func parseELF(head []byte, ram uint64) (*image, error) {
	n, err := elfHeadLen(head)
	if err != nil {
		return nil, err
	}
	if len(head) < n {
		return nil, errors.New("truncated ELF file: the file ends inside its program headers")
	}
	h, err := elfHeader(head)
	if err != nil {
		return nil, err
	}
	im := &image{start: math.MaxUint64}
	ph := make([]elf.Prog64, h.Phnum)
	if err := binary.Read(bytes.NewReader(head[h.Phoff:]), binary.LittleEndian, ph); err != nil {
		return nil, err
	}
	for i, p := range ph {
		if elf.ProgType(p.Type) != elf.PT_LOAD || p.Memsz == 0 {
			continue
		}
		if p.Filesz > p.Memsz || p.Off > math.MaxInt64 || p.Filesz > math.MaxInt64-p.Off || p.Paddr > math.MaxUint64-p.Memsz {
			return nil, fmt.Errorf("damaged ELF file: program header %d has impossible sizes", i)
		}
		im.segments = append(im.segments, segment{p.Off, p.Vaddr, p.Paddr, p.Filesz, p.Memsz})
		im.start = min(im.start, p.Paddr)
		im.end = max(im.end, p.Paddr+p.Memsz)
		im.fileEnd = max(im.fileEnd, p.Off+p.Filesz)
	}
	if err := im.check(ram); err != nil {
		return nil, err
	}
	if im.entry, err = im.physEntry(h.Entry); err != nil {
		return nil, err
	}
	return im, nil
}

// check tests that the segments fit a machine with ram bytes of memory.
func (im *image) check(ram uint64) error {
	if len(im.segments) == 0 {
		return errors.New("ELF file has nothing to load")
	}
	if im.start < HighMemAddr {
		return fmt.Errorf("kernel is linked to run at %#x, below 1 MiB", im.start)
	}
	if im.end > LowMax {
		return fmt.Errorf("kernel is linked to run up to %#x, beyond the %s a kernel can be in", im.end, mib(LowMax))
	}
	if im.end > LowRAM(ram) {
		return &memoryError{ram, im.end, "kernel is linked to run"}
	}
	slices.SortStableFunc(im.segments, func(a, b segment) int { return cmpU64(a.paddr, b.paddr) })
	for i := 1; i < len(im.segments); i++ {
		if a, b := im.segments[i-1], im.segments[i]; a.paddr+a.memsz > b.paddr {
			return fmt.Errorf("damaged ELF file: segments at %#x and %#x overlap", a.paddr, b.paddr)
		}
	}
	return nil
}

// memoryError says that the machine has too little RAM.
type memoryError struct {
	ram, need uint64
	what      string
}

func (e *memoryError) Error() string {
	return fmt.Sprintf("%s of memory is too little: %s up to %s", mib(e.ram), e.what, mib(e.need))
}

// physEntry makes the entry a physical address. Linux has it so already;
// other kernels name the virtual address.
func (im *image) physEntry(e uint64) (uint64, error) {
	for _, s := range im.segments {
		if e >= s.paddr && e-s.paddr < s.filesz {
			return e, nil
		}
	}
	for _, s := range im.segments {
		if e >= s.vaddr && e-s.vaddr < s.filesz {
			return e - s.vaddr + s.paddr, nil
		}
	}
	return 0, fmt.Errorf("damaged ELF file: entry %#x is in no segment", e)
}

func cmpU64(a, b uint64) int {
	switch {
	case a < b:
		return -1
	case a > b:
		return 1
	}
	return 0
}

// elfLoader loads an ELF kernel that is written to it from beginning to end,
// keeping no more than the program headers.
type elfLoader struct {
	mem  Memory
	head []byte // file so far, until im is known
	im   *image
	pos  uint64 // file offset of the next byte
}

// Write implements io.Writer.
func (l *elfLoader) Write(p []byte) (int, error) {
	n := len(p)
	if l.im == nil {
		l.head = append(l.head, p...)
		if ok, err := l.parseHead(); !ok || err != nil {
			return n, err
		}
		p, l.head = l.head, nil
	}
	return n, l.load(p)
}

// parseHead parses l.head once enough of it is there.
func (l *elfLoader) parseHead() (ok bool, err error) {
	if len(l.head) < elfHdrSize {
		return false, nil
	}
	n, err := elfHeadLen(l.head)
	if err != nil || len(l.head) < n {
		return false, err
	}
	l.im, err = parseELF(l.head, l.mem.Size())
	return err == nil, err
}

// load stores p, the file's bytes from l.pos on, in whatever segments they
// belong to.
func (l *elfLoader) load(p []byte) error {
	from, to := l.pos, l.pos+uint64(len(p))
	for _, s := range l.im.segments {
		a, b := max(from, s.off), min(to, s.off+s.filesz)
		if a >= b {
			continue
		}
		if err := l.mem.WriteAt(p[a-from:b-from], s.paddr+(a-s.off)); err != nil {
			return err
		}
	}
	l.pos = to
	return nil
}

// finish checks that the whole kernel came, and clears what the file does not
// fill.
func (l *elfLoader) finish() (*image, error) {
	if l.im == nil {
		_, err := elfHeader(l.head)
		if err == nil {
			err = errors.New("truncated ELF file: the file ends inside its program headers")
		}
		return nil, err
	}
	if l.pos < l.im.fileEnd {
		return nil, fmt.Errorf("truncated ELF file: %d of %d bytes", l.pos, l.im.fileEnd)
	}
	for _, s := range l.im.segments {
		if err := zero(l.mem, s.paddr+s.filesz, s.paddr+s.memsz); err != nil {
			return nil, err
		}
	}
	return l.im, nil
}

func zero(mem Memory, from, to uint64) error {
	var buf [64 << 10]byte
	for from < to {
		n := min(to-from, uint64(len(buf)))
		if err := mem.WriteAt(buf[:n], from); err != nil {
			return err
		}
		from += n
	}
	return nil
}

// loadELF loads an ELF kernel from a stream. With toEnd it reads on behind the
// last segment, so that r can check the whole of its data.
func loadELF(mem Memory, r io.Reader, toEnd bool) (*image, error) {
	l := &elfLoader{mem: mem}
	buf := make([]byte, 256<<10)
	for {
		n, err := r.Read(buf)
		if _, err := l.Write(buf[:n]); err != nil {
			return nil, err
		}
		// Not errors.Is: a decoder's wrapped EOF is damage, not the end.
		if err == io.EOF || !toEnd && l.im != nil && l.pos >= l.im.fileEnd {
			return l.finish()
		}
		if err != nil {
			return nil, err
		}
	}
}
