// Package interp executes guest code one decoded instruction at a time, on the
// architectural state of one virtual CPU. It is the slow path of the machine
// and the oracle of the faster engines.
//
// Code is decoded once per guest-physical address into blocks of ops
// (block.go, decode.go); an op is a handler and its operands. Run looks up the
// block at RIP and calls one handler after the other. Linear addresses are
// translated by a software TLB (tlb.go); whatever it does not know goes the
// slow way (access.go). Faults are recorded by raise and delivered by the run
// loop, which also restores RIP to the instruction that faulted: a handler
// changes no architectural state before its last possible fault.
//
// While a handler runs, RIP is the address of the next instruction for all
// handlers of system and vector instructions, and the address of the end of
// the block for the others.
package interp

import (
	"sync/atomic"

	"ring3/internal/bus"
	"ring3/internal/cpu"
	"ring3/internal/guestmem"
	"ring3/internal/mmu"
	"ring3/internal/x86"
)

// Exit says why Run or Step returned.
type Exit int

// Exits.
const (
	ExitBudget   Exit = iota // the budget is used up (Run), or one instruction was executed (Step)
	ExitUser                 // CPL is 3 and StopAtUser is set
	ExitHalt                 // HLT: State.Halted is set
	ExitKick                 // Kick was called, or the awaited interrupt window is open
	ExitShutdown             // triple fault
)

func (e Exit) String() string {
	return [...]string{"budget", "user", "halt", "kick", "shutdown"}[e]
}

// FlushKind says which cached translations a guest invalidated
// (SDM vol. 3A, section 4.10.4).
type FlushKind uint8

// Flush kinds.
const (
	FlushAll       FlushKind = iota // everything, global translations included
	FlushNonGlobal                  // everything but global translations
	FlushPCID                       // the non-global translations of one PCID
	FlushPage                       // one linear address in one PCID, global included (INVLPG)
)

// Flush is one invalidation.
type Flush struct {
	Kind FlushKind
	PCID uint16
	Addr uint64
}

// Env is what the interpreter asks of the machine around it.
type Env interface {
	// ReadMSR and WriteMSR serve the MSRs that are not in cpu.State. ok is
	// false when the access must raise #GP.
	ReadMSR(msr uint32) (v uint64, ok bool)
	WriteMSR(msr uint32, v uint64) (ok bool)
	CPUID(leaf, subleaf uint32) (a, b, c, d uint32)
	TSC() uint64
	// Flushed tells other engines that the guest invalidated translations.
	Flushed(f Flush)
	// SyncFPU fetches the live FPU state into memory, for reading and
	// writing; it is loaded again before user code runs.
	SyncFPU() *cpu.FPU
	SetCR8(v uint64)
}

// eventKind says how an event is delivered: which RIP and RF the handler sees
// and whether DPL checks apply.
type eventKind uint8

const (
	eventFault    eventKind = iota // exception; RIP is that of the instruction, RF is pushed set
	eventTrap                      // exception after the instruction (#DB traps)
	eventSoft                      // INT n, INT3, INTO: DPL is checked, RIP is behind the instruction
	eventICEBP                     // INT1: like a software interrupt, without DPL check
	eventExternal                  // maskable interrupt
	eventNMI
)

// fault is an exception of the current instruction, waiting for delivery.
type fault struct {
	pending bool
	hasErr  bool
	nonCan  bool // #GP for a non-canonical address: #SS when the segment is SS
	vector  uint8
	err     uint32
	cr2     uint64
}

// CPU is one virtual CPU and everything that its interpretation needs. It is
// used by one goroutine; only Kick may be called from others.
type CPU struct {
	// State is the architectural state. While Run or Step is active the six
	// status flags in RFLAGS are stale: use flags and setFlags.
	cpu.State

	Mem       *guestmem.Memory
	Walk      mmu.Walker
	PIO, MMIO *bus.Bus
	FPU       *cpu.FPU // XSAVE image; valid only after Env.SyncFPU
	Env       Env

	// StopAtUser makes Run return ExitUser as soon as CPL is 3.
	StopAtUser bool
	// WantWindow makes Run return ExitKick once interrupts can be delivered.
	WantWindow bool
	// Timed makes Counters time system instructions. Set it before the first
	// instruction is executed.
	Timed bool

	kick  atomic.Bool
	fault fault
	// shutdown is set by deliver on a triple fault.
	shutdown bool

	active   bool   // between enter and exit
	single   bool   // run one instruction at a time
	oneRound bool   // repeated string instructions stop after one round
	left     bool   // opLeave stopped the block
	watch    *Watch // nil but in RunWatched
	cur      *block
	lazy     lazyFlags
	rm       rmwState
	io       [8]byte // for bus accesses; on the heap once and for all
	build    builder

	tlb  tlb
	code cache
	mode modeInfo
	dbg  debugState
	simd simdState
	stat Counters
}

// New makes a CPU in the state after RESET#.
func New(mem *guestmem.Memory, pio, mmio *bus.Bus, env Env) *CPU {
	c := &CPU{Mem: mem, Walk: mmu.Walker{Mem: mem}, PIO: pio, MMIO: mmio, Env: env}
	c.State.Reset()
	c.tlb.reset()
	c.code.init()
	mem.AddCodeUser(c)
	c.enter()
	c.exit()
	return c
}

// Kick makes Run return soon. It may be called from any goroutine.
func (c *CPU) Kick() { c.kick.Store(true) }

// raise records a fault of the current instruction and returns false. An error
// code is pushed for the vectors that have one.
func (c *CPU) raise(vec uint8, err uint32) bool {
	c.fault = fault{pending: true, vector: vec, hasErr: x86.VectorHasErrorCode(vec), err: err}
	return false
}

// raisePF records a page fault; CR2 is set on delivery.
func (c *CPU) raisePF(addr uint64, code uint32) bool {
	c.fault = fault{pending: true, vector: x86.VecPF, hasErr: true, err: code, cr2: addr}
	return false
}
