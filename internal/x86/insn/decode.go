package insn

import (
	"encoding/binary"

	"ring3/internal/x86"
)

// decoder is the state of one Decode call.
type decoder struct {
	code []byte
	pos  int
	inst *Inst

	opsize66 bool
	addr67   bool
	lastRep  uint8 // last of F2 and F3
	seg      uint8 // segment override
	opmap    int
	opcode   uint8
	vex      uint8 // 0, or the first byte of a VEX, EVEX or XOP prefix
	w        bool
	pp       uint8 // 0 none, 1 66, 2 F3, 3 F2, as in VEX.pp
	ll       uint8 // vector length field
	rx       uint8 // EVEX.R' as bit 4
	vx       uint8 // EVEX.V' as bit 4
	vvvv     uint8 // as encoded; outside 64-bit mode Inst.Vvvv has three bits
	evexB    bool
	short    bool // ran out of bytes
}

// Decode decodes the instruction at the start of code. It reports ErrTruncated
// when code ends within the instruction, ErrInvalid when the processor would
// raise #UD in every privilege level and feature set, and ErrTooLong when the
// instruction has more than MaxLen bytes; inst is then not meaningful.
func Decode(code []byte, mode Mode, inst *Inst) error {
	full := len(code) >= MaxLen
	if full {
		code = code[:MaxLen]
	}
	*inst = Inst{Mode: mode}
	d := decoder{code: code, inst: inst, seg: noSeg}
	err := d.decode()
	if d.short {
		if full {
			return ErrTooLong
		}
		return ErrTruncated
	}
	return err
}

func (d *decoder) decode() error {
	b, ok := d.prefixes()
	if !ok {
		return ErrTruncated
	}
	in := d.inst
	switch byteClass[b] {
	case pfxVex:
		if d.isVex(b) {
			if !d.vexPrefix(b) {
				return ErrInvalid
			}
			b = d.next()
		}
	case pfx0F:
		d.opmap = map0F
		b = d.next()
		switch b {
		case 0x38:
			d.opmap = map0F38
			b = d.next()
		case 0x3a:
			d.opmap = map0F3A
			b = d.next()
		case 0x0f:
			return d.now3D()
		}
	}
	if d.short {
		return ErrTruncated
	}
	d.opcode = b
	at := d.opmap<<8 | int(b)
	first, last := opcodeIndex[at], opcodeIndex[at+1]
	if first == last {
		return ErrInvalid
	}
	if hasModRM[at>>6]>>(at&63)&1 != 0 {
		in.ModRMOff = uint8(d.pos)
		in.ModRM = d.next()
		if d.short {
			return ErrTruncated
		}
	}
	key := d.key()
	for i := first; i < last; i++ {
		if key&^matches[i] == 0 {
			return d.finish(&encodings[matchEnc[i]])
		}
	}
	return ErrInvalid
}

// next consumes a byte. Past the end it reports zero and sets short.
func (d *decoder) next() uint8 {
	if d.pos >= len(d.code) {
		d.short = true
		return 0
	}
	b := d.code[d.pos]
	d.pos++
	return b
}

// key folds what was read into the form of the match words.
func (d *decoder) key() uint64 {
	m := d.inst.ModRM
	k := uint64(1)<<(matchRegShift+m>>3&7) | uint64(1)<<(matchRMShift+m&7)
	k |= matchNP << d.pp
	switch d.inst.Mode {
	case Mode64:
		k |= matchMode64
	case Mode32:
		k |= matchMode32
	default:
		k |= matchMode16
	}
	if m >= 0xc0 {
		k |= matchReg
		if d.evexB {
			// Rounding takes the place of the vector length (SDM vol. 2A, 2.7.4).
			d.ll = 2
		}
	} else {
		k |= matchMem
	}
	if d.w {
		k |= matchW1
	} else {
		k |= matchW0
	}
	k |= matchL128 << d.ll
	if d.inst.Rex&1 != 0 {
		return k | matchB1
	}
	return k | matchB0
}

// now3D decodes 3DNow!, whose opcode is behind the operands.
func (d *decoder) now3D() error {
	in := d.inst
	d.opmap = map3DNow
	in.ModRMOff = uint8(d.pos)
	in.ModRM = d.next()
	if d.short {
		return ErrTruncated
	}
	if in.ModRM < 0xc0 {
		d.memory(0)
	}
	d.opcode = d.next()
	if d.short {
		return ErrTruncated
	}
	at := map3DNow<<8 | int(d.opcode)
	if opcodeIndex[at] == opcodeIndex[at+1] {
		return ErrInvalid
	}
	return d.finish(&encodings[matchEnc[opcodeIndex[at]]])
}

// finish fills in everything that depends on the encoding.
func (d *decoder) finish(e *Encoding) error {
	in := d.inst
	in.Enc, in.Op = e, e.Op
	d.sizes(e)
	if in.Lock && (!e.Lockable || in.ModRM >= 0xc0) {
		return ErrInvalid
	}
	if e.attr&attrPPRep == 0 {
		in.Rep = d.lastRep == 0xf3
		in.Repne = d.lastRep == 0xf2
	}
	if d.vex != 0 {
		d.vectorLength(e)
	}
	in.Mem.Seg = x86.DS
	if e.attr&attrNo16 != 0 && in.Mode == Mode64 {
		in.AddrSize = 64 // 67 is ignored by MPX (SDM vol. 1, appendix E)
	}
	if in.ModRMOff != 0 && in.ModRM < 0xc0 && e.attr&attrModreg == 0 && d.opmap != map3DNow {
		d.memory(d.dispScale(e))
	}
	if d.seg != noSeg {
		in.Mem.Seg = d.seg
		in.SegOverride = true
	}
	if e.imm1 != immNone {
		in.ImmOff = uint8(d.pos)
		in.Imm = d.immediate(e.imm1)
		if e.imm2 != immNone {
			in.Imm2 = d.immediate(e.imm2)
		}
		in.ImmLen = uint8(d.pos) - in.ImmOff
	}
	if d.short {
		return ErrTruncated
	}
	in.Len = uint8(d.pos)
	if !d.arguments(e) {
		return ErrInvalid
	}
	if d.vex != 0 && !d.vectorRules(e) {
		return ErrInvalid
	}
	if e.attr&(attrNorip|attrNo16|attrSib) != 0 && !d.addressRules(e) {
		return ErrInvalid
	}
	return nil
}

// sizes determines the operand size: SDM vol. 1, 3.6.
func (d *decoder) sizes(e *Encoding) {
	in := d.inst
	p66 := d.opsize66 && e.attr&attrPP66 == 0
	switch {
	case in.Mode == Mode64:
		switch {
		case d.w || e.attr&attrF64 != 0:
			in.OpSize = 64
		case p66:
			in.OpSize = 16
		case e.attr&attrD64 != 0:
			in.OpSize = 64
		default:
			in.OpSize = 32
		}
	case p66 == (in.Mode == Mode32):
		in.OpSize = 16
	default:
		in.OpSize = 32
	}
}

func (d *decoder) immediate(c immCode) int64 {
	in := d.inst
	n := 1
	switch c {
	case immW:
		n = 2
	case immD:
		n = 4
	case immZ, immRelZ:
		n = int(min(in.OpSize, 32)) / 8
	case immV:
		n = int(in.OpSize) / 8
	case immMoffs:
		n = int(in.AddrSize) / 8
		in.DispOff, in.DispLen = uint8(d.pos), uint8(n)
		v := d.signed(n)
		if n < 8 {
			v &= 1<<(n*8) - 1
		}
		in.Mem.Disp, in.Mem.Base, in.Mem.Index, in.Mem.Scale = v, NoReg, NoReg, 1
		return 0
	case immIs4:
		return d.signed(1) & 0xff
	case immPtr:
		n = int(min(in.OpSize, 32)) / 8
		v := d.signed(n) & (1<<(n*8) - 1)
		in.Imm2 = d.signed(2) & 0xffff
		return v
	}
	return d.signed(n)
}

// signed reads a little-endian number of n bytes.
func (d *decoder) signed(n int) int64 {
	if d.pos+n > len(d.code) {
		d.short = true
		return 0
	}
	p := d.code[d.pos:]
	d.pos += n
	switch n {
	case 1:
		return int64(int8(p[0]))
	case 2:
		return int64(int16(binary.LittleEndian.Uint16(p)))
	case 4:
		return int64(int32(binary.LittleEndian.Uint32(p)))
	default:
		return int64(binary.LittleEndian.Uint64(p))
	}
}
