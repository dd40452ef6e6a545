package direct

import (
	"encoding/binary"

	"ring3/internal/guestmem"
)

func (c *codeCache) put32(off uint64, v uint32) { binary.LittleEndian.PutUint32(c.mem[off:], v) }

func (c *codeCache) get32(off uint64) uint32 { return binary.LittleEndian.Uint32(c.mem[off:]) }

func (c *codeCache) tag(i int) uint64 { return binary.LittleEndian.Uint64(c.mem[jumpsOff+16*i:]) }

func (c *codeCache) setTag(i int, tag, host uint64) {
	binary.LittleEndian.PutUint64(c.mem[jumpsOff+16*i:], tag)
	binary.LittleEndian.PutUint64(c.mem[jumpsOff+16*i+8:], host)
}

// isCode reports whether some engine took code from a page of RAM.
func (e *Engine) isCode(gpa uint64) bool { return e.mem.Flags(gpa)&guestmem.PageCode != 0 }
