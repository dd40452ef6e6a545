#include "go_asm.h"
#include "textflag.h"

// Offsets in struct siginfo and struct ucontext of x86-64 Linux
// (sigaction(2); System V ABI for x86-64; asm/sigcontext.h).
#define SI_CODE      8   // int si_code; above 0 when the kernel raised the signal for a fault
#define UC_REG_RIP   168
#define UC_REG_CS    184 // 16 bits
#define UC_REG_ERR   192
#define UC_REG_TRAP  200
#define UC_REG_CR2   216

// onSignal is the handler of SIGILL, SIGTRAP, SIGBUS, SIGFPE and SIGSEGV. The
// kernel calls it with the C calling convention, on the alternate stack:
//
//	DI  signal number
//	SI  *siginfo
//	DX  *ucontext
//	SP  return address: the restorer, which calls rt_sigreturn
//
// It changes only registers that a C function may change, and keeps DI, SI and
// DX: for Go's handler nothing has happened.
TEXT ·onSignal(SB), NOSPLIT|NOFRAME, $0-0
	MOVQ UC_REG_RIP(DX), AX
	MOVQ ·regionBase(SB), CX
	SUBQ CX, AX
	CMPQ AX, $const_regionSize
	JHS  forward
	// Somebody's kill(2) is no fault, even in this range.
	CMPL SI_CODE(SI), $0
	JLE  forward

	ANDQ $~(const_sliceSize-1), AX
	ADDQ CX, AX                    // AX: start of the slice

	LEAQ const_frameOffset(AX), R8
	MOVQ DI, frame_signo(R8)
	MOVQ UC_REG_TRAP(DX), CX
	MOVQ CX, frame_trapno(R8)
	MOVQ UC_REG_ERR(DX), CX
	MOVQ CX, frame_errcode(R8)
	MOVQ UC_REG_CR2(DX), CX
	MOVQ CX, frame_cr2(R8)
	MOVQ UC_REG_RIP(DX), CX
	MOVQ CX, frame_rip(R8)

	// Resume at the exit code, with everything else as it was, in 64-bit mode:
	// 33H is the selector of Linux for 64-bit user code.
	MOVW $0x33, UC_REG_CS(DX)
	ADDQ $const_exitOffset, AX
	MOVQ AX, UC_REG_RIP(DX)
	RET

forward:
	// One handler per signal: goHandler[signo].
	MOVQ DI, AX
	LEAQ ·goHandler(SB), CX
	MOVQ (CX)(AX*8), AX
	JMP  AX
