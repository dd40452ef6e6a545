#include "textflag.h"

// func execute(leaf, sub uint32) (a, b, c, d uint32)
//
// CPUID (SDM vol. 2A).
TEXT ·execute(SB), NOSPLIT, $0-24
	MOVL leaf+0(FP), AX
	MOVL sub+4(FP), CX
	CPUID
	MOVL AX, a+8(FP)
	MOVL BX, b+12(FP)
	MOVL CX, c+16(FP)
	MOVL DX, d+20(FP)
	RET

// func readXCR0() uint64
//
// XGETBV with ECX = 0 (SDM vol. 2D); CPUID must show OSXSAVE.
TEXT ·readXCR0(SB), NOSPLIT, $0-8
	XORL CX, CX
	XGETBV
	SHLQ $32, DX
	ORQ  DX, AX
	MOVQ AX, ret+0(FP)
	RET
