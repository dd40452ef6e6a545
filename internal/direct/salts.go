package direct

import (
	"slices"
	"sync/atomic"

	"ring3/internal/bt"
	"ring3/internal/direct/stub"
	"ring3/internal/guestmem"
	"ring3/internal/x86"
)

// salts are the salts that tags in the user TLB have, one for each address
// space that the guest kernel was in lately: entries stay when it switches to
// another and back, as a processor's with PCIDs do (SDM vol. 3A, section
// 4.10.1). A flush gives new salts.
//
// Spaces of a class have the same tables for the upper half: what was found
// there in one of them holds in all. That is compared once, when a space comes
// in: a kernel that changes an upper-half entry of one PML4 alone, and does not
// flush, may find in the other spaces what it was before.
type salts struct {
	mem    *guestmem.Memory
	spaces [stub.MaxSpaces]stub.Space
	class  [stub.MaxSpaces]int
	next   int    // to be replaced
	last   uint64 // salts given so far
	full   func() // empties the TLB
}

// maxSalts is how many salts there are before they start again.
const maxSalts = 1<<(64-bt.SaltShift) - 2

// noCR3 is a value that no guest can load: reserved bits are set.
const noCR3 = 1<<64 - 1

func (s *salts) init(mem *guestmem.Memory, full func()) {
	s.mem, s.full = mem, full
	s.forget()
}

// forget removes all address spaces.
func (s *salts) forget() {
	for i := range s.spaces {
		s.spaces[i] = stub.Space{CR3: noCR3}
	}
}

func (s *salts) fresh() uint64 {
	if s.last == maxSalts {
		s.last = 0
		s.forget()
		s.full()
	}
	s.last++
	return s.last << bt.SaltShift
}

// of is the salt of an address space.
func (s *salts) of(cr3 uint64) uint64 {
	if i := s.find(cr3); i >= 0 {
		return s.spaces[i].Salt
	}
	salt := s.fresh()
	i := s.next
	s.spaces[i] = stub.Space{CR3: cr3, Salt: salt}
	s.class[i] = s.classify(i)
	s.next = (s.next + 1) % len(s.spaces)
	return salt
}

// classify is the class of a new space.
func (s *salts) classify(i int) int {
	used := [stub.MaxSpaces]bool{}
	for j, x := range s.spaces {
		if j == i || x.CR3 == noCR3 {
			continue
		}
		if s.sameUpper(x.CR3, s.spaces[i].CR3) {
			return s.class[j]
		}
		used[s.class[j]] = true
	}
	return slices.Index(used[:], false)
}

// sameUpper compares the upper halves of two PML4s, without the accessed bits.
func (s *salts) sameUpper(a, b uint64) bool {
	for i := uint64(256); i < 512; i++ {
		v, w := s.mem.Word(a&x86.CR3Addr+8*i), s.mem.Word(b&x86.CR3Addr+8*i)
		if v == nil || w == nil || (atomic.LoadUint64(v)^atomic.LoadUint64(w))&^x86.PTEAccessed != 0 {
			return false
		}
	}
	return true
}

// find is the index of the space with this CR3, -1 if it is not known.
func (s *salts) find(cr3 uint64) int {
	return slices.IndexFunc(s.spaces[:], func(x stub.Space) bool { return x.CR3 == cr3 })
}

// sameClass reports whether two values of CR3 are known to lead to the same
// upper half.
func (s *salts) sameClass(a, b uint64) bool {
	i, j := s.find(a), s.find(b)
	return i >= 0 && j >= 0 && s.class[i] == s.class[j]
}

// from are the spaces that the kernel stub may switch to from cr3, which is
// known.
func (s *salts) from(cr3 uint64) (l [stub.MaxSpaces]stub.Space) {
	class := s.class[s.find(cr3)]
	for i, x := range s.spaces {
		if s.class[i] != class {
			x.CR3 = noCR3
		}
		l[i] = x
	}
	return l
}

// flush makes entries unreachable that the guest has invalidated; single pages
// are dropped by the TLB.
func (s *salts) flush(f Flush) {
	for i, x := range s.spaces {
		switch {
		case f.Kind == FlushPage:
		case f.Kind == FlushPCID && x.CR3&x86.CR3PCIDMask != uint64(f.PCID):
		default:
			s.spaces[i] = stub.Space{CR3: noCR3}
		}
	}
}
