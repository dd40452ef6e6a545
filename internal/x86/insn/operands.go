package insn

import "ring3/internal/x86"

// memory decodes the memory form of ModRM: SDM vol. 2A, 2.1.5. scale is the
// factor of an 8-bit displacement, 0 for none.
func (d *decoder) memory(scale int64) {
	in := d.inst
	m := &in.Mem
	mod, rm := in.ModRM>>6, in.ModRM&7
	m.Base, m.Index, m.Scale, m.Seg = NoReg, NoReg, 1, x86.DS
	dispLen := [3]int{0, 1, 4}[mod]
	if in.AddrSize == 16 {
		dispLen = d.memory16(mod, rm, dispLen)
	} else {
		if rm == 4 {
			in.SIB = d.next()
			index := in.SIB>>3&7 | in.Rex<<2&8
			if index != 4 {
				m.Index = index
				m.Scale = 1 << (in.SIB >> 6)
			}
			rm = in.SIB & 7
		}
		switch {
		case mod == 0 && rm == 5:
			dispLen = 4
			if in.Mode == Mode64 && in.ModRM&7 == 5 {
				m.Base = RIPReg
			}
		default:
			m.Base = rm | in.Rex<<3&8
		}
		// The default segment is that of the stack for rSP and rBP, not for
		// r12 and r13 (SDM vol. 1, 3.7.4).
		if m.Base == 4 || m.Base == 5 {
			m.Seg = x86.SS
		}
	}
	if dispLen == 0 {
		return
	}
	in.DispOff, in.DispLen = uint8(d.pos), uint8(dispLen)
	m.Disp = d.signed(dispLen)
	if dispLen == 1 && scale > 1 {
		m.Disp *= scale
	}
}

// memory16 is the 16-bit form: SDM vol. 2A, table 2-1.
func (d *decoder) memory16(mod, rm uint8, dispLen int) int {
	m := &d.inst.Mem
	m.Base = [8]uint8{3, 3, 5, 5, 6, 7, 5, 3}[rm]
	if rm < 4 {
		m.Index = 6 + rm&1
	}
	if rm == 2 || rm == 3 || rm == 6 {
		m.Seg = x86.SS
	}
	if mod == 2 {
		return 2
	}
	if mod == 0 && rm == 6 {
		m.Base, m.Seg = NoReg, x86.DS
		return 2
	}
	return dispLen
}

// size gives the operand size in bits that c stands for.
func (d *decoder) size(c sizeCode) uint16 {
	if c <= sz4096 {
		return fixedSizes[c]
	}
	in := d.inst
	switch c {
	case szV:
		return uint16(in.OpSize)
	case szY:
		if in.Mode == Mode64 && d.w {
			return 64
		}
		return 32
	case szZ:
		return uint16(min(in.OpSize, 32))
	case szA:
		return uint16(in.AddrSize)
	case szS:
		return d.native()
	case szFar:
		return uint16(in.OpSize) + 16
	case szTable:
		return d.native() + 16
	case szPair:
		return uint16(in.OpSize) * 2
	case szBnd:
		return d.native() * 2
	case szEnv:
		if in.OpSize == 16 {
			return 14 * 8
		}
		return 28 * 8
	case szState:
		if in.OpSize == 16 {
			return 94 * 8
		}
		return 108 * 8
	case szVL:
		return in.VecLen
	case szVL2:
		return in.VecLen / 2
	case szVL4:
		return in.VecLen / 4
	case szVL8:
		return in.VecLen / 8
	case szVR2:
		return max(in.VecLen/2, 128)
	case szVR4, szVR8:
		return 128
	case szDup:
		if in.VecLen == 128 {
			return 64
		}
		return in.VecLen
	}
	return 0
}

var fixedSizes = [...]uint16{
	szNone: 0, sz8: 8, sz16: 16, sz32: 32, sz48: 48, sz64: 64, sz80: 80, sz128: 128,
	sz256: 256, sz384: 384, sz512: 512, sz4096: 4096,
}

func (d *decoder) native() uint16 {
	if d.inst.Mode == Mode64 {
		return 64
	}
	return 32
}

// arguments fills in Args and reports whether all registers exist.
func (d *decoder) arguments(e *Encoding) bool {
	in := d.inst
	in.NArg = e.nargs
	for i := range int(e.nargs) {
		s := &e.args[i]
		a := &in.Args[i]
		a.Kind = s.kind
		switch s.pos {
		case posReg:
			a.Reg = in.ModRM>>3&7 | in.Rex<<1&8
			if a.Kind == ArgVec {
				a.Reg |= d.rx
			} else if d.rx != 0 {
				return false
			}
		case posRM:
			if in.ModRM < 0xc0 && e.attr&attrModreg == 0 {
				a.Kind = ArgMem
				a.Size = d.memSize(e, s)
				continue
			}
			a.Reg = in.ModRM&7 | in.Rex<<3&8
			if a.Kind == ArgVec && d.vex == 0x62 {
				a.Reg |= in.Rex << 3 & 0x10 // EVEX.X extends a register in ModRM.r/m
			}
		case posVvvv:
			a.Reg = in.Vvvv
			if a.Kind == ArgVec {
				a.Reg |= d.vx
			} else if d.vx != 0 {
				return false
			}
		case posOpc:
			a.Reg = d.opcode&7 | in.Rex<<3&8
		case posIs4:
			a.Reg = uint8(in.Imm) >> 4
			if in.Mode != Mode64 {
				a.Reg &= 7
			}
		case posFixed:
			a.Reg, a.High, a.Size = s.reg, s.high, d.size(s.size)
			continue
		case posImm:
			a.Size = d.size(s.size)
			if s.kind == ArgImm && s.mem != szSigned && a.Size < 64 {
				in.Imm &= 1<<a.Size - 1
			}
			continue
		case posImm2:
			a.Size = d.size(s.size)
			in.Imm2 &= 1<<a.Size - 1
			continue
		case posRel:
			a.Size = d.size(s.size)
			continue
		}
		a.Size = d.size(s.size)
		if a.Kind != ArgVec && !d.register(a, s.pos) {
			return false
		}
	}
	return true
}

// register applies the limits of the register files other than the vectors.
func (d *decoder) register(a *Arg, pos argPos) bool {
	in := d.inst
	switch a.Kind {
	case ArgGPR:
		if a.Size == 8 && a.Reg >= 4 && a.Reg < 8 && in.Rex == 0 && d.vex == 0 {
			a.High = true
		}
	case ArgMMX, ArgST, ArgSeg:
		a.Reg &= 7
	case ArgMask:
		if pos == posRM {
			a.Reg &= 7
		}
		return a.Reg < 8
	case ArgTile:
		return a.Reg < 8
	case ArgBnd:
		return a.Reg < 4
	case ArgDR:
		return a.Reg < 8
	case ArgCR:
		return a.Reg < 5 && a.Reg != 1 || a.Reg == 8
	}
	return true
}

// memSize is the size of a memory operand, which is one element when EVEX.b
// asks for broadcast.
func (d *decoder) memSize(e *Encoding, s *argSpec) uint16 {
	if d.evexB {
		return d.bcstSize(e)
	}
	return d.size(s.mem)
}

func (d *decoder) bcstSize(e *Encoding) uint16 {
	switch {
	case e.attr&attrBcst16 != 0:
		return 16
	case e.attr&attrBcst32 != 0:
		return 32
	}
	return 64
}
