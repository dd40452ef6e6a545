package virtio

import (
	"errors"
	"fmt"
)

// Descriptor flags (section 2.7.5) and size.
const (
	descNext     = 1 << 0
	descWrite    = 1 << 1 // the device writes
	descIndirect = 1 << 2

	descSize = 16 // address u64, length u32, flags u16, next u16
)

// Buffer is a piece of guest memory.
type Buffer struct {
	Addr uint64 // guest-physical
	Data []byte // the memory itself
}

// Chain is a request: buffers for the device to read, and buffers for it to
// write. How the driver cut a request into buffers has no meaning (section
// 2.7.4.1).
type Chain struct {
	Readable, Writable Buffers

	dev     *PCI
	queue   *queue
	head    uint16
	written uint32
}

// Complete gives the request back, with n bytes written to its buffers from
// the first on. It blocks until the guest stands still, and must be called
// exactly once unless Begin has completed the request.
func (c *Chain) Complete(n uint32) {
	c.written = n
	c.dev.complete(c)
}

// CompleteNow is Complete for a device that is within Platform.Sync.
func (c *Chain) CompleteNow(n uint32) {
	c.written = n
	c.dev.giveBack([]*Chain{c})
}

// Buffers is a sequence of buffers.
type Buffers []Buffer

// Len is the number of bytes.
func (b Buffers) Len() (n int64) {
	for i := range b {
		n += int64(len(b[i].Data))
	}
	return n
}

// Split cuts after n bytes; there must be as many.
func (b Buffers) Split(n int64) (head, tail Buffers) {
	for i := range b {
		size := int64(len(b[i].Data))
		if n < size {
			head = append(b[:i:i], Buffer{b[i].Addr, b[i].Data[:n]})
			tail = append(Buffers{{b[i].Addr + uint64(n), b[i].Data[n:]}}, b[i+1:]...)
			if n == 0 {
				head = b[:i:i]
			}
			return head, tail
		}
		n -= size
	}
	return b, nil
}

// Read copies the first len(p) bytes; there must be as many.
func (b Buffers) Read(p []byte) {
	for i := range b {
		p = p[copy(p, b[i].Data):]
	}
}

// Write copies p to the first bytes; there must be as many.
func (b Buffers) Write(p []byte) {
	for i := range b {
		p = p[copy(b[i].Data, p):]
	}
}

// Slices is the memory of the buffers.
func (b Buffers) Slices() [][]byte {
	s := make([][]byte, len(b))
	for i := range b {
		s[i] = b[i].Data
	}
	return s
}

// chain reads the descriptors from head on, each of them once (sections 2.7.5
// and 2.7.5.3).
func (q *queue) chain(head uint16) (*Chain, error) {
	c := &Chain{queue: q, head: head}
	table, index := q.descs, head
	indirect := false
	for left := int(q.size); ; left-- {
		if left == 0 {
			return nil, errors.New("a chain has more descriptors than the queue")
		}
		if int(index) >= len(table)/descSize {
			return nil, fmt.Errorf("descriptor %d, the table has %d", index, len(table)/descSize)
		}
		d := table[int(index)*descSize:]
		addr, size, flags, next := le.Uint64(d), le.Uint32(d[8:]), le.Uint16(d[12:]), le.Uint16(d[14:])
		data, err := q.mem.Slice(addr, uint64(size))
		switch {
		case err != nil:
			return nil, fmt.Errorf("descriptor %d: %w", index, err)
		case size == 0:
			return nil, fmt.Errorf("descriptor %d has no bytes", index)
		case flags&descIndirect != 0:
			if !q.indirect || indirect || flags&descNext != 0 || size%descSize != 0 {
				return nil, fmt.Errorf("descriptor %d: an indirect table of %d bytes, flags %#x, is out of place", index, size, flags)
			}
			table, index, indirect = data, 0, true
			left++ // the table's descriptors count, not this one
			continue
		case flags&descWrite != 0:
			c.Writable = append(c.Writable, Buffer{addr, data})
		case len(c.Writable) > 0:
			return nil, fmt.Errorf("descriptor %d is to be read, behind one to be written", index)
		default:
			c.Readable = append(c.Readable, Buffer{addr, data})
		}
		if flags&descNext == 0 {
			return c, nil
		}
		index = next
	}
}
