// Executes random bytes as code, in a child per try, for a number of seconds:
// fuzz SECONDS [SEED]. Whatever they do, it must stay inside the child.
#define _GNU_SOURCE
#include <signal.h>
#include <stdint.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>
#include "check.h"

static uint64_t s;

static uint64_t rnd(void)
{
	s ^= s << 13;
	s ^= s >> 7;
	s ^= s << 17;
	return s;
}

// run fills a page with random code and jumps into it, with random registers.
static void run(void)
{
	struct rlimit r = {1, 1};
	setrlimit(RLIMIT_CPU, &r);
	r.rlim_cur = r.rlim_max = 0;
	setrlimit(RLIMIT_CORE, &r);
	setrlimit(RLIMIT_FSIZE, &r);
	r.rlim_cur = r.rlim_max = 64;
	setrlimit(RLIMIT_NPROC, &r);
	// Nothing that random system calls do may outlive the child.
	alarm(1);
	uint8_t *code = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	uint8_t *data = mmap(NULL, 65536, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	for (int i = 0; i < 4096; i++)
		code[i] = rnd();
	// Opcodes that random bytes rarely hit: two-byte, VEX, EVEX, system.
	static const uint8_t lead[][3] = {{0x0f}, {0x0f, 0x01}, {0x0f, 0x00}, {0x0f, 0xae}, {0x0f, 0xc7}, {0x0f, 0x38},
		{0x0f, 0x3a}, {0xc5}, {0xc4, 0xe2}, {0x62, 0xf1, 0x7c}, {0x8f, 0xe8}, {0xcd, 0x80}, {0x48, 0xcf}, {0xcf}, {0xea},
		{0x8e}, {0x0f, 0xa2}, {0x0f, 0x05}, {0x0f, 0x34}, {0xf3, 0x0f, 0xae}, {0x0f, 0x20}, {0xff}, {0xcb}, {0x9d}, {0xf1}};
	for (int at = 0; at < 4000; at += 1 + rnd() % 40) {
		const uint8_t *l = lead[rnd() % (sizeof lead / sizeof *lead)];
		for (int i = 0; i < 3 && (i == 0 || l[i]); i++)
			code[at + i] = l[i];
	}
	mprotect(code, 4096, PROT_READ | PROT_EXEC);
	uint64_t regs[6];
	for (int i = 0; i < 6; i++)
		regs[i] = rnd() % 3 ? (uint64_t)data + rnd() % 60000 : rnd();
	uint64_t entry = (uint64_t)code + rnd() % 4000;
	asm volatile("mov %0, %%rax; mov %1, %%rbx; mov %2, %%rcx; mov %3, %%rdx; mov %4, %%rsi; mov %5, %%rdi; jmp *%6"
		: : "m"(regs[0]), "m"(regs[1]), "m"(regs[2]), "m"(regs[3]), "m"(regs[4]), "m"(regs[5]), "r"(entry)
		: "rax", "rbx", "rcx", "rdx", "rsi", "rdi");
}

int main(int argc, char **argv)
{
	int seconds = argc > 1 ? atoi(argv[1]) : 5;
	s = argc > 2 ? strtoull(argv[2], NULL, 0) : 88172645463325252ULL;
	prctl(PR_SET_CHILD_SUBREAPER, 1);
	time_t end = time(NULL) + seconds;
	long tries = 0, by_signal[65] = {0}, exited = 0;
	while (time(NULL) < end) {
		rnd();
		int pid = fork();
		if (pid < 0) {
			sleep(1);
			continue;
		}
		if (pid == 0) {
			// Its own group and session: random kill() calls stay there.
			setsid();
			if (setgid(65534) || setuid(65534))
				_exit(3);
			run();
			_exit(4);
		}
		int st;
		if (waitpid(pid, &st, 0) == pid) {
			if (WIFSIGNALED(st))
				by_signal[WTERMSIG(st)]++;
			else
				exited++;
		}
		kill(-pid, SIGKILL);
		while (waitpid(-1, &st, WNOHANG) > 0)
			;
		if (++tries % 1000 == 0) {
			printf("%ld tries, %ld s left\n", tries, (long)(end - time(NULL)));
			fflush(stdout);
		}
	}
	printf("fuzz: %ld tries, %ld exited", tries, exited);
	for (int i = 1; i < 65; i++)
		if (by_signal[i])
			printf(", signal %d: %ld", i, by_signal[i]);
	printf("\n");
	CHECK(tries > 10, "only %ld tries", tries);
	CHECK(by_signal[SIGSEGV] + by_signal[SIGILL] > tries / 4, "too few faults");
	return done("fuzz");
}
