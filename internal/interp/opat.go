package interp

import (
	"ring3/internal/mmu"
	"ring3/internal/x86"
	"ring3/internal/x86/insn"
)

// OpAt is the mnemonic of the instruction at RIP, for reports; the zero Op
// when there is none to be read. It changes nothing.
func (c *CPU) OpAt() insn.Op {
	mode := insn.Mode64
	if !c.Code64() {
		mode = insn.Mode16
		if c.Seg[x86.CS].Attr>>14&1 != 0 {
			mode = insn.Mode32
		}
	}
	var buf [insn.MaxLen]byte
	acc := mmu.Probe | mmu.Fetch
	if c.CPL == 3 {
		acc |= mmu.User
	}
	lin, n := c.RIP+c.Seg[x86.CS].Base, 0
	for n < len(buf) {
		tr, _, ok := c.Walk.Walk(&c.State, lin+uint64(n), acc)
		if !ok {
			break
		}
		part := min(len(buf)-n, x86.PageSize-int(tr.GPA%x86.PageSize))
		if c.Mem.ReadAt(buf[n:n+part], tr.GPA) != nil {
			break
		}
		n += part
	}
	var in insn.Inst
	if insn.Decode(buf[:n], mode, &in) != nil {
		return 0
	}
	return in.Op
}
