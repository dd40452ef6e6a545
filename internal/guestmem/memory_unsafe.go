// Package guestmem is guest-physical RAM: one memfd, mapped once by the
// monitor and page by page by the stubs. It also knows which pages hold code
// that some engine has looked at, so that every write to such a page can be
// told to those engines.
//
// Two facts per page exclude each other: "code was taken from it" (PageCode)
// and "a stub can write it without asking" (PageStubWrite). MarkCode and
// AllowStubWrite move a page from one to the other and tell the engines. All
// of that happens on the vCPU thread.
package guestmem

import (
	"errors"
	"fmt"
	"unsafe"

	"golang.org/x/sys/unix"

	"ring3/internal/x86"
)

// Guest-physical layout of RAM: below 3 GiB, and the rest from 4 GiB up; the
// hole between is for devices.
const (
	HoleStart = 3 << 30
	HoleEnd   = 4 << 30
)

// Page flags.
const (
	PageCode      = 1 << 0 // decoded blocks or scanned user mappings come from this page
	PageStubWrite = 1 << 1 // mapped writable in some stub
)

// Annexes is the number of pages that Annex has.
const Annexes = 8

const annexSize = Annexes * x86.PageSize

// ErrRange is returned for guest-physical addresses outside RAM.
var ErrRange = errors.New("guest-physical address outside RAM")

// CodeUser is an engine that keeps something derived from code bytes.
type CodeUser interface {
	// DropCode forgets everything derived from the n bytes at gpa, which lie
	// in one page, and reports whether anything derived from that page is
	// left.
	DropCode(gpa uint64, n int) (left bool)
	// PageBecameCode tells that a page just got PageCode: cached permission
	// to write to it must go.
	PageBecameCode(gpa uint64)
	// RevokeStubWrite takes all writable stub mappings of the page away.
	RevokeStubWrite(gpa uint64)
}

// Memory is the RAM of one virtual machine.
type Memory struct {
	fd     int
	data   []byte
	behind []byte // what follows in the memfd: annexes and flags
	low    uint64 // bytes below HoleStart
	flags  []uint8
	users  []CodeUser
}

// New makes size bytes of zeroed RAM, a multiple of the page size.
func New(size uint64) (*Memory, error) {
	if size == 0 || size%x86.PageSize != 0 {
		return nil, fmt.Errorf("guest memory of %d bytes is not a multiple of 4096", size)
	}
	fd, err := unix.MemfdCreate("ring3-ram", unix.MFD_CLOEXEC|unix.MFD_ALLOW_SEALING)
	if err != nil {
		return nil, fmt.Errorf("memfd_create for guest memory: %w", err)
	}
	flags := (size/x86.PageSize + x86.PageSize - 1) &^ (x86.PageSize - 1)
	if err := unix.Ftruncate(fd, int64(size+annexSize+flags)); err != nil {
		unix.Close(fd)
		return nil, fmt.Errorf("ftruncate guest memory to %d bytes: %w", size, err)
	}
	// The size is sealed: no mapping of RAM can ever raise SIGBUS.
	if _, err := unix.FcntlInt(uintptr(fd), unix.F_ADD_SEALS,
		unix.F_SEAL_SHRINK|unix.F_SEAL_GROW|unix.F_SEAL_SEAL); err != nil {
		unix.Close(fd)
		return nil, fmt.Errorf("seal guest memory: %w", err)
	}
	data, err := unix.Mmap(fd, 0, int(size), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED|unix.MAP_NORESERVE)
	if err != nil {
		unix.Close(fd)
		return nil, fmt.Errorf("mmap %d bytes of guest memory: %w", size, err)
	}
	behind, err := unix.Mmap(fd, int64(size), int(annexSize+flags), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("mmap the pages behind guest memory: %w", err), unix.Munmap(data), unix.Close(fd))
	}
	return &Memory{
		fd: fd, data: data, behind: behind, low: min(size, HoleStart),
		flags: behind[annexSize:][:size/x86.PageSize],
	}, nil
}

// Close gives the memory back.
func (m *Memory) Close() error {
	err := errors.Join(unix.Munmap(m.data), unix.Munmap(m.behind))
	m.data, m.behind, m.flags = nil, nil, nil
	return errors.Join(err, unix.Close(m.fd))
}

// FD is the memfd behind RAM.
func (m *Memory) FD() int { return m.fd }

// Size is the amount of RAM in bytes.
func (m *Memory) Size() uint64 { return uint64(len(m.data)) }

// Annex is page i, below Annexes, of those behind RAM in the same memfd that
// are no memory of the guest: what has the descriptor can share it, at AnnexAt.
func (m *Memory) Annex(i int) []byte { return m.behind[i*x86.PageSize:][:x86.PageSize] }

// AnnexAt is the place in the memfd of an annex.
func (m *Memory) AnnexAt(i int) (off uint64) { return m.Size() + uint64(i)*x86.PageSize }

// FlagsAt is the place in the memfd of the flags of all pages, a byte each in
// the order of Offset, and their number rounded up to whole pages: for stubs to
// read.
func (m *Memory) FlagsAt() (off, size uint64) {
	return m.Size() + annexSize, uint64(len(m.behind)) - annexSize
}

// Low is the amount of RAM below HoleStart in bytes.
func (m *Memory) Low() uint64 { return m.low }

// Offset is the place in the memfd of the RAM byte at gpa.
func (m *Memory) Offset(gpa uint64) (off uint64, ok bool) {
	if gpa < m.low {
		return gpa, true
	}
	if gpa >= HoleEnd && gpa-HoleEnd < m.Size()-m.low {
		return gpa - HoleEnd + m.low, true
	}
	return 0, false
}

// Page is the monitor's address of the page of RAM that holds gpa, nil
// outside RAM. It stays valid until Close.
func (m *Memory) Page(gpa uint64) unsafe.Pointer {
	off, ok := m.Offset(gpa &^ (x86.PageSize - 1))
	if !ok {
		return nil
	}
	return unsafe.Pointer(&m.data[off])
}

// Word is the 8-byte aligned quadword at gpa, nil outside RAM; for atomic
// access to page-table entries.
func (m *Memory) Word(gpa uint64) *uint64 {
	off, ok := m.Offset(gpa &^ 7)
	if !ok {
		return nil
	}
	return (*uint64)(unsafe.Pointer(&m.data[off]))
}

// Slice is the monitor's view of n bytes at gpa; they must lie in one region
// of RAM. Writes through it are not told to code users.
func (m *Memory) Slice(gpa, n uint64) ([]byte, error) {
	off, ok := m.Offset(gpa)
	if !ok || n > m.Size()-off || (off < m.low && off+n > m.low) {
		return nil, fmt.Errorf("%w: %#x+%#x", ErrRange, gpa, n)
	}
	return m.data[off : off+n : off+n], nil
}

// ReadAt copies RAM at gpa to p.
func (m *Memory) ReadAt(p []byte, gpa uint64) error {
	s, err := m.Slice(gpa, uint64(len(p)))
	copy(p, s)
	return err
}

// WriteAt copies p to RAM at gpa and tells code users.
func (m *Memory) WriteAt(p []byte, gpa uint64) error {
	s, err := m.Slice(gpa, uint64(len(p)))
	if err != nil {
		return err
	}
	copy(s, p)
	m.Changed(gpa, len(p))
	return nil
}
