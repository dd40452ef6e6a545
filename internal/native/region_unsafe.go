package native

import (
	"errors"
	"fmt"
	"sync"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Layout of the region and of one slice of it:
//
//	exitOffset   exit code                          executable
//	arenaOffset  snippets                           executable
//	rawOffset    three pages of INT3, see RunRaw    executable
//	frameOffset  frame, reset image                 data
//	scratchOff   memory operands                    data
//
// The rest of a slice is never mapped.
const (
	sliceSize  = 1 << 20
	maxSlices  = 64
	regionSize = maxSlices * sliceSize

	exitOffset  = 0
	arenaOffset = 0x100
	arenaEnd    = 0x40000
	rawOffset   = 0x40000
	rawSize     = 3 * pageSize
	codeSize    = rawOffset + rawSize

	frameOffset  = 0x80000
	resetOffset  = frameOffset + 0x400
	fpuOffset    = frameOffset + 0x1000
	scratchOff   = frameOffset + 0x3000
	scratchSize  = 0x1000
	dataSize     = 0x4000
	pageSize     = 4096
	regionHint   = 0x2000_0000 // below 4 GiB, so that 32-bit code can run there
	regionHintHi = 0x7000_0000
)

// regionBase is the start of the region, 0 before there is one. The signal
// handler reads it. An address never lies less than regionSize above 0: the
// first pages of a process cannot be mapped.
var regionBase uintptr

var region struct {
	sync.Mutex // guards the fields below; no other lock is taken while it is held
	err        error
	host       Host
	ready      bool
	used       [maxSlices]bool
}

// openRegion reserves the region and puts the signal handler in place.
func openRegion() error {
	if region.ready || region.err != nil {
		return region.err
	}
	region.err = func() error {
		var ok bool
		if region.host, ok = probe(); !ok {
			return errors.New("host CPU or kernel without XSAVE")
		}
		base, err := reserve()
		if err != nil {
			return err
		}
		regionBase = base
		if err := installHandlers(); err != nil {
			return err
		}
		region.ready = true
		return nil
	}()
	return region.err
}

// reserve takes address space below 4 GiB if there is room, anywhere otherwise.
func reserve() (uintptr, error) {
	const prot, flags = unix.PROT_NONE, unix.MAP_PRIVATE | unix.MAP_ANONYMOUS | unix.MAP_NORESERVE
	for hint := uintptr(regionHint); hint < regionHintHi; hint += regionSize {
		p, err := unix.MmapPtr(-1, 0, addressOf(hint), regionSize, prot, flags|unix.MAP_FIXED_NOREPLACE)
		if err == nil && uintptr(p) == hint {
			return hint, nil
		}
	}
	p, err := unix.MmapPtr(-1, 0, nil, regionSize+sliceSize, prot, flags)
	if err != nil {
		return 0, fmt.Errorf("reserve %d bytes for native code: %w", regionSize, err)
	}
	return (uintptr(p) + sliceSize - 1) &^ (sliceSize - 1), nil
}

type pageBytes [pageSize]byte

// slice is the memory of one executor.
type slice struct {
	base    uintptr
	code    []byte // writable view of the code pages
	frame   *frame
	scratch []byte
}

var errFull = fmt.Errorf("more than %d native executors", maxSlices)

// openSlice maps the pages of a free slice.
func openSlice() (s slice, err error) {
	region.Lock()
	defer region.Unlock()
	if err := openRegion(); err != nil {
		return s, err
	}
	n := 0
	for n < maxSlices && region.used[n] {
		n++
	}
	if n == maxSlices {
		return s, errFull
	}
	s.base = regionBase + uintptr(n)*sliceSize

	fd, err := codeFile()
	if err != nil {
		return s, err
	}
	defer unix.Close(fd)
	if err := unix.Ftruncate(fd, codeSize); err != nil {
		return s, fmt.Errorf("ftruncate native code to %d bytes: %w", codeSize, err)
	}
	if s.code, err = unix.Mmap(fd, 0, codeSize, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED); err != nil {
		return s, fmt.Errorf("map native code for writing: %w", err)
	}
	if err := mapAt(fd, s.base, codeSize, unix.PROT_READ|unix.PROT_EXEC, unix.MAP_SHARED); err != nil {
		unix.Munmap(s.code)
		return s, fmt.Errorf("map native code for execution: %w", err)
	}
	data := s.base + frameOffset
	if err := mapAt(-1, data, dataSize, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS); err != nil {
		unix.Munmap(s.code)
		return s, fmt.Errorf("map native data: %w", err)
	}
	s.frame = at[frame](data)
	s.scratch = at[[scratchSize]byte](s.base + scratchOff)[:]
	region.used[n] = true
	return s, nil
}

// close gives the pages back; the addresses stay reserved.
func (s *slice) close() error {
	region.Lock()
	defer region.Unlock()
	err := unix.Munmap(s.code)
	err = errors.Join(err, mapAt(-1, s.base, sliceSize, unix.PROT_NONE,
		unix.MAP_PRIVATE|unix.MAP_ANONYMOUS|unix.MAP_NORESERVE))
	region.used[(s.base-regionBase)/sliceSize] = false
	*s = slice{}
	return err
}

// mapAt replaces the mapping at an address inside the region.
func mapAt(fd int, addr, size uintptr, prot, flags int) error {
	_, err := unix.MmapPtr(fd, 0, addressOf(addr), size, prot, flags|unix.MAP_FIXED)
	return err
}

// codeFile makes a memfd that may be mapped executable. MFD_EXEC says so to
// kernels that know vm.memfd_noexec; older ones refuse the flag.
func codeFile() (int, error) {
	fd, err := unix.MemfdCreate("ring3-native", unix.MFD_CLOEXEC|unix.MFD_EXEC)
	if errors.Is(err, unix.EINVAL) {
		fd, err = unix.MemfdCreate("ring3-native", unix.MFD_CLOEXEC)
	}
	if err != nil {
		return -1, fmt.Errorf("memfd_create for native code: %w", err)
	}
	return fd, nil
}

// addressOf makes a pointer to memory that is not Go's.
func addressOf(addr uintptr) unsafe.Pointer {
	return *(*unsafe.Pointer)(unsafe.Pointer(&addr))
}

func at[T any](addr uintptr) *T { return (*T)(addressOf(addr)) }
