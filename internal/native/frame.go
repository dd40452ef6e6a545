package native

import "ring3/internal/cpu"

// frame is what the assembly shares with Go, at a fixed place of each slice.
// It is not Go memory: the pointers in it are kept alive by their owners.
type frame struct {
	gpr    [16]uint64 // guest registers, in and out
	rflags uint64     // guest flags, in and out

	fpu   uintptr // guest XSAVE image, 64-byte aligned; 0: extended state is not touched
	mask  uint64  // components to restore and save
	reset uintptr // XSAVE image with everything in its initial configuration
	light uint64  // not 0: no x87 state is loaded, and the host has AVX
	entry uintptr // where enter jumps to: a snippet
	leave uintptr // where the exit code jumps to

	hostSP, hostBP uint64

	// Set by the signal handler. signo is 0 when nothing happened.
	signo   uint64
	trapno  uint64 // vector (SDM vol. 3A, table 7-1)
	errcode uint64
	cr2     uint64
	rip     uint64 // RIP that the exception pushed
}

// Context is the guest state that a snippet runs on.
type Context struct {
	GPR    [16]uint64
	RFLAGS uint64 // status flags and DF are loaded, and stored
	// FPU is the extended state. Its area must be 64-byte aligned. Nil: the
	// instruction neither reads nor changes extended state.
	FPU *cpu.FPU
	// Mask are the components of FPU to load and store, cut to those of
	// Host.XCR0; 0 means all. The others have any value while code runs, and
	// keep theirs in FPU.
	Mask uint64
}

// Fault is what stopped a snippet.
type Fault struct {
	Raised  bool
	Vector  uint8
	Code    uint64 // error code
	Address uint64 // CR2, for #PF
	// RIP is where the exception was reported: the instruction itself for
	// faults, the next one for traps, in host addresses.
	RIP uint64
}
