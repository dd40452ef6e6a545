// Package insn is the one instruction table of the project and the decoder
// that it drives. table.txt lists every encoding in the manuals' own notation;
// tool/insngen turns it into Go. Whatever looks at code (interpreter, scanner
// of user pages, tracer, tests) uses this decoder.
//
// Mnemonics (see Op) are those of the SDM without a size suffix. Operands that
// are fixed registers (AL, rAX, DX, CL, the constant 1) are Args like any other;
// implicit ones that the manual does not write down are not. Memory operands of
// string instructions are ArgStrSrc and ArgStrDst, their Size is that of the
// element. The fifth operand of the VPERMIL2 instructions is only in Imm.
package insn

// Mode is the operating mode that decides default sizes (SDM vol. 1, 3.6).
type Mode uint8

// Operating modes: the number of bits of the default operand size of a code
// segment, 64 standing for 64-bit mode.
const (
	Mode16 Mode = 16
	Mode32 Mode = 32
	Mode64 Mode = 64
)

// MaxLen is the longest instruction in bytes (SDM vol. 2A, section 2.3.11).
const MaxLen = 15

// Class says what running an instruction in user mode natively would do;
// in the terms of Popek and Goldberg.
type Class uint8

// Instruction classes.
const (
	Innocuous  Class = iota // same in user and system mode, no system state
	Branch                  // changes RIP: near jumps, calls, returns
	Sensitive               // reads or changes system state without trapping in user mode (CPUID, SGDT, POPF, MOV from Sreg, SYSCALL, far transfers, ...)
	Privileged              // faults in user mode
	Undefined               // UD0, UD1, UD2
)

// Group is the execution domain of an instruction.
type Group uint8

// Execution domains.
const (
	GroupInt    Group = iota // general-purpose, includes BMI and ADX
	GroupString              // MOVS, CMPS, STOS, LODS, SCAS, INS, OUTS
	GroupSystem              // system instructions
	GroupX87
	GroupMMX   // MMX and 3DNow! registers
	GroupSSE   // legacy SSE encodings, XMM
	GroupAVX   // VEX and XOP encodings on vector registers
	GroupEVEX  // EVEX encodings
	GroupMask  // opmask (k) instructions, VEX-encoded
	GroupXSave // XSAVE*, XRSTOR*, FXSAVE, FXRSTOR
	GroupAMX
)

// Arg kinds.
type ArgKind uint8

// Operand kinds.
const (
	ArgNone ArgKind = iota
	ArgGPR          // general-purpose register Reg, Size bits; Reg 4-7 with High set are AH CH DH BH
	ArgMem          // memory operand: Inst.Mem; Size bits, 0 when it has no size (LEA, INVLPG)
	ArgImm          // immediate: Inst.Imm, sign-extended as the instruction defines
	ArgImm2         // second immediate: Inst.Imm2 (ENTER, far pointer selector, EXTRQ)
	ArgRel          // branch displacement: Inst.Imm, relative to the next instruction
	ArgSeg          // segment register
	ArgCR
	ArgDR
	ArgST // x87 stack register
	ArgMMX
	ArgVec  // XMM, YMM or ZMM register, Size 128, 256 or 512
	ArgMask // opmask register k0-k7
	ArgBnd
	ArgTile
	ArgMoffs  // memory at absolute Inst.Mem.Disp
	ArgStrSrc // implicit string source, seg:[rSI]
	ArgStrDst // implicit string destination, ES:[rDI]
	ArgOne    // the constant 1 of shifts and rotates
)

// Arg is one explicit (or fixed-register) operand, destination first as in the
// manuals.
type Arg struct {
	Kind ArgKind
	Reg  uint8  // register number 0-31
	High bool   // AH, CH, DH, BH
	Size uint16 // bits
}

// NoReg marks an absent base or index.
const NoReg = 0xff

// RIPReg is Mem.Base of RIP-relative operands.
const RIPReg = 0xfe

// Mem is a memory operand.
type Mem struct {
	Base  uint8 // GPR number, RIPReg or NoReg
	Index uint8 // GPR number (vector register number when VSIB) or NoReg
	Scale uint8 // 1, 2, 4, 8
	VSIB  bool
	Seg   uint8 // effective segment: the override or the default (x86.ES...GS)
	Disp  int64 // displacement, sign-extended, EVEX disp8*N already applied
}

// Inst is a decoded instruction. It holds no pointers but Enc, which points
// into the static table.
type Inst struct {
	Enc  *Encoding
	Op   Op // mnemonic
	Len  uint8
	Mode Mode

	OpSize      uint8 // effective operand size: 16, 32, 64 bits
	AddrSize    uint8 // effective address size: 16, 32, 64 bits
	Lock        bool  // F0
	Rep         bool  // F3, as a repeat prefix or hint (not when part of the opcode)
	Repne       bool  // F2, likewise
	SegOverride bool  // a segment-override prefix took effect

	NArg uint8
	Args [4]Arg
	Mem  Mem // valid when some Arg is ArgMem or ArgMoffs; Mem.Seg also for ArgStrSrc and XLAT
	Imm  int64
	Imm2 int64

	// Layout, for rewriting: offsets in bytes from the start.
	NumPrefix        uint8 // legacy prefixes
	OpcodeOff        uint8 // REX, VEX, EVEX or opcode start, behind legacy prefixes
	ModRMOff         uint8 // 0 when there is no ModRM
	DispOff, DispLen uint8
	ImmOff, ImmLen   uint8
	ModRM, SIB       uint8
	Rex              uint8 // REX prefix byte (0 when none), or the equivalent WRXB bits of VEX/EVEX
	// VEX, XOP and EVEX payload (SDM vol. 2A, 2.3.5 and 2.7.1).
	VecLen uint16 // 128, 256, 512; 0 when none
	Vvvv   uint8
	Mask   uint8 // EVEX.aaa
	Zero   bool  // EVEX.z
	Bcst   bool  // EVEX.b with a memory operand
	Round  bool  // EVEX.b with a register operand: embedded rounding or SAE
}
