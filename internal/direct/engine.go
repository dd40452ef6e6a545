package direct

import (
	"errors"
	"fmt"
	"time"

	"golang.org/x/sys/unix"

	"ring3/internal/cpu"
	"ring3/internal/direct/stub"
	"ring3/internal/guestmem"
	"ring3/internal/host"
	"ring3/internal/mmu"
	"ring3/internal/x86"
	"ring3/internal/x86/cpuid"
)

// Config configures an engine. Zero values mean the defaults.
type Config struct {
	Mem   *guestmem.Memory
	State *cpu.State
	// CPU is the number of the virtual CPU, below guestmem.Annexes.
	CPU int
	// Beside is another engine of the machine, nil for none: one thread runs the
	// two in turn.
	Beside *Engine
	// MaxStubs bounds the stub processes, the zygote not counted: 64.
	MaxStubs int
	// MaxMaps bounds the mappings of one stub: half of vm.max_map_count.
	MaxMaps int
	// NoSpin waits in futexes only, also with more than one processor.
	NoSpin bool
	// NoEager maps only the pages that faulted.
	NoEager bool
	// CPUID is what the instruction answers in the current State, as far as it
	// can be listed. It may change with XCR0 and CR4.OSXSAVE only. Where it is
	// nil, each patched CPUID is a step for the interpreter.
	CPUID func() []cpuid.Answer
	// Invalidated, when not nil, is told of each page of user memory that the
	// guest kernel has invalidated (INVLPG), or mapped, without Flush being called.
	Invalidated func(gva uint64)

	kernel bool // the engine is the inside of a Kernel
}

// Engine executes the user code of one virtual CPU.
type Engine struct {
	cfg   Config
	mem   *guestmem.Memory
	state *cpu.State
	walk  mmu.Walker
	stats Stats

	xmask       uint64  // extended-state components that guests use
	mxcsr       uint32  // MXCSR bits that exist
	xsize       int     // bytes of their standard-format image
	readySpin   uint64  // see proc.ready, in TSC ticks
	spinRun     spinner // the monitor waiting for guest code to stop
	spinServe   spinner // a stub waiting for the monitor
	stoppedAt   uint64  // TSC of the last stop
	microsecond uint64  // in TSC ticks
	pauses      uint64  // PAUSE instructions per 1024 TSC ticks

	maxPages, maxLeaves int // of one space; see evict

	slots     *slots
	listens   int // eventfd of all stubs of the virtual CPU: package stub, maps.go
	code      *codeStore
	sites     sites
	answered  cpuidState // see answer
	pair      *pair      // nil: all goes through the monitor
	rmap      rmap
	spawner   *spawner
	zygote    *zygote
	cpuidTrap bool // CPUID faults by itself in stubs

	spaces map[uint64]*space // by address of the PML4
	byID   []*space          // index space.id
	cur    *space            // of the last Run
	clock  uint64            // counts Runs, for LRU

	fpu     *cpu.FPU // aligned; see fpu.go
	fpuHome *space   // whose stub holds the live extended state; nil: fpu does

	// A stub was found to lie when no Run was there to report it.
	lied   bool
	lieKey uint64
	lie    Exit

	hint      uint64 // page to map before the next Run; see MapHint
	hintFor   mmu.Access
	hasHint   bool
	lastFault fault // for loop detection
	repeats   int

	kick *kicker
	near *near
}

// New makes an engine. The first stub is started by the first Run.
func New(cfg Config) (*Engine, error) {
	e := &Engine{cfg: cfg, mem: cfg.Mem, state: cfg.State, walk: mmu.Walker{Mem: cfg.Mem}, spaces: map[uint64]*space{}, kick: &kicker{}, near: &near{}}
	if cfg.Beside != nil {
		e.near = cfg.Beside.near
	}
	host.KeepProcs(1)
	if e.cfg.MaxStubs == 0 {
		e.cfg.MaxStubs = 64
	}
	if e.cfg.MaxMaps == 0 {
		e.cfg.MaxMaps = host.MaxMaps() / 2
	}
	// Far more than programs map: twice the RAM in pages, and as sparsely.
	e.maxPages = int(2*e.mem.Size()/x86.PageSize) + 1<<16
	e.maxLeaves = int(e.mem.Size()>>20) + 1<<13
	if !host.HasFSGSBASE() {
		return nil, errors.New("the host kernel or processor lacks FSGSBASE (Linux 5.9 and a processor of 2013 or later have it)")
	}
	xcr0 := host.XCR0()
	if xcr0 == 0 {
		return nil, errors.New("the host lacks XSAVE")
	}
	// PKRU stays the host's: the virtual CPU has no protection keys. AMX
	// (XTILECFG, XTILEDATA) is not shown either.
	e.xmask = xcr0 &^ (1<<9 | 3<<17)
	e.mxcsr = host.MXCSRMask()
	e.xsize = xsaveSize(e.xmask)
	if e.xsize > cpu.XSAVEAreaSize {
		return nil, fmt.Errorf("XSAVE image of %d bytes is larger than %d", e.xsize, cpu.XSAVEAreaSize)
	}
	if need := 4 * host.MinSigStack(); need > stub.StackSize {
		return nil, fmt.Errorf("signal frames of %d bytes are too large for a stub", need/4)
	}
	e.cpuidTrap = host.CPUIDFaults()
	e.fpu = newFPU()
	e.microsecond = max(host.TicksPer(time.Microsecond), 1)
	e.readySpin = 20 * e.microsecond
	// With one processor, spinning only keeps the other side from running.
	if host.CPUs() > 1 && !cfg.NoSpin {
		e.spinRun.max = uint64(monitorSpin/time.Microsecond) * e.microsecond
		e.spinServe.max = uint64(stubSpin/time.Microsecond) * e.microsecond
		start := host.TSC()
		host.Pauses(1024)
		if !cfg.kernel {
			e.near.tick = e.microsecond // else Pair sets its near
		}
		e.pauses = 1024 * 1024 / max(host.TSC()-start, 1)
	}
	var err error
	if e.listens, err = unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK); err != nil {
		return nil, err
	}
	if e.slots, err = newSlots(e.cfg.MaxStubs + 2); err != nil {
		return nil, errors.Join(err, unix.Close(e.listens))
	}
	store := e.mem.Size()
	if cfg.kernel {
		store = cacheSize
	}
	if e.code, err = newCodeStore(store); err != nil {
		return nil, errors.Join(err, e.slots.close(), unix.Close(e.listens))
	}
	e.rmap = newRmap(e.mem.Size())
	e.spawner = newSpawner()
	if !cfg.kernel {
		e.mem.AddCodeUser(e)
		if err := e.newSites(); err != nil {
			return nil, errors.Join(err, e.Close())
		}
	}
	return e, nil
}

// xsaveSize is the size of the standard-format image of the components in
// mask (SDM vol. 1, section 13.4.3; CPUID leaf 0xd).
func xsaveSize(mask uint64) int {
	size := uint32(576) // legacy region and header
	for i := uint32(2); i < 63; i++ {
		if mask>>i&1 != 0 {
			n, off, _, _ := host.CPUID(0xd, i)
			size = max(size, off+n)
		}
	}
	return int(size)
}

// Close kills and reaps all stubs.
func (e *Engine) Close() error {
	for _, s := range e.spaces {
		if s.p != nil {
			s.p.kill()
		}
	}
	e.spaces, e.cur, e.fpuHome = nil, nil, nil
	if e.zygote != nil {
		e.zygote.p.kill()
	}
	e.spawner.close()
	return errors.Join(e.slots.close(), e.code.close(), unix.Close(e.listens))
}

// Rest makes sure that no guest code runs in the stub that ran last, not even
// if it lies, and has it sleep: the thread is going to run another virtual CPU.
func (e *Engine) Rest() {
	e.settle()
	if e.cur != nil {
		e.cur.p.quiet()
	}
}

// Leave gives the calling thread back the processors that Run has bound it to
// fewer of: it will not call Run again.
func (e *Engine) Leave() { e.near.leave() }

// Kick makes Run return ExitKick soon, also when it is called just before
// Run. It may be called from any goroutine.
func (e *Engine) Kick() { e.kick.kick() }

// pml4 is the key of the current address space.
func (e *Engine) pml4() uint64 { return e.state.CR3 & x86.CR3Addr }

func (e *Engine) pcid() uint16 {
	if e.state.CR4&x86.CR4PCIDE == 0 {
		return 0
	}
	return uint16(e.state.CR3 & x86.CR3PCIDMask)
}
