package stub

// The extended state of user code stays in the user stub while that listens: in
// its registers, or after a fault in its signal frame. XSAVE and XRSTOR of the
// guest kernel, in translated code, take it from there and put it back by way
// of the hand-over page:
//
//	XSAVE   save: the user stub stores its state, the kernel stub loads it.
//	        Translated code: XSAVE to the guest's memory.
//	XRSTOR  check; translated code: XRSTOR from the guest's memory.
//	        load: the kernel stub stores its state, the user stub loads it.
//
// The instruction itself is in translated code, since it may fault. Between
// save or check and the end, RAX and RDX, without the components that the
// guest's XCR0 has not, are the guest's in scratch words 0 and 1.

// Offsets in an XSAVE image (SDM vol. 1, section 13.4).
const (
	imageMXCSR  = 24
	imageHeader = 512
)

// xstateUser is the user stub's side of this, and of BellListen, with the value of its bell in EAX. It
// does not go on for other values. framed: the state is in the signal frame.
func (a *asm) xstateUser(xmask uint64, framed bool, name string) {
	frame := func(op byte) {
		if framed {
			a.load64(rcx, oFPU)
			a.bytes(0x48, 0x0f, 0xae, op)
		}
	}
	a.cmpImm(rax, BellSave)
	a.jcc(ccNE, name+"NoSave")
	a.xmask(xmask)
	frame(0x29) // xrstor64 [rcx]
	a.hand(true, rcx, hXState, 0, 0x8d)
	a.bytes(0x48, 0x0f, 0xae, 0x21) // xsave64 [rcx]
	a.jmp(name + "Done")
	a.label(name + "NoSave")
	a.cmpImm(rax, BellListen)
	a.jcc(ccE, name+"Prove")
	a.cmpImm(rax, BellLoad)
	a.jcc(ccNE, name+"Park")
	a.xmask(xmask)
	a.hand(true, rcx, hXState, 0, 0x8d)
	a.bytes(0x48, 0x0f, 0xae, 0x29) // xrstor64 [rcx]
	frame(0x21)                     // xsave64 [rcx]
	a.jmp(name + "Done")
	a.label(name + "Prove")
	a.proveListens(name + "Proof")
	a.label(name + "Done")
	a.movImm(rax, 1)
	a.handXchg(hDone, rax)
	a.jmp(name + "Listen")
}

// xmask loads EDX:EAX with the components that guests use.
func (a *asm) xmask(xmask uint64) {
	a.movImm(rax, uint32(xmask))
	a.movImm(rdx, uint32(xmask>>32))
}

// xstateKernel are the three routines of the kernel stub.
func (a *asm) xstateKernel(xmask uint64, xsize uint32) {
	a.label("saveX")
	a.xstateBegin()
	a.ask(BellSave, "saveX")
	// A program that runs although it seems to listen can write to the
	// hand-over page: the image is copied before it is checked.
	a.hand(true, rsi, hXState, 0, 0x8d)
	a.area(true, rdi, XSaveOff, 0, 0x8d)
	a.bytes(0x49, 0x89, 0xf8) // mov r8, rdi
	a.movImm(rcx, xsize/8)
	a.bytes(0xf3, 0x48, 0xa5) // rep movsq
	a.load64(rax, oMXCSR)
	a.mem(false, rax, r8, imageMXCSR, 0x21) // and [r8+24], eax
	a.mem(true, 4, r8, imageHeader, 0x81)   // and qword [r8+512], imm32
	a.imm32(uint32(xmask))
	a.zero(rax)
	for i := 8; i < 64; i += 8 {
		a.mem(true, rax, r8, int32(imageHeader+i), 0x89)
	}
	a.xmask(xmask)
	a.bytes(0x49, 0x0f, 0xae, 0x28) // xrstor64 [r8]
	a.xstateForget(xsize)
	a.label("xstateMask")
	for i, reg := range []int{rax, rdx} {
		a.load64(rax, oGPR+8*reg)
		a.store64(oScratch+8*i, rax)
		a.ctl(false, rax, oXMask+4*i, 0, 0x23) // and eax, [XMask]
		a.store64(oGPR+8*reg, rax)
	}
	a.goOn()

	// XRSTOR keeps the components that it does not load: none here. The program
	// that the user stub runs could read the state of another one on its way.
	a.label("checkX")
	a.xstateBegin()
	a.load64(rax, oCR+24)
	a.ctl(true, rax, oUserCR3, 0, 0x3b) // cmp rax, [UserCR3]
	a.jcc(ccNE, "sysretStop")
	for i, reg := range []int{rax, rdx} {
		a.load32(rax, oGPR+8*reg)
		a.load32(rcx, oXMask+4*i)
		a.bytes(0x21, 0xc8) // and eax, ecx
		a.bytes(0x39, 0xc8) // cmp eax, ecx
		a.jcc(ccNE, "sysretStop")
	}
	a.jmp("xstateMask")

	a.label("loadX")
	a.saveAll()
	for i, reg := range []int{rax, rdx} {
		a.load64(rax, oScratch+8*i)
		a.store64(oGPR+8*reg, rax)
	}
	a.zero(rax)
	for i := 0; i < 64; i += 8 {
		a.handStore(hXState+imageHeader+i, rax)
	}
	a.xmask(xmask)
	a.hand(true, rcx, hXState, 0, 0x8d)
	a.bytes(0x48, 0x0f, 0xae, 0x21) // xsave64 [rcx]
	a.ask(BellLoad, "loadX")
	a.xstateForget(xsize)
	a.goOn()
}

// xstateBegin leaves it to the monitor unless a user stub has the state.
func (a *asm) xstateBegin() {
	a.saveAll()
	a.cmp32(oPaired, 0)
	a.jcc(ccE, "sysretStop")
	a.cmp32(oXMask, 0)
	a.jcc(ccE, "sysretStop")
}

// ask has the user stub do what a bell says. One that does not is the
// monitor's to find: it parks the kernel stub.
func (a *asm) ask(bell uint32, name string) {
	a.handSet(hDone, 0)
	a.ring(bell, hUserBell, hUserSleeps, name+"Rang")
	a.label(name + "Wait")
	a.handCmp(hDone, 0)
	a.jcc(ccNE, name+"Done")
	a.bytes(0xf3, 0x90) // pause
	a.cmp32(oPark, 0)
	a.jcc(ccE, name+"Wait")
	a.jmp("sysretStop")
	a.label(name + "Done")
}

// xstateForget clears the image: other programs can read the page.
func (a *asm) xstateForget(xsize uint32) {
	a.hand(true, rdi, hXState, 0, 0x8d)
	a.zero(rax)
	a.movImm(rcx, xsize/8)
	a.bytes(0xf3, 0x48, 0xab) // rep stosq
}
