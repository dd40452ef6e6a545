package direct

import (
	"ring3/internal/guestmem"
	"ring3/internal/x86"
)

// rmap finds the writable and the executable mappings of a page of RAM in all
// stubs: one chain of nodes per page. Plain data mappings are not in it, for
// nobody asks for them.
type rmap struct {
	head  []uint32 // by page of RAM; 0 ends a chain
	nodes []rnode  // nodes[0] is unused
	free  uint32
}

type rnode struct {
	gva   uint64
	space uint32
	next  uint32
}

func newRmap(ram uint64) rmap {
	return rmap{head: make([]uint32, ram/x86.PageSize), nodes: make([]rnode, 1)}
}

func (r *rmap) page(m *guestmem.Memory, gpa uint64) *uint32 {
	off, ok := m.Offset(gpa)
	if !ok {
		panic("BUG: page outside RAM was mapped")
	}
	return &r.head[off/x86.PageSize]
}

func (r *rmap) add(m *guestmem.Memory, gpa uint64, space uint32, gva uint64) {
	h := r.page(m, gpa)
	i := r.free
	if i != 0 {
		r.free = r.nodes[i].next
	} else {
		i = uint32(len(r.nodes))
		r.nodes = append(r.nodes, rnode{})
	}
	r.nodes[i] = rnode{gva: gva, space: space, next: *h}
	*h = i
}

func (r *rmap) remove(m *guestmem.Memory, gpa uint64, space uint32, gva uint64) {
	p := r.page(m, gpa)
	for *p != 0 {
		i := *p
		n := &r.nodes[i]
		if n.gva == gva && n.space == space {
			*p = n.next
			n.next = r.free
			r.free = i
			return
		}
		p = &n.next
	}
	panic("BUG: mapping is not in the reverse map")
}
