package interp

import "ring3/internal/x86/insn"

func (c *CPU) xgetbv() bool                             { return false }
func (c *CPU) xsetbv() bool                             { return false }
func (c *CPU) xsaveOp(inst *insn.Inst, lin uint64) bool { return false }
