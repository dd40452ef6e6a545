package direct

import (
	"errors"

	"golang.org/x/sys/unix"

	"ring3/internal/guestmem"
	"ring3/internal/host"
	"ring3/internal/x86"
)

// codeStore knows what the scanner found in the pages of RAM, and keeps the
// private copies of those with patches.
type codeStore struct {
	fd int
}

func newCodeStore(ram uint64) (*codeStore, error) {
	fd, err := host.Memfd("ring3-code", int64(ram), false)
	if err != nil {
		return nil, err
	}
	return &codeStore{fd: fd}, nil
}

func (c *codeStore) close() error { return errors.Join(unix.Close(c.fd)) }

func (c *codeStore) forget(m *guestmem.Memory, gpa uint64) {}

func (c *codeStore) private(gpa uint64) bool { return false }

func (c *codeStore) scanned(m *guestmem.Memory, gpa uint64, mode uint8) bool { return false }

func (c *codeStore) offset(gpa uint64) uint64 { return gpa &^ (x86.PageSize - 1) }

func (e *Engine) mode() uint8 { return 64 }

func (e *Engine) clean(gva, gpa uint64) bool { return true }

func (e *Engine) prepareExec(gva, gpa uint64) (both bool, err error) {
	e.mem.MarkCode(gpa)
	return false, nil
}

func (e *Engine) prepareWrite(gpa uint64, exec bool) (both bool) {
	e.mem.AllowStubWrite(gpa)
	return false
}
