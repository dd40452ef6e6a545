package virtio

import (
	"fmt"
	"sync/atomic"

	"ring3/internal/guestmem"
)

// Layout of a split virtqueue of n descriptors (section 2.7):
//
//	descriptor table	16 × n, at a multiple of 16
//	available ring		flags u16, idx u16, ring n × u16, used_event u16; of 2
//	used ring		flags u16, idx u16, ring n × (id u32, len u32), avail_event u16; of 4
const (
	ringIdx      = 2
	ringEntries  = 4
	usedSize     = 8
	availNoIntr  = 1 << 0 // flags of the available ring, without EVENT_IDX
	ringOverhead = 6
)

// queue is one virtqueue, used under PCI.mu.
type queue struct {
	mem *guestmem.Memory

	// As the driver has set it up.
	size                 uint16
	desc, driver, device uint64
	vector               uint16
	enabled              bool
	eventIdx, indirect   bool

	// While it works.
	descs, avail []byte
	next         uint16 // of the available ring, free-running
	used         uint16 // of the used ring, likewise
	told         uint16 // used, when the driver was last interrupted
	busy         uint16 // requests taken and not given back
	short        uint16 // where the available ring ended when it had too few
	fence        atomic.Uint32
}

// start looks at where the driver has put the rings.
func (q *queue) start() (err error) {
	n := uint64(q.size)
	for _, part := range []struct {
		name       string
		addr, size uint64
		align      uint64
		to         *[]byte
	}{
		{"descriptor table", q.desc, descSize * n, 16, &q.descs},
		{"available ring", q.driver, ringOverhead + 2*n, 2, &q.avail},
		{"used ring", q.device, ringOverhead + usedSize*n, 4, new([]byte)},
	} {
		if part.addr%part.align != 0 {
			return fmt.Errorf("%s at %#x, which is no multiple of %d", part.name, part.addr, part.align)
		}
		if *part.to, err = q.mem.Slice(part.addr, part.size); err != nil {
			return fmt.Errorf("%s: %w", part.name, err)
		}
	}
	return nil
}

func (q *queue) availIdx() uint16 { return le.Uint16(q.avail[ringIdx:]) }

// pop takes the next request; nil if there is none.
func (q *queue) pop() (*Chain, error) {
	waiting := q.availIdx() - q.next
	if waiting == 0 {
		return nil, nil
	}
	q.fence.Store(0) // what the index covers must not be read before it
	if waiting > q.size {
		return nil, fmt.Errorf("%d requests wait, the ring has %d", waiting, q.size)
	}
	if q.busy == q.size {
		return nil, fmt.Errorf("a request comes before one of %d is complete", q.busy)
	}
	at := ringEntries + 2*int(q.next%q.size)
	c, err := q.chain(le.Uint16(q.avail[at:]))
	q.next++
	q.busy++
	return c, err
}

// arm asks for a notification of the request with index next. It reports whether
// that came before the driver could see that.
func (q *queue) arm(next uint16) (more bool) {
	if !q.eventIdx {
		return false // the driver always notifies
	}
	q.write(q.device+ringEntries+usedSize*uint64(q.size), le.AppendUint16(nil, next))
	q.fence.Store(0) // a load must not go before that store
	return q.availIdx() != next
}

// push gives a request back, and tells code users what was written to its
// buffers before the driver can know.
func (q *queue) push(c *Chain) {
	q.busy--
	left := uint64(c.written)
	for _, b := range c.Writable {
		n := min(left, uint64(len(b.Data)))
		q.mem.Changed(b.Addr, int(n))
		left -= n
	}
	e := le.AppendUint32(le.AppendUint32(nil, uint32(c.head)), c.written)
	q.write(q.device+ringEntries+usedSize*uint64(q.used%q.size), e)
	q.used++
	q.write(q.device+ringIdx, le.AppendUint16(nil, q.used))
}

// interrupt reports whether the driver wants an interrupt for what was pushed
// since it last got one (sections 2.7.7 and 2.7.10).
func (q *queue) interrupt() bool {
	q.fence.Store(0)
	told := q.told
	q.told = q.used
	if told == q.used {
		return false
	}
	if !q.eventIdx {
		return le.Uint16(q.avail)&availNoIntr == 0
	}
	event := le.Uint16(q.avail[ringEntries+2*int(q.size):])
	return q.used-event-1 < q.used-told
}

// write writes to the used ring, which start has looked at.
func (q *queue) write(addr uint64, p []byte) {
	if err := q.mem.WriteAt(p, addr); err != nil {
		panic("BUG: virtio: " + err.Error())
	}
}
