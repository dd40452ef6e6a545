package insn

import (
	"strconv"
	"strings"
)

// Format prints the instruction in Intel syntax, as if it were at address pc.
func Format(in *Inst, pc uint64) string {
	if in.Enc == nil {
		return "(bad)"
	}
	var b strings.Builder
	for _, p := range []struct {
		on   bool
		name string
	}{{in.Lock, "lock "}, {in.Rep, "rep "}, {in.Repne, "repne "}} {
		if p.on {
			b.WriteString(p.name)
		}
	}
	b.WriteString(strings.ToLower(in.Op.String()))
	for i := range int(in.NArg) {
		b.WriteByte(" ,"[min(i, 1)])
		if i > 0 {
			b.WriteByte(' ')
		}
		b.WriteString(in.Operand(i, pc))
		if i == 0 && in.Mask != 0 {
			b.WriteString("{k" + strconv.Itoa(int(in.Mask)) + "}")
			if in.Zero {
				b.WriteString("{z}")
			}
		}
	}
	return b.String()
}

// Operand prints operand i in Intel syntax.
func (in *Inst) Operand(i int, pc uint64) string {
	a := &in.Args[i]
	switch a.Kind {
	case ArgMem, ArgMoffs:
		s := sizePrefix(a.Size) + in.Mem.format(in)
		if in.Bcst && a.Kind == ArgMem {
			s += "{bcst}"
		}
		return s
	case ArgImm:
		return hexText(truncated(in.Imm, in.immBits(a)))
	case ArgImm2:
		return hexText(truncated(in.Imm2, a.Size))
	case ArgRel:
		target := pc + uint64(in.Len) + uint64(in.Imm)
		if in.Mode != Mode64 {
			target = truncated(int64(target), uint16(in.OpSize))
		}
		return hexText(target)
	case ArgStrSrc:
		return sizePrefix(a.Size) + segNames[in.Mem.Seg&7] + ":[" + gprName(6, uint16(in.AddrSize), false) + "]"
	case ArgStrDst:
		return sizePrefix(a.Size) + "es:[" + gprName(7, uint16(in.AddrSize), false) + "]"
	case ArgOne:
		return "1"
	}
	return in.register(a)
}

// immBits is the width an immediate is shown in: that of the operand it is
// extended to.
func (in *Inst) immBits(a *Arg) uint16 {
	if a.Size == 0 {
		return 64
	}
	if in.Op == OpPUSH {
		return uint16(in.OpSize)
	}
	if a.Size < 64 && in.NArg > 0 && in.Args[0].Kind != ArgImm && in.Args[0].Size > a.Size && in.Imm < 0 {
		return in.Args[0].Size
	}
	return a.Size
}

var (
	segNames  = [...]string{"es", "cs", "ss", "ds", "fs", "gs", "?", "?"}
	gprNames  = [...]string{"ax", "cx", "dx", "bx", "sp", "bp", "si", "di"}
	highNames = [...]string{"ah", "ch", "dh", "bh"}
	byteNames = [...]string{"al", "cl", "dl", "bl", "spl", "bpl", "sil", "dil"}
	regPrefix = map[ArgKind]string{
		ArgCR: "cr", ArgDR: "dr", ArgMMX: "mm", ArgMask: "k", ArgBnd: "bnd", ArgTile: "tmm",
	}
)

func (in *Inst) register(a *Arg) string {
	n := strconv.Itoa(int(a.Reg))
	switch a.Kind {
	case ArgGPR:
		return gprName(a.Reg, a.Size, a.High)
	case ArgSeg:
		return segNames[a.Reg&7]
	case ArgST:
		return "st(" + n + ")"
	case ArgVec:
		return vecPrefix(a.Size) + n
	}
	return regPrefix[a.Kind] + n
}

func vecPrefix(size uint16) string {
	switch size {
	case 256:
		return "ymm"
	case 512:
		return "zmm"
	}
	return "xmm"
}

func gprName(reg uint8, size uint16, high bool) string {
	if high {
		return highNames[reg&3]
	}
	if reg < 8 {
		switch size {
		case 8:
			return byteNames[reg]
		case 16:
			return gprNames[reg]
		case 32:
			return "e" + gprNames[reg]
		}
		return "r" + gprNames[reg]
	}
	suffix := map[uint16]string{8: "b", 16: "w", 32: "d"}[size]
	return "r" + strconv.Itoa(int(reg)) + suffix
}

func sizePrefix(bits uint16) string {
	switch bits {
	case 8:
		return "byte ptr "
	case 16:
		return "word ptr "
	case 32:
		return "dword ptr "
	case 48:
		return "fword ptr "
	case 64:
		return "qword ptr "
	case 80:
		return "tbyte ptr "
	case 128:
		return "xmmword ptr "
	case 256:
		return "ymmword ptr "
	case 512:
		return "zmmword ptr "
	}
	return ""
}

// format prints seg:[base+index*scale+disp]; the segment only when a prefix
// chose it.
func (m *Mem) format(in *Inst) string {
	var b strings.Builder
	if in.SegOverride {
		b.WriteString(segNames[m.Seg&7] + ":")
	}
	b.WriteByte('[')
	sep := ""
	size := uint16(in.AddrSize)
	switch {
	case m.Base == RIPReg && size == 32:
		b.WriteString("eip")
		sep = "+"
	case m.Base == RIPReg:
		b.WriteString("rip")
		sep = "+"
	case m.Base != NoReg:
		b.WriteString(gprName(m.Base, size, false))
		sep = "+"
	}
	if m.Index != NoReg {
		b.WriteString(sep)
		sep = "+"
		if m.VSIB {
			b.WriteString(in.vsibName())
		} else {
			b.WriteString(gprName(m.Index, size, false))
		}
		if size != 16 {
			b.WriteString("*" + strconv.Itoa(int(m.Scale)))
		}
	}
	switch {
	case sep == "":
		b.WriteString(hexText(truncated(m.Disp, size)))
	case m.Disp < 0:
		b.WriteString("-" + hexText(uint64(-m.Disp)))
	case m.Disp > 0:
		b.WriteString("+" + hexText(uint64(m.Disp)))
	}
	b.WriteByte(']')
	return b.String()
}

// vsibName is the index register with the length the encoding asks for.
func (in *Inst) vsibName() string {
	d := decoder{inst: in}
	for i := range int(in.NArg) {
		if s := &in.Enc.args[i]; s.pos == posRM {
			return vecPrefix(d.size(s.size)) + strconv.Itoa(int(in.Mem.Index))
		}
	}
	return "?"
}

func hexText(v uint64) string { return "0x" + strconv.FormatUint(v, 16) }

func truncated(v int64, bits uint16) uint64 {
	if bits == 0 || bits >= 64 {
		return uint64(v)
	}
	return uint64(v) & (1<<bits - 1)
}
