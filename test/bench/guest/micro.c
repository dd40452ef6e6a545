// The guest's end of the benchmark. It measures the rows it is asked for and
// prints
//
//	bench: up NS            first line; the kernel's clock since its start
//	bench: row NAME NS      time of one operation, a fraction allowed
//	bench: fail NAME: WHY   this row cannot be had here
//	bench: end NS           the time since the first line, on this clock
//
// Called as /init it is the first program of a machine and switches it off at
// the end. The arguments are names of rows; $BENCH_ROOT is the directory that
// holds bin/busybox and bench/, "" for the root.
//
// A row is repeated until it has taken TARGET; the workloads of workloads.sh
// run once.

#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/klog.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/reboot.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <ucontext.h>
#include <unistd.h>

#define TARGET 200000000LL // ns
#define PAGE 4096

static int64_t now(void)
{
	struct timespec t;
	clock_gettime(CLOCK_MONOTONIC, &t);
	return t.tv_sec * 1000000000LL + t.tv_nsec;
}

static const char *row; // being measured

static void fail(const char *what)
{
	dprintf(1, errno ? "bench: fail %s: %s: %s\n" : "bench: fail %s: %s\n", row, what, strerror(errno));
	exit(1);
}

// Each of these performs n operations and returns the time they took.

static int64_t user(long n)
{
	uint64_t x = 1;
	int64_t t = now();
	for (long i = 0; i < n * 1000; i++) {
		x = x * 6364136223846793005ULL + 1442695040888963407ULL;
		__asm__ volatile("" : "+r"(x));
	}
	return now() - t;
}

static int64_t null(long n)
{
	int64_t t = now();
	for (long i = 0; i < n; i++)
		syscall(SYS_getppid);
	return now() - t;
}

// fault touches fresh pages, 4 MiB at a time. Getting and returning the
// address range is not counted.
static int64_t fault(long n)
{
	const long pages = 1024;
	int64_t sum = 0;
	for (long done = 0; done < n;) {
		char *p = mmap(NULL, pages * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
		if (p == MAP_FAILED)
			fail("mmap");
		madvise(p, pages * PAGE, MADV_NOHUGEPAGE);
		int64_t t = now();
		for (long i = 0; i < pages && done < n; i++, done++)
			*(volatile char *)(p + i * PAGE) = 1;
		sum += now() - t;
		munmap(p, pages * PAGE);
	}
	return sum;
}

// poke is a store to its argument, three bytes long and then a return.
void poke(char *);
__asm__(".text\n.globl poke\npoke: movb $0, (%rdi)\nret\n");

static void skip(int sig, siginfo_t *si, void *uc)
{
	(void)sig, (void)si;
	((ucontext_t *)uc)->uc_mcontext.gregs[REG_RIP] += 3;
}

static int64_t prot(long n)
{
	struct sigaction sa = {.sa_sigaction = skip, .sa_flags = SA_SIGINFO};
	char *p = mmap(NULL, PAGE, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (p == MAP_FAILED || sigaction(SIGSEGV, &sa, NULL))
		fail("sigaction");
	int64_t t = now();
	for (long i = 0; i < n; i++)
		poke(p);
	t = now() - t;
	munmap(p, PAGE);
	return t;
}

static volatile long caught;

static void count(int sig)
{
	(void)sig;
	caught++;
}

static int64_t sig(long n)
{
	struct sigaction sa = {.sa_handler = count};
	if (sigaction(SIGUSR1, &sa, NULL))
		fail("sigaction");
	caught = 0;
	int64_t t = now();
	for (long i = 0; i < n; i++)
		kill(getpid(), SIGUSR1);
	t = now() - t;
	if (caught != n) {
		errno = 0;
		fail("signals were lost");
	}
	return t;
}

// flip sends a byte to and fro between two processes on one CPU; n counts the
// switches from one to the other.
static int64_t flip(long n)
{
	int to[2], from[2];
	char c = 0;
	cpu_set_t all, one;
	if (pipe(to) || pipe(from) || sched_getaffinity(0, sizeof all, &all))
		fail("pipe");
	CPU_ZERO(&one);
	CPU_SET(sched_getcpu(), &one);
	sched_setaffinity(0, sizeof one, &one);
	pid_t pid = fork();
	if (pid < 0)
		fail("fork");
	if (!pid) {
		close(to[1]);
		while (read(to[0], &c, 1) == 1 && write(from[1], &c, 1) == 1)
			;
		_exit(0);
	}
	int64_t t = now();
	for (long i = 0; i < n; i += 2)
		if (write(to[1], &c, 1) != 1 || read(from[0], &c, 1) != 1)
			fail("pipe");
	t = now() - t;
	close(to[0]), close(to[1]), close(from[0]), close(from[1]);
	waitpid(pid, NULL, 0);
	sched_setaffinity(0, sizeof all, &all);
	return n & 1 ? t * n / (n + 1) : t;
}

// child runs argv, or nothing if it is NULL, in a process of its own.
static void child(char **argv)
{
	int st;
	pid_t pid = fork();
	if (pid < 0)
		fail("fork");
	if (!pid) {
		if (!argv)
			_exit(0);
		execv(argv[0], argv);
		_exit(127);
	}
	if (waitpid(pid, &st, 0) != pid)
		fail("wait");
	if (st) {
		errno = 0;
		fail(WIFEXITED(st) && WEXITSTATUS(st) == 127 ? "exec" : "the program failed");
	}
}

static int64_t forks(long n)
{
	int64_t t = now();
	while (n--)
		child(NULL);
	return now() - t;
}

static int64_t execs(long n)
{
	char *argv[] = {"/proc/self/exe", "true", NULL};
	int64_t t = now();
	while (n--)
		child(argv);
	return now() - t;
}

static int64_t maps(long n)
{
	int64_t t = now();
	while (n--) {
		void *p = mmap(NULL, 16 * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
		if (p == MAP_FAILED || munmap(p, 16 * PAGE))
			fail("mmap");
	}
	return now() - t;
}

// kallsyms reads n KiB: the kernel unpacks and prints its symbols.
static int64_t kallsyms(long n)
{
	static char buf[PAGE];
	int64_t t = now();
	for (long left = n * 1024; left > 0;) {
		int fd = open("/proc/kallsyms", O_RDONLY);
		ssize_t got, sum = 0;
		if (fd < 0)
			fail("open");
		while (left > 0 && (got = read(fd, buf, left < PAGE ? left : PAGE)) > 0)
			left -= got, sum += got;
		close(fd);
		if (!sum) {
			errno = 0;
			fail("it is empty");
		}
	}
	return now() - t;
}

static const struct {
	const char *name;
	int64_t (*run)(long n);
} rows[] = {
	{"user", user},	  {"null", null},   {"fault", fault}, {"prot", prot}, {"signal", sig},
	{"switch", flip}, {"fork", forks},  {"exec", execs},  {"mmap", maps}, {"kallsyms", kallsyms},
};

// repeat prints the price of one operation: it raises the number of them until
// they take TARGET.
static void repeat(int64_t (*run)(long))
{
	run(1); // first-time costs
	for (long n = 1;;) {
		int64_t t = run(n);
		if (t >= TARGET) {
			dprintf(1, "bench: row %s %.3f\n", row, (double)t / n);
			return;
		}
		double more = t ? 1.2 * TARGET / t : 100;
		n = n * (more > 100 ? 100 : more) + 1;
	}
}

static void workload(const char *root)
{
	static char bb[PAGE], script[PAGE];
	snprintf(bb, sizeof bb, "%s/bin/busybox", root);
	snprintf(script, sizeof script, "%s/bench/workloads.sh", root);
	setenv("BUSYBOX", bb, 1);
	char *argv[] = {bb, "sh", script, (char *)row, NULL};
	int64_t t = now();
	child(argv);
	dprintf(1, "bench: row %s %lld\n", row, (long long)(now() - t));
}

static void measure(void)
{
	const char *root = getenv("BENCH_ROOT");
	for (unsigned i = 0; i < sizeof rows / sizeof *rows; i++)
		if (!strcmp(row, rows[i].name)) {
			repeat(rows[i].run);
			return;
		}
	workload(root ? root : "");
}

int main(int argc, char **argv)
{
	if (argc > 1 && !strcmp(argv[1], "true"))
		return 0;
	int machine = !strcmp(argv[0], "/init");
	struct timespec b;
	clock_gettime(CLOCK_BOOTTIME, &b);
	dprintf(1, "\nbench: up %lld\n", b.tv_sec * 1000000000LL + b.tv_nsec);
	int64_t start = now();
	if (machine) {
		klogctl(6, NULL, 0); // SYSLOG_ACTION_CONSOLE_OFF: messages may cut a line in two
		mkdir("/proc", 0755);
		mount("proc", "/proc", "proc", 0, NULL);
		mount("dev", "/dev", "devtmpfs", 0, NULL);
	}
	for (int i = 1; i < argc; i++) {
		if (strchr(argv[i], '='))
			continue; // a kernel may add options of its own
		row = argv[i];
		pid_t pid = fork(); // a process for each row: none sees another's leftovers
		if (pid < 0)
			fail("fork");
		if (!pid) {
			measure();
			_exit(0);
		}
		int st;
		while (waitpid(pid, &st, 0) < 0 && errno == EINTR)
			;
		if (WIFSIGNALED(st))
			dprintf(1, "bench: fail %s: signal %d\n", row, WTERMSIG(st));
	}
	dprintf(1, "bench: end %lld\n", (long long)(now() - start));
	if (machine) {
		usleep(20000); // the last line leaves the serial port
		reboot(RB_POWER_OFF);
	}
	return 0;
}
