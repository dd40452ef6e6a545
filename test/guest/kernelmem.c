// Reads, writes and executes the upper half of the address space, directly, with
// a stack there, and by system calls. Each access must fail the way it does on
// a processor: #PF at a canonical address, #GP or #SS at another.
#define _GNU_SOURCE
#include <errno.h>
#include <setjmp.h>
#include <signal.h>
#include <stdint.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/uio.h>
#include <ucontext.h>
#include <unistd.h>
#include "check.h"

static sigjmp_buf env;
static volatile int got, got_code;
static volatile uintptr_t got_addr;
static volatile long got_trapno, got_err;

static void on_fault(int sig, siginfo_t *si, void *ctx)
{
	ucontext_t *u = ctx;
	got = sig;
	got_code = si->si_code;
	got_addr = (uintptr_t)si->si_addr;
	got_trapno = u->uc_mcontext.gregs[REG_TRAPNO];
	got_err = u->uc_mcontext.gregs[REG_ERR];
	siglongjmp(env, 1);
}

enum { READ, WRITE, EXECUTE, COPY, PUSH, CALL, ATTEMPTS };
static const char *names[] = { "read", "write", "execute", "copy", "push", "call" };
static volatile uint64_t sink;

static void attempt(int how, uintptr_t a)
{
	volatile uint64_t *p = (volatile uint64_t *)a;
	switch (how) {
	case READ:
		sink = *p;
		break;
	case WRITE:
		*p = 0x6867696873676968;
		break;
	case EXECUTE:
		__asm__ volatile("jmp *%0" ::"r"(a));
		break;
	case COPY: {
		char buf[64];
		const void *src = (const void *)a;
		void *dst = buf;
		size_t n = sizeof buf;
		__asm__ volatile("rep movsb" : "+S"(src), "+D"(dst), "+c"(n)::"memory");
		break;
	}
	case PUSH:
		__asm__ volatile("mov %0, %%rsp; push %%rax" ::"r"(a + 8) : "memory");
		break;
	case CALL:
		__asm__ volatile("call *(%0)" ::"r"(a) : "memory");
		break;
	}
}

static int canonical(uintptr_t a)
{
	return (uintptr_t)((intptr_t)(a << 16) >> 16) == a;
}

static void try(uintptr_t a)
{
	for (volatile int how = 0; how < ATTEMPTS; how++) {
		got = 0;
		if (sigsetjmp(env, 1) == 0)
			attempt(how, a);
		CHECK(got, "%s at %lx worked", names[how], a);
		if (canonical(a)) {
			CHECK(got == SIGSEGV && got_trapno == 14 && got_addr == a && (got_err & 4),
			      "%s at %lx: signal %d, code %d, trap %ld, error %lx, address %lx",
			      names[how], a, got, got_code, got_trapno, got_err, got_addr);
			CHECK(!(got_err & 2) == (how != WRITE && how != PUSH), "%s at %lx: error %lx", names[how], a, got_err);
		} else {
			int stack = how == PUSH;
			CHECK(got == (stack ? SIGBUS : SIGSEGV) && got_trapno == (stack ? 12 : 13) && got_addr == 0,
			      "%s at %lx: signal %d, trap %ld, address %lx", names[how], a, got, got_trapno, got_addr);
		}
	}
	int fd[2];
	if (pipe(fd) != 0)
		abort();
	CHECK(write(fd[1], (void *)a, 8) == -1 && errno == EFAULT, "write from %lx: %s", a, strerror(errno));
	if (write(fd[1], "12345678", 8) != 8)
		abort();
	CHECK(read(fd[0], (void *)a, 8) == -1 && errno == EFAULT, "read to %lx: %s", a, strerror(errno));
	char buf[8];
	struct iovec to = { buf, 8 }, from = { (void *)a, 8 };
	CHECK(process_vm_readv(getpid(), &to, 1, &from, 1, 0) == -1 && errno == EFAULT, "process_vm_readv %lx: %s", a, strerror(errno));
	CHECK(mmap((void *)(a & ~4095ul), 4096, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0) == MAP_FAILED,
	      "mmap at %lx", a);
	close(fd[0]);
	close(fd[1]);
}

int main(void)
{
	static const uintptr_t known[] = {
		0xffffffff81000000, // kernel text
		0xffffffff82000000, // data
		0xffffffffc0000000, // modules
		0xffff888000000000, // all memory
		0xffff888001000000, // the kernel in it
		0xffffc90000000000, // vmalloc
		0xffffea0000000000, // vmemmap
		0xfffffe0000000000, // IDT, entry stacks
		0xffff800000000000, // below, no kernel has anything
		0xffff87f010001000,
		0xffff87f800000000,
		0xfffffffffffff000,
		0x0000800000000000, // not canonical
		0x00007800deadbe00 + (1ul << 47),
		0x8000000000000000,
		0xbfff888001000000,
		0xffff000000000000,
	};
	stack_t ss = { .ss_size = 1 << 16 };
	ss.ss_sp = malloc(ss.ss_size);
	sigaltstack(&ss, NULL);
	struct sigaction sa = { .sa_sigaction = on_fault, .sa_flags = SA_SIGINFO | SA_ONSTACK };
	sigaction(SIGSEGV, &sa, NULL);
	sigaction(SIGBUS, &sa, NULL);
	for (unsigned i = 0; i < sizeof known / sizeof *known; i++)
		try(known[i]);
	uint64_t r = 88172645463325252;
	for (int i = 0; i < 400; i++) {
		r ^= r << 13, r ^= r >> 7, r ^= r << 17;
		uintptr_t a = (r | (i % 2 ? 0xffff800000000000 : 1ul << 63)) & ~7ul;
		if (a >> 12 != 0xffffffffff600) // vsyscall
			try(a);
	}
	return done("kernelmem");
}
