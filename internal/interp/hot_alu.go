package interp

import "ring3/internal/x86/insn"

func lowerHotALU(in *insn.Inst, o *op) bool  { return false }
func lowerHotShift(o *op)                    {}
func lowerHotMove(in *insn.Inst, o *op) bool { return false }
func lowerHotExtend(in *insn.Inst, o *op)    {}
func lowerHotJcc(o *op)                      {}
