package interp

import (
	"ring3/internal/x86"
	"ring3/internal/x86/insn"
)

// modRSP and sibRSP address [rsp]: mod 0, r/m 4; no index, base 4
// (SDM vol. 2A, tables 2-2 and 2-3).
const (
	modRSP = 0x04
	sibRSP = 0x24
)

// encode writes the instruction to op.code the way 64-bit mode wants it, with
// [rsp] in place of its memory operand. It reports whether there is a way.
func (op *nativeOp) encode(inst *insn.Inst, code []byte) bool {
	code = code[:inst.Len]
	b := op.code[:0]
	mem := op.access != accessNone
	at := int(inst.OpcodeOff)
	vex := isVex(inst, code[at])
	if vex == 0 {
		b = op.appendPrefixes(b, inst, code[:at])
		if inst.Rex != 0 && inst.Mode == insn.Mode64 {
			rex := inst.Rex
			if mem {
				rex &^= 3 // X and B belong to the address
			}
			b = append(b, rex)
			at++
		}
	} else {
		n := int(vex)
		b = append(b, code[at:at+n]...)
		op.fixVex(b, inst, mem)
		at += n
	}
	if inst.ModRMOff == 0 {
		op.len = uint8(copy(op.code[len(b):], code[at:]) + len(b))
		return true
	}
	b = append(b, code[at:inst.ModRMOff]...) // opcode
	op.modrm = uint8(len(b))
	end := int(inst.ModRMOff) + 1
	if mem {
		b = append(b, inst.ModRM&0x38|modRSP, sibRSP)
		end = int(inst.ImmOff)
		if inst.ImmLen == 0 {
			end = len(code)
			if inst.Enc.Feature.String() == "3DNOW" || inst.Enc.Feature.String() == "3DNOWEXT" {
				end-- // the opcode is behind the displacement
			}
		}
	} else {
		b = append(b, inst.ModRM)
	}
	if len(b)+len(code)-end > len(op.code) {
		return false
	}
	b = append(b, code[end:]...)
	if vex != 0 && inst.Mode != insn.Mode64 && inst.ImmLen == 1 && hasIs4(inst) {
		b[len(b)-1] &= 0x7f // register number: 3 bits
	}
	op.len = uint8(len(b))
	return op.replaceRSP(inst)
}

// isVex is the length of the VEX, XOP or EVEX prefix at the opcode, 0 for none.
func isVex(inst *insn.Inst, first byte) uint8 {
	switch inst.Enc.Group {
	case insn.GroupAVX, insn.GroupMask:
		if first == 0xc5 {
			return 2
		}
		return 3
	case insn.GroupEVEX:
		return 4
	}
	return 0
}

// appendPrefixes keeps the prefixes that belong to the opcode, in their order,
// and drops those of the address. The operand-size prefix of x87 instructions
// chooses the format of the environment; it means the opposite in 16-bit code.
func (op *nativeOp) appendPrefixes(b []byte, inst *insn.Inst, prefixes []byte) []byte {
	if inst.Enc.Group == insn.GroupX87 {
		if op.special == specialEnv && inst.OpSize == 16 {
			b = append(b, 0x66)
		}
		return b
	}
	// Once each: the last of F2 and F3 counts, and 66 beside them is ignored
	// or part of the opcode.
	var has66 bool
	var rep byte
	for _, p := range prefixes {
		switch p {
		case 0x66:
			has66 = true
		case 0xf2, 0xf3:
			rep = p
		}
	}
	if has66 {
		b = append(b, 0x66)
	}
	if rep != 0 {
		b = append(b, rep)
	}
	return b
}

// fixVex adapts the fields of a VEX, XOP or EVEX prefix at the end of b
// (SDM vol. 2A, sections 2.3.5 and 2.7.1).
func (op *nativeOp) fixVex(b []byte, inst *insn.Inst, mem bool) {
	if b[0] == 0xc5 {
		if inst.Mode != insn.Mode64 {
			b[1] |= 0xc0 // R and the top bit of vvvv, inverted
		}
		return
	}
	if mem && !inst.Mem.VSIB {
		b[1] |= 0x60 // X and B, inverted
	}
	if inst.Mode == insn.Mode64 {
		return
	}
	b[1] |= 0xe0
	b[2] |= 0x40 // top bit of vvvv
	if b[0] == 0x62 {
		b[1] |= 0x10 // R'
		b[3] |= 0x08 // V'
	}
	if wOnlyIn64(inst) {
		b[2] &^= 0x80
	}
}

// wOnlyIn64 reports whether W selects the size of general registers or of their
// memory form: outside 64-bit mode it is ignored then.
func wOnlyIn64(inst *insn.Inst) bool {
	switch inst.Op.String() {
	case "VPCMPESTRI", "VPCMPESTRM", "VMOVD", "VMOVQ", "VPEXTRD", "VPEXTRQ", "VPINSRD", "VPINSRQ",
		"VCVTSI2SS", "VCVTSI2SD", "VCVTSI2SH", "VCVTUSI2SS", "VCVTUSI2SD", "VCVTUSI2SH",
		"VCVTSS2SI", "VCVTSD2SI", "VCVTSH2SI", "VCVTTSS2SI", "VCVTTSD2SI", "VCVTTSH2SI",
		"VCVTSS2USI", "VCVTSD2USI", "VCVTSH2USI", "VCVTTSS2USI", "VCVTTSD2USI", "VCVTTSH2USI":
		return true
	}
	return false
}

// hasIs4 reports whether the immediate holds a register number.
func hasIs4(inst *insn.Inst) bool {
	n := 0
	for _, a := range inst.Args[:inst.NArg] {
		if a.Kind == insn.ArgImm {
			return false
		}
		if a.Kind == insn.ArgVec || a.Kind == insn.ArgMem {
			n++
		}
	}
	return n == 4
}

// replaceRSP makes RBX stand for RSP where the instruction has RSP as a
// register operand. No instruction of these groups has two general registers,
// or RBX implicitly.
func (op *nativeOp) replaceRSP(inst *insn.Inst) bool {
	arg := -1
	for i, a := range inst.Args[:inst.NArg] {
		if a.Kind == insn.ArgGPR && a.Reg == x86.RSP && !a.High {
			arg = i
		}
	}
	if arg < 0 {
		return true
	}
	// RSP and RBX differ in the low three bits of their numbers only. Which
	// ModRM field it is, the decoder knows.
	m := &op.code[op.modrm]
	old := *m
	for _, try := range [2]byte{old&^7 | x86.RBX, old&^0x38 | x86.RBX<<3} {
		*m = try
		var got insn.Inst
		if insn.Decode(op.code[:op.len], insn.Mode64, &got) == nil &&
			got.Args[arg].Kind == insn.ArgGPR && got.Args[arg].Reg == x86.RBX {
			op.standIn = x86.RBX
			return true
		}
	}
	return false
}
