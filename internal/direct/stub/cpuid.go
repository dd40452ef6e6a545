package stub

// AnswersOff is where the answers of CPUID lie from the area's base, behind the
// hand-over page. They are the same for all stubs of a virtual CPU, which map
// them read-only.
const (
	AnswersOff  = HandoffOff + PageSize
	AnswersSize = 2 * PageSize
)

// Answers are what CPUID of the virtual CPU answers now. Leaves that are not
// among them are the monitor's business.
type Answers struct {
	N    uint32
	_    [28]byte
	List [MaxAnswers]Answer
}

// MaxAnswers is the room in Answers.
const MaxAnswers = 255

// Answer is the answer for EAX and those bits of ECX that are in Mask.
type Answer struct {
	Leaf, Sub, Mask uint32
	A, B, C, D      uint32
	_               uint32
}

// CPUIDs are the CPUID instructions that the stub serves. They are in the slot,
// at SlotCPUIDs, and guest code can write them: what it gets is the answers.
type CPUIDs struct {
	N      uint8 // 0 to MaxCPUIDs
	_      [3]uint8
	Served uint32 // so many so far
	Addr   [MaxCPUIDs]uint64
}

// MaxCPUIDs is the room in CPUIDs.
const MaxCPUIDs = 255

// SlotCPUIDs is the second half of the control page.
const SlotCPUIDs = PageSize - 8*(MaxCPUIDs+1)

// Offsets that the program uses; layout_test.go checks them.
const (
	oCPUIDs     = SlotCPUIDs // in Control
	oServed     = oCPUIDs + 4
	oCPUIDAddr  = oCPUIDs + 8
	answerSize  = 32
	answerSub   = 4
	answerMask  = 8
	answerEAX   = 12
	answerEBX   = 16
	answerECX   = 20
	answerEDX   = 24
	trapGP      = 13
	trapPF      = 14
	sigSEGV     = 11
	sigSYS      = 31
	cpuidLen    = 2
	rflagsTF    = 1 << 8
	rflagsRFBit = 16
)

// cpuid serves the HLT that stands for a CPUID. The handler comes here with a
// SIGSEGV of guest code, RDX pointing to the ucontext and all registers free,
// and goes on at "signal" if it is none of these, or if the monitor must see
// it: a single step, an unlisted leaf, and a segment register that was loaded
// natively, which the monitor would not learn of from a kick.
//
// The way back is that of a stub that was told to run: the guest's registers,
// those that CPUID changes too (SDM vol. 2A, CPUID: EAX to EDX, and the upper
// halves become 0), go to Control; then come XRSTOR, because the host kernel
// resets the extended state for a handler, and the resume range, which has the
// test of Kicked (see Build).
func (a *asm) cpuid(xmask uint64) {
	a.label("segv")
	a.mem(true, 7, rdx, UCTrapNo, 0x83) // cmp qword [rdx+trapno], 13
	a.bytes(trapGP)
	a.jcc(ccNE, "signal")
	a.mem(false, 0, rdx, UCFlags, 0xf7) // test dword [rdx+flags], TF
	a.imm32(rflagsTF)
	a.jcc(ccNE, "signal")
	a.ctl(false, rcx, oCPUIDs, 0, 0x0f, 0xb6) // movzx ecx, byte
	a.test32(rcx)                             // with RCX 0 REPNE leaves ZF alone
	a.jcc(ccE, "signal")
	a.mem(true, rax, rdx, UCRIP, 0x8b)
	a.ctl(true, rdi, oCPUIDAddr, 0, 0x8d)
	a.bytes(0xf2, 0x48, 0xaf) // repne scasq
	a.jcc(ccNE, "noCPUID")

	a.sameSelectors("noCPUID")
	for _, s := range []struct {
		uc   int32
		iret int
	}{{UCCS, oIRET + 8}, {UCSS, oIRET + 32}} {
		a.mem(false, rax, rdx, s.uc, 0x0f, 0xb7) // movzx eax, word
		a.ctl(true, rax, s.iret, 0, 0x3b)        // cmp rax, [IRET+8n]
		a.jcc(ccNE, "noCPUID")
	}

	a.mem(false, rax, rdx, UCRAX, 0x8b)
	a.mem(false, rcx, rdx, UCRCX, 0x8b)
	a.area(true, rsi, AnswersOff, 0, 0x8d)
	a.area(false, rdi, AnswersOff, 0, 0x8b) // their number
	a.label("nextAnswer")
	a.bytes(0x83, 0xef, 0x01) // sub edi, 1
	a.jcc(ccB, "noCPUID")
	a.bytes(0x48, 0x83, 0xc6, answerSize) // add rsi, answerSize
	a.mem(false, rax, rsi, 0, 0x3b)       // cmp eax, [rsi]
	a.jcc(ccNE, "nextAnswer")
	a.mem(false, rbx, rsi, answerMask, 0x8b)
	a.bytes(0x21, 0xcb) // and ebx, ecx
	a.mem(false, rbx, rsi, answerSub, 0x3b)
	a.jcc(ccNE, "nextAnswer")

	for _, r := range []struct {
		reg, base int
		off       int32
	}{
		{rax, rsi, answerEAX}, {rbx, rsi, answerEBX}, {rcx, rsi, answerECX}, {rdx, rsi, answerEDX},
		{rsp, rdx, UCRSP}, {rbp, rdx, UCRBP}, {rsi, rdx, UCRSI}, {rdi, rdx, UCRDI},
	} {
		a.mem(r.base == rdx, rax, r.base, r.off, 0x8b)
		a.store64(oGPR+8*r.reg, rax)
	}
	for i := range 8 {
		a.mem(true, rax, rdx, UCR8+int32(8*i), 0x8b)
		a.store64(oGPR+8*(r8+i), rax)
	}
	a.mem(true, rax, rdx, UCRIP, 0x8b)
	a.bytes(0x48, 0x83, 0xc0, cpuidLen) // add rax, 2
	a.store64(oIRET, rax)
	a.mem(true, rax, rdx, UCFlags, 0x8b)
	a.bytes(0x0f, 0xba, 0xf0, rflagsRFBit) // btr eax, 16: RF is the fault's (SDM vol. 3B, section 18.3.1.1)
	a.store64(oIRET+16, rax)
	a.mem(true, rax, rdx, UCRSP, 0x8b)
	a.store64(oIRET+24, rax)
	a.bases()
	a.ctl(false, 0, oServed, 0, 0xff) // inc
	a.mem(true, rcx, rdx, UCFPState, 0x8b)
	a.movImm(rax, uint32(xmask))
	a.movImm(rdx, uint32(xmask>>32))
	a.bytes(0x48, 0x0f, 0xae, 0x29) // xrstor64 [rcx]
	a.jmp("resume")

	a.label("noCPUID")
	a.movImm(rdi, sigSEGV)
	a.jmp("signal")
}
