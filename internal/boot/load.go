package boot

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"runtime/debug"
)

// Cache keeps unpacked kernels. It is a help, not a need: what it fails to
// keep is unpacked again.
type Cache interface {
	// Get opens what is kept under key, or fails with fs.ErrNotExist.
	Get(key string) (io.ReadCloser, error)
	// Put calls fill with a writer that keeps what is written to it once
	// fill returns nil. It returns the error of fill and no other.
	Put(key string, fill func(io.Writer) error) error
}

// Config is what to boot.
type Config struct {
	Kernel  File
	Initrd  File // none if Data is nil
	Cmdline string
	RSDP    uint64 // guest-physical address of the ACPI root pointer, or 0
	Seed    []byte // for the guest's random number generator, may be empty
	Cache   Cache  // may be nil
}

// Load puts kernel, initrd and parameters into mem, and tells where to start.
// Errors from the input are *InputError; others come from mem or from reading
// files. Load can be called again on the same memory to start anew.
func Load(mem Memory, cfg Config) (Entry, error) {
	if mem.Size() < MinMemory {
		return Entry{}, inputErr("memory", nil, "%s is too little to boot a kernel", mib(mem.Size()))
	}
	e, header, err := loadKernel(mem, cfg)
	// Decoders leave dictionaries of up to 128 MiB behind.
	defer debug.FreeOSMemory()
	if err != nil {
		return Entry{}, err
	}
	if e.Initrd, err = loadInitrd(mem, cfg.Initrd, header, e.Kernel); err != nil {
		return Entry{}, err
	}
	cmdline, err := checkCmdline(cfg.Cmdline, header)
	if err != nil {
		return Entry{}, err
	}
	p := params{header: header, ram: mem.Size(), initrd: e.Initrd, rsdp: cfg.RSDP,
		seedLen: min(len(cfg.Seed), 64)}
	for _, w := range []struct {
		gpa  uint64
		data []byte
	}{
		{GDTAddr, gdt()},
		{PageTableAddr, pageTables()},
		{SetupDataAddr, setupSeed(cfg.Seed[:p.seedLen])},
		{CmdlineAddr, cmdline},
		{ZeroPageAddr, p.zeroPage()},
	} {
		if err := mem.WriteAt(w.data, w.gpa); err != nil {
			return Entry{}, err
		}
	}
	return e, nil
}

// loadKernel loads cfg.Kernel and returns its setup header too.
func loadKernel(mem Memory, cfg Config) (Entry, []byte, error) {
	b, err := parseBzImage(cfg.Kernel)
	if err == nil {
		e, err := loadPacked(mem, b, cfg.Cache)
		return e, b.header, err
	}
	if !errors.Is(err, errNotBzImage) {
		return Entry{}, nil, err
	}
	im, err := loadELF(mem, io.NewSectionReader(cfg.Kernel.Data, 0, cfg.Kernel.Size), false)
	if err != nil {
		return Entry{}, nil, kernelErr(cfg.Kernel, err)
	}
	return newEntry(im, "none"), defaultHeader(), nil
}

// kernelErr wraps an error met while loading the ELF kernel in f.
func kernelErr(f File, err error) error {
	var me *memoryError
	if errors.As(err, &me) {
		return inputErr("memory", nil, "%s, says %s", me.Error(), f.Name)
	}
	var head [4]byte
	if n, _ := readAtMost(f, head[:], 0); n < 4 || string(head[:]) != elfMagic && string(head[:2]) != "MZ" {
		return inputErr(f.Name, nil, "not a Linux kernel: neither a bzImage nor an ELF file")
	}
	return inputErr(f.Name, err, "cannot be booted")
}

func newEntry(im *image, packing string) Entry {
	return Entry{RIP: im.entry, Kernel: Range{im.start, im.end}, Packing: packing}
}

// loadPacked unpacks the kernel in b into mem, through the cache if there is
// one.
func loadPacked(mem Memory, b *bzImage, cache Cache) (Entry, error) {
	p := io.NewSectionReader(b.file.Data, b.payload, b.length)
	var key string
	if cache != nil {
		h := sha256.New()
		if _, err := io.Copy(h, io.NewSectionReader(p, 0, p.Size())); err != nil {
			return Entry{}, inputErr(b.file.Name, err, "cannot read")
		}
		key = hex.EncodeToString(h.Sum(nil))
		if e, ok := loadCached(mem, cache, key); ok {
			e.Version = b.kernel
			return e, nil
		}
	}
	r, done, name, err := unpack(p)
	if err != nil {
		return Entry{}, unpackErr(b.file, name, err)
	}
	defer done()
	var im *image
	load := func(w io.Writer) (err error) {
		im, err = loadELF(mem, io.TeeReader(r, w), true)
		return err
	}
	if cache != nil && name != "none" {
		err = cache.Put(key, load)
	} else {
		err = load(io.Discard)
	}
	if err != nil {
		return Entry{}, unpackErr(b.file, name, err)
	}
	e := newEntry(im, name)
	e.Version = b.kernel
	return e, nil
}

// loadCached loads from the cache. A damaged entry is as good as none.
func loadCached(mem Memory, cache Cache, key string) (Entry, bool) {
	r, err := cache.Get(key)
	if err != nil {
		return Entry{}, false
	}
	defer r.Close()
	im, err := loadELF(mem, r, false)
	if err != nil {
		return Entry{}, false
	}
	e := newEntry(im, "none")
	e.Cached = true
	return e, true
}

// unpackErr wraps an error met while unpacking the kernel in f.
func unpackErr(f File, format string, err error) error {
	var me *memoryError
	if errors.As(err, &me) {
		return inputErr("memory", nil, "%s, says %s", me.Error(), f.Name)
	}
	if format == "" {
		return inputErr(f.Name, err, "cannot unpack the kernel")
	}
	return inputErr(f.Name, err, "cannot unpack the kernel (%s)", format)
}

// checkCmdline returns the command line as the guest sees it, NUL at the end.
func checkCmdline(s string, header []byte) ([]byte, error) {
	limit := CmdlineMax - 1
	if n := (&bzImage{header: header}).u32(hdrCmdlineSize); n > 0 {
		limit = min(limit, int(n))
	}
	if len(s) > limit {
		return nil, inputErr("command line", nil, "%d bytes, the kernel takes %d at most", len(s), limit)
	}
	for i := range len(s) {
		if s[i] == 0 {
			return nil, inputErr("command line", nil, "NUL byte at position %d", i)
		}
	}
	return append([]byte(s), 0), nil
}

// OpenFile opens a kernel or initrd. The caller closes it after Load.
func OpenFile(path string) (File, io.Closer, error) {
	f, err := os.Open(path)
	if err != nil {
		var pe *os.PathError
		if errors.As(err, &pe) {
			err = pe.Err
		}
		return File{}, nil, inputErr(path, err, "cannot open")
	}
	st, err := f.Stat()
	if err == nil && !st.Mode().IsRegular() {
		err = fmt.Errorf("is a %s, not a regular file", fileKind(st.Mode()))
	}
	if err != nil {
		f.Close()
		return File{}, nil, inputErr(path, err, "cannot use")
	}
	return File{Name: path, Data: f, Size: st.Size()}, f, nil
}

func fileKind(m os.FileMode) string {
	switch {
	case m.IsDir():
		return "directory"
	case m&os.ModeDevice != 0:
		return "device"
	}
	return "special file"
}
