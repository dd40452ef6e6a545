#include "textflag.h"

// func cas128(p unsafe.Pointer, o0, o1, n0, n1 uint64) (v0, v1 uint64, ok bool)
TEXT ·cas128(SB), NOSPLIT, $0-57
	MOVQ p+0(FP), DI
	MOVQ o0+8(FP), AX
	MOVQ o1+16(FP), DX
	MOVQ n0+24(FP), BX
	MOVQ n1+32(FP), CX
	LOCK
	CMPXCHG16B (DI)
	SETEQ ok+56(FP)
	MOVQ AX, v0+40(FP)
	MOVQ DX, v1+48(FP)
	RET
