package direct

// ExitKind says why Run returned.
type ExitKind uint8

// Exit kinds. State is complete in every case.
const (
	// ExitKick: Kick was called.
	ExitKick ExitKind = iota
	// ExitSyscall: RIP is at a 64-bit SYSCALL instruction, for the
	// interpreter to execute.
	ExitSyscall
	// ExitException: Vector, ErrCode, CR2. RIP is as the processor pushes it:
	// at the instruction for faults, behind it for #BP, #OF and single-step
	// #DB. State.CR2 is not set; State.DR[6].BS is.
	ExitException
	// ExitNeedStep: the interpreter must execute the instruction at RIP at
	// CPL 3 and raise whatever is right.
	ExitNeedStep
	// ExitKernel: a system call led to the kernel stub, which has stopped.
	// State is the guest kernel's; Kernel.Run goes on.
	ExitKernel
	// ExitDied: the stub is gone or did something impossible, and Err says
	// what; or no stub could be made. State is as of the last good stop.
	ExitDied
)

func (k ExitKind) String() string {
	return [...]string{"kick", "syscall", "exception", "need-step", "kernel", "died"}[k]
}

// Exit is the result of one Run.
type Exit struct {
	Kind    ExitKind
	Vector  uint8
	HasErr  bool
	ErrCode uint32
	CR2     uint64 // of #PF
	Err     error  // of ExitDied
}
