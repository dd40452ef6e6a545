package interp

import "ring3/internal/x86/insn"

// op is one decoded instruction, or a fused pair of them: a handler and its
// operands. A handler returns false to leave the block: a fault is pending, or
// something happened that the run loop must look at.
type op struct {
	fn   func(*CPU, *op) bool
	imm  uint64 // immediate, or displacement of a branch
	disp uint64
	inst *decoded // for handlers that need the whole instruction

	back uint16 // from the start of the instruction to the end of the block, in bytes
	len  uint8
	pre  uint8 // bytes of dropped NOPs before the instruction

	dst, src    uint8 // registers; 16 to 19 are AH, CH, DH, BH
	base, index uint8 // noReg: none
	scale       uint8 // shift count
	seg         uint8 // of the memory operand; SS for stack operations
	amode       uint8 // bits of special address forms
	size        uint8 // operand size in bytes
	sh          uint8 // 64 less the operand size in bits
	kind        uint8 // of operations that share a handler, or condition code
	flag        uint8
}

const noReg = 0xff

// Bits of op.amode.
const (
	amRIP    = 1 << iota // RIP-relative; disp is relative to the end of the block
	amSeg                // add the base of FS or GS (64-bit mode)
	amAddr32             // the offset has 32 bits
	amAddr16
)

// Bits of op.flag.
const (
	flagLock  = 1 << iota // LOCK prefix
	flagMem               // the ModRM operand is memory
	flagRep               // F3
	flagRepne             // F2
	flagEnd               // ends its block
	flagAddr32
	flagAddr16
)

// decoded is what op leaves out.
type decoded struct {
	insn.Inst
	code [insn.MaxLen]byte

	native *nativeOp            // for the host CPU; nil: not prepared yet
	run    *nativeRun           // that starts here
	timed  func(*CPU, *op) bool // the handler, when opTimed stands before it
}

// block is a run of instructions in one page; only its first instruction may
// reach into the next page, and is then alone.
type block struct {
	ops   []op
	len   uint64 // bytes
	n     int32  // instructions
	bits  insn.Mode
	ok    bool // not dropped
	chain bool // few successors: worth remembering in link

	// The last successors, a small jump cache of its own.
	link [2]jumpEntry

	gpa  uint64 // guest-physical address of the first byte
	gpa2 uint64 // page of the second part of a crossing instruction, or noCode

	hashNext *block
	pageNext [2]*block // in the lists of the two pages
}

// jumpEntry remembers the block at a linear address.
type jumpEntry struct {
	lin uint64
	key uint64
	b   *block
}

// overlaps reports whether n bytes at gpa are among those of b.
func (b *block) overlaps(gpa, n uint64) bool {
	if b.gpa2 == noCode {
		return gpa < b.gpa+b.len && b.gpa < gpa+n
	}
	first := (b.gpa | 0xfff) + 1 - b.gpa
	return gpa < b.gpa+first && b.gpa < gpa+n ||
		gpa < b.gpa2+b.len-first && b.gpa2 < gpa+n
}

// opLeave replaces the rest of a block that was dropped while it ran.
func opLeave(c *CPU, o *op) bool {
	c.RIP = (c.RIP - uint64(o.back) - uint64(o.pre)) & c.mode.ipMask
	c.left = true
	return false
}

// ea is the address of the memory operand: linear in 64-bit mode, the offset
// in the segment elsewhere.
func (c *CPU) ea(o *op) uint64 {
	a := o.disp
	if o.base < 16 {
		a += c.GPR[o.base]
	}
	if o.index < 16 {
		a += c.GPR[o.index] << (o.scale & 63)
	}
	if o.amode != 0 {
		a = c.eaSpecial(o, a)
	}
	return a
}

func (c *CPU) eaSpecial(o *op, a uint64) uint64 {
	if o.amode&amRIP != 0 {
		a += c.RIP
	}
	if o.amode&amAddr32 != 0 {
		a &= 0xffffffff
	}
	if o.amode&amAddr16 != 0 {
		a &= 0xffff
	}
	if o.amode&amSeg != 0 {
		a += c.Seg[o.seg].Base
	}
	return a
}

// addr is the linear address of the memory operand. In 64-bit mode the check
// for canonical addresses is left to the access.
func (c *CPU) addr(o *op, size int, write bool) (uint64, bool) {
	a := c.ea(o)
	if c.mode.is64 {
		return a, true
	}
	return c.segLin(o.seg, a, size, write)
}

// loadMem reads the memory operand.
func (c *CPU) loadMem(o *op, size uint8) (uint64, bool) {
	a, ok := c.addr(o, int(size), false)
	if !ok {
		return 0, false
	}
	return c.load(a, size)
}

// storeMem writes the memory operand.
func (c *CPU) storeMem(o *op, size uint8, v uint64) bool {
	a, ok := c.addr(o, int(size), true)
	return ok && c.store(a, size, v)
}

// modMem reads the memory operand for modification.
func (c *CPU) modMem(o *op, size uint8) (uint64, bool) {
	a, ok := c.addr(o, int(size), true)
	if !ok {
		return 0, false
	}
	return c.rmw(a, size)
}

// reg reads a register operand, zero-extended.
func (c *CPU) reg(r, size uint8) uint64 {
	switch size {
	case 8:
		return c.GPR[r&15]
	case 4:
		return uint64(uint32(c.GPR[r&15]))
	case 2:
		return uint64(uint16(c.GPR[r&15]))
	}
	if r >= 16 {
		return c.GPR[r&3] >> 8 & 0xff
	}
	return c.GPR[r&15] & 0xff
}

// setReg writes a register operand: 32-bit results are zero-extended, smaller
// ones leave the rest of the register alone (SDM vol. 1, section 3.4.1.1).
func (c *CPU) setReg(r, size uint8, v uint64) {
	switch size {
	case 8:
		c.GPR[r&15] = v
	case 4:
		c.GPR[r&15] = uint64(uint32(v))
	case 2:
		c.GPR[r&15] = c.GPR[r&15]&^0xffff | v&0xffff
	default:
		if r >= 16 {
			c.GPR[r&3] = c.GPR[r&3]&^0xff00 | v&0xff<<8
			return
		}
		c.GPR[r&15] = c.GPR[r&15]&^0xff | v&0xff
	}
}

// rm reads the ModRM operand, register src or memory.
func (c *CPU) rmv(o *op, size uint8) (uint64, bool) {
	if o.flag&flagMem != 0 {
		return c.loadMem(o, size)
	}
	return c.reg(o.src, size), true
}

// setRM writes the ModRM operand, register dst or memory.
func (c *CPU) setRM(o *op, size uint8, v uint64) bool {
	if o.flag&flagMem != 0 {
		return c.storeMem(o, size, v)
	}
	c.setReg(o.dst, size, v)
	return true
}

// modRM reads the ModRM operand, register dst or memory, for modification.
func (c *CPU) modRM(o *op, size uint8) (uint64, bool) {
	if o.flag&flagMem != 0 {
		return c.modMem(o, size)
	}
	return c.reg(o.dst, size), true
}

// putRM writes what modRM read; false: another CPU interfered, start over.
func (c *CPU) putRM(o *op, size uint8, v uint64) bool {
	if o.flag&flagMem != 0 {
		return c.rmwPut(size, v, o.flag&flagLock != 0)
	}
	c.setReg(o.dst, size, v)
	return true
}

// sext extends the sign of the low size bytes of v.
func sext(v uint64, size uint8) uint64 {
	sh := 64 - size*8
	return uint64(int64(v<<sh) >> sh)
}
