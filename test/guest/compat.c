// A 32-bit program: int 0x80 and the vDSO's way into the kernel, segment
// registers, thread-local storage through a GDT entry, signals, mmap, fork.
#define _GNU_SOURCE
#include <errno.h>
#include <pthread.h>
#include <setjmp.h>
#include <signal.h>
#include <stdint.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <ucontext.h>
#include <unistd.h>
#include "check.h"

static __thread int tls = 42;
static sigjmp_buf env;
static volatile uintptr_t got_addr;
static volatile int got;

static void on_fault(int sig, siginfo_t *si, void *ctx)
{
	(void)ctx;
	got = sig;
	got_addr = (uintptr_t)si->si_addr;
	siglongjmp(env, 1);
}

static void *thread(void *arg)
{
	CHECK(tls == 42, "tls %d", tls);
	tls = (int)(intptr_t)arg;
	for (int i = 0; i < 1000; i++)
		getppid();
	return (void *)(intptr_t)tls;
}

int main(void)
{
	CHECK(sizeof(void *) == 4, "pointers of %zu bytes", sizeof(void *));
	int pid;
	asm volatile("int $0x80" : "=a"(pid) : "a"(SYS_getpid) : "memory");
	CHECK(pid == getpid(), "int 0x80 getpid %d, libc %d", pid, getpid());
	unsigned short cs, ss;
	asm("mov %%cs, %0; mov %%ss, %1" : "=r"(cs), "=r"(ss));
	CHECK(cs == 0x23 && ss == 0x2b, "cs %#x ss %#x", cs, ss);

	struct sigaction sa = {.sa_sigaction = on_fault, .sa_flags = SA_SIGINFO};
	sigaction(SIGSEGV, &sa, NULL);
	sigaction(SIGILL, &sa, NULL);
	sigaction(SIGFPE, &sa, NULL);
	if (!sigsetjmp(env, 1))
		*(volatile int *)0x1234 = 1;
	CHECK(got == SIGSEGV && got_addr == 0x1234, "got %d at %#x", got, got_addr);
	if (!sigsetjmp(env, 1))
		asm volatile("ud2");
	CHECK(got == SIGILL, "got %d", got);
	if (!sigsetjmp(env, 1))
		asm volatile("xorl %%edx, %%edx; xorl %%ecx, %%ecx; divl %%ecx" ::: "eax", "ecx", "edx");
	CHECK(got == SIGFPE, "got %d", got);

	char *p = mmap(NULL, 1 << 20, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	memset(p, 7, 1 << 20);
	int sum = 0;
	for (int i = 0; i < 1 << 20; i++)
		sum += p[i];
	CHECK(sum == 7 << 20, "sum %d", sum);

	pthread_t t[3];
	for (int i = 0; i < 3; i++)
		pthread_create(&t[i], NULL, thread, (void *)(intptr_t)(i + 100));
	for (int i = 0; i < 3; i++) {
		void *r;
		pthread_join(t[i], &r);
		CHECK((int)(intptr_t)r == i + 100, "thread %d: %d", i, (int)(intptr_t)r);
	}
	CHECK(tls == 42, "tls of the main thread %d", tls);

	int st, child = fork();
	if (!child)
		_exit(tls);
	waitpid(child, &st, 0);
	CHECK(WIFEXITED(st) && WEXITSTATUS(st) == 42, "child status %#x", st);

	long double x = 1.5L;
	for (int i = 0; i < 20; i++)
		x = x * x / 1.5L;
	CHECK(x == 1.5L, "x87: %Lf", x);
	return done("compat");
}
