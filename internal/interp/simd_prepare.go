package interp

import (
	"strings"

	"ring3/internal/native"
	"ring3/internal/x86"
	"ring3/internal/x86/insn"
)

// nativeOp is an instruction made ready for the host: re-encoded for 64-bit
// mode, with [rsp] as its memory operand and without RSP as a register.
type nativeOp struct {
	code    [insn.MaxLen + 1]byte
	len     uint8
	modrm   uint8 // offset of ModRM in code
	standIn uint8 // register that stands for RSP, 0 when RSP is no operand
	domain  domain
	feature insn.Feature
	access  access
	special special
	aligned bool // faults on operands that are not aligned to their size
	flags   bool // reads or writes status flags
	gpr     bool // writes a general register
	size    uint16
	state   uint64 // components of extended state
}

// domain says which checks apply before an instruction may run.
type domain uint8

const (
	domainNone domain = iota // not executed: #UD
	domainX87
	domainWait
	domainMMX
	domainSSE
	domainAVX
	domainEVEX
)

// access is what an instruction does with its memory operand.
type access uint8

const (
	accessNone access = iota
	accessRead
	accessWrite
)

// special are instructions that need more than a copied memory operand.
type special uint8

const (
	specialNone      special = iota
	specialGather            // gathers and scatters: memory in several places
	specialMasked            // some elements of the operand are not accessed
	specialMaskMovDQ         // MASKMOVDQU, MASKMOVQ: operand at DS:[rDI], byte mask
	specialEnv               // x87 environment
	specialZero              // VZEROUPPER, VZEROALL
)

type nativeKey struct {
	code [insn.MaxLen]byte
	len  uint8
	mode insn.Mode
}

const maxNativeOps = 1 << 16

// prepare finds or makes the nativeOp of an instruction.
func (s *simdState) prepare(inst *insn.Inst, code []byte) *nativeOp {
	k := nativeKey{len: inst.Len, mode: inst.Mode}
	copy(k.code[:], code[:inst.Len])
	if op := s.ops[k]; op != nil {
		return op
	}
	if len(s.ops) >= maxNativeOps {
		clear(s.ops)
	}
	op := new(nativeOp)
	op.classify(inst)
	if op.domain != domainNone && !op.encode(inst, code) {
		*op = nativeOp{}
	}
	s.ops[k] = op
	return op
}

// classify finds out what op does besides computing.
func (op *nativeOp) classify(inst *insn.Inst) {
	name := inst.Op.String()
	e := inst.Enc
	op.feature = e.Feature
	switch e.Group {
	case insn.GroupX87:
		op.domain, op.state = domainX87, stateX87
		if name == "FWAIT" {
			op.domain = domainWait
		}
	case insn.GroupMMX:
		op.domain, op.state = domainMMX, stateX87
	case insn.GroupSSE:
		op.domain, op.state = domainSSE, stateSSE
	case insn.GroupAVX:
		op.domain, op.state = domainAVX, stateAVX|1<<native.CompZMMHi256
	case insn.GroupEVEX, insn.GroupMask:
		op.domain, op.state = domainEVEX, stateEVEX
	}
	if e.Group == insn.GroupMMX && strings.HasPrefix(name, "CVT") {
		// Conversions between MMX and XMM registers, or memory.
		op.domain, op.state = domainSSE, stateX87|stateSSE
	}
	if e.Class != insn.Innocuous || neverNative[e.Feature.String()] {
		op.domain = domainNone
		return
	}
	op.flags = (e.FlagsRead|e.FlagsWritten|e.FlagsUndef)&x86.FlagsArith != 0
	for i, a := range inst.Args[:inst.NArg] {
		switch a.Kind {
		case insn.ArgVec:
			op.state |= stateSSE
			if op.domain == domainMMX {
				op.domain = domainSSE // MOVQ2DQ, MOVDQ2Q
			}
		case insn.ArgMMX:
			op.state |= stateX87
		case insn.ArgGPR:
			op.gpr = op.gpr || i == 0
		case insn.ArgMem:
			op.size = a.Size / 8
			op.access = accessRead
			if i == 0 && (e.Group != insn.GroupX87 && name != "LDMXCSR" && name != "VLDMXCSR" || x87Stores[name]) {
				op.access = accessWrite
			}
		}
	}
	switch name {
	case "PCMPESTRI", "PCMPISTRI", "VPCMPESTRI", "VPCMPISTRI":
		op.gpr = true // ECX
	}
	op.aligned = op.size >= 16 && (e.Group == insn.GroupSSE && !unalignedSSE[name] || alignedAVX(name))
	op.special = specialOf(name, inst, op.access)
}

var x87Stores = map[string]bool{
	"FST": true, "FSTP": true, "FIST": true, "FISTP": true, "FISTTP": true, "FBSTP": true,
	"FNSTCW": true, "FNSTSW": true, "FNSTENV": true, "FNSAVE": true,
}

// unalignedSSE are the legacy SSE instructions with an operand of 16 bytes that
// need not be aligned (SDM vol. 1, section 11.6.11 and the instructions).
var unalignedSSE = map[string]bool{
	"MOVUPS": true, "MOVUPD": true, "MOVDQU": true, "LDDQU": true,
	"PCMPESTRM": true, "PCMPESTRI": true, "PCMPISTRM": true, "PCMPISTRI": true,
}

// alignedAVX reports whether a VEX or EVEX instruction wants its operand
// aligned, which most do not (SDM vol. 1, table 14-22).
func alignedAVX(name string) bool {
	return strings.HasPrefix(name, "VMOVAP") || strings.HasPrefix(name, "VMOVDQA") ||
		strings.HasPrefix(name, "VMOVNT")
}

// neverNative are features that are #UD whatever the host has, since they
// depend on state that the guest cannot have.
var neverNative = map[string]bool{"KL": true, "WIDE_KL": true, "MPX": true}

func specialOf(name string, inst *insn.Inst, acc access) special {
	switch name {
	case "MASKMOVDQU", "MASKMOVQ", "VMASKMOVDQU":
		return specialMaskMovDQ
	case "FNSTENV", "FLDENV", "FNSAVE", "FRSTOR":
		return specialEnv
	case "VZEROUPPER", "VZEROALL":
		if inst.Mode != insn.Mode64 {
			return specialZero
		}
	}
	switch {
	case acc == accessNone:
		return specialNone
	case inst.Mem.VSIB:
		return specialGather
	case inst.Mask != 0 || maskMoves[name]:
		return specialMasked
	}
	return specialNone
}

// maskMoves take their mask from a vector register.
var maskMoves = map[string]bool{
	"VMASKMOVPS": true, "VMASKMOVPD": true, "VPMASKMOVD": true, "VPMASKMOVQ": true,
}

// align is the alignment that #AC asks for (SDM vol. 3A, table 7-7).
func (op *nativeOp) align() uint64 {
	switch op.size {
	case 2, 4, 8:
		return uint64(op.size)
	case 10:
		return 8
	case 28, 108:
		return 4
	case 14, 94:
		return 2
	}
	return 1
}
