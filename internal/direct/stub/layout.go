package stub

// The stub area, in bytes from its base. The code comes first so that
// code reaches every control word with a 32-bit RIP-relative displacement and
// needs no register for it.
//
//	base + 0        code, R-X
//	base + 0x4000   Control
//	base + 0x5000   call list, MaxCalls entries of Call
//	base + 0x6000   XSAVE image that the monitor fills in
//	base + 0x7000   return addresses of patched system calls; see Site. In a
//	                kernel stub, the changes; see maps.go
//	base + 0x8000   user TLB of a kernel stub
//	base + 0xa000   alternate signal stack, grows down from the area's end
const (
	PageSize = 4096

	CodeOff    = 0
	CodeSize   = 4 * PageSize
	ControlOff = CodeOff + CodeSize
	CallsOff   = ControlOff + PageSize
	XSaveOff   = CallsOff + PageSize
	ReturnsOff = XSaveOff + PageSize
	ChangesOff = ReturnsOff
	UserTLBOff = ReturnsOff + PageSize
	StackOff   = UserTLBOff + 2*PageSize
	AreaSize   = StackOff + 13*PageSize

	// SlotSize is the shared part, which is one slot of the control memfd.
	SlotSize  = AreaSize - ControlOff
	StackSize = AreaSize - StackOff
	// SlotStack and SlotXSave are offsets in the slot.
	SlotCalls   = CallsOff - ControlOff
	SlotXSave   = XSaveOff - ControlOff
	SlotReturns = ReturnsOff - ControlOff
	SlotChanges = ChangesOff - ControlOff
	SlotUserTLB = UserTLBOff - ControlOff
	SlotStack   = StackOff - ControlOff
)

// File descriptors of a stub process; it has no others.
const (
	FDRAM     = 0 // guest memory
	FDControl = 1 // control slots
	FDCode    = 2 // private copies of patched code pages
	FDListens = 3 // eventfd of all stubs of a virtual CPU: see maps.go
	FDProof   = 4 // eventfd of the stub: see doc.go, "Proof"
	// In a zygote, the eventfd of slot i is FDProof+i.
)

// KickSignal makes a running stub stop.
const KickSignal = 10 // SIGUSR1

// Values of Control.State.
const (
	Running = 0
	Stopped = 1
)

// Commands.
const (
	CmdNone     = 0
	CmdRun      = 1
	CmdCalls    = 2
	CmdCallsRun = 3 // the calls, then Run if none of them failed
	CmdFork     = 4 // zygote only: see program.go
	CmdPair     = 6 // kernel stub: wait for system calls
	CmdSleep    = 5 // stop spinning; may be given at any time while stopped
)

// Reasons of a stop.
const (
	ReasonSignal = 0 // guest code took Signo; Frame, FSBase... are set
	ReasonKick   = 1 // kicked before guest code ran: guest state is unchanged
	ReasonStub   = 2 // a signal hit stub code: only a hostile guest gets there
	ReasonReady  = 3 // Calls done, or just started
	ReasonExit   = 4 // translated code left by Program.Exit; GPR and IRET[2] are set
	// ReasonSyscall: guest code came by Program.Fast. GPR is as SYSCALL leaves
	// it, and FSBase, GSBase, Sel, FPU are set.
	ReasonSyscall = 5
)

// Segment registers in Control.Sel.
const (
	SelDS = iota
	SelES
	SelFS
	SelGS
)

// Control is in the first page of a slot, with CPUIDs behind it. Both sides read and write it; guest
// code can write it whenever it runs. The monitor therefore reads each field
// once, and checks it before it means anything.
type Control struct {
	State      uint32 // stub to monitor; a futex
	Cmd        uint32 // monitor to stub; a futex
	Kicked     uint32 // a kick signal hit stub code outside the resume range
	Spin       uint32 // rounds the stub spins for a command before it sleeps
	StubSleeps uint32 // the stub is in, or about to enter, futex(Cmd)
	MonSleeps  uint32 // the monitor is in, or about to enter, futex(State)
	Reason     uint32
	Signo      uint32
	Frame      uint64 // address of the ucontext of the last stop
	FPU        uint64 // address of the XSAVE image to load when resuming
	FSBase     uint64
	GSBase     uint64
	Sel        [4]uint16 // DS, ES, FS, GS
	LoadSel    uint32    // resume loads Sel
	NCalls     uint32
	Desc       [16]byte // struct user_desc for set_thread_area
	SP         uint64   // RSP from CmdRun on: below the frame that holds the image at FPU
	Ready      uint32   // the stub takes commands; a futex
	_          [0xc]byte
	GPR        [16]uint64 // in register-number order
	IRET       [5]uint64  // RIP, CS, RFLAGS, RSP, SS: popped by IRETQ

	// Only translated kernel code uses these (package bt).
	ExitID    uint32 // which exit of a translation was taken
	_         uint32
	Scratch   [8]uint64 // registers and targets on the way through a translation
	IF        uint64    // 0 when the guest's RFLAGS.IF is set, else -FlagIF
	Want      uint64    // not 0: an interrupt waits for IF
	Mask      [2]uint64 // bits of a target that index the jump table
	TSCAux    uint64    // the guest's IA32_TSC_AUX
	CR        [5]uint64 // the guest's CR0 to CR4
	GSel      [6]uint32 // and its selectors
	GFS       uint64    // and bases, as the guest knows them
	GGS       uint64
	GKernel   uint64    // IA32_KERNEL_GS_BASE
	PopMask   uint64    // flags that POPF is not translated with
	IFMask    uint64    // FlagIF
	Upper     uint64    // 1<<63
	UserIndex uint64    // bt.UserIndex
	UserPage  uint64    // bt.UserPage
	DFMask    uint64    // FlagDF
	Room      [4]uint64 // bt.Room

	// Only the kernel stub uses these; see Handoff.
	Paired   uint32 // a user stub takes part
	Owner    uint32 // guest kernel code runs, or is about to
	Syscalls uint64 // taken from the user stub
	Sysrets  uint64 // handed to it
	FMask    uint64 // RFLAGS bits that SYSCALL leaves
	Target   uint64 // translation of the system-call entry
	Park     uint32 // the monitor has rung with BellPark; the bell alone proves nothing

	BellSpin uint32 // rounds a stub spins for its bell before it sleeps
	Door     uint32 // user stub: the kernel stub wakes the monitor; see Handoff

	// How page faults of user code begin; see faultTake.
	FaultGive   uint32    // user stub: it may hand them over
	FaultTake   uint32    // kernel stub: it may deliver them
	SysSel      [2]uint32 // CS and SS as SYSCALL loads them
	FaultSel    uint32    // CS of the handler
	FaultMapped uint32    // user code faulted: the monitor is to map what was missing
	Faults      uint64    // taken from the user stub
	FaultTarget uint64    // translation of the handler
	FaultRSP    uint64    // folded, below the frame
	StackAt     uint64    // end of the frame, in the window
	IDTAt       uint64    // descriptor of the gate, in the window,
	IDT         [2]uint64 // and what it must be
	TSSAt       uint64    // RSP0 of the TSS, in the window,
	RSP0        uint64    // and what it must be
	RAMLow      uint64    // bytes of RAM below 4 GiB
	RAMHigh     uint64    // and above
	Window      uint64    // where RAM is mapped
	IretFrame   [5]uint64 // what IRET pops: RIP, CS, RFLAGS, RSP, SS

	// Address spaces that MOV to CR3 may switch to without the monitor.
	Spaces   [MaxSpaces]Space
	UserSalt uint64 // that of CR3
	UserCR3  uint64 // CR3 of the user stub that takes part

	// XSAVE and XRSTOR without the monitor: see xstate.go.
	XMask uint64 // the guest's XCR0; 0: the monitor must do it
	MXCSR uint64 // the bits that MXCSR has

	Traps uint32 // user stub: SYSCALLs that trapped; see trapSide

	// Misses of the user TLB without the monitor: see usermiss.go.
	UserFill uint32    // it is allowed
	FlagsAt  uint64    // where page flags are mapped
	MissAt   uint64    // code that missed last
	MissEA   [2]uint64 // and its last two addresses

	UserFills uint64 // pages entered

	// Pages that the user stub maps and unmaps without the monitor: see maps.go.
	MapGive  uint32    // it is allowed
	Listens  uint32    // the user stub has proved it since it was last rung
	FaultErr uint32    // error code of the fault that was taken last
	MapRoom  uint32    // pages that may be mapped
	FaultVA  uint64    // its address
	StubHigh uint64    // upper half of the user stub's own addresses
	Keep     [3]uint64 // RIP, RFLAGS and RSP of user code meanwhile
	Proofs   uint64    // read from the eventfd
	PageCall [3]uint64 // arguments of mmap that hold secrets: prot, flags, fd
	DropCall [2]uint64 // and of munmap: the fifth and the sixth
	Gone     [MaxGone]uint64
	NGone    uint32 // pages invalidated, in Gone
	NChanges uint32 // in the list at ChangesOff
}

// Change is a page of user memory that the user stub has been told to map, or
// to unmap, without the monitor.
type Change struct {
	VA    uint64
	Entry uint64 // 0: unmapped; else the guest-physical address, 1, and 2 if it is writable
}

// MaxChanges is the room for changes: less than a page, and what a comparison
// with a byte can tell.
const MaxChanges = 127

// MaxGone is how many pages can have been invalidated before user code runs.
const MaxGone = MaxHandCalls - 1

// Space is a value of CR3, without the bit that forbids to flush, and the salt of
// the address space in the user TLB (package bt).
type Space struct{ CR3, Salt uint64 }

// MaxSpaces is how many the kernel stub knows. Unused ones have a CR3 that no
// guest can load.
const MaxSpaces = 6

// Offsets in Control that the program uses; layout_test.go checks them.
const (
	oState      = 0x00
	oCmd        = 0x04
	oKicked     = 0x08
	oSpin       = 0x0c
	oStubSleeps = 0x10
	oMonSleeps  = 0x14
	oReason     = 0x18
	oSigno      = 0x1c
	oFrame      = 0x20
	oFPU        = 0x28
	oFSBase     = 0x30
	oGSBase     = 0x38
	oSel        = 0x40
	oLoadSel    = 0x48
	oNCalls     = 0x4c
	oDesc       = 0x50
	oSP         = 0x60
	oReady      = 0x68
	oGPR        = 0x78
	oIRET       = 0xf8
	oExitID     = 0x120
	oScratch    = 0x128
	oIF         = 0x168
	oWant       = 0x170
	oMask       = 0x178
	oTSCAux     = 0x188
	oCR         = 0x190
	oGSel       = 0x1b8
	oGFS        = 0x1d0
	oGGS        = 0x1d8
	oGKernel    = 0x1e0
	oPopMask    = 0x1e8
	oIFMask     = 0x1f0
	oUpper      = 0x1f8
	oUserIndex  = 0x200
	oUserPage   = 0x208
	oDFMask     = 0x210
	oRoom       = 0x218
	oPaired     = 0x238
	oOwner      = 0x23c
	oSyscalls   = 0x240
	oSysrets    = 0x248
	oFMask      = 0x250
	oTarget     = 0x258
	oPark       = 0x260
	oBellSpin   = 0x264
	oDoor       = 0x268
	oFaultGive  = 0x26c
	oFaultTake  = 0x270
	oSysSel     = 0x274
	oFaultSel   = 0x27c
	oMapped     = 0x280
	oFaults     = 0x288
	oFaultAt    = 0x290
	oFaultRSP   = 0x298
	oStackAt    = 0x2a0
	oIDTAt      = 0x2a8
	oIDT        = 0x2b0
	oTSSAt      = 0x2c0
	oRSP0       = 0x2c8
	oRAMLow     = 0x2d0
	oRAMHigh    = 0x2d8
	oWindow     = 0x2e0
	oFrameWords = 0x2e8
	oSpaces     = 0x310
	oUserSalt   = oSpaces + 16*MaxSpaces
	oUserCR3    = oUserSalt + 8
	oXMask      = oUserCR3 + 8
	oMXCSR      = oXMask + 8
	oTraps      = oMXCSR + 8
	oUserFill   = oTraps + 4
	oFlagsAt    = oUserFill + 4
	oMissAt     = oFlagsAt + 8
	oMissEA     = oMissAt + 8
	oUserFills  = oMissEA + 16
	oMapGive    = oUserFills + 8
	oListens    = oMapGive + 4
	oFaultErr   = oListens + 4
	oMapRoom    = oFaultErr + 4
	oFaultVA    = oMapRoom + 4
	oStubHigh   = oFaultVA + 8
	oKeep       = oStubHigh + 8
	oProofs     = oKeep + 24
	oPageCall   = oProofs + 8
	oDropCall   = oPageCall + 24
	oGone       = oDropCall + 16
	oNGone      = oGone + 8*MaxGone
	oNChanges   = oNGone + 4
)

// DescOff is the offset of Control.Desc in the area, for set_thread_area.
const DescOff = ControlOff + oDesc

// Offsets of words in the area that translated code uses.
const (
	ExitIDOff    = ControlOff + oExitID
	ScratchOff   = ControlOff + oScratch
	IFOff        = ControlOff + oIF
	WantOff      = ControlOff + oWant
	MaskOff      = ControlOff + oMask
	TSCAuxOff    = ControlOff + oTSCAux
	CROff        = ControlOff + oCR
	GSelOff      = ControlOff + oGSel
	GFSOff       = ControlOff + oGFS
	GGSOff       = ControlOff + oGGS
	GKernelOff   = ControlOff + oGKernel
	PopMaskOff   = ControlOff + oPopMask
	IFMaskOff    = ControlOff + oIFMask
	UpperOff     = ControlOff + oUpper
	UserIndexOff = ControlOff + oUserIndex
	UserPageOff  = ControlOff + oUserPage
	DFMaskOff    = ControlOff + oDFMask
	RoomOff      = ControlOff + oRoom
	FrameOff     = ControlOff + oFrameWords
	UserSaltOff  = ControlOff + oUserSalt
)

// MaxCalls is the capacity of the call list.
const MaxCalls = 64

// Call is one raw system call: number, arguments and, afterwards, the result.
// In the start-up and fork lists Result is the expected result.
type Call struct {
	Nr     uint64
	Args   [6]uint64
	Result uint64
}

// Layout of the kernel's x86-64 struct ucontext as it lies in the signal
// frame (arch/x86/include/uapi/asm/sigcontext.h and ucontext.h).
const (
	UCR8      = 40 // then R9 to R15
	UCRDI     = 104
	UCRSI     = 112
	UCRBP     = 120
	UCRBX     = 128
	UCRDX     = 136
	UCRAX     = 144
	UCRCX     = 152
	UCRSP     = 160
	UCRIP     = 168
	UCFlags   = 176
	UCCS      = 184 // 16 bits; then GS, FS, SS
	UCSS      = 190
	UCErr     = 192
	UCTrapNo  = 200
	UCCR2     = 216
	UCFPState = 224
	// UCSize is the distance to the siginfo behind it in the frame.
	UCSize = 304
	siArch = 28 // si_arch of a SIGSYS (include/uapi/asm-generic/siginfo.h)
)
