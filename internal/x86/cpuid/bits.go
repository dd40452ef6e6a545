package cpuid

// Feature flags (SDM vol. 2A, CPUID; AMD APM vol. 3, appendix E), one mask per
// register: what the guest may see of the host's flags, and what the virtual
// CPU has whatever the host says. Flags that are in neither are hidden; those
// that user code may use are shown exactly when the host has them, for user
// code runs on the host CPU.

const (
	// Leaf 1 ECX. Hidden: DTES64, MONITOR, DS-CPL, VMX, SMX, EIST, TM2, CNXT-ID,
	// SDBG, xTPR, PDCM, DCA. OSXSAVE follows CR4.
	f1cHost = 1<<0 | // SSE3
		1<<1 | // PCLMULQDQ
		1<<9 | // SSSE3
		1<<12 | // FMA
		1<<13 | // CMPXCHG16B
		1<<19 | // SSE4.1
		1<<20 | // SSE4.2
		1<<22 | // MOVBE
		1<<23 | // POPCNT
		1<<25 | // AES
		1<<26 | // XSAVE
		1<<28 | // AVX
		1<<29 | // F16C
		1<<30 // RDRAND
	f1cAlways = 1<<17 | // PCID
		1<<21 | // x2APIC
		1<<24 | // TSC-deadline timer
		1<<31 // hypervisor
	f1cOSXSAVE = 1 << 27

	// Leaf 1 EDX. Hidden: VME (no virtual-8086 mode), PSN, DS, ACPI, SS, TM,
	// PBE. HTT is set with more than one CPU.
	f1dAlways = 1<<0 | // x87
		1<<2 | // DE
		1<<3 | // PSE
		1<<4 | // TSC
		1<<5 | // MSR
		1<<6 | // PAE
		1<<7 | // MCE
		1<<8 | // CMPXCHG8B
		1<<9 | // APIC
		1<<11 | // SYSENTER
		1<<12 | // MTRR
		1<<13 | // PGE
		1<<14 | // MCA
		1<<15 | // CMOV
		1<<16 | // PAT
		1<<17 | // PSE-36
		1<<19 | // CLFLUSH
		1<<23 | // MMX
		1<<24 | // FXSAVE
		1<<25 | // SSE
		1<<26 // SSE2
	f1dHTT = 1 << 28

	// Leaf 7.0 EBX. Hidden: SGX, PQM, MPX, RDT-A, processor trace.
	f7bFSGSBASE = 1 << 0 // shown when the host's kernel has enabled it
	f7bHost     = 1<<3 | // BMI1
		1<<4 | // HLE
		1<<5 | // AVX2
		1<<6 | // FDP_EXCPTN_ONLY
		1<<8 | // BMI2
		1<<11 | // RTM
		1<<13 | // x87 CS and DS deprecated
		1<<16 | 1<<17 | // AVX512F, DQ
		1<<18 | // RDSEED
		1<<19 | // ADX
		1<<21 | // AVX512IFMA
		1<<23 | // CLFLUSHOPT
		1<<24 | // CLWB
		1<<26 | 1<<27 | 1<<28 | // AVX512PF, ER, CD
		1<<29 | // SHA
		1<<30 | 1<<31 // AVX512BW, VL
	f7bAlways = 1<<1 | // TSC_ADJUST: without it kernels watch the TSC with another clock, which tells lies on a busy host
		1<<7 | // SMEP
		1<<9 | // ERMS: the interpreter moves strings in one go
		1<<10 | // INVPCID
		1<<20 // SMAP

	// Leaf 7.0 ECX. Hidden: UMIP, PKU, OSPKE, WAITPKG, CET_SS, TME, LA57, key
	// locker, bus lock detect, ENQCMD, SGX_LC, PKS.
	f7cHost = 1<<0 | // PREFETCHWT1
		1<<1 | // AVX512_VBMI
		1<<6 | // AVX512_VBMI2
		1<<8 | // GFNI
		1<<9 | // VAES
		1<<10 | // VPCLMULQDQ
		1<<11 | // AVX512_VNNI
		1<<12 | // AVX512_BITALG
		1<<14 | // AVX512_VPOPCNTDQ
		1<<22 | // RDPID
		1<<25 | // CLDEMOTE
		1<<27 | // MOVDIRI
		1<<28 // MOVDIR64B

	// Leaf 7.0 EDX. Hidden: UINTR, SRBDS_CTRL, MD_CLEAR, hybrid, PCONFIG,
	// architectural LBR, CET_IBT, AMX, STIBP, L1D_FLUSH, core capabilities, SSBD.
	f7dHost = 1<<2 | 1<<3 | // AVX512_4VNNIW, 4FMAPS
		1<<8 | // AVX512_VP2INTERSECT
		1<<16 | // TSXLDTRK
		1<<23 // AVX512_FP16
	f7dAlways = 1<<4 | // fast short REP MOVSB
		1<<14 // SERIALIZE: spares the guest's kernel an IRET to itself
	// Intel only: IBRS and IBPB, which the kernel wants with enhanced IBRS, and
	// IA32_ARCH_CAPABILITIES, which says what the CPU is not vulnerable to.
	f7dIntel = 1<<26 | 1<<29

	// Leaf 7.1. Hidden: LASS, architectural PerfMon, FRED, LKGS, WRMSRNS,
	// AMX, HRESET, LAM, AVX10, APX, user-timer, CET_SSS.
	f71aHost = 1<<0 | 1<<1 | 1<<2 | // SHA512, SM3, SM4
		1<<3 | // RAO-INT
		1<<4 | // AVX-VNNI
		1<<5 | // AVX512_BF16
		1<<7 | // CMPccXADD
		1<<10 | 1<<11 | 1<<12 | // fast zero-length MOVSB, short STOSB, short CMPSB
		1<<23 // AVX-IFMA
	f71dHost = 1<<4 | 1<<5 | 1<<10 | // AVX-VNNI-INT8, AVX-NE-CONVERT, AVX-VNNI-INT16
		1<<14 // PREFETCHI

	// Leaf 0x80000001 ECX. Hidden: SVM, extended APIC space, LOCK MOV CR0 as
	// CR8, OSVW, IBS, SKINIT, WDT, LWP, TCE, node-id MSR, performance counters,
	// data breakpoint extension, PTSC, MONITORX, address masks.
	fx1cHost = 1<<0 | // LAHF in 64-bit mode
		1<<5 | // LZCNT
		1<<6 | // SSE4A
		1<<7 | // misaligned SSE mode
		1<<8 | // PREFETCHW
		1<<11 | // XOP
		1<<16 | // FMA4
		1<<21 | // TBM
		1<<22 // topology extensions
	fx1cCmpLegacy = 1 << 1 // AMD, more than one CPU

	// Leaf 0x80000001 EDX; AMD repeats leaf 1 in the low half.
	fx1dAlways = 1<<11 | // SYSCALL
		1<<20 | // NX
		1<<26 | // 1 GiB pages
		1<<29 // long mode
	fx1dHost = 1<<22 | // MMX extensions
		1<<25 | // FFXSR
		1<<27 | // RDTSCP
		1<<30 | 1<<31 // 3DNow! and its extensions
	fx1dRepeat = 0x0183f3ff // of leaf 1 EDX

	// Leaf 0x80000008 EBX (AMD). Hidden: IRPERF, RDPRU, MCOMMIT, WBNOINVD, IBPB,
	// IBRS, STIBP, SSBD in all forms, INVLPGB, PPIN, CPPC, PSFD.
	fx8bHost = 1<<0 | // CLZERO
		1<<2 // XSAVE always saves error pointers
	fx8bAlways = 1<<20 | // EFER.LMSLE is not supported
		1<<26 | // not vulnerable to speculative store bypass
		1<<29 // not vulnerable to branch type confusion

	// Leaf 0x80000021 (AMD).
	fx21aHost   = 1 << 6 // loading a null selector clears the base
	fx21aAlways = 1<<0 | // no nested data breakpoints
		1<<2 | // LFENCE is always serializing
		1<<8 | // automatic IBRS
		1<<29 // not vulnerable to speculative return stack overflow
	fx21cAlways = 1<<1 | 1<<2 // not vulnerable to transient scheduler attacks

	// Leaf 6 EAX: the APIC timer runs in every C-state.
	f6aARAT = 1 << 2

	// Leaf 0xD.1 EAX: XSAVEOPT, XSAVEC and XGETBV with ECX = 1. Hidden: XSAVES,
	// extended feature disable.
	fd1aHost = 1<<0 | 1<<1 | 1<<2

	// Leaf 0x80000007 EDX: invariant TSC. It is what the guest's clock depends
	// on, and hosts that are themselves virtual often do not show it.
	fx7dAlways = 1 << 8

	// KVM features (KVM documentation, "KVM CPUID bits"): no I/O delays, the
	// clock with the new MSR numbers, and its stability across CPUs.
	kvmFeatures = 1<<1 | 1<<3 | 1<<24
)

// shownXCR0 are the state components that a guest may have: x87, SSE, AVX and
// the three of AVX-512. MPX, PKRU, AMX and APX are hidden.
const shownXCR0 = 1<<0 | 1<<1 | 1<<2 | 1<<5 | 1<<6 | 1<<7
