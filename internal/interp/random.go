package interp

import (
	"crypto/rand"
	"encoding/binary"

	"ring3/internal/x86"
)

func lowerRandom(d *decoded, o *op) { o.fn = opRandom }

// opRandom is RDRAND and RDSEED: CF set, the other status flags clear.
func opRandom(c *CPU, o *op) bool {
	rand.Read(c.io[:])
	c.setReg(o.dst, o.size, binary.LittleEndian.Uint64(c.io[:]))
	c.setArith(x86.FlagCF)
	return true
}
