// What a debugger does: single steps, a breakpoint written into the text, a
// hardware watchpoint and breakpoint, system-call stops, registers both ways.
#define _GNU_SOURCE
#include <errno.h>
#include <signal.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include <sys/ptrace.h>
#include <sys/syscall.h>
#include <sys/user.h>
#include <sys/wait.h>
#include <unistd.h>
#include "check.h"

static volatile long watched, calls;

__attribute__((noinline, noclone)) static long target(long x)
{
	asm volatile("" : "+r"(x));
	calls++;
	return x * 3;
}

static void child(void)
{
	ptrace(PTRACE_TRACEME, 0, 0, 0);
	raise(SIGSTOP);
	long sum = 0;
	for (long i = 0; i < 10; i++)
		sum += target(i);
	watched = sum;
	syscall(SYS_getppid);
	long r15 = 0;
	double d = 0;
	asm volatile("mov $0x1234, %%r15; int3; mov %%r15, %0; movsd %%xmm7, %1" : "=r"(r15), "=m"(d) : : "r15", "xmm7");
	_exit(r15 == 0x5678 && d == 2.5 && calls == 10 ? 7 : 8);
}

static int wait_for(int pid, int sig)
{
	int st;
	if (waitpid(pid, &st, 0) != pid)
		return -1;
	if (!WIFSTOPPED(st)) {
		printf("status %#x instead of a stop\n", st);
		return -1;
	}
	CHECK((WSTOPSIG(st) & 0x7f) == sig, "stopped by %d, want %d", WSTOPSIG(st), sig);
	return WSTOPSIG(st);
}

static int set_dr(int pid, int n, unsigned long v)
{
	return ptrace(PTRACE_POKEUSER, pid, offsetof(struct user, u_debugreg) + 8 * n, v);
}

static unsigned long get_dr(int pid, int n)
{
	return ptrace(PTRACE_PEEKUSER, pid, offsetof(struct user, u_debugreg) + 8 * n, 0);
}

int main(void)
{
	int pid = fork();
	if (!pid)
		child();
	wait_for(pid, SIGSTOP);
	ptrace(PTRACE_SETOPTIONS, pid, 0, PTRACE_O_TRACESYSGOOD | PTRACE_O_EXITKILL);

	struct user_regs_struct r, before;
	int moved = 0;
	for (int i = 0; i < 200; i++) {
		ptrace(PTRACE_GETREGS, pid, 0, &before);
		ptrace(PTRACE_SINGLESTEP, pid, 0, 0);
		if (wait_for(pid, SIGTRAP) < 0)
			return 1;
		ptrace(PTRACE_GETREGS, pid, 0, &r);
		moved += r.rip != before.rip;
		CHECK(!(r.eflags & 0x100), "step %d: TF shows in eflags %#llx", i, r.eflags);
		long word = ptrace(PTRACE_PEEKTEXT, pid, target, 0);
		CHECK(word != -1 || !errno, "peek: %d", errno);
		if (r.rip == (uintptr_t)target)
			break;
	}
	CHECK(moved > 20, "%d of 200 steps moved", moved);

	// A breakpoint in the text, hit by each call that is left.
	long text = ptrace(PTRACE_PEEKTEXT, pid, target, 0);
	ptrace(PTRACE_POKETEXT, pid, target, (text & ~0xffL) | 0xcc);
	if (r.rip != (uintptr_t)target) {
		ptrace(PTRACE_CONT, pid, 0, 0);
		if (wait_for(pid, SIGTRAP) < 0)
			return 1;
		ptrace(PTRACE_GETREGS, pid, 0, &r);
		CHECK(r.rip == (uintptr_t)target + 1, "rip %#llx behind the breakpoint %p", r.rip, target);
		r.rip--;
		ptrace(PTRACE_SETREGS, pid, 0, &r);
	}
	ptrace(PTRACE_POKETEXT, pid, target, text);

	// A hardware breakpoint instead; then a watchpoint on the variable.
	CHECK(set_dr(pid, 0, (uintptr_t)target) == 0 && set_dr(pid, 7, 1) == 0, "debug registers: %d", errno);
	for (int i = 0; i < 3; i++) {
		ptrace(PTRACE_CONT, pid, 0, 0);
		if (wait_for(pid, SIGTRAP) < 0)
			return 1;
		ptrace(PTRACE_GETREGS, pid, 0, &r);
		CHECK(r.rip == (uintptr_t)target && get_dr(pid, 6) & 1, "hardware breakpoint: rip %#llx dr6 %#lx", r.rip, get_dr(pid, 6));
	}
	set_dr(pid, 6, 0);
	CHECK(set_dr(pid, 7, 0) == 0 && set_dr(pid, 1, (uintptr_t)&watched) == 0, "debug registers: %d", errno);
	CHECK(set_dr(pid, 7, 1 << 2 | 0xdL << 20) == 0, "watchpoint: %d", errno); // DR1, write, 8 bytes
	ptrace(PTRACE_CONT, pid, 0, 0);
	if (wait_for(pid, SIGTRAP) < 0)
		return 1;
	CHECK(get_dr(pid, 6) & 2, "watchpoint: dr6 %#lx", get_dr(pid, 6));
	CHECK(ptrace(PTRACE_PEEKDATA, pid, &watched, 0) == 135, "watched value %ld", ptrace(PTRACE_PEEKDATA, pid, &watched, 0));
	set_dr(pid, 7, 0);

	// Stops at entry and exit of a system call, whose result is changed.
	for (int i = 0; i < 2; i++) {
		ptrace(PTRACE_SYSCALL, pid, 0, 0);
		CHECK(wait_for(pid, SIGTRAP) == (SIGTRAP | 0x80), "system-call stop");
		ptrace(PTRACE_GETREGS, pid, 0, &r);
		CHECK(r.orig_rax == SYS_getppid, "system call %lld", r.orig_rax);
	}
	CHECK((pid_t)r.rax == getpid(), "getppid says %lld", r.rax);

	ptrace(PTRACE_CONT, pid, 0, 0);
	if (wait_for(pid, SIGTRAP) < 0) // int3
		return 1;
	struct user_fpregs_struct f;
	ptrace(PTRACE_GETREGS, pid, 0, &r);
	CHECK(r.r15 == 0x1234, "r15 %#llx", r.r15);
	r.r15 = 0x5678;
	ptrace(PTRACE_SETREGS, pid, 0, &r);
	CHECK(ptrace(PTRACE_GETFPREGS, pid, 0, &f) == 0, "getfpregs: %d", errno);
	double d = 2.5;
	memcpy((char *)f.xmm_space + 7 * 16, &d, 8);
	CHECK(ptrace(PTRACE_SETFPREGS, pid, 0, &f) == 0, "setfpregs: %d", errno);
	ptrace(PTRACE_CONT, pid, 0, 0);
	int st;
	waitpid(pid, &st, 0);
	CHECK(WIFEXITED(st) && WEXITSTATUS(st) == 7, "child ended with %#x", st);
	return done("ptrace");
}
