// Takes SIGSEGV, SIGBUS, SIGFPE, SIGILL and SIGTRAP on purpose and checks what
// the kernel says about each: signal, code, address, instruction pointer,
// trap number, error code.
#define _GNU_SOURCE
#include <setjmp.h>
#include <signal.h>
#include <stdint.h>
#include <string.h>
#include <sys/mman.h>
#include <ucontext.h>
#include <unistd.h>
#include "check.h"

static sigjmp_buf env;
static volatile int got, got_code, traps, steps;
static volatile uintptr_t got_addr, got_rip;
static volatile long got_trapno, got_err, got_cr2;

static void on_fault(int sig, siginfo_t *si, void *ctx)
{
	ucontext_t *u = ctx;
	got = sig;
	got_code = si->si_code;
	got_addr = (uintptr_t)si->si_addr;
	got_rip = u->uc_mcontext.gregs[REG_RIP];
	got_trapno = u->uc_mcontext.gregs[REG_TRAPNO];
	got_err = u->uc_mcontext.gregs[REG_ERR];
	got_cr2 = u->uc_mcontext.gregs[REG_CR2];
	siglongjmp(env, 1);
}

static void on_trap(int sig, siginfo_t *si, void *ctx)
{
	ucontext_t *u = ctx;
	(void)sig;
	traps++;
	got_code = si->si_code;
	got_rip = u->uc_mcontext.gregs[REG_RIP];
	got_trapno = u->uc_mcontext.gregs[REG_TRAPNO];
	if (u->uc_mcontext.gregs[REG_EFL] & 0x100) {
		if (++steps == 5)
			u->uc_mcontext.gregs[REG_EFL] &= ~0x100L;
	}
}

// try runs code that must fault and leaves the details in got_*.
#define TRY(...)                               \
	do {                                    \
		got = 0;                        \
		if (!sigsetjmp(env, 1)) {       \
			__VA_ARGS__;               \
		}                               \
	} while (0)

#define MUST(sig, code, addr, trapno)                                                                   \
	CHECK(got == (sig), "got %d", got);                                                             \
	CHECK(got_code == (code), "got %d", got_code);                                                  \
	CHECK(got_addr == (uintptr_t)(addr), "got %#lx want %#lx", got_addr, (uintptr_t)(addr));        \
	CHECK(got_trapno == (trapno), "got %ld", got_trapno)

int main(void)
{
	struct sigaction sa = {.sa_sigaction = on_fault, .sa_flags = SA_SIGINFO};
	int sigs[] = {SIGSEGV, SIGBUS, SIGFPE, SIGILL};
	for (unsigned i = 0; i < sizeof sigs / sizeof *sigs; i++)
		sigaction(sigs[i], &sa, NULL);
	sa.sa_sigaction = on_trap;
	sigaction(SIGTRAP, &sa, NULL);

	uintptr_t low = 0x1238;
	TRY(*(volatile int *)low);
	MUST(SIGSEGV, SEGV_MAPERR, low, 14);
	CHECK(got_err == 4, "error code %ld", got_err);
	CHECK(got_cr2 == (long)low, "cr2 %#lx", got_cr2);

	TRY(*(volatile int *)low = 1);
	MUST(SIGSEGV, SEGV_MAPERR, low, 14);
	CHECK(got_err == 6, "error code %ld", got_err);

	char *page = mmap(NULL, 8192, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	TRY(page[5] = 1);
	MUST(SIGSEGV, SEGV_ACCERR, page + 5, 14);

	TRY((void)*(volatile char *)page; page[6] = 1);
	MUST(SIGSEGV, SEGV_ACCERR, page + 6, 14);
	CHECK(got_err == 7, "error code %ld", got_err);

	mprotect(page, 4096, PROT_READ | PROT_WRITE);
	page[0] = (char)0xc3;
	TRY(((void (*)(void))page)());
	MUST(SIGSEGV, SEGV_ACCERR, page, 14);
	CHECK(got_err == 0x15, "error code %#lx", got_err);
	CHECK(got_rip == (uintptr_t)page, "rip %#lx", got_rip);

	mprotect(page, 4096, PROT_READ | PROT_EXEC);
	TRY(((void (*)(void))page)(); got = -1);
	CHECK(got == -1, "code in an executable page: signal %d", got);
	mprotect(page, 4096, PROT_NONE);
	TRY(*(volatile char *)page);
	MUST(SIGSEGV, SEGV_ACCERR, page, 14);
	munmap(page, 8192);
	TRY(*(volatile char *)page);
	MUST(SIGSEGV, SEGV_MAPERR, page, 14);

	// Non-canonical: a general protection fault, which has no address.
	TRY(*(volatile int *)0x8000000000001000UL);
	MUST(SIGSEGV, SI_KERNEL, 0, 13);
	// The kernel's half: a page fault, whatever is there.
	TRY(*(volatile int *)0xffffffff81000000UL);
	CHECK(got == SIGSEGV, "got %d", got);
	CHECK(got_trapno == 14, "trap %ld", got_trapno);
	CHECK(got_addr == 0xffffffff81000000UL, "address %#lx", got_addr);
	TRY(asm volatile("hlt"));
	MUST(SIGSEGV, SI_KERNEL, 0, 13);
	TRY(asm volatile("cli"));
	MUST(SIGSEGV, SI_KERNEL, 0, 13);
	TRY(asm volatile("int $0x77"));
	MUST(SIGSEGV, SI_KERNEL, 0, 13);
	CHECK(got_err == 0x77 * 8 + 2, "error code %#lx", got_err);
	TRY(asm volatile("mov %0, %%ds" ::"r"(0x10)));
	CHECK(got == SIGSEGV, "got %d", got);
	TRY(asm volatile("in $0x60, %%al" ::: "rax"));
	MUST(SIGSEGV, SI_KERNEL, 0, 13);

	TRY(asm volatile("xor %%edx, %%edx; xor %%ecx, %%ecx; divl %%ecx" ::: "rax", "rcx", "rdx"));
	CHECK(got == SIGFPE && got_code == FPE_INTDIV, "got %d code %d", got, got_code);
	CHECK(got_trapno == 0 && got_addr == got_rip, "trap %ld address %#lx rip %#lx", got_trapno, got_addr, got_rip);

	unsigned csr, masked;
	asm volatile("stmxcsr %0" : "=m"(masked));
	csr = masked & ~0x200u;
	static const double zero = 0, one = 1;
	TRY(asm volatile("ldmxcsr %1; movsd %2, %%xmm0; divsd %0, %%xmm0" : : "m"(zero), "m"(csr), "m"(one) : "xmm0"));
	asm volatile("ldmxcsr %0" : : "m"(masked));
	CHECK(got == SIGFPE, "SSE division by zero: got %d code %d", got, got_code);
	CHECK(got_trapno == 19, "trap %ld", got_trapno);

	unsigned short cw = 0x37b; // divide-by-zero unmasked
	TRY(asm volatile("fninit; fldcw %0; fld1; fldz; fdivrp; fwait" : : "m"(cw)));
	asm volatile("fnclex; fninit");
	CHECK(got == SIGFPE && got_trapno == 16, "x87 division by zero: got %d trap %ld", got, got_trapno);

	TRY(asm volatile("ud2"));
	CHECK(got == SIGILL && got_code == ILL_ILLOPN && got_trapno == 6, "got %d code %d trap %ld", got, got_code, got_trapno);
	CHECK(got_addr == got_rip, "address %#lx rip %#lx", got_addr, got_rip);

	TRY(asm volatile("pushf; orl $0x40000, (%%rsp); popf; mov 1(%%rsp), %%eax" ::: "rax", "memory"));
	asm volatile("pushf; andl $~0x40000, (%%rsp); popf" ::: "memory", "cc");
	CHECK(got == SIGBUS && got_code == BUS_ADRALN && got_trapno == 17, "alignment check: got %d code %d trap %ld", got, got_code, got_trapno);

	FILE *f = tmpfile();
	CHECK(f != NULL, "tmpfile");
	if (f) {
		char *map = mmap(NULL, 4096, PROT_READ, MAP_SHARED, fileno(f), 0);
		TRY(*(volatile char *)map);
		CHECK(got == SIGBUS && got_code == BUS_ADRERR && got_addr == (uintptr_t)map, "got %d code %d", got, got_code);
	}

	uintptr_t after;
	asm volatile("lea 1f(%%rip), %0; int3; 1:" : "=r"(after));
	CHECK(traps == 1 && got_rip == after && got_trapno == 3, "int3: traps %d rip %#lx want %#lx trap %ld", traps, got_rip, after, got_trapno);
	CHECK(got_code == SI_KERNEL, "code %d", got_code);

	traps = 0;
	asm volatile("pushf; orl $0x100, (%%rsp); popf; nop; nop; nop; nop; nop; nop" ::: "memory", "cc");
	CHECK(steps == 5 && traps == 5, "single steps: %d of %d", steps, traps);
	CHECK(got_code == TRAP_TRACE && got_trapno == 1, "code %d trap %ld", got_code, got_trapno);

	// A system call under TF: the trap comes behind it.
	traps = steps = 0;
	long pid;
	asm volatile("pushf; orl $0x100, (%%rsp); popf; mov $39, %%eax; syscall; nop; nop; nop" : "=a"(pid) : : "rcx", "r11", "memory", "cc");
	CHECK(steps == 5, "single steps over a system call: %d", steps);

	// An interrupt storm of signals in a computing loop must not disturb it.
	return done("signals");
}
