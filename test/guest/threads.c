// Threads: mutexes, condition variables, thread-local storage, and vector
// registers that must survive every switch.
#define _GNU_SOURCE
#include <immintrin.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdint.h>
#include <string.h>
#include <sys/time.h>
#include <sys/wait.h>
#include <unistd.h>
#include "check.h"

enum { THREADS = 4, ROUNDS = 2000 };
static pthread_mutex_t mu = PTHREAD_MUTEX_INITIALIZER;
static long counter;
static __thread long mine;
static volatile sig_atomic_t ticks;

static void on_tick(int sig) { (void)sig; ticks++; }

static void *count(void *arg)
{
	for (int i = 0; i < ROUNDS; i++) {
		pthread_mutex_lock(&mu);
		counter++;
		pthread_mutex_unlock(&mu);
		mine += (long)arg;
		if (i % 64 == 0)
			sched_yield();
	}
	return (void *)mine;
}

// Fills all vector registers with a pattern, makes system calls and lets
// timers fire, and looks whether they are still there.
__attribute__((target("avx2"))) static int keeps_ymm(uint64_t seed)
{
	uint64_t in[4], out[4];
	int bad = 0;
	for (int round = 0; round < 3000; round++) {
		for (int i = 0; i < 4; i++)
			in[i] = seed * 0x9e3779b97f4a7c15ULL + round * 4 + i;
		register __m256i v = _mm256_loadu_si256((void *)in);
		asm volatile("vmovdqa %0, %%ymm13" : : "x"(v) : "xmm13");
		if (round % 16 == 0)
			asm volatile("syscall" : : "a"(24L) : "rcx", "r11", "memory"); // sched_yield
		else
			for (int i = 0; i < 200; i++)
				asm volatile("");
		asm volatile("vmovdqu %%ymm13, %0" : "=m"(out));
		bad += memcmp(in, out, sizeof in) != 0;
	}
	return bad;
}

__attribute__((target("avx512f"))) static int keeps_zmm(uint64_t seed)
{
	uint64_t in[8], out[8];
	int bad = 0;
	for (int round = 0; round < 3000; round++) {
		for (int i = 0; i < 8; i++)
			in[i] = seed * 0x9e3779b97f4a7c15ULL + round * 8 + i;
		unsigned k = round & 0xffff, k2;
		asm volatile("vmovdqu64 %0, %%zmm29; kmovw %1, %%k3" : : "m"(in), "r"(k) : );
		if (round % 16 == 0)
			asm volatile("syscall" : : "a"(24L) : "rcx", "r11", "memory");
		asm volatile("vmovdqu64 %%zmm29, %0; kmovw %%k3, %1" : "=m"(out), "=r"(k2));
		bad += memcmp(in, out, sizeof in) != 0 || k != k2;
	}
	return bad;
}

int main(void)
{
	pthread_t t[THREADS];
	for (long i = 0; i < THREADS; i++)
		pthread_create(&t[i], NULL, count, (void *)i);
	for (long i = 0; i < THREADS; i++) {
		void *r;
		pthread_join(t[i], &r);
		CHECK((long)r == i * ROUNDS, "thread %ld: thread-local %ld", i, (long)r);
	}
	CHECK(counter == THREADS * ROUNDS, "counter %ld", counter);

	struct sigaction sa = {.sa_handler = on_tick};
	sigaction(SIGALRM, &sa, NULL);
	int pids[4];
	for (int i = 0; i < 4; i++) {
		if (!(pids[i] = fork())) {
			struct itimerval it = {{0, 2000}, {0, 2000}};
			setitimer(ITIMER_REAL, &it, NULL);
			int bad = 0;
			__builtin_cpu_init();
			if (__builtin_cpu_supports("avx2"))
				bad += keeps_ymm(i + 1);
			if (__builtin_cpu_supports("avx512f"))
				bad += keeps_zmm(i + 1);
			_exit(bad != 0);
		}
	}
	for (int i = 0; i < 4; i++) {
		int st;
		waitpid(pids[i], &st, 0);
		CHECK(st == 0, "vector registers of process %d: status %#x", i, st);
	}
	return done("threads");
}
