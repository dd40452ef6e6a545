// Package x86 holds architecture facts only: register numbers, control
// register and MSR bits, exception vectors, descriptor and page-table layouts.
// Names follow the Intel SDM and the AMD APM. It has no behaviour beyond
// predicates on those bits and imports nothing of the project.
package x86

// General-purpose register numbers, as encoded in ModRM and REX
// (SDM vol. 2A, section 2.1.5, table 2-2).
const (
	RAX = iota
	RCX
	RDX
	RBX
	RSP
	RBP
	RSI
	RDI
	R8
	R9
	R10
	R11
	R12
	R13
	R14
	R15
)

// Segment register numbers, as encoded in the reg field of MOV Sreg
// (SDM vol. 2A, table 2-2 note; vol. 2B, MOV).
const (
	ES = iota
	CS
	SS
	DS
	FS
	GS
)

// RFLAGS bits (SDM vol. 1, section 3.4.3).
const (
	FlagCF    = 1 << 0
	FlagFixed = 1 << 1 // always one
	FlagPF    = 1 << 2
	FlagAF    = 1 << 4
	FlagZF    = 1 << 6
	FlagSF    = 1 << 7
	FlagTF    = 1 << 8
	FlagIF    = 1 << 9
	FlagDF    = 1 << 10
	FlagOF    = 1 << 11
	FlagIOPL  = 3 << 12
	FlagNT    = 1 << 14
	FlagRF    = 1 << 16
	FlagVM    = 1 << 17
	FlagAC    = 1 << 18
	FlagVIF   = 1 << 19
	FlagVIP   = 1 << 20
	FlagID    = 1 << 21

	// FlagsArith are the six status flags.
	FlagsArith = FlagCF | FlagPF | FlagAF | FlagZF | FlagSF | FlagOF
	// FlagsAll are all bits that RFLAGS defines.
	FlagsAll = FlagsArith | FlagFixed | FlagTF | FlagIF | FlagDF | FlagIOPL | FlagNT |
		FlagRF | FlagVM | FlagAC | FlagVIF | FlagVIP | FlagID
)

// Exception vectors (SDM vol. 3A, table 7-1).
const (
	VecDE = 0  // divide error
	VecDB = 1  // debug
	VecNM = 7  // device not available
	VecDF = 8  // double fault
	VecTS = 10 // invalid TSS
	VecNP = 11 // segment not present
	VecSS = 12 // stack-segment fault
	VecGP = 13 // general protection
	VecPF = 14 // page fault
	VecMF = 16 // x87 floating-point error
	VecAC = 17 // alignment check
	VecMC = 18 // machine check
	VecXM = 19 // SIMD floating-point exception

	VecNMI = 2
	VecBP  = 3
	VecOF  = 4
	VecBR  = 5
	VecUD  = 6
)

// VectorHasErrorCode reports whether the exception vector v pushes an error
// code (SDM vol. 3A, table 7-1).
func VectorHasErrorCode(v uint8) bool {
	switch v {
	case VecDF, VecTS, VecNP, VecSS, VecGP, VecPF, VecAC, 21 /* #CP */ :
		return true
	}
	return false
}

// Page-fault error code bits (SDM vol. 3A, figure 5-12).
const (
	PFPresent = 1 << 0 // 0: not-present page, 1: protection violation
	PFWrite   = 1 << 1
	PFUser    = 1 << 2
	PFRsvd    = 1 << 3
	PFFetch   = 1 << 4
)

// CR0 bits (SDM vol. 3A, section 2.5).
const (
	CR0PE = 1 << 0
	CR0MP = 1 << 1
	CR0EM = 1 << 2
	CR0TS = 1 << 3
	CR0ET = 1 << 4
	CR0NE = 1 << 5
	CR0WP = 1 << 16
	CR0AM = 1 << 18
	CR0NW = 1 << 29
	CR0CD = 1 << 30
	CR0PG = 1 << 31
)

// CR4 bits (SDM vol. 3A, section 2.5).
const (
	CR4VME        = 1 << 0
	CR4PVI        = 1 << 1
	CR4TSD        = 1 << 2
	CR4DE         = 1 << 3
	CR4PSE        = 1 << 4
	CR4PAE        = 1 << 5
	CR4MCE        = 1 << 6
	CR4PGE        = 1 << 7
	CR4PCE        = 1 << 8
	CR4OSFXSR     = 1 << 9
	CR4OSXMMEXCPT = 1 << 10
	CR4UMIP       = 1 << 11
	CR4LA57       = 1 << 12
	CR4VMXE       = 1 << 13
	CR4FSGSBASE   = 1 << 16
	CR4PCIDE      = 1 << 17
	CR4OSXSAVE    = 1 << 18
	CR4SMEP       = 1 << 20
	CR4SMAP       = 1 << 21
	CR4PKE        = 1 << 22
)

// CR3 fields (SDM vol. 3A, sections 2.5 and 4.10.4).
const (
	CR3NoFlush  = 1 << 63            // MOV to CR3 source operand only, with CR4.PCIDE
	CR3PCIDMask = 0xfff              // with CR4.PCIDE
	CR3Addr     = 0x000ffffffffff000 // physical address of the PML4 table
)

// EFER bits (SDM vol. 3A, section 2.2.1; AMD APM vol. 2, section 3.1.7).
const (
	EFERSCE   = 1 << 0
	EFERLME   = 1 << 8
	EFERLMA   = 1 << 10
	EFERNX    = 1 << 11
	EFERSVME  = 1 << 12
	EFERFFXSR = 1 << 14
)

// MSR numbers (SDM vol. 4; AMD APM vol. 2, appendix A; KVM documentation
// "KVM-specific MSRs").
const (
	MSRTSC           = 0x10
	MSRAPICBase      = 0x1b
	MSRFeatureCtl    = 0x3a
	MSRTSCAdjust     = 0x3b
	MSRSpecCtrl      = 0x48
	MSRPredCmd       = 0x49
	MSRBiosSignID    = 0x8b
	MSRMTRRCap       = 0xfe
	MSRSysenterCS    = 0x174
	MSRSysenterESP   = 0x175
	MSRSysenterEIP   = 0x176
	MSRMCGCap        = 0x179
	MSRMCGStatus     = 0x17a
	MSRMiscEnable    = 0x1a0
	MSRDebugCtl      = 0x1d9
	MSRMTRRPhysBase0 = 0x200
	MSRMTRRFix64K    = 0x250
	MSRMTRRFix16K0   = 0x258
	MSRMTRRFix16K1   = 0x259
	MSRMTRRFix4K0    = 0x268 // to 0x26f
	MSRPAT           = 0x277
	MSRMTRRDefType   = 0x2ff
	MSRTSCDeadline   = 0x6e0
	MSRX2APICFirst   = 0x800
	MSRX2APICLast    = 0x8ff

	MSREFER         = 0xc0000080
	MSRSTAR         = 0xc0000081
	MSRLSTAR        = 0xc0000082
	MSRCSTAR        = 0xc0000083
	MSRSFMASK       = 0xc0000084
	MSRFSBase       = 0xc0000100
	MSRGSBase       = 0xc0000101
	MSRKernelGSBase = 0xc0000102
	MSRTSCAux       = 0xc0000103

	MSRKVMWallClockNew  = 0x4b564d00
	MSRKVMSystemTimeNew = 0x4b564d01
)

// Page-table entry bits (SDM vol. 3A, section 4.5, tables 4-15 to 4-20).
const (
	PTEPresent  = 1 << 0
	PTEWrite    = 1 << 1
	PTEUser     = 1 << 2
	PTEAccessed = 1 << 5
	PTEDirty    = 1 << 6
	PTELarge    = 1 << 7 // PS, in PDPTE and PDE
	PTEGlobal   = 1 << 8
	PTENX       = 1 << 63
	PTEAddr     = 0x000ffffffffff000
)

// PageSize is the size of the smallest page in bytes.
const PageSize = 4096

// Canonical reports whether a is a canonical 48-bit linear address
// (SDM vol. 1, section 3.3.7.1).
func Canonical(a uint64) bool { return uint64(int64(a<<16)>>16) == a }
