// CPUID in user code: always the same answers, under timer signals and in
// child processes, with the extended state as it was.
#define _GNU_SOURCE
#include <cpuid.h>
#include <sched.h>
#include <signal.h>
#include <string.h>
#include <sys/time.h>
#include <sys/wait.h>
#include <unistd.h>
#include "check.h"

static volatile int ticks;

static void on_tick(int sig)
{
	unsigned a, b, c, d;
	(void)sig;
	ticks++;
	__cpuid_count(ticks % 8, 0, a, b, c, d);
}

struct answer { unsigned a, b, c, d; };

static struct answer ask(unsigned leaf, unsigned sub)
{
	struct answer r;
	__cpuid_count(leaf, sub, r.a, r.b, r.c, r.d);
	return r;
}

static const unsigned leaves[] = {0, 1, 2, 4, 6, 7, 0xb, 0xd, 0x14, 0x19, 0x40000000,
	0x80000000, 0x80000001, 0x80000006, 0x80000008, 0x8000001d, 0x8fffffff, 0xffffffff};
enum { LEAVES = sizeof leaves / sizeof *leaves, SUBS = 20 };
static struct answer first[LEAVES][SUBS];

static void compare(int rounds)
{
	for (int i = 0; i < rounds; i++)
		for (int l = 0; l < LEAVES; l++) {
			int s = i % SUBS;
			double x = i + 0.5;
			asm volatile("" : "+x"(x)); // kept in a register
			struct answer r = ask(leaves[l], s);
			asm volatile("" : "+x"(x));
			CHECK(x == i + 0.5, "round %d: %f", i, x);
			CHECK(!memcmp(&r, &first[l][s], sizeof r), "leaf %#x, %d: %#x %#x %#x %#x",
			      leaves[l], s, r.a, r.b, r.c, r.d);
		}
}

int main(void)
{
	cpu_set_t one; // on another CPU, the APIC id is another
	CPU_ZERO(&one);
	CPU_SET(sched_getcpu(), &one);
	CHECK(!sched_setaffinity(0, sizeof one, &one), "sched_setaffinity");
	for (int l = 0; l < LEAVES; l++)
		for (int s = 0; s < SUBS; s++)
			first[l][s] = ask(leaves[l], s);
	CHECK(ask(1, 0).c >> 27 & 1, "no OSXSAVE");
	unsigned lo, hi, size = ask(0xd, 0).b;
	asm("xgetbv" : "=a"(lo), "=d"(hi) : "c"(0));
	CHECK((lo & 3) == 3 && size >= 576, "xcr0 %#x, area of %u bytes", lo, size);

	struct itimerval tick = {.it_interval.tv_usec = 4000, .it_value.tv_usec = 4000};
	signal(SIGALRM, on_tick);
	setitimer(ITIMER_REAL, &tick, NULL);
	compare(2000);
	while (ticks < 5)
		compare(100);
	for (int i = 0; i < 5; i++) {
		pid_t pid = fork();
		if (!pid) {
			compare(50);
			_exit(failures != 0);
		}
		int status = -1;
		while (waitpid(pid, &status, 0) < 0)
			;
		CHECK(status == 0, "child: status %#x", status);
	}
	return done("cpuid");
}
