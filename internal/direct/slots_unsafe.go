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
	// proofs are the eventfds of the slots (package stub, "Proof").
	proofs []int
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
	for range n {
		ev, err := unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK)
		if err != nil {
			return nil, errors.Join(err, s.close())
		}
		s.proofs = append(s.proofs, ev)
	}
	for i := n - 1; i > zygoteSlot; i-- {
		s.free = append(s.free, i)
	}
	return s, nil
}

func (s *slots) close() error {
	err := errors.Join(unix.Munmap(s.mem), unix.Close(s.fd))
	for _, ev := range s.proofs {
		err = errors.Join(err, unix.Close(ev))
	}
	return err
}

// proof takes the sum of the proofs that the stub in slot i has given since
// the last call.
func (s *slots) proof(i int) uint64 {
	var v uint64
	n, err := unix.Read(s.proofs[i], unsafe.Slice((*byte)(unsafe.Pointer(&v)), 8))
	if n != 8 || err != nil {
		return 0
	}
	return v
}

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
	s.proof(i)
	return i, true
}

func (s *slots) give(i int) {
	if i != zygoteSlot {
		s.free = append(s.free, i)
	}
}

// zygoteSlot is the slot that the start-up list maps; it is never handed out.
const zygoteSlot = 0

// control is the Control page of a slot, cpuids its second half, and callList
// its call list.
func control(slot []byte) *stub.Control { return (*stub.Control)(unsafe.Pointer(&slot[0])) }

func cpuids(slot []byte) *stub.CPUIDs {
	return (*stub.CPUIDs)(unsafe.Pointer(&slot[stub.SlotCPUIDs]))
}

func callList(slot []byte) *[stub.MaxCalls]stub.Call {
	return (*[stub.MaxCalls]stub.Call)(unsafe.Pointer(&slot[stub.SlotCalls]))
}

// changes is the list of a kernel stub.
func changes(slot []byte) *[stub.MaxChanges]stub.Change {
	return (*[stub.MaxChanges]stub.Change)(unsafe.Pointer(&slot[stub.SlotChanges]))
}
