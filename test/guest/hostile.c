// A guest kernel module that attacks what is around its kernel. It is built
// without kernel headers, see ../boot/hostile_test.go. PHASE chooses what it does
// when it is loaded.
//
// The folded kernel lies in a process that has a few pages of its own, at guest
// addresses from HOLE on, where no kernel has anything. The constants are those
// of ring3 (internal/bt, internal/direct): an attacker knows them.

typedef unsigned long u64;

struct task_struct;
int _printk(const char *format, ...);
struct task_struct *kthread_create_on_node(int (*fn)(void *), void *data, int node, const char *name, ...);
int wake_up_process(struct task_struct *);
void msleep(unsigned ms);

#define HOLE       0xffff87f000000000ul // host address 0
#define AREAS      0x10000000ul         // where the stub area may lie, to three times that
#define AREA_STEP  0x200000ul
#define AREA_PAGES 19
#define CACHE      0x200000ul // from the area
#define CACHE_SIZE (64ul << 20)
#define WINDOW     (32ul << 30)

#define ENTRY(fault) \
	".pushsection __ex_table, \"a\"\n .balign 4\n .long 1b - .\n .long %l[" #fault "] - .\n .long 1\n .popsection"

// The kernel takes a fault in the lower half for a bug unless RFLAGS.AC is set.
static void ac(u64 a, int set)
{
	if (a >> 47)
		return;
	if (set)
		asm volatile("stac" ::: "memory");
	else
		asm volatile("clac" ::: "memory");
}

static int store(u64 a, u64 v)
{
	ac(a, 1);
	asm goto("1: movq %1, (%0)\n" ENTRY(bad) ::"r"(a), "r"(v) : "memory" : bad);
	ac(a, 0);
	return 1;
bad:
	ac(a, 0);
	return 0;
}

static int load(u64 a)
{
	ac(a, 1);
	asm goto("1: movq (%0), %%rax\n" ENTRY(bad) ::"r"(a) : "rax", "memory" : bad);
	ac(a, 0);
	return 1;
bad:
	ac(a, 0);
	return 0;
}

static u64 state = 88172645463325252ul;

static u64 next(void)
{
	state ^= state << 13;
	state ^= state >> 7;
	return state ^= state << 17;
}

// Stores all over the address space, but not to what the kernel has mapped.
static __attribute__((unused)) void stores(void)
{
	int n = 0, worked = 0;
	for (int i = 0; i < 3000; i++) {
		u64 a = next();
		switch (i % 6) {
		case 0: // upper half
			a |= 0xffff800000000000ul;
			break;
		case 1: // what folds to low host addresses
			a = HOLE + a % WINDOW;
			break;
		case 2: // what folds to the end of the host's lower half, or beyond
			a = 0x80000000000ul - 0x1000000000ul + a % 0x4000000000ul;
			break;
		case 3: // below the hole: no canonical host address
			a = 0xffff800000000000ul + a % 0x7f000000000ul;
			break;
		case 4: // lower half
			a >>= 17;
			break;
		}
		// The area is the business of another phase.
		if (a - HOLE - AREAS < 3 * AREAS || load(a))
			continue;
		n++;
		worked += store(a, next());
	}
	_printk("hostile: anywhere, %d of %d stores worked\n", worked, n);
}

static __attribute__((unused)) u64 find_area(void)
{
	for (u64 at = AREAS; at < 3 * AREAS; at += AREA_STEP)
		if (load(HOLE + at)) {
			_printk("hostile: area found\n");
			return HOLE + at;
		}
	return 0;
}

// Stores to what only the monitor may write: the stub's program, the jump table
// and the translations.
static __attribute__((unused)) void code(void)
{
	u64 area = find_area();
	int n = 0, worked = 0;
	for (u64 a = area; area && a < area + 4096; a += 64, n++)
		worked += store(a, next());
	for (u64 a = area + CACHE; area && a < area + CACHE + CACHE_SIZE; a += 16384 + (next() & 0xff8), n++)
		worked += store(a, next());
	_printk("hostile: to code, %d of %d stores worked\n", worked, n);
}

// Stores to the memory that the stub shares with the monitor.
static __attribute__((unused)) void area(void)
{
	u64 area = find_area();
	for (int i = 0; area && i < 20000; i++) {
		u64 off = i < 10000 ? 0x1000 + next() % 0x260 : next() % (AREA_PAGES * 4096);
		u64 v = next();
		store(area + off, i % 2 ? v : i % 4 ? v % 8 : area - HOLE + v % (AREA_PAGES * 4096));
	}
	_printk("hostile: lives\n");
}

static u64 target;

// Each jump is a thread of its own, which an oops ends.
static int jump(void *how)
{
	switch ((u64)how) {
	case 0:
		asm volatile("jmp *%0" ::"r"(target));
		break;
	case 1:
		asm volatile("call *%0" ::"m"(target));
		break;
	case 2:
		asm volatile("pushq %0\n ret" ::"m"(target));
		break;
	case 3: // with RFLAGS.AC, which is a context of translations
		asm volatile("stac\n jmp *%0" ::"r"(target));
		break;
	case 4:
		asm volatile("movq %%rsp, %%rcx\n pushq $0x18\n pushq %%rcx\n pushfq\n pushq $0x10\n pushq %0\n iretq" ::"m"(target) : "rcx");
		break;
	}
	return 0;
}

static __attribute__((unused)) void jumps(void)
{
	u64 area = find_area();
	int n = 0;
	for (int i = 0; i < 100; i++) {
		u64 r = next();
		switch (i / 5 % 10) {
		case 0: // the stub's program
			target = area + r % 4096;
			break;
		case 1: // its address in the host
			target = area - HOLE + r % 4096;
			break;
		case 2: // translations
			target = area + CACHE + 0x401000 + r % 0x400000;
			break;
		case 3:
			target = area - HOLE + CACHE + 0x401000 + r % 0x400000;
			break;
		case 4: // not canonical
			target = (r & ~(1ul << 63)) | 1ul << 62;
			break;
		case 5: // a function, in the words of the jump table
			target = (u64)jump - (1ul << 62);
			break;
		case 6: // data
			target = (u64)&target;
			break;
		case 7: // lower half
			target = r >> 17;
			break;
		case 8:
			target = HOLE + WINDOW + r % (256ul << 20);
			break;
		case 9:
			target = ~0ul - r % 16;
			break;
		}
		struct task_struct *t = kthread_create_on_node(jump, (void *)(u64)(i % 5), -1, "hostile");
		if ((u64)t < -4095ul) {
			wake_up_process(t);
			n++;
		}
		msleep(8);
	}
	_printk("hostile: lives after %d jumps\n", n);
}

// What the guest survives.
static __attribute__((unused)) void survivable(void)
{
	stores();
	code();
}

int init_module(void)
{
	PHASE();
	return 0;
}
