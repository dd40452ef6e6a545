package insn

import "errors"

//go:generate go run ring3/tool/insngen

// Errors of Decode.
var (
	// ErrTruncated means that the instruction goes on behind the end of the code.
	ErrTruncated = errors.New("insn: truncated instruction")
	// ErrInvalid means that the processor raises #UD.
	ErrInvalid = errors.New("insn: invalid instruction")
	// ErrTooLong means more than MaxLen bytes: the processor raises #GP(0).
	ErrTooLong = errors.New("insn: instruction longer than 15 bytes")
)

// Op is a mnemonic of the manuals. Mnemonics that only differ by operand size
// share one Op: CBW stands for CWDE and CDQE, MOVS for MOVSB to MOVSQ, XSAVE
// for XSAVE64. The conditional ones follow each other in the order of the
// condition code: OpJO+cc, OpCMOVO+cc, OpSETO+cc.
type Op uint16

func (o Op) String() string {
	if int(o) < len(opNames) {
		return opNames[o]
	}
	return "(bad op)"
}

// Feature is a CPUID feature an encoding depends on.
type Feature uint8

func (f Feature) String() string {
	if int(f) < len(featureNames) {
		return featureNames[f]
	}
	return "(bad feature)"
}

// Encoding is a line of the instruction table.
type Encoding struct {
	Op       Op
	Class    Class
	Group    Group
	Feature  Feature
	Lockable bool // LOCK is allowed when the first operand is memory

	// RFLAGS bits, at their place in RFLAGS, that are tested, written and left
	// undefined.
	FlagsRead, FlagsWritten, FlagsUndef uint32

	Form   string // instruction column of the table
	Opcode string // opcode column of the table

	args   [4]argSpec
	nargs  uint8
	imm1   immCode
	imm2   immCode
	opmap  uint8
	opcode uint8
	attr   attr
}

// Table is the instruction table. It must not be changed.
func Table() []Encoding { return encodings[:] }

// Encodings is the whole table, for tests and for tools that list it. The result
// must not be changed.
func Encodings() []Encoding { return encodings[:] }

// argSpec says where an operand is encoded and what it is.
type argSpec struct {
	pos       argPos
	kind      ArgKind
	size, mem sizeCode // size of the register and of the memory form
	reg       uint8    // number of a fixed register
	high      bool
}

type argPos uint8

const (
	posNone argPos = iota
	posReg
	posRM
	posVvvv
	posImm
	posImm2
	posRel
	posOpc
	posIs4
	posFixed
)

// sizeCode is an operand size in bits, either fixed or depending on prefixes.
type sizeCode uint8

const (
	szNone sizeCode = iota
	sz8
	sz16
	sz32
	sz48
	sz64
	sz80
	sz128
	sz256
	sz384
	sz512
	sz4096
	szV      // operand size
	szY      // 32, or 64 with W
	szZ      // operand size, 32 at most
	szA      // address size
	szS      // 64 in 64-bit mode, else 32
	szFar    // far pointer: 16 bits more than the operand size
	szTable  // pseudo-descriptor of LGDT
	szPair   // two of the operand size
	szBnd    // two bounds
	szEnv    // x87 environment
	szState  // x87 state
	szVL     // vector length
	szVL2    // half of it
	szVL4    // a quarter
	szVL8    // an eighth
	szVR2    // like szVL2, but at least a whole XMM register
	szVR4    // like szVL4, likewise
	szVR8    // like szVL8, likewise
	szDup    // MOVDDUP: 64 for XMM, else the vector length
	szSigned // in argSpec.mem of an immediate: sign-extended
)

// immCode is an immediate or a displacement behind the ModRM part.
type immCode uint8

const (
	immNone immCode = iota
	immB
	immW
	immD
	immZ
	immV
	immRelB
	immRelZ
	immPtr
	immMoffs
	immIs4
)

// attr holds the rules of an encoding that are not operand notation.
type attr uint32

const (
	attrD64      attr = 1 << iota // default operand size 64 in 64-bit mode
	attrF64                       // operand size 64 in 64-bit mode whatever the prefixes
	attrPP66                      // 66 belongs to the opcode
	attrPPRep                     // F2 or F3 belongs to the opcode
	attrModreg                    // ModRM.mod is taken as 3
	attrNorip                     // RIP-relative addressing is #UD
	attrNo16                      // 16-bit addressing is #UD
	attrVvvv                      // VEX.vvvv is an operand
	attrLIG                       // vector length is ignored
	attrMask                      // EVEX.aaa may select an opmask
	attrMaskMust                  // EVEX.aaa must select an opmask
	attrZero                      // EVEX.z allowed
	attrER                        // embedded rounding
	attrSAE                       // suppress all exceptions
	attrBcst16
	attrBcst32
	attrBcst64
	attrN1 // disp8 scale of EVEX
	attrN2
	attrN4
	attrN8
	attrVSIB
	attrSib      // needs a SIB byte
	attrDistinct // the vector or tile operands must differ
	attrGather   // destination, index and mask must differ
)
