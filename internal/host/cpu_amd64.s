#include "textflag.h"

// func CPUID(leaf, sub uint32) (eax, ebx, ecx, edx uint32)
TEXT ·CPUID(SB), NOSPLIT, $0-24
	MOVL leaf+0(FP), AX
	MOVL sub+4(FP), CX
	CPUID
	MOVL AX, eax+8(FP)
	MOVL BX, ebx+12(FP)
	MOVL CX, ecx+16(FP)
	MOVL DX, edx+20(FP)
	RET

// func xgetbv() uint64
TEXT ·xgetbv(SB), NOSPLIT, $0-8
	XORL CX, CX
	XGETBV
	SHLQ $32, DX
	ORQ  DX, AX
	MOVQ AX, ret+0(FP)
	RET

// func TSC() uint64
TEXT ·TSC(SB), NOSPLIT, $0-8
	RDTSC
	SHLQ $32, DX
	ORQ  DX, AX
	MOVQ AX, ret+0(FP)
	RET

// func SpinUntil(addr *uint32, want uint32, ticks uint64) bool
// R8 addr, R9 want, R10 deadline.
TEXT ·SpinUntil(SB), NOSPLIT, $0-25
	MOVQ addr+0(FP), R8
	MOVL want+8(FP), R9
	RDTSC
	SHLQ $32, DX
	ORQ  DX, AX
	MOVQ ticks+16(FP), R10
	ADDQ AX, R10

loop:
	MOVL (R8), AX
	CMPL AX, R9
	JEQ  found
	PAUSE
	RDTSC
	SHLQ $32, DX
	ORQ  DX, AX
	CMPQ AX, R10
	JCS  loop
	MOVB $0, ret+24(FP)
	RET

found:
	MOVB $1, ret+24(FP)
	RET

// func Pauses(n uint32)
TEXT ·Pauses(SB), NOSPLIT, $0-4
	MOVL n+0(FP), CX

pause:
	PAUSE
	DECL CX
	JNZ  pause
	RET

// func fxsave(area *[512]byte)
TEXT ·fxsave(SB), NOSPLIT, $0-8
	MOVQ area+0(FP), AX
	BYTE $0x0f; BYTE $0xae; BYTE $0x00 // FXSAVE [rax]
	RET
