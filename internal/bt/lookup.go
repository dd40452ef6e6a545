package bt

import "ring3/internal/x86"

// The jump table maps guest addresses of indirect branches to host addresses.
// An address has two places in it, whose indices are bits of the address: with
// one, some of the few thousand targets of a kernel would share it, and take it
// from each other all the time.
const TableSize = 1 << 16

// IndexMasks are the bits of the two indices, for PEXT. Both have the lowest
// ones: many targets are close to each other.
var IndexMasks = [2]uint64{TableSize - 1, 0x3f<<16 | 1<<10 - 1}

// Indices are the places of an address.
func Indices(rip uint64) [2]int {
	return [2]int{int(rip % TableSize), int(rip>>16&0x3f<<10 | rip%(1<<10))}
}

// EmptyTag is the tag of an empty entry, that of an address which has neither
// place there: a guest may branch to any address.
func EmptyTag(index int) uint64 { return -^uint64(index) }

// Lookup is the routine at Host.Lookup: the target is in RCX, the guest's RCX
// in scratch 0. It has one exit, taken when the table does not know the target;
// RIP is then in scratch 2. JRCXZ tests without flags.
func Lookup(h *Host, id uint32) *Block { return lookup(h, h.Lookup, id, false) }

// LookupAC is the same for branches with RFLAGS.AC set, at Host.LookupAC. Tags
// are those of keys; the scratch word has the address.
func LookupAC(h *Host, id uint32) *Block { return lookup(h, h.LookupAC, id, true) }

func lookup(h *Host, at uint64, id uint32, ac bool) *Block {
	e := &emitter{h: h, at: at, id: id, ac: ac, b: &Block{AC: ac}}
	e.mark(0, Target)
	e.save(1, x86.RDX)
	e.save(2, x86.RCX)
	e.mark(0, TargetIn)
	for i := range uint32(2) {
		mask := h.Mask + 8*i
		if i != 0 {
			e.load(x86.RCX, 2)
		}
		e.pext(x86.RDX, x86.RCX, mask)
		e.lea(x86.RDX, x86.RDX, x86.RDX, 0)
		e.bytes(0x48, 0x8b, 0x14, 0xd5) // mov rdx, [Jumps+rdx*8]
		e.imm32(h.Jumps)
		e.bytes(0x48, 0x8d, 0x0c, 0x11) // lea rcx, [rcx+rdx]
		if ac {
			e.movImm(x86.RDX, 1<<64-1<<62) // as Key does
			e.bytes(0x48, 0x8d, 0x0c, 0x11)
		}
		hit := e.jrcxz()
		miss := e.far()
		e.land(hit)
		e.load(x86.RCX, 2)
		e.pext(x86.RDX, x86.RCX, mask)
		e.lea(x86.RDX, x86.RDX, x86.RDX, 0)
		e.bytes(0x48, 0x8b, 0x14, 0xd5) // mov rdx, [Jumps+8+rdx*8]
		e.imm32(h.Jumps + 8)
		e.save(3, x86.RDX)
		e.load(x86.RCX, 0)
		e.load(x86.RDX, 1)
		e.bytes(0xff, 0x24, 0x25) // jmp [Scratch+24]
		e.imm32(h.Scratch + 24)
		e.landFar(miss)
	}
	e.load(x86.RCX, 0)
	e.load(x86.RDX, 1)
	e.b.Exits = []Exit{{Kind: ExitChain, AC: ac}}
	e.leave(0)
	e.b.Code = e.out
	return e.b
}
