// Several processors: affinity, atomic operations, futexes, TLB shootdowns, code
// that another processor changes, one time for all. It passes natively too, with
// as many processors as there are.
#define _GNU_SOURCE
#include <cpuid.h>
#include <errno.h>
#include <pthread.h>
#include <sched.h>
#include <setjmp.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>
#include <x86intrin.h>

enum { MAX = 64, PAGE = 4096 };

static int cpus, cpu[MAX]; // that may be used

static void check(int ok, const char *what) {
	if (!ok) {
		printf("FAIL smp: %s (errno %d: %s)\n", what, errno, strerror(errno));
		exit(1);
	}
}

static void pin(int i) {
	cpu_set_t s;
	CPU_ZERO(&s);
	CPU_SET(cpu[i % cpus], &s);
	check(sched_setaffinity(0, sizeof s, &s) == 0, "sched_setaffinity");
	check(sched_getcpu() == cpu[i % cpus], "runs on another processor than it is bound to");
}

static void find(void) {
	cpu_set_t s;
	check(sched_getaffinity(0, sizeof s, &s) == 0, "sched_getaffinity");
	for (int i = 0; i < CPU_SETSIZE && cpus < MAX; i++)
		if (CPU_ISSET(i, &s))
			cpu[cpus++] = i;
}

// Each processor has an APIC ID of its own, and the time goes on from one to the
// next.
static void identities(void) {
	unsigned id[MAX], a, b, c;
	uint64_t tsc = 0;
	struct timespec last = {0}, now;
	for (int round = 0; round < 3; round++)
		for (int i = 0; i < cpus; i++) {
			pin(i);
			uint64_t t = __rdtsc();
			check(t > tsc, "the time-stamp counter goes back");
			tsc = t;
			clock_gettime(CLOCK_MONOTONIC, &now);
			check(now.tv_sec > last.tv_sec || now.tv_sec == last.tv_sec && now.tv_nsec >= last.tv_nsec, "the clock goes back");
			last = now;
			unsigned of_1;
			__cpuid(1, a, of_1, b, c);
			of_1 >>= 24;
			__cpuid_count(0xb, 0, a, b, c, id[i]);
			check(of_1 == (id[i] & 0xff), "leaves 1 and 0xb differ in the APIC ID");
			for (int j = 0; j < i; j++)
				check(id[i] != id[j], "two processors with one APIC ID");
		}
}

static atomic_long locked;
static long guarded;
static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;
enum { ADDS = 20000 };

static void *adder(void *arg) {
	pin((intptr_t)arg);
	for (int i = 0; i < ADDS; i++) {
		atomic_fetch_add(&locked, 1);
		pthread_mutex_lock(&mutex);
		guarded++;
		pthread_mutex_unlock(&mutex);
		if (i % 1000 == 0)
			sched_yield();
	}
	return 0;
}

static void counters(void) {
	pthread_t t[2 * MAX];
	for (intptr_t i = 0; i < 2 * cpus; i++)
		check(pthread_create(&t[i], 0, adder, (void *)i) == 0, "pthread_create");
	for (int i = 0; i < 2 * cpus; i++)
		pthread_join(t[i], 0);
	check(locked == 2L * cpus * ADDS, "locked additions were lost");
	check(guarded == 2L * cpus * ADDS, "additions under a mutex were lost");
}

static pthread_cond_t cond = PTHREAD_COND_INITIALIZER;
static int turn;
enum { TURNS = 200 };

static void *passer(void *arg) {
	int me = (intptr_t)arg;
	pin(me);
	for (int i = 0; i < TURNS; i++) {
		pthread_mutex_lock(&mutex);
		while (turn % cpus != me)
			pthread_cond_wait(&cond, &mutex);
		turn++;
		pthread_cond_broadcast(&cond);
		pthread_mutex_unlock(&mutex);
	}
	return 0;
}

static void passing(void) {
	pthread_t t[MAX];
	for (intptr_t i = 0; i < cpus; i++)
		check(pthread_create(&t[i], 0, passer, (void *)i) == 0, "pthread_create");
	for (int i = 0; i < cpus; i++)
		pthread_join(t[i], 0);
	check(turn == TURNS * cpus, "turns were lost");
}

// Writers on all processors write to a page whose mapping changes under them.
static volatile uint32_t *page;
static atomic_int stop, ready;
static __thread sigjmp_buf out;
static __thread volatile int armed;

static void fault(int sig) {
	if (!armed)
		_exit(3);
	siglongjmp(out, 1);
}

static void *writer(void *arg) {
	pin((intptr_t)arg);
	atomic_fetch_add(&ready, 1);
	while (!stop) {
		armed = 1;
		if (sigsetjmp(out, 1) == 0)
			for (int i = 0; i < 1000 && !stop; i++)
				page[(intptr_t)arg]++;
		armed = 0;
	}
	return 0;
}

static uint32_t sum(volatile uint32_t *p, int n) {
	uint32_t s = 0;
	for (int i = 0; i < n; i++)
		s += p[i];
	return s;
}

static void still(volatile uint32_t *p, int n, const char *what) {
	uint32_t before = sum(p, n);
	struct timespec t = {0, 2000000};
	nanosleep(&t, 0);
	check(sum(p, n) == before, what);
}

// moves waits until somebody writes again.
static void moves(volatile uint32_t *p, int n) {
	for (uint32_t before = sum(p, n); sum(p, n) == before;)
		sched_yield();
}

static void shootdowns(void) {
	int fd = memfd_create("smp", 0);
	check(fd >= 0 && ftruncate(fd, 2 * PAGE) == 0, "memfd");
	volatile uint32_t *both = mmap(0, 2 * PAGE, PROT_READ, MAP_SHARED, fd, 0);
	page = mmap(0, PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	check(both != MAP_FAILED && page != MAP_FAILED, "mmap");
	struct sigaction sa = {.sa_handler = fault};
	sigaction(SIGSEGV, &sa, 0);
	pthread_t t[MAX];
	int n = cpus;
	for (intptr_t i = 0; i < n; i++)
		check(pthread_create(&t[i], 0, writer, (void *)i) == 0, "pthread_create");
	while (ready < n)
		sched_yield();
	for (int i = 0; i < 10; i++) {
		pin(i);
		moves(page, n);
		check(mprotect((void *)page, PAGE, PROT_READ) == 0, "mprotect");
		still(both, n, "a page is written that was made read-only");
		check(mprotect((void *)page, PAGE, PROT_READ | PROT_WRITE) == 0, "mprotect");
		moves(both, n);
		volatile uint32_t *to = both + PAGE / 4, *from = both;
		for (int j = 0; j < 2; j++) {
			check(mmap((void *)page, PAGE, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED, fd, j ? 0 : PAGE) == page, "mmap");
			still(from, n, "a page is written that is no longer mapped");
			moves(to, n);
			volatile uint32_t *x = to;
			to = from, from = x;
		}
		check(munmap((void *)page, PAGE) == 0, "munmap");
		still(both, n, "a page is written that was unmapped");
		check(mmap((void *)page, PAGE, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED, fd, 0) == page, "mmap");
	}
	stop = 1;
	for (int i = 0; i < n; i++)
		pthread_join(t[i], 0);
}

// One processor changes code, the others execute it.
static uint8_t *code;
static atomic_uint version;

static void *executor(void *arg) {
	pin((intptr_t)arg);
	while (!stop) {
		unsigned v = version, a, b, c, d;
		__cpuid(0, a, b, c, d); // serializes
		check(((unsigned (*)(void))code)() >= v, "old code was executed");
	}
	return 0;
}

static void modification(void) {
	code = mmap(0, PAGE, PROT_READ | PROT_WRITE | PROT_EXEC, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	check(code != MAP_FAILED, "mmap");
	// Aligned, so that the immediate is written at once.
	code += 7;
	code[0] = 0xb8, code[5] = 0xc3; // mov $imm, %eax; ret
	*(volatile uint32_t *)(code + 1) = 0;
	stop = 0;
	pthread_t t[MAX];
	for (intptr_t i = 1; i < cpus; i++)
		check(pthread_create(&t[i], 0, executor, (void *)i) == 0, "pthread_create");
	pin(0);
	for (unsigned v = 1; v <= 100; v++) {
		*(volatile uint32_t *)(code + 1) = v;
		version = v;
		sched_yield();
	}
	stop = 1;
	for (int i = 1; i < cpus; i++)
		pthread_join(t[i], 0);
}

int main(void) {
	find();
	setbuf(stdout, 0);
	struct {
		const char *name;
		void (*run)(void);
	} all[] = {{"identities", identities}, {"counters", counters}, {"passing", passing}, {"shootdowns", shootdowns}, {"modification", modification}};
	for (unsigned i = 0; i < sizeof all / sizeof *all; i++) {
		struct timespec a, b;
		clock_gettime(CLOCK_MONOTONIC, &a);
		all[i].run();
		clock_gettime(CLOCK_MONOTONIC, &b);
		printf("%s: %.3f s\n", all[i].name, b.tv_sec - a.tv_sec + (b.tv_nsec - a.tv_nsec) / 1e9);
	}
	printf("PASS smp on %d processors\n", cpus);
}
