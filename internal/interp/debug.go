package interp

import "ring3/internal/x86"

// debugState collects what the debug registers found while an instruction ran
// (SDM vol. 3B, chapter 18).
type debugState struct {
	hits uint64 // breakpoint conditions, DR6 bits 0 to 3
}

const (
	dr6BS      = 1 << 14
	dr7Enabled = 0xff
)

// access checks a data access against the breakpoints.
func (d *debugState) access(c *CPU, a, size uint64, write bool) {
	if c.DR[7]&dr7Enabled == 0 {
		return
	}
	for i := range uint(4) {
		rw := c.DR[7] >> (16 + 4*i) & 3
		if c.DR[7]>>(2*i)&3 == 0 || rw != 3 && (rw != 1 || !write) {
			continue
		}
		n := [...]uint64{1, 2, 8, 4}[c.DR[7]>>(18+4*i)&3]
		if at := c.DR[i] &^ (n - 1); a < at+n && at < a+size {
			d.hits |= 1 << i
		}
	}
}

// fetch is the set of instruction breakpoints at linear address a.
func (d *debugState) fetch(c *CPU, a uint64) (hits uint64) {
	for i := range uint(4) {
		if c.DR[7]>>(2*i)&3 != 0 && c.DR[7]>>(16+4*i)&3 == 0 && c.DR[i] == a {
			hits |= 1 << i
		}
	}
	return hits
}

// special reports whether instructions must run one at a time.
func (c *CPU) needStep() bool {
	return c.RFLAGS&(x86.FlagTF|x86.FlagRF) != 0 || c.InterruptShadow || c.DR[7]&dr7Enabled != 0
}
