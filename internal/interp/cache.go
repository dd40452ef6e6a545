package interp

import (
	"ring3/internal/x86"
	"ring3/internal/x86/insn"
)

// Sizes of the block cache. When a pool is used up everything is dropped and
// decoded anew: simpler than eviction, and rare.
const (
	chunkOps   = 4096
	maxChunks  = 52    // 12 MiB of ops
	maxBlocks  = 56000 // 8 MiB
	maxDecoded = 12000
	hashBits   = 15
	jumpBits   = 12
)

// cache holds decoded blocks by guest-physical address, and the way to them by
// linear address.
type cache struct {
	hash  [1 << hashBits]*block
	pages map[uint64]*block // by page number: list of the blocks with bytes there
	jump  [1 << jumpBits]jumpEntry

	chunks  [][]op // ops are carved from the last one in use
	chunk   int    // index of that
	used    int    // ops used of it
	blocks  []block
	decoded []decoded

	// A jump entry is valid under one of two keys, depending on whether the
	// translation of its address is global. A key holds a generation, renewed
	// by flushes, and the mode.
	genGlobal, genLocal, lastGen uint64
	keyGlobal, keyLocal          uint64
}

func (k *cache) init() {
	k.pages = make(map[uint64]*block)
	k.dropKeys(true)
}

// dropKeys invalidates jump entries; those of global translations only if all
// is set.
func (k *cache) dropKeys(all bool) {
	k.lastGen++
	k.genLocal = k.lastGen
	if all {
		k.lastGen++
		k.genGlobal = k.lastGen
	}
}

func (k *cache) setKeys(id uint64) {
	k.keyGlobal = k.genGlobal<<8 | id
	k.keyLocal = k.genLocal<<8 | id
}

func hashOf(gpa uint64, bits insn.Mode) uint64 {
	return (gpa*0x9e3779b97f4a7c15>>(64-hashBits) ^ uint64(bits)) % (1 << hashBits)
}

// find returns the cached block at gpa.
func (k *cache) find(gpa uint64, bits insn.Mode) *block {
	for b := k.hash[hashOf(gpa, bits)]; b != nil; b = b.hashNext {
		if b.gpa == gpa && b.bits == bits {
			return b
		}
	}
	return nil
}

func (k *cache) insert(b *block) {
	h := &k.hash[hashOf(b.gpa, b.bits)]
	b.hashNext, *h = *h, b
	p := b.gpa >> 12
	b.pageNext[0], k.pages[p] = k.pages[p], b
	if b.gpa2 != noCode && b.gpa2>>12 != p {
		p = b.gpa2 >> 12
		b.pageNext[1], k.pages[p] = k.pages[p], b
	}
	b.ok = true
}

// next is the link of b in the list of page.
func (b *block) next(page uint64) **block {
	if b.gpa>>12 == page {
		return &b.pageNext[0]
	}
	return &b.pageNext[1]
}

// unlinkPage takes b out of the list of page.
func (k *cache) unlinkPage(b *block, page uint64) {
	head := k.pages[page]
	if head == b {
		if n := *b.next(page); n != nil {
			k.pages[page] = n
		} else {
			delete(k.pages, page)
		}
		return
	}
	for q := head; q != nil; q = *q.next(page) {
		if *q.next(page) == b {
			*q.next(page) = *b.next(page)
			return
		}
	}
}

func (k *cache) remove(b *block) {
	b.ok = false
	for q := &k.hash[hashOf(b.gpa, b.bits)]; *q != nil; q = &(*q).hashNext {
		if *q == b {
			*q = b.hashNext
			break
		}
	}
	k.unlinkPage(b, b.gpa>>12)
	if b.gpa2 != noCode && b.gpa2>>12 != b.gpa>>12 {
		k.unlinkPage(b, b.gpa2>>12)
	}
}

// flush drops all blocks. No block may be running.
func (k *cache) flush() {
	clear(k.hash[:])
	clear(k.pages)
	clear(k.jump[:])
	k.chunk, k.used = 0, 0
	k.blocks = k.blocks[:0]
	k.decoded = k.decoded[:0]
}

// room makes sure that a block of n ops fits; it reports whether everything
// was dropped for that.
func (k *cache) room(n int) (flushed bool) {
	if k.blocks == nil {
		k.blocks = make([]block, 0, maxBlocks)
		k.decoded = make([]decoded, 0, maxDecoded)
		k.chunks = append(k.chunks, make([]op, chunkOps))
	}
	if len(k.blocks) == maxBlocks || len(k.decoded)+n > maxDecoded {
		k.flush()
		flushed = true
	}
	if k.used+n > chunkOps {
		k.chunk++
		k.used = 0
		if k.chunk == len(k.chunks) {
			if k.chunk == maxChunks {
				k.flush()
				return true
			}
			k.chunks = append(k.chunks, make([]op, chunkOps))
		}
	}
	return flushed
}

// newBlock copies ops into the pools.
func (k *cache) newBlock(ops []op) *block {
	at := k.chunks[k.chunk][k.used : k.used+len(ops) : k.used+len(ops)]
	copy(at, ops)
	k.used += len(ops)
	for i := range at {
		if d := at[i].inst; d != nil {
			k.decoded = append(k.decoded, *d)
			at[i].inst = &k.decoded[len(k.decoded)-1]
		}
	}
	k.blocks = append(k.blocks, block{ops: at})
	return &k.blocks[len(k.blocks)-1]
}

// DropCode implements guestmem.CodeUser: it drops the blocks that have any of
// the n bytes at gpa. The block that is running stops after the instruction
// that wrote.
func (c *CPU) DropCode(gpa uint64, n int) (left bool) {
	k := &c.code
	page := gpa / x86.PageSize
	for b := k.pages[page]; b != nil; {
		next := *b.next(page)
		if b.overlaps(gpa, uint64(n)) {
			k.remove(b)
			c.stat.Invalidated++
			if b == c.cur {
				for i := range b.ops {
					b.ops[i].fn = opLeave
				}
			}
		}
		b = next
	}
	return k.pages[page] != nil
}

// RevokeStubWrite is for engines that have stubs.
func (c *CPU) RevokeStubWrite(gpa uint64) {}
