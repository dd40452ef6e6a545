package stub

// HandoffOff is where the hand-over page lies from the area's base, behind the
// area; Extent is the end of all that is there.
const (
	HandoffOff = AreaSize
	Extent     = AnswersOff + AnswersSize
)

// Handoff is a page that all stubs of a virtual CPU share, to hand over to
// each other without the monitor: a user stub to the kernel stub at a patched
// SYSCALL, and back at SYSRET. Whoever is handed to is rung: its bell becomes
// 1. Guest user code can write all of it at any time; the kernel stub takes
// registers from here as it would take a system call's.
//
// The monitor may share a processor with the kernel stub, asleep while one of
// the two runs. Then a user stub that stops rings the kernel stub, which
// spins, rather than wake the monitor from another processor (Control.Door):
// the kernel stub wakes the monitor and leaves it the processor.
//
// Words that are waited for have a cache line of their own.
type Handoff struct {
	KernelBell   uint32 // BellRun: a system call; BellPark: stop, for the monitor
	_            [0x3c]byte
	UserBell     uint32
	_            [0x3c]byte
	Event        uint32 // a stub stopped: for the monitor; a futex
	MonSleeps    uint32
	_            [0x38]byte
	KernelSleeps uint32
	_            [0x3c]byte
	UserSleeps   uint32
	Fast         uint32 // patched system calls go to the kernel stub
	_            [0x38]byte
	GPR          [16]uint64 // as SYSCALL leaves them, or as user code gets them
	FSBase       uint64
	GSBase       uint64
	RIP          uint64 // of a fault, and where user code goes on
	Flags        uint64
	CR2          uint64 // of a fault
	Err          uint64 // its error code, as the host has it
	_            [0x10]byte
	Done         uint32 // the user stub has done what BellSave, BellLoad or BellListen wants
	NCalls       uint32 // the user stub makes these calls before it resumes: see maps.go
	_            [0x38]byte
	Calls        [MaxHandCalls]Call
	XState       [MaxXState]byte // extended state on its way, an XSAVE image in standard format
}

// MaxHandCalls is the room for calls in the hand-over page.
const MaxHandCalls = 7

// MaxXState is the largest image of extended state that stubs hand over.
const MaxXState = 0xc00

// Values of a bell.
const (
	BellRun    = 1 // a system call, or the return of one
	BellPark   = 2 // look at Control: Park or Cmd is set
	BellStop   = 3 // to the kernel stub: a user stub has stopped, wake the monitor
	BellSpin   = 4 // to the kernel stub: user code runs again, spin
	BellFault  = 5 // to the kernel stub: a page fault
	BellServe  = 6 // to the user stub: the fault is none of the guest's
	BellSave   = 7 // to the user stub: store the extended state
	BellLoad   = 8 // to the user stub: load it
	BellListen = 9 // to the user stub: prove that it listens
)

const (
	hKernelBell   = 0x00
	hUserBell     = 0x40
	hEvent        = 0x80
	hMonSleeps    = 0x84
	hKernelSleeps = 0xc0
	hUserSleeps   = 0x100
	hFast         = 0x104
	hGPR          = 0x140
	hFSBase       = 0x1c0
	hGSBase       = 0x1c8
	hRIP          = 0x1d0
	hFlags        = 0x1d8
	hCR2          = 0x1e0
	hErr          = 0x1e8
	hDone         = 0x200
	hNCalls       = 0x204
	hCalls        = 0x240
	hXState       = 0x400
)

// Selectors of user code in the host's GDT, as Linux has them.
const (
	selCode64 = 0x33
	selData   = 0x2b
)

// hand emits op with ModRM reg, [rip+disp32] for a word of the hand-over page.
func (a *asm) hand(w bool, reg, off, imm int, op ...byte) {
	a.area(w, reg, HandoffOff+off, imm, op...)
}

func (a *asm) handStore(off, reg int) { a.hand(true, reg, off, 0, 0x89) }
func (a *asm) handLoad(reg, off int)  { a.hand(true, reg, off, 0, 0x8b) }
func (a *asm) handXchg(off, reg int)  { a.hand(false, reg, off, 0, 0x87) }
func (a *asm) handSet(off int, v uint32) {
	a.hand(false, 0, off, 4, 0xc7)
	a.imm32(v)
}
func (a *asm) handCmp(off int, v byte) {
	a.hand(false, 7, off, 1, 0x83)
	a.bytes(v)
}

// futexHand makes a futex call on a word of the hand-over page.
func (a *asm) futexHand(off int, op, val uint32, site string) {
	a.hand(true, rdi, off, 0, 0x8d)
	a.movImm(rsi, op)
	a.movImm(rdx, val)
	a.zero(r10)
	a.movImm(rax, sysFutex)
	a.bytes(0x0f, 0x05)
	a.label(site)
}

// ring gives a bell its value.
func (a *asm) ring(news uint32, bell, sleeps int, name string) {
	a.movImm(rax, news)
	a.handXchg(bell, rax)
	a.handCmp(sleeps, 0)
	a.jcc(ccE, name)
	a.futexHand(bell, futexWake, 1, name+"Wake")
	a.label(name)
}

// listen waits for the bell: spins for a while, then sleeps. EAX is what rang.
// See Build, "Sleep and wake-up".
func (a *asm) listen(bell, sleeps int, name string) {
	a.load32(rcx, oBellSpin)
	a.label(name + "Spin")
	a.hand(false, rax, bell, 0, 0x8b)
	a.test32(rax)
	a.jcc(ccNE, name+"Rung")
	a.bytes(0xf3, 0x90)       // pause
	a.bytes(0x83, 0xe9, 0x01) // sub ecx, 1
	a.jcc(ccAE, name+"Spin")
	a.label(name + "Doze")
	a.movImm(rax, 1)
	a.handXchg(sleeps, rax)
	a.label(name + "Sleep")
	a.hand(false, rax, bell, 0, 0x8b)
	a.test32(rax)
	a.jcc(ccNE, name+"Awake")
	a.futexHand(bell, futexWait, 0, name+"Wait")
	a.jmp(name + "Sleep")
	a.label(name + "Awake")
	a.handSet(sleeps, 0)
	a.label(name + "Rung")
}

// userSide is where a patched SYSCALL arrives, with the address behind it in
// RCX: a system call without a signal. RCX and R11 are the instruction's to
// change (SDM vol. 2B, SYSCALL). Nothing may be written to the guest's stack,
// whose red zone is in use.
// The extended state stays in the registers, also while the stub listens.
func (a *asm) userSide(xmask uint64) {
	a.label("fast")
	a.store64(oGPR+8*rsp, rsp)
	a.area(true, rsp, AreaSize-64, 0, 0x8d) // lea rsp, [end of the stack]
	a.bytes(0x9c)                           // pushfq
	a.bytes(0x41, 0x5b)                     // pop r11
	a.bytes(0x6a, 0x02)                     // push 2
	a.bytes(0x9d)                           // popfq
	a.handCmp(hFast, 0)
	a.jcc(ccE, "fastStop")
	a.bytes(0x41, 0xf7, 0xc3) // test r11d, imm32
	a.imm32(^uint32(sysretFlags | flagsFixed | 1<<18))
	a.jcc(ccNE, "fastStop")
	for r := range 16 {
		if r != rsp {
			a.handStore(hGPR+8*r, r)
		}
	}
	a.sameSelectors("fastLoad")
	a.load64(rax, oGPR+8*rsp)
	a.handStore(hGPR+8*rsp, rax)
	a.bytes(0xf3, 0x48, 0x0f, 0xae, 0xc0) // rdfsbase rax
	a.handStore(hFSBase, rax)
	a.bytes(0xf3, 0x48, 0x0f, 0xae, 0xc8) // rdgsbase rax
	a.handStore(hGSBase, rax)
	a.ring(BellRun, hKernelBell, hKernelSleeps, "userRang")
	a.label("userListen")
	a.listen(hUserBell, hUserSleeps, "user")
	a.zero(rax)
	a.handXchg(hUserBell, rax)
	a.cmpImm(rax, BellRun)
	a.jcc(ccNE, "userOther")
	a.callsFirst("user")
	a.takeUser()
	a.jmp("resume")

	a.label("fastLoad")
	a.handLoad(rax, hGPR+8*rax)
	a.label("fastStop")
	for r := range 16 {
		if r != rsp {
			a.store64(oGPR+8*r, r)
		}
	}
	a.set32(oReason, ReasonSyscall)
	a.jmp("save")

	a.label("userOther")
	a.xstateUser(xmask, false, "user")
	a.label("userPark") // whoever rang
	a.set32(oReason, ReasonReady)
	a.jmp("save")

	a.label("kickedBefore")
	a.set32(oKicked, 0)
	a.set32(oReason, ReasonKick)

	a.label("save")
	a.bases()
	a.selectors()
	a.area(true, rcx, XSaveOff, 0, 0x8d)
	a.store64(oFPU, rcx)
	a.movImm(rax, uint32(xmask))
	a.movImm(rdx, uint32(xmask>>32))
	a.bytes(0x48, 0x0f, 0xae, 0x21) // xsave64 [rcx]
	a.jmp("announce")
}

// sameSelectors jumps when guest code has loaded a segment register: the
// monitor must know.
func (a *asm) sameSelectors(other string) {
	for i, modrm := range []byte{0xd8, 0xc0, 0xe0, 0xe8} { // ds, es, fs, gs
		a.bytes(0x8c, modrm) // mov eax, sreg
		a.bytes(0x66)
		a.ctl(false, rax, oSel+2*i, 0, 0x3b) // cmp ax, [Sel+2i]
		a.jcc(ccNE, other)
	}
}

// takeUser takes what user code goes on with from the hand-over page.
func (a *asm) takeUser() {
	for r := range 16 {
		a.handLoad(rax, hGPR+8*r)
		a.store64(oGPR+8*r, rax)
	}
	a.store64From(oIRET+24, hGPR+8*rsp)
	a.store64From(oIRET, hRIP)
	a.store64From(oIRET+16, hFlags)
	a.userSelectors()
	a.handLoad(rax, hFSBase)
	a.store64(oFSBase, rax)               // a kick in the resume range tells these
	a.bytes(0xf3, 0x48, 0x0f, 0xae, 0xd0) // wrfsbase rax
	a.handLoad(rax, hGSBase)
	a.store64(oGSBase, rax)
	a.bytes(0xf3, 0x48, 0x0f, 0xae, 0xd8) // wrgsbase rax
}

// store64From moves a word of the hand-over page to Control.
func (a *asm) store64From(off, hand int) {
	a.handLoad(rax, hand)
	a.store64(off, rax)
}

// userSelectors completes the frame that IRETQ pops.
func (a *asm) userSelectors() {
	a.movImm(rax, selCode64)
	a.store64(oIRET+8, rax)
	a.movImm(rax, selData)
	a.store64(oIRET+32, rax)
}

// sysretFlags are the bits that R11 may have for a SYSRET without the monitor,
// besides bit 1 and IF, which it must have: the arithmetic flags, DF and ID.
const (
	sysretFlags = 0x200cd5
	flagsFixed  = 0x202
	flagRF      = 1 << 16 // IRET may set it, SYSRET does not
)

// kernelSide is SYSRET, IRET and SYSCALL in the kernel stub. Translated code
// jumps to sysret and iret with all registers the guest's, and ExitID set: what
// cannot be done here leaves by that exit.
func (a *asm) kernelSide(xmask, delta, lowest uint64, xsize uint32) {
	a.label("iret")
	a.saveAll()
	a.load64(rax, oFrameWords+8) // CS
	a.cmpImm64(rax, selCode64)
	a.jcc(ccNE, "sysretStop")
	a.load64(rax, oFrameWords+32) // SS
	a.cmpImm64(rax, selData)
	a.jcc(ccNE, "sysretStop")
	a.load64(rcx, oFrameWords)
	a.load64(r11, oFrameWords+16)
	a.load64(rdx, oFrameWords+24)
	a.jmp("toUser")

	a.label("sysret")
	a.saveAll()
	a.movImm64(rdx, -delta)
	a.ctl(true, rdx, oGPR+8*rsp, 0, 0x03) // add rdx, [RSP]

	// RIP is in RCX, RFLAGS in R11, RSP in RDX. Nothing is told before it is
	// known that user code gets it: registers may be those of kernel code.
	a.label("toUser")
	a.cmp32(oPaired, 0)
	a.jcc(ccE, "sysretStop")
	a.cmp32(oKicked, 0)
	a.jcc(ccNE, "sysretStop")
	a.cmp32(oWant, 0)
	a.jcc(ccNE, "sysretStop")
	a.load64(rax, oCR+24)
	a.ctl(true, rax, oUserCR3, 0, 0x3b) // cmp rax, [UserCR3]
	a.jcc(ccNE, "sysretStop")
	a.bytes(0x4c, 0x89, 0xd8) // mov rax, r11
	a.bytes(0x48, 0x25)       // and rax, imm32
	a.imm32(^uint32(sysretFlags | flagRF))
	a.cmpImm64(rax, flagsFixed)
	a.jcc(ccNE, "sysretStop")
	a.bytes(0x48, 0x89, 0xc8)       // mov rax, rcx
	a.bytes(0x48, 0xc1, 0xe8, 0x2f) // shr rax, 47
	a.jcc(ccNE, "sysretStop")
	a.cmp32(oMapped, 0)
	a.jcc(ccNE, "maps")
	a.cmp32(oNGone, 0)
	a.jcc(ccNE, "maps")
	a.label("giveUser")
	a.giveRegisters()
	a.handStore(hGPR+8*rsp, rdx)
	a.handStore(hFlags, r11)
	a.handStore(hRIP, rcx)
	a.load64(rax, oGFS)
	a.handStore(hFSBase, rax)
	a.load64(rax, oGGS)
	a.handStore(hGSBase, rax)
	a.ctl(true, 0, oSysrets, 0, 0xff) // inc
	a.set32(oOwner, 0)
	a.ring(BellRun, hUserBell, hUserSleeps, "kernelRang")

	a.label("pair")
	a.listen(hKernelBell, hKernelSleeps, "kernel")
	a.cmpImm(rax, BellFault)
	a.jcc(ccE, "kernelTake")
	a.cmpImm(rax, BellRun)
	a.jcc(ccNE, "kernelNews")
	a.label("kernelTake")
	// Owner first, then the bell: the monitor takes the bell and then looks at
	// Owner, so it sees whether a system call was taken.
	a.set32(oOwner, 1)
	a.zero(rax)
	a.handXchg(hKernelBell, rax)
	a.cmp32(oPark, 0)
	a.jcc(ccNE, "kernelPark")
	a.cmp32(oCmd, 0)
	a.jcc(ccNE, "waitCmd")
	a.cmpImm(rax, BellFault)
	a.jcc(ccE, "faultTake")
	a.cmpImm(rax, BellRun)
	a.jcc(ccNE, "kernelAgain")
	a.cmp32(oPaired, 0)
	a.jcc(ccE, "kernelAgain")
	a.ctl(true, 0, oSyscalls, 0, 0xff) // inc
	a.takeRegisters()
	for i, off := range []int{oGSel + 4*segCS, oGSel + 4*segSS} {
		a.load32(rax, oSysSel+4*i)
		a.store32(off, rax)
	}
	a.handLoad(rax, hGPR+8*rcx) // what it points to must be in the lower half
	a.bytes(0x48, 0xc1, 0xe0, 0x11)
	a.bytes(0x48, 0xc1, 0xe8, 0x11) // shl rax, 17; shr rax, 17
	a.store64(oGPR+8*rcx, rax)
	a.handLoad(rax, hGPR+8*r11)
	a.bytes(0x48, 0x25) // and rax, imm32
	a.imm32(sysretFlags | 1<<18)
	a.bytes(0x48, 0x0d) // or rax, imm32
	a.imm32(flagsFixed)
	a.store64(oGPR+8*r11, rax)
	a.ctl(true, rax, oFMask, 0, 0x23) // and rax, [FMask]
	a.bytes(0x48, 0x0d)
	a.imm32(flagsFixed)
	a.store64(oIRET+16, rax)
	a.movImm64(rdx, delta)
	a.handLoad(rax, hGPR+8*rsp)
	a.bytes(0x48, 0x01, 0xd0) // add rax, rdx
	a.store64(oIRET+24, rax)
	a.load64(rax, oTarget)
	a.store64(oIRET, rax)
	// RDX is delta.
	a.label("kernelBegin")
	a.userSelectors()
	a.handLoad(rax, hFSBase)
	a.canonical(rax)
	a.store64(oGFS, rax)
	a.handLoad(rax, hGSBase)
	a.canonical(rax)
	a.store64(oGGS, rax)
	// The folded base of GS, unless it cannot be one: 0 folded then, where
	// nothing is mapped, so that accesses fault and are interpreted.
	a.bytes(0x48, 0x01, 0xd0)             // add rax, rdx
	a.bytes(0x48, 0x89, 0xc1)             // mov rcx, rax
	a.canonical(rcx)                      //
	a.bytes(0x48, 0x39, 0xc8)             // cmp rax, rcx
	a.bytes(0x48, 0x0f, 0x45, 0xc2)       // cmovne rax, rdx
	a.bytes(0xf3, 0x48, 0x0f, 0xae, 0xd0) // wrfsbase rax
	a.bytes(0x48, 0xc7, 0xc0)             // mov rax, -FlagIF
	a.imm32(1<<32 - 0x200)
	a.store64(oIF, rax)
	a.jmp("resume")

	a.label("sysretStop")
	a.set32(oReason, ReasonExit)
	a.jmp("announce")

	// What the bell says but BellRun is a hint: what counts is in Control. It
	// is silenced only if nobody has rung again meanwhile.
	a.label("kernelNews")
	a.bytes(0x89, 0xc3) // mov ebx, eax
	a.zero(rcx)
	a.bytes(0xf0)
	a.hand(false, rcx, hKernelBell, 0, 0x0f, 0xb1) // lock cmpxchg
	a.jcc(ccNE, "pair")
	a.cmp32(oPark, 0)
	a.jcc(ccNE, "kernelPark")
	a.cmp32(oCmd, 0)
	a.jcc(ccNE, "waitCmd") // without a stop before it: no proof is wanted
	a.cmpImm(rbx, BellStop)
	a.jcc(ccNE, "pair")
	a.handCmp(hMonSleeps, 0)
	a.jcc(ccE, "kernelDoze")
	a.futexHand(hEvent, futexWake, 1, "doorWake")
	a.jmp("kernelDoze")

	a.faultTake(delta)
	a.setCR3()
	a.xstateKernel(xmask, xsize)
	a.userMiss(delta, lowest)
	a.maps()
	a.invlpg()

	a.label("kernelAgain") // a program's doing
	a.set32(oOwner, 0)
	a.jmp("pair")

	a.label("kernelPark")
	a.set32(oPark, 0)
	a.set32(oOwner, 0)
	a.jmp("ready")
}

// setCR3 is MOV to CR3 with the value and the address to go on at in scratch
// words: a switch of address spaces that flushes nothing.
func (a *asm) setCR3() {
	const value = oScratch + 16
	a.label("setCR3")
	a.saveAll()
	a.load64(rcx, value)
	a.bytes(0x48, 0x0f, 0xba, 0xf1, 63) // btr rcx, 63
	a.jcc(ccAE, "sysretStop")
	for i := range MaxSpaces {
		a.load64(rax, oSpaces+16*i+8)
		a.ctl(true, rcx, oSpaces+16*i, 0, 0x3b) // cmp rcx, [CR3]
		a.jcc(ccE, "knownCR3")
	}
	a.jmp("sysretStop")
	a.label("knownCR3")
	a.store64(oUserSalt, rax)
	a.store64(oCR+24, rcx)
	a.goOn()
}

// goOn ends a routine that saveAll began: translated code goes on at the
// address in a scratch word.
func (a *asm) goOn() {
	a.load64(rax, oScratch+24)
	a.store64(oIRET, rax)
	a.userSelectors()
	a.load64(rax, oGPR+8*rsp)
	a.store64(oIRET+24, rax)
	a.jmp("resume")
}

// giveRegisters puts the registers that saveAll has saved, but for RSP, where
// user code gets them from.
func (a *asm) giveRegisters() {
	for r := range 16 {
		if r != rsp {
			a.load64(rax, oGPR+8*r)
			a.handStore(hGPR+8*r, rax)
		}
	}
}

// takeRegisters takes them from there, but for RSP.
func (a *asm) takeRegisters() {
	for r := range 16 {
		if r != rsp {
			a.handLoad(rax, hGPR+8*r)
			a.store64(oGPR+8*r, rax)
		}
	}
}

// canonical sign-extends a register from bit 47.
func (a *asm) canonical(reg int) {
	for _, op := range []byte{0xe0, 0xf8} { // shl, sar reg, 16
		a.bytes(0x48, 0xc1, op|byte(reg), 0x10)
	}
}

func (a *asm) movImm64(reg int, v uint64) {
	a.rex(true, 0, reg)
	a.bytes(0xb8 | byte(reg&7))
	a.imm32(uint32(v))
	a.imm32(uint32(v >> 32))
}
