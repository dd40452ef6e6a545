package interp

import (
	"encoding/binary"

	"ring3/internal/x86"
	"ring3/internal/x86/insn"
)

func (c *CPU) portIn(port uint16, size uint8) uint64 {
	c.io = [8]byte{}
	c.PIO.Read(uint64(port), c.io[:size])
	return binary.LittleEndian.Uint64(c.io[:])
}

func (c *CPU) portOut(port uint16, size uint8, v uint64) {
	binary.LittleEndian.PutUint64(c.io[:], v)
	c.PIO.Write(uint64(port), c.io[:size])
}

// lowerIO: a port write may end the machine or raise an interrupt at once, so
// the block ends.
func lowerIO(d *decoded, o *op) {
	endBlock(d, o)
	acc, port := &d.Args[0], &d.Args[1]
	o.fn = opIN
	if d.Op == insn.OpOUT {
		acc, port = port, acc
		o.fn = opOUT
	}
	setSize(o, acc.Size)
	o.imm &= 0xff
	if port.Kind != insn.ArgImm {
		o.imm = portDX
	}
}

const portDX = 0x10000 // op.imm: the port is in DX

func (c *CPU) port(o *op) uint16 {
	if o.imm == portDX {
		return uint16(c.GPR[x86.RDX])
	}
	return uint16(o.imm)
}

func opIN(c *CPU, o *op) bool {
	c.count(o)
	p := c.port(o)
	if !c.ioAllowed(p, int(o.size)) {
		return false
	}
	c.setReg(x86.RAX, o.size, c.portIn(p, o.size))
	return true
}

func opOUT(c *CPU, o *op) bool {
	c.count(o)
	p := c.port(o)
	if !c.ioAllowed(p, int(o.size)) {
		return false
	}
	c.portOut(p, o.size, c.reg(x86.RAX, o.size))
	return true
}
