package insn

// vectorLength sets VecLen and the fields of EVEX.b.
func (d *decoder) vectorLength(e *Encoding) {
	in := d.inst
	if e.attr&attrLIG != 0 {
		in.VecLen = 128
	} else {
		in.VecLen = 128 << d.ll
	}
	if d.evexB {
		in.Bcst = in.ModRM < 0xc0
		in.Round = !in.Bcst
	}
}

// dispScale is the N of disp8*N. Whatever the tuple type, it is the size of the
// memory operand (SDM vol. 2A, 2.7.5), except where one element counts: the
// table says so then.
func (d *decoder) dispScale(e *Encoding) int64 {
	if d.vex != 0x62 {
		return 0
	}
	switch {
	case d.evexB:
		return int64(d.bcstSize(e) / 8)
	case e.attr&attrN1 != 0:
		return 1
	case e.attr&attrN2 != 0:
		return 2
	case e.attr&attrN4 != 0:
		return 4
	case e.attr&attrN8 != 0:
		return 8
	}
	for i := range int(e.nargs) {
		if e.args[i].pos == posRM {
			return int64(d.size(e.args[i].mem) / 8)
		}
	}
	return 0
}

// vectorRules checks the #UD conditions of VEX, EVEX and XOP: SDM vol. 2A,
// 2.3.5 to 2.7.11.
func (d *decoder) vectorRules(e *Encoding) bool {
	if e.attr&attrVSIB != 0 {
		if !d.vsib(e) {
			return false
		}
	} else if d.vx != 0 && e.attr&attrVvvv == 0 {
		return false
	}
	if e.attr&attrVvvv == 0 && d.vvvv != 0 {
		return false
	}
	if e.attr&(attrDistinct|attrGather) != 0 && !d.distinct(e) {
		return false
	}
	return d.vex != 0x62 || d.evexRules(e)
}

// evexRules checks the fields that only EVEX has.
func (d *decoder) evexRules(e *Encoding) bool {
	in := d.inst
	if in.Mask != 0 && e.attr&(attrMask|attrMaskMust) == 0 || in.Mask == 0 && e.attr&attrMaskMust != 0 {
		return false
	}
	if in.Zero && (in.Mask == 0 || e.attr&attrZero == 0 || in.Args[0].Kind == ArgMem) {
		return false
	}
	if in.Bcst {
		return e.attr&(attrBcst16|attrBcst32|attrBcst64) != 0
	}
	return !in.Round || e.attr&(attrER|attrSAE) != 0
}

// vsib turns the index into a vector register: SDM vol. 2A, 2.3.12. There is no
// "no index" and no 16-bit form.
func (d *decoder) vsib(e *Encoding) bool {
	in := d.inst
	if in.AddrSize == 16 || in.ModRM&7 != 4 {
		return false
	}
	m := &in.Mem
	m.VSIB = true
	m.Index = in.SIB>>3&7 | in.Rex<<2&8 | d.vx
	m.Scale = 1 << (in.SIB >> 6)
	return true
}

// distinct checks that registers differ where the manual demands it.
func (d *decoder) distinct(e *Encoding) bool {
	in := d.inst
	if e.attr&attrGather != 0 {
		dst, index := in.Args[0].Reg, in.Mem.Index
		if d.vex == 0x62 {
			return dst != index
		}
		mask := in.Args[2].Reg
		return dst != index && dst != mask && index != mask
	}
	for i := range int(in.NArg) {
		for j := range i {
			a, b := &in.Args[i], &in.Args[j]
			if i != j && a.Kind == b.Kind && a.Kind != ArgMem && a.Reg == b.Reg && (a.Kind == ArgTile || j == 0) {
				return false
			}
		}
	}
	return true
}

// addressRules checks encodings that restrict the form of their address.
func (d *decoder) addressRules(e *Encoding) bool {
	in := d.inst
	if in.ModRM >= 0xc0 {
		return true
	}
	if e.attr&attrSib != 0 {
		return in.ModRM&7 == 4 && in.AddrSize != 16
	}
	return (e.attr&attrNo16 == 0 || in.AddrSize != 16) && (e.attr&attrNorip == 0 || in.Mem.Base != RIPReg)
}
