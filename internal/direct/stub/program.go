package stub

// Program is the machine code of a stub for one base address.
type Program struct {
	Base uint64
	Code []byte
	// Addresses of the system-call instructions: the call list, clone,
	// exit_group, futex wake, futex wait. The filter allows no others.
	SiteCalls, SiteCompat, SiteClone, SiteExit, SiteWake, SiteWait, SiteProof uint64
	// And those of maps.go: reading the eventfd, the two that add to it, and the
	// calls of the hand-over page.
	SiteListens uint64
	SitesProve  [2]uint64
	SiteHand    uint64

	One uint64 // address of the constant 1 that SiteProof writes

	Handler                uint64 // signal handler
	ResumeStart, ResumeEnd uint64 // the resume range
	Exit                   uint64 // where translated code jumps to leave
	Fast                   uint64 // where patched system calls arrive
	Sysret, Iret, SetCR3   uint64 // where translated code jumps for these
	SaveX, CheckX, LoadX   uint64 // and for XSAVE and XRSTOR
	Invlpg                 uint64 // and for INVLPG

	UserMissRead, UserMissWrite uint64 // and at a miss of the user TLB
	Bells                       []Bell
}

// Bell is a futex call on a word of the hand-over page.
type Bell struct {
	Site uint64
	Op   uint32
	Off  uint64 // of the word in the area
}

// Build assembles the program. xmask is the set of extended-state components
// that a stub loads (RFBM of XRSTOR), and xsize the bytes of their image in
// standard format.
//
// # Kicks
//
// A kick is a signal the monitor sends so that the stub stops soon. Three
// places where it can find the stub, told apart by the interrupted RIP:
//
//	G  guest code. The handler stops as for any other signal.
//	R  the resume range: from the test of Kicked to IRETQ inclusive. All guest
//	   registers are still in Control and none was changed since the monitor
//	   wrote them, so the handler says ReasonKick and nothing else; but the
//	   extended state is now in the new signal frame (it had been loaded
//	   before the range), and that frame may lie over the one it was loaded
//	   from (RSP may be outside the signal stack already), so Control.FPU must
//	   point into the new one.
//	S  anywhere else in the stub. The handler sets Kicked and goes back to the
//	   interrupted instruction by IRETQ, with the extended state restored. The
//	   new frame lies below the old one because in S, RSP is inside the signal
//	   stack (SDM has no say here: the host kernel nests when the interrupted
//	   RSP is inside it).
//
// No kick is lost: every way from S to G passes the test at the start of R
// with Kicked set, and between that test and IRETQ there is only R. The test
// comes after XRSTOR and does not need the loaded state: the image it was
// loaded from is intact, since nothing has been pushed over it.
// A kick may be reported twice (R or G and then Kicked from an earlier one);
// the monitor resumes when nobody asked.
//
// Only the stub clears Kicked. If the monitor did, a kick that arrived in S
// between its look at the flag and its store would be lost.
//
// # Sleep and wake-up
//
// Both directions are the same pattern. Sleeper: xchg Sleeps=1; look at the
// word; futex wait if unchanged. Waker: xchg word; look at Sleeps; futex wake
// if set. Both xchg are full barriers, so one of the two sees the other; and
// the futex call compares the word again under the kernel's lock.
// Delta is what folding adds to the guest's addresses in a kernel stub, and
// lowest the first address that folds (package bt).
func Build(base, xmask uint64, xsize uint32, delta, lowest uint64) (*Program, error) {
	a := &asm{labels: map[string]int{}}
	a.start()
	a.handler(xmask)
	a.wait()
	a.run(xmask)
	a.calls()
	a.fork()
	a.exit()
	a.cpuid(xmask)
	a.userSide(xmask)
	a.kernelSide(xmask, delta, lowest, xsize)
	a.handCalls()
	a.label("one")
	a.bytes(1, 0, 0, 0, 0, 0, 0, 0)
	code, err := a.finish()
	if err != nil {
		return nil, err
	}
	at := func(l string) uint64 { return base + uint64(a.labels[l]) }
	return &Program{
		Base: base, Code: code,
		SiteCalls: at("siteCalls"), SiteCompat: at("siteCompat"), SiteClone: at("siteClone"), SiteExit: at("siteExit"),
		SiteWake: at("siteWake"), SiteProof: at("siteProof"), One: at("one"), SiteWait: at("siteWait"),
		Handler: at("handler"), ResumeStart: at("resume"), ResumeEnd: at("resumeEnd"), Exit: at("exit"),
		Fast: at("fast"), Sysret: at("sysret"), Iret: at("iret"), SetCR3: at("setCR3"),
		SaveX: at("saveX"), CheckX: at("checkX"), LoadX: at("loadX"), Invlpg: at("invlpg"),
		SiteListens: at("siteListens"), SitesProve: [2]uint64{at("userProof"), at("faultProof")}, SiteHand: at("siteHand"),
		UserMissRead: at("userMissRead"), UserMissWrite: at("userMissWrite"),
		Bells: []Bell{
			{at("siteEvent"), futexWake, HandoffOff + hEvent},
			{at("doorWake"), futexWake, HandoffOff + hEvent},
			{at("doorRangWake"), futexWake, HandoffOff + hKernelBell},
			{at("userRangWake"), futexWake, HandoffOff + hKernelBell},
			{at("faultRangWake"), futexWake, HandoffOff + hKernelBell},
			{at("trapRangWake"), futexWake, HandoffOff + hKernelBell},
			{at("kernelRangWake"), futexWake, HandoffOff + hUserBell},
			{at("faultBackRangWake"), futexWake, HandoffOff + hUserBell},
			{at("saveXRangWake"), futexWake, HandoffOff + hUserBell},
			{at("loadXRangWake"), futexWake, HandoffOff + hUserBell},
			{at("listensRangWake"), futexWake, HandoffOff + hUserBell},
			{at("faultWait"), futexWait, HandoffOff + hUserBell},
			{at("userWait"), futexWait, HandoffOff + hUserBell},
			{at("kernelWait"), futexWait, HandoffOff + hKernelBell},
		},
	}, nil
}

// start is the ELF entry point: run the start-up list, whose results must be
// the expected ones, and report.
func (a *asm) start() {
	a.area(true, r12, InitOff, 0, 0x8d)  // lea r12, [init list]
	a.area(false, r13, InitOff, 0, 0x8b) // its first word is the number of entries
	a.bytes(0x49, 0x83, 0xc4, 64)        // add r12, 64
	a.movImm(r15, 1)
	a.jmp("callLoop")
}

// handler is the signal handler: edi signal, rsi siginfo, rdx ucontext. The
// kernel has cleared DF, TF and RF, but NT and AC are still the guest's: NT
// would make IRETQ fault (SDM vol. 2A, IRET), AC unaligned accesses.
func (a *asm) handler(xmask uint64) {
	a.label("handler")
	a.bytes(0x6a, 0x02) // push 2
	a.bytes(0x9d)       // popfq

	a.mem(true, rax, rdx, UCRIP, 0x8b)  // mov rax, [rdx+rip]
	a.area(true, rcx, CodeOff, 0, 0x8d) // lea rcx, [base]
	a.bytes(0x48, 0x29, 0xc8)           // sub rax, rcx
	a.bytes(0x48, 0x3d)                 // cmp rax, CodeSize
	a.imm32(CodeSize)
	a.jcc(ccB, "inStub")

	// Guest code. Segment registers and bases are untouched by the kernel.
	a.cmpImm(rdi, sigSEGV)
	a.jcc(ccE, "segv")
	a.label("signal")
	a.set32(oReason, ReasonSignal)
	a.keepFrame()
	a.faultSide(xmask)
	a.label("report")
	a.selectors()
	a.jmp("announce")

	a.label("inStub")
	a.cmpImm(rdi, KickSignal)
	a.jcc(ccNE, "stubFault")
	a.lea(rcx, "resume")
	a.area(true, rsi, CodeOff, 0, 0x8d)
	a.bytes(0x48, 0x29, 0xf1) // sub rcx, rsi
	a.bytes(0x48, 0x39, 0xc8) // cmp rax, rcx
	a.jcc(ccB, "nested")
	a.lea(rcx, "resumeEnd")
	a.bytes(0x48, 0x29, 0xf1) // sub rcx, rsi
	a.bytes(0x48, 0x39, 0xc8) // cmp rax, rcx
	a.jcc(ccAE, "nested")

	// Case R.
	a.store64(oFrame, rdx)
	a.mem(true, rax, rdx, UCFPState, 0x8b)
	a.store64(oFPU, rax)
	a.label("kicked")
	a.set32(oReason, ReasonKick)
	a.jmp("announce")

	// Case S: back to where the signal hit. The kernel has reset the extended
	// state, which is the guest's in a stub that listens (userSide), or in a
	// handler of this kind that was interrupted itself.
	a.label("nested")
	a.set32(oKicked, 1)
	a.bytes(0x49, 0x89, 0xd0) // mov r8, rdx
	a.mem(true, rcx, rdx, UCFPState, 0x8b)
	a.movImm(rax, uint32(xmask))
	a.movImm(rdx, uint32(xmask>>32))
	a.bytes(0x48, 0x0f, 0xae, 0x29)          // xrstor64 [rcx]
	a.bytes(0x4c, 0x89, 0xc2)                // mov rdx, r8
	a.mem(false, rax, rdx, UCSS, 0x0f, 0xb7) // movzx eax, word
	a.bytes(0x50)                            // push rax
	a.mem(false, 6, rdx, UCRSP, 0xff)        // push [rdx+rsp]
	a.mem(false, 6, rdx, UCFlags, 0xff)
	a.mem(false, rax, rdx, UCCS, 0x0f, 0xb7)
	a.bytes(0x50)
	a.mem(false, 6, rdx, UCRIP, 0xff)
	for i := range 8 {
		a.mem(true, r8+i, rdx, UCR8+int32(8*i), 0x8b)
	}
	for _, r := range []struct {
		reg int
		off int32
	}{{rdi, UCRDI}, {rsi, UCRSI}, {rbp, UCRBP}, {rbx, UCRBX}, {rax, UCRAX}, {rcx, UCRCX}, {rdx, UCRDX}} {
		a.mem(true, r.reg, rdx, r.off, 0x8b)
	}
	// Those that may hold secrets of a call must not stay in the frame. RSP is
	// five words below the one that the handler started with, RDX-8.
	for _, off := range []int32{UCR8, UCR8 + 8, UCR8 + 16, UCRDI, UCRSI, UCRBP, UCRBX, UCRCX, UCRDX} {
		a.mem(true, 4, rsp, 48+off, 0x83) // and qword, 0
		a.bytes(0)
	}
	a.bytes(0x48, 0xcf) // iretq

	a.label("stubFault")
	a.set32(oReason, ReasonStub)
	a.keepFrame()
	a.jmp("report")
}

// keepFrame says what signal this is and where its frame lies, for the monitor.
func (a *asm) keepFrame() {
	a.store32(oSigno, rdi)
	a.store64(oFrame, rdx)
	a.mem(true, rax, rdx, UCFPState, 0x8b)
	a.store64(oFPU, rax)
	a.bases()
}

// wait says Stopped, gives the proof that it is stub code that says so, and
// waits for a command. Commands that were in place before the proof are
// erased; only then Ready allows the monitor to give one.
func (a *asm) wait() {
	a.label("ready")
	a.set32(oReason, ReasonReady)
	a.label("announce")
	a.movImm(rax, Stopped)
	a.xchg32(oState, rax)
	a.movImm(rax, 1)
	a.handXchg(hEvent, rax)

	a.movImm(rdi, FDProof)
	a.lea(rsi, "one")
	a.movImm(rdx, 8)
	a.movImm(rax, sysWrite)
	a.bytes(0x0f, 0x05)
	a.label("siteProof")
	a.set32(oCmd, CmdNone)
	a.movImm(rax, 1)
	a.xchg32(oReady, rax)

	// The kernel stub wakes the monitor, unless it would have to be woken.
	a.cmp32(oDoor, 0)
	a.jcc(ccE, "noDoor")
	a.handCmp(hKernelSleeps, 0)
	a.jcc(ccNE, "noDoor")
	a.ring(BellStop, hKernelBell, hKernelSleeps, "doorRang")
	a.jmp("waitCmd")

	a.label("noDoor")
	a.handCmp(hMonSleeps, 0)
	a.jcc(ccE, "noEvent")
	a.futexHand(hEvent, futexWake, 1, "siteEvent")
	a.label("noEvent")
	a.cmp32(oMonSleeps, 0)
	a.jcc(ccE, "waitCmd")
	a.ctl(true, rdi, oState, 0, 0x8d)
	a.movImm(rsi, futexWake)
	a.movImm(rdx, 1)
	a.movImm(rax, sysFutex)
	a.bytes(0x0f, 0x05)
	a.label("siteWake") // the filter sees the address behind the instruction

	a.label("waitCmd")
	a.load32(rcx, oSpin)
	a.label("spin")
	a.load32(rax, oCmd)
	a.test32(rax)
	a.jcc(ccNE, "command")
	a.bytes(0xf3, 0x90)       // pause
	a.bytes(0x83, 0xe9, 0x01) // sub ecx, 1
	a.jcc(ccAE, "spin")

	a.label("goToSleep")
	a.movImm(rax, 1)
	a.xchg32(oStubSleeps, rax)
	a.label("sleep")
	a.load32(rax, oCmd)
	a.test32(rax)
	a.jcc(ccNE, "awake")
	a.ctl(true, rdi, oCmd, 0, 0x8d)
	a.zero(rsi) // FUTEX_WAIT
	a.zero(rdx) // while the word is CmdNone
	a.zero(r10) // no timeout
	a.movImm(rax, sysFutex)
	a.bytes(0x0f, 0x05)
	a.label("siteWait")
	a.jmp("sleep")
	a.label("awake")
	a.set32(oStubSleeps, 0)

	// Take the command with an exchange: CmdSleep may be overwritten by the
	// next one at any moment.
	a.label("command")
	a.zero(rax)
	a.xchg32(oCmd, rax)
	a.cmpImm(rax, CmdSleep)
	a.jcc(ccE, "goToSleep")
	a.cmpImm(rax, CmdRun)
	a.jcc(ccE, "run")
	a.cmpImm(rax, CmdCalls)
	a.jcc(ccE, "calls")
	a.cmpImm(rax, CmdCallsRun)
	a.jcc(ccE, "calls")
	a.cmpImm(rax, CmdPair)
	a.jcc(ccE, "pair")
	a.cmpImm(rax, CmdFork)
	a.jcc(ccE, "fork")
	a.jmp("waitCmd") // only a guest that writes Control gets here
}

// exit is where translated code leaves without a signal. MOV, LEA and PUSHF
// change no flag, so the flags that are saved are the guest's. A kick that
// hits here is noted like any other in stub code (case S).
func (a *asm) exit() {
	a.label("exit")
	a.saveAll()
	a.set32(oReason, ReasonExit)
	a.jmp("announce")
}

// saveAll stores registers and flags of translated code.
func (a *asm) saveAll() {
	for r := range 16 {
		a.store64(oGPR+8*r, r)
	}
	a.area(true, rsp, AreaSize-64, 0, 0x8d) // lea rsp, [end of the stack]
	a.bytes(0x9c)                           // pushfq
	a.bytes(0x58)                           // pop rax
	a.store64(oIRET+16, rax)
	a.bytes(0x6a, 0x02) // push 2
	a.bytes(0x9d)       // popfq
}

// bases and selectors store what neither the kernel nor stub code changes. They
// use RAX.
func (a *asm) bases() {
	a.bytes(0xf3, 0x48, 0x0f, 0xae, 0xc0) // rdfsbase rax
	a.store64(oFSBase, rax)
	a.bytes(0xf3, 0x48, 0x0f, 0xae, 0xc8) // rdgsbase rax
	a.store64(oGSBase, rax)
}

func (a *asm) selectors() {
	for i, modrm := range []byte{0xd8, 0xc0, 0xe0, 0xe8} { // ds, es, fs, gs
		a.bytes(0x8c, modrm) // mov eax, sreg
		a.bytes(0x66)
		a.store32(oSel+2*i, rax) // mov [Sel+2i], ax
	}
}

// run enters guest code.
func (a *asm) run(xmask uint64) {
	a.label("run")
	a.load64(rsp, oSP)
	a.cmp32(oLoadSel, 0)
	a.jcc(ccE, "bases")
	for i, modrm := range []byte{0xd8, 0xc0, 0xe0, 0xe8} {
		a.ctl(false, rax, oSel+2*i, 0, 0x0f, 0xb7) // movzx eax, word [Sel+2i]
		a.bytes(0x8e, modrm)                       // mov sreg, eax
	}
	a.label("bases") // after the selectors: loading FS or GS changes the base
	a.load64(rax, oFSBase)
	a.bytes(0xf3, 0x48, 0x0f, 0xae, 0xd0) // wrfsbase rax
	a.load64(rax, oGSBase)
	a.bytes(0xf3, 0x48, 0x0f, 0xae, 0xd8) // wrgsbase rax
	a.load64(rcx, oFPU)
	a.movImm(rax, uint32(xmask))
	a.movImm(rdx, uint32(xmask>>32))
	a.bytes(0x48, 0x0f, 0xae, 0x29) // xrstor64 [rcx]

	a.label("resume")
	a.cmp32(oKicked, 0)
	a.jcc(ccNE, "kickedBefore")
	for r := range 16 {
		if r != rsp {
			a.load64(r, oGPR+8*r)
		}
	}
	a.ctl(true, rsp, oIRET, 0, 0x8d) // lea rsp, [IRET]
	a.bytes(0x48, 0xcf)              // iretq
	a.label("resumeEnd")

}

// calls executes the call list: r12 entry, r13d entries left, r15d set when
// each result must be the expected one (start-up and fork), r14d the command.
// Numbers and arguments are erased as they are used, in the list and in the
// registers, which a kick would save in a signal frame: they contain secrets.
func (a *asm) calls() {
	a.label("calls")
	a.bytes(0x41, 0x89, 0xc6) // mov r14d, eax
	a.area(true, r12, CallsOff, 0, 0x8d)
	a.load32(r13, oNCalls)
	a.cmpImm(r13, MaxCalls+1)
	a.jcc(ccAE, "waitCmd")
	a.zero(r15)

	a.label("callLoop")
	a.test32(r13)
	a.jcc(ccE, "callsDone")
	a.mem(true, rax, r12, 0, 0x8b)
	for i, r := range []int{rdi, rsi, rdx, r10, r8, r9} {
		a.mem(true, r, r12, int32(8+8*i), 0x8b)
	}
	a.mem(true, rbp, r12, 56, 0x8b)
	a.bytes(0x48, 0x85, 0xc0)   // test rax, rax
	a.rel("compat", 0x0f, 0x88) // js compat: CompatCall is set
	a.bytes(0x0f, 0x05)
	a.label("siteCalls")
	a.label("called")
	for _, r := range callRegs {
		a.zero(r)
	}
	a.test32(r15)
	a.jcc(ccNE, "check")
	a.zero(rbp)
	a.mem(true, rax, r12, 56, 0x89)
	for i := range 7 {
		a.mem(true, rcx, r12, int32(8*i), 0x89)
	}
	a.cmpImm64(rax, -4095) // errors are -4095 to -1
	a.jcc(ccB, "nextCall")
	a.movImm(r14, CmdCalls) // failed: do not run
	a.label("nextCall")
	a.bytes(0x49, 0x83, 0xc4, 64) // add r12, 64
	a.bytes(0x41, 0xff, 0xcd)     // dec r13d
	a.jmp("callLoop")

	// A system call of the 32-bit ABI; r12 to r15 survive it.
	a.label("compat")
	for i, r := range []int{rbx, rcx, rdx, rsi, rdi, rbp} {
		a.mem(false, r, r12, int32(8+8*i), 0x8b)
	}
	a.bytes(0xcd, 0x80) // int 80h
	a.label("siteCompat")
	a.bytes(0x48, 0x98) // cdqe
	a.jmp("called")

	a.label("callsDone")
	a.cmpImm(r14, CmdCallsRun)
	a.jcc(ccE, "run")
	a.jmp("ready")

	a.label("check")
	a.bytes(0x48, 0x39, 0xe8) // cmp rax, rbp
	a.jcc(ccE, "nextCall")
	a.cmpImm64(rbp, AnyResult)
	a.jcc(ccE, "nextCall")
	a.bytes(0x44, 0x89, 0xef) // mov edi, r13d: says which one failed
	a.movImm(rax, sysExitGroup)
	a.bytes(0x0f, 0x05)
	a.label("siteExit")
	a.bytes(0x0f, 0x0b) // ud2
}

// fork makes a new stub: entry 0 of the call list is the clone; the child
// goes on with entries 1 to ForkCalls-1, of which the last maps its own
// control slot over this one. The monitor leaves this slot alone until the
// child has reported from its own.
func (a *asm) fork() {
	a.label("fork")
	a.area(true, r12, CallsOff, 0, 0x8d)
	a.mem(true, rax, r12, 0, 0x8b)
	for i, r := range []int{rdi, rsi, rdx, r10, r8, r9} {
		a.mem(true, r, r12, int32(8+8*i), 0x8b)
	}
	a.bytes(0x0f, 0x05)
	a.label("siteClone")
	a.bytes(0x48, 0x85, 0xc0) // test rax, rax
	a.jcc(ccE, "child")
	a.mem(true, rax, r12, 56, 0x89)
	a.jmp("ready")

	a.label("child")
	a.bytes(0x49, 0x83, 0xc4, 64)
	a.movImm(r13, ForkCalls-1)
	a.movImm(r14, CmdCalls)
	a.movImm(r15, 1)
	a.jmp("callLoop")
}

// callRegs hold the arguments of a call; RBP, which does too, is needed longer.
var callRegs = []int{rcx, rdx, rbx, rsi, rdi, r8, r9, r10}

// ForkCalls is the length of the list for CmdFork.
const ForkCalls = 6

// CompatCall in Call.Nr makes it a call of the 32-bit ABI.
const CompatCall = 1 << 63

// AnyResult as the expected result of a start-up call: do not care.
const AnyResult = -10000

// System-call numbers and futex operations that the code uses.
const (
	sysRead      = 0
	sysWrite     = 1
	sysMmap      = 9
	sysMunmap    = 11
	sysFutex     = 202
	sysExitGroup = 231
	futexWait    = 0
	futexWake    = 1
)
