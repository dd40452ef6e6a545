#include "go_asm.h"
#include "textflag.h"

// In this file R15 is the frame of the slice (type frame, frame.go) wherever
// guest registers are not loaded.

// func enter(f *frame)
//
// Runs the snippet f.entry and returns when it is done or has faulted.
//
//	f+0(FP)  frame, outside Go memory
//
// ABI0: everything but SP and BP may be changed, so only those two are kept
// for the way back. R14 and X15 are put right by the caller's wrapper.
TEXT ·enter(SB), NOSPLIT|NOFRAME, $0-8
	MOVQ f+0(FP), R15
	MOVQ SP, frame_hostSP(R15)
	MOVQ BP, frame_hostBP(R15)

	// XRSTOR64 faults on a bad image; Go has checked it (SDM vol. 1, 13.8).
	MOVQ frame_fpu(R15), DI
	TESTQ DI, DI
	JZ   flags
	MOVL frame_mask+0(R15), AX
	MOVL frame_mask+4(R15), DX
	XRSTOR64 (DI)

flags:
	PUSHQ frame_rflags(R15)
	POPFQ
	MOVQ (frame_gpr+0x00)(R15), AX
	MOVQ (frame_gpr+0x08)(R15), CX
	MOVQ (frame_gpr+0x10)(R15), DX
	MOVQ (frame_gpr+0x18)(R15), BX
	// RSP and R15 are loaded by the snippet.
	MOVQ (frame_gpr+0x28)(R15), BP
	MOVQ (frame_gpr+0x30)(R15), SI
	MOVQ (frame_gpr+0x38)(R15), DI
	MOVQ (frame_gpr+0x40)(R15), R8
	MOVQ (frame_gpr+0x48)(R15), R9
	MOVQ (frame_gpr+0x50)(R15), R10
	MOVQ (frame_gpr+0x58)(R15), R11
	MOVQ (frame_gpr+0x60)(R15), R12
	MOVQ (frame_gpr+0x68)(R15), R13
	MOVQ (frame_gpr+0x70)(R15), R14
	JMP  frame_entry(R15)

// leave is where the exit code of a slice jumps to. RSP and R15 are stored
// already, R15 is the frame, RSP is the one that enter was called with, and all
// other registers are the guest's. It returns to the caller of enter.
TEXT ·leave(SB), NOSPLIT|NOFRAME, $0-0
	MOVQ AX, (frame_gpr+0x00)(R15)
	MOVQ CX, (frame_gpr+0x08)(R15)
	MOVQ DX, (frame_gpr+0x10)(R15)
	MOVQ BX, (frame_gpr+0x18)(R15)
	MOVQ BP, (frame_gpr+0x28)(R15)
	MOVQ SI, (frame_gpr+0x30)(R15)
	MOVQ DI, (frame_gpr+0x38)(R15)
	MOVQ R8, (frame_gpr+0x40)(R15)
	MOVQ R9, (frame_gpr+0x48)(R15)
	MOVQ R10, (frame_gpr+0x50)(R15)
	MOVQ R11, (frame_gpr+0x58)(R15)
	MOVQ R12, (frame_gpr+0x60)(R15)
	MOVQ R13, (frame_gpr+0x68)(R15)
	MOVQ R14, (frame_gpr+0x70)(R15)
	PUSHFQ
	POPQ frame_rflags(R15)
	CLD

	MOVQ frame_fpu(R15), DI
	TESTQ DI, DI
	JZ   done
	MOVL frame_mask+0(R15), AX
	MOVL frame_mask+4(R15), DX
	XSAVE64 (DI)

	// The initial configuration is what Go runs with: MXCSR 1F80H, x87 control
	// word 037FH, upper halves of vector registers clean. Without XRSTOR when
	// x87 state was not loaded: that is faster by a third of the whole.
	MOVQ frame_reset(R15), DI
	CMPQ frame_light(R15), $0
	JEQ  full
	VZEROUPPER
	LDMXCSR 24(DI)
	JMP  done

full:
	XRSTOR64 (DI)

done:
	MOVQ frame_hostBP(R15), BP
	RET

// func codeAddresses() (leave, handler uintptr)
//
//	leave+0(FP)    address of ·leave
//	handler+8(FP)  address of ·onSignal
TEXT ·codeAddresses(SB), NOSPLIT, $0-16
	LEAQ ·leave(SB), AX
	MOVQ AX, leave+0(FP)
	LEAQ ·onSignal(SB), AX
	MOVQ AX, handler+8(FP)
	RET

// func loadDataSegments(sel uint64)
//
//	sel+0(FP)  selector for DS and ES
TEXT ·loadDataSegments(SB), NOSPLIT, $0-8
	MOVQ sel+0(FP), AX
	MOVW AX, DS
	MOVW AX, ES
	RET
