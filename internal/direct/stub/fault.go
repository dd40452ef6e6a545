package stub

// Page faults of user code that the guest's page tables do not allow go from
// the user stub to the kernel stub like system calls. The kernel stub walks the
// page tables, in the window (RAM, mapped once more): a page that only the
// user stub has not mapped is the monitor's to serve.

// Selector indices in Control.GSel.
const (
	segCS = 1
	segSS = 2
)

// Bits of a page-fault error code (SDM vol. 3A, section 4.7).
const (
	errP  = 1 << 0
	errWR = 1 << 1
	errUS = 1 << 2
	errID = 1 << 4
)

// faultSide is the signal handler at a fault of guest code: edi signal, rdx
// ucontext. The extended state is in the frame, and stays there while the stub
// listens.
func (a *asm) faultSide(xmask uint64) {
	a.cmpImm(rdi, sigSYS)
	a.jcc(ccE, "trap")
	a.cmpImm(rdi, sigSEGV)
	a.jcc(ccNE, "faultPlain")
	a.cmp32(oFaultGive, 0)
	a.jcc(ccE, "faultPlain")
	a.mem(true, 7, rdx, UCTrapNo, 0x83) // cmp qword [rdx+trapno], 14
	a.bytes(trapPF)
	a.jcc(ccNE, "faultPlain")
	a.handFrame()
	a.handFrom(hRIP, UCRIP)
	a.handFrom(hFlags, UCFlags)
	a.handFrom(hCR2, UCCR2)
	a.handFrom(hErr, UCErr)
	a.ring(BellFault, hKernelBell, hKernelSleeps, "faultRang")
	a.label("faultListen")
	a.listen(hUserBell, hUserSleeps, "fault")
	a.zero(rax)
	a.handXchg(hUserBell, rax)
	a.cmpImm(rax, BellServe)
	a.jcc(ccE, "announce")
	a.cmpImm(rax, BellRun)
	a.jcc(ccNE, "faultOther")
	a.callsFirst("fault")
	a.takeUser()
	a.load64(rcx, oFPU)
	a.movImm(rax, uint32(xmask))
	a.movImm(rdx, uint32(xmask>>32))
	a.bytes(0x48, 0x0f, 0xae, 0x29) // xrstor64 [rcx]
	a.jmp("resume")

	a.label("faultOther")
	a.xstateUser(xmask, true, "fault")
	a.label("faultPark") // whoever rang
	a.set32(oReason, ReasonReady)
	a.jmp("announce")

	a.trapSide()
	a.label("faultPlain")
}

// trapShare is how many SYSCALLs that are not patched go to the kernel stub,
// plus one: that one goes to the monitor, which patches those it sees often.
const trapShare = 8

// trapSide is the signal handler at a SYSCALL that the filter has trapped: rsi
// siginfo. It goes on in faultSide.
func (a *asm) trapSide() {
	a.label("trap")
	a.handCmp(hFast, 0)
	a.jcc(ccE, "faultPlain")
	a.ctl(false, 0, oTraps, 0, 0xff) // inc
	a.load32(rax, oTraps)
	a.bytes(0xa8, trapShare-1) // test al, imm8
	a.jcc(ccE, "faultPlain")
	a.mem(false, 7, rsi, siArch, 0x81) // cmp dword [rsi+arch], imm32: not INT 80h
	a.imm32(auditArchX8664)
	a.jcc(ccNE, "faultPlain")
	a.mem(true, rax, rdx, UCRIP, 0x8b)
	a.bytes(0x48, 0xc1, 0xe8, 0x2f) // shr rax, 47: the host's vsyscall page traps, too
	a.jcc(ccNE, "faultPlain")
	a.mem(false, rax, rdx, UCFlags, 0x8b)
	a.bytes(0xa9) // test eax, imm32
	a.imm32(^uint32(sysretFlags | flagsFixed | 1<<18))
	a.jcc(ccNE, "faultPlain")
	a.handFrame()
	a.handFrom(hGPR+8*rcx, UCRIP)
	a.handFrom(hGPR+8*r11, UCFlags)
	a.ring(BellRun, hKernelBell, hKernelSleeps, "trapRang")
	a.jmp("faultListen")
}

// handFrame moves the registers of 64-bit code from the frame to the hand-over
// page.
func (a *asm) handFrame() {
	a.mem(false, rax, rdx, UCCS, 0x0f, 0xb7) // movzx eax, word
	a.cmpImm(rax, selCode64)
	a.jcc(ccNE, "faultPlain")
	a.mem(false, rax, rdx, UCSS, 0x0f, 0xb7)
	a.cmpImm(rax, selData)
	a.jcc(ccNE, "faultPlain")
	a.sameSelectors("faultPlain")
	for i := range 8 {
		a.handFrom(hGPR+8*(r8+i), UCR8+int32(8*i))
	}
	for _, r := range []struct {
		reg int
		off int32
	}{{rdi, UCRDI}, {rsi, UCRSI}, {rbp, UCRBP}, {rbx, UCRBX}, {rdx, UCRDX}, {rax, UCRAX}, {rcx, UCRCX}, {rsp, UCRSP}} {
		a.handFrom(hGPR+8*r.reg, r.off)
	}
	a.load64(rax, oFSBase)
	a.handStore(hFSBase, rax)
	a.load64(rax, oGSBase)
	a.handStore(hGSBase, rax)
}

// handFrom moves a word of the ucontext to the hand-over page.
func (a *asm) handFrom(off int, uc int32) {
	a.mem(true, rax, rdx, uc, 0x8b)
	a.handStore(off, rax)
}

// faultTake is the kernel stub's side: deliver the fault as the processor does
// (SDM vol. 3A, section 6.14), or give it back.
func (a *asm) faultTake(delta uint64) {
	a.label("faultTake")
	a.cmp32(oPaired, 0)
	a.jcc(ccE, "kernelAgain")
	a.cmp32(oFaultTake, 0)
	a.jcc(ccE, "faultBack")
	a.handLoad(rbp, hFlags)
	a.bytes(0x48, 0x89, 0xe8) // mov rax, rbp
	a.bytes(0x48, 0x25)       // and rax, imm32
	a.imm32(^uint32(sysretFlags | flagRF))
	a.cmpImm64(rax, flagsFixed)
	a.jcc(ccNE, "faultBack")
	a.handLoad(rsi, hCR2)
	a.bytes(0x48, 0x89, 0xf0)       // mov rax, rsi
	a.bytes(0x48, 0xc1, 0xe8, 0x2f) // shr rax, 47
	a.jcc(ccNE, "faultBack")
	a.handLoad(r12, hRIP)     // CR2 is stale where the host emulates vsyscalls
	a.bytes(0x4c, 0x89, 0xe0) // mov rax, r12
	a.bytes(0x48, 0xc1, 0xe8, 0x2f)
	a.jcc(ccNE, "faultBack")
	a.handLoad(rbx, hErr)
	a.bytes(0x48, 0x89, 0xd8) // mov rax, rbx
	a.bytes(0x48, 0x25)       // and rax, imm32
	a.imm32(^uint32(errP | errWR | errUS | errID))
	a.jcc(ccNE, "faultBack")
	a.bytes(0x83, 0xe3, errWR|errID) // and ebx, imm8
	a.bytes(0x83, 0xcb, errUS)       // or ebx, imm8

	a.walk("fault", "faultBack", "faultDeliver")
	a.bytes(0x83, 0xcb, errP)           // or ebx, imm8
	a.bytes(0x40, 0xf6, 0xc7, 4)        // test dil, 4: U/S
	a.jcc(ccE, "faultDeliver")          //
	a.bytes(0xf6, 0xc3, errWR)          // test bl, imm8
	a.jcc(ccE, "faultRead")             //
	a.bytes(0x40, 0xf6, 0xc7, 2)        // test dil, 2: R/W
	a.jcc(ccE, "faultDeliver")          //
	a.label("faultRead")                //
	a.bytes(0xf6, 0xc3, errID)          // test bl, imm8
	a.jcc(ccE, "faultBack")             // allowed
	a.bytes(0x48, 0x0f, 0xba, 0xe2, 63) // bt rdx, 63: XD
	a.jcc(ccAE, "faultBack")            //
	a.label("faultDeliver")             //
	a.load64(rax, oIDTAt)               //
	for i := range 2 {
		a.mem(true, rcx, rax, int32(8*i), 0x8b)
		a.ctl(true, rcx, oIDT+8*i, 0, 0x3b) // cmp rcx, [IDT+8i]
		a.jcc(ccNE, "faultBack")
	}
	a.load64(rax, oTSSAt)
	a.mem(true, rcx, rax, 0, 0x8b)
	a.ctl(true, rcx, oRSP0, 0, 0x3b)
	a.jcc(ccNE, "faultBack")

	a.load64(rdx, oStackAt)
	a.movImm(rax, selData)
	a.mem(true, rax, rdx, -8, 0x89)
	a.handLoad(rax, hGPR+8*rsp)
	a.mem(true, rax, rdx, -16, 0x89)
	a.bytes(0x48, 0x89, 0xe8) // mov rax, rbp
	a.bytes(0x48, 0x0d)       // or rax, imm32
	a.imm32(flagRF)
	a.mem(true, rax, rdx, -24, 0x89)
	a.movImm(rax, selCode64)
	a.mem(true, rax, rdx, -32, 0x89)
	a.mem(true, r12, rdx, -40, 0x89)
	a.mem(true, rbx, rdx, -48, 0x89)

	a.ctl(true, 0, oFaults, 0, 0xff) // inc
	a.set32(oMapped, 1)
	a.store32(oFaultErr, rbx)
	a.store64(oFaultVA, rsi)
	a.store64(oCR+16, rsi)
	a.takeRegisters()
	a.load32(rax, oFaultSel)
	a.store32(oGSel+4*segCS, rax)
	a.set32(oGSel+4*segSS, 0)
	a.bytes(0x81, 0xe5) // and ebp, imm32
	a.imm32(sysretFlags)
	a.bytes(0x81, 0xcd) // or ebp, imm32
	a.imm32(flagsFixed)
	a.store64(oIRET+16, rbp)
	a.load64(rax, oFaultRSP)
	a.store64(oIRET+24, rax)
	a.load64(rax, oFaultAt)
	a.store64(oIRET, rax)
	a.movImm64(rdx, delta)
	a.jmp("kernelBegin")

	a.label("faultBack")
	a.set32(oOwner, 0)
	a.ring(BellServe, hUserBell, hUserSleeps, "faultBackRang")
	a.jmp("pair")
}

// walk emits a walk of the guest's page tables, in the window: RSI address; then
// RCX the entry of the page, RDI what all entries have set, RDX what any has.
// R8 to R10 are the bits of an entry that are an address, the window, and the
// RAM below 4 GiB. It goes to absent for an entry that is not present, and to
// back for what is not ordinary.
func (a *asm) walk(name, back, absent string) {
	a.load64(rcx, oCR+24)
	a.movImm64(r8, 0x000ffffffffff000)
	a.load64(r9, oWindow)
	a.load64(r10, oRAMLow)
	a.bytes(0x48, 0xc7, 0xc7) // mov rdi, -1
	a.imm32(^uint32(0))
	a.zero(rdx)
	for i, shift := range []byte{39, 30, 21, 12} {
		a.bytes(0x48, 0x89, 0xf0)          // mov rax, rsi
		a.bytes(0x48, 0xc1, 0xe8, shift-3) // shr rax, shift-3
		a.bytes(0x25)                      // and eax, imm32
		a.imm32(0xff8)
		a.inWindow(name+string(rune('4'-i)), back)
		a.bytes(0x48, 0x8b, 0x0c, 0x01) // mov rcx, [rcx+rax]
		a.bytes(0xf6, 0xc1, 0x01)       // test cl, 1
		a.jcc(ccE, absent)
		if shift != 12 {
			a.bytes(0xf6, 0xc1, 0x80) // test cl, 80h: a large page, or reserved
			a.jcc(ccNE, back)
		}
		a.bytes(0x48, 0x21, 0xcf) // and rdi, rcx
		a.bytes(0x48, 0x09, 0xca) // or rdx, rcx
	}
	a.bytes(0x48, 0x89, 0xc8)       // mov rax, rcx
	a.bytes(0x48, 0xc1, 0xe0, 0x0c) // shl rax, 12
	a.bytes(0x48, 0xc1, 0xe8, 0x3a) // shr rax, 58: reserved address bits, outside RAM in the levels above
	a.jcc(ccNE, back)
}

// inWindow makes the page that the entry in RCX points to an address in the
// window. It uses R11.
func (a *asm) inWindow(name, back string) {
	a.bytes(0x4c, 0x21, 0xc1) // and rcx, r8
	a.bytes(0x4c, 0x39, 0xd1) // cmp rcx, r10
	a.jcc(ccB, name)
	a.movImm64(r11, 1<<32)
	a.bytes(0x4c, 0x29, 0xd9) // sub rcx, r11
	a.jcc(ccB, back)
	a.ctl(true, rcx, oRAMHigh, 0, 0x3b) // cmp rcx, [RAMHigh]
	a.jcc(ccAE, back)
	a.bytes(0x4c, 0x01, 0xd1) // add rcx, r10
	a.label(name)
	a.bytes(0x4c, 0x01, 0xc9) // add rcx, r9
}
