package direct

import (
	"errors"
	"unsafe"

	"golang.org/x/sys/unix"

	"ring3/internal/direct/stub"
	"ring3/internal/host"
)

// slots is the memfd with the control pages of all stubs, mapped by the
// monitor as a whole and by each stub only its own.
type slots struct {
	fd   int
	mem  []byte
	free []int
}

func newSlots(n int) (*slots, error) {
	fd, err := host.Memfd("ring3-control", int64(n*stub.SlotSize), false)
	if err != nil {
		return nil, err
	}
	mem, err := host.MapShared(fd, n*stub.SlotSize)
	if err != nil {
		return nil, errors.Join(err, unix.Close(fd))
	}
	s := &slots{fd: fd, mem: mem}
	for i := n - 1; i > zygoteSlot; i-- {
		s.free = append(s.free, i)
	}
	return s, nil
}

func (s *slots) close() error { return errors.Join(unix.Munmap(s.mem), unix.Close(s.fd)) }

func (s *slots) slot(i int) []byte {
	return s.mem[i*stub.SlotSize : (i+1)*stub.SlotSize : (i+1)*stub.SlotSize]
}

// take returns a zeroed slot; ok is false when all are in use.
func (s *slots) take() (i int, ok bool) {
	if len(s.free) == 0 {
		return 0, false
	}
	i = s.free[len(s.free)-1]
	s.free = s.free[:len(s.free)-1]
	clear(s.slot(i))
	return i, true
}

func (s *slots) give(i int) {
	if i != zygoteSlot {
		s.free = append(s.free, i)
	}
}

// zygoteSlot is the slot that the start-up list maps; it is never handed out.
const zygoteSlot = 0

// control is the Control page of a slot, and calls its call list.
func control(slot []byte) *stub.Control { return (*stub.Control)(unsafe.Pointer(&slot[0])) }

func callList(slot []byte) *[stub.MaxCalls]stub.Call {
	return (*[stub.MaxCalls]stub.Call)(unsafe.Pointer(&slot[stub.SlotCalls]))
}
