package stub

import "golang.org/x/sys/unix"

// Pages of user memory without the monitor. The kernel stub walks the guest's
// page tables at the end of a page fault, and has the user stub map the page
// before it resumes; it notes INVLPG of user pages, and has the user stub unmap
// them then. The monitor finds it all in a list (Change) when it next wakes.
//
//	IRET    K: walk. Ring U with 9  U: write(eventfd); forget other rings; Done
//	        K: read(eventfd) says 1: U listens.
//	        Calls to the hand-over page, ring U with 1   U: mmap, erase the call, resume
//	INVLPG  K: the same proof, once; note the address
//
// mmap and munmap need secrets, which a program must not see: with them it can
// have any page of RAM. Nor may memory be used for something else while a
// program that seems to listen runs on and reads it. Hence the proof: the
// kernel stub empties the eventfd, asks, and finds 1 there only if the user stub
// has passed the one instruction that may write to it since, behind which only
// stub code runs until the next ring.
//
// The secrets are other ones than the monitor's, for they lie where a hostile
// guest kernel finds them. They serve to map and unmap single pages of RAM,
// outside the stub's own 4 GiB, and never to execute: what a kernel can do to its
// programs anyway.

// callsFirst has the calls in the hand-over page made, if any, at the place
// where the user stub was rung with BellRun.
func (a *asm) callsFirst(name string) {
	a.handCmp(hNCalls, 0)
	a.jcc(ccE, name+"Go")
	a.lea(r14, name+"Go")
	a.jmp("handCalls")
	a.label(name + "Go")
}

// handCalls makes the calls and goes on at R14. They are erased as they are
// used, in registers too, as in the monitor's list.
func (a *asm) handCalls() {
	a.label("handCalls")
	a.hand(false, r13, hNCalls, 0, 0x8b)
	a.handSet(hNCalls, 0)
	a.cmpImm(r13, MaxHandCalls+1)
	a.jcc(ccAE, "faultPark")
	a.hand(true, r12, hCalls, 0, 0x8d)
	a.label("handLoop")
	a.mem(true, rax, r12, 0, 0x8b)
	for i, r := range []int{rdi, rsi, rdx, r10, r8, r9} {
		a.mem(true, r, r12, int32(8+8*i), 0x8b)
	}
	a.bytes(0x0f, 0x05)
	a.label("siteHand")
	for _, r := range []int{rcx, rdx, rsi, rdi, r8, r9, r10} {
		a.zero(r)
	}
	for i := range 7 {
		a.mem(true, rcx, r12, int32(8*i), 0x89)
	}
	a.cmpImm64(rax, -4095) // errors are -4095 to -1
	a.jcc(ccAE, "faultPark")
	a.bytes(0x49, 0x83, 0xc4, 64) // add r12, 64
	a.bytes(0x41, 0xff, 0xcd)     // dec r13d
	a.jcc(ccNE, "handLoop")
	a.bytes(0x41, 0xff, 0xe6) // jmp r14
}

// proveListens is the user stub's proof. What was rung before it does not count:
// a program may have done it.
func (a *asm) proveListens(site string) {
	a.movImm(rdi, FDListens)
	a.lea(rsi, "one")
	a.movImm(rdx, 8)
	a.movImm(rax, sysWrite)
	a.bytes(0x0f, 0x05)
	a.label(site)
	a.zero(rax)
	a.handXchg(hUserBell, rax)
}

// listens are two subroutines of the kernel stub: one has the user stub prove
// that it listens, EAX is 0 if it has not; the other reads the eventfd, and EAX
// is the result of read.
func (a *asm) listens() {
	a.label("listens")
	a.load32(rax, oListens)
	a.test32(rax)
	a.jcc(ccNE, "listensEnd")
	a.rel("readListens", 0xe8) // call: what is there proves nothing
	a.ask(BellListen, "listens")
	a.rel("readListens", 0xe8)
	a.cmpImm(rax, 8)
	a.jcc(ccNE, "listensNot")
	a.movImm(rax, 1)
	a.store32(oListens, rax)
	a.bytes(0xc3) // ret
	a.label("listensNot")
	a.zero(rax)
	a.label("listensEnd")
	a.bytes(0xc3)

	a.label("readListens")
	a.movImm(rdi, FDListens)
	a.ctl(true, rsi, oProofs, 0, 0x8d)
	a.movImm(rdx, 8)
	a.movImm(rax, sysRead)
	a.bytes(0x0f, 0x05)
	a.label("siteListens")
	a.bytes(0xc3)
}

// userPage goes to other unless the address in RSI is one that the kernel stub
// may have mapped: above the area of patched system calls and what is beside it,
// outside the stub's 4 GiB, below the last page.
func (a *asm) userPage(other string) {
	a.cmpImm64(rsi, 2<<20)
	a.jcc(ccB, other)
	a.movImm64(rax, 1<<47-PageSize)
	a.bytes(0x48, 0x39, 0xc6) // cmp rsi, rax
	a.jcc(ccAE, other)
	a.bytes(0x48, 0x89, 0xf0)            // mov rax, rsi
	a.bytes(0x48, 0xc1, 0xe8, 0x20)      // shr rax, 32
	a.ctl(true, rax, oStubHigh, 0, 0x3b) // cmp rax, [StubHigh]
	a.jcc(ccE, other)
}

// maps is on the way to user code, when a fault was taken or pages were
// invalidated: RIP is in RCX, RFLAGS in R11, RSP in RDX. What is not ordinary is
// the monitor's to map: code, and pages that no stub has written yet.
func (a *asm) maps() {
	const stop = "sysretStop"
	a.label("maps")
	for i, r := range []int{rcx, r11, rdx} {
		a.store64(oKeep+8*i, r)
	}
	a.cmp32(oMapGive, 0)
	a.jcc(ccE, stop)
	a.cmp32(oNChanges, MaxChanges-MaxHandCalls+1)
	a.jcc(ccAE, stop)
	a.zero(r12) // rights of the page that is to be mapped: none
	a.zero(rbx)
	a.cmp32(oMapped, 0)
	a.jcc(ccE, "mapCalls")
	a.load32(rbx, oFaultErr)
	a.bytes(0xf6, 0xc3, errID) // test bl, imm8
	a.jcc(ccNE, stop)
	a.load64(rsi, oFaultVA)
	a.userPage(stop)
	a.cmp32(oMapRoom, 0)
	a.jcc(ccE, stop)
	a.walk("map", stop, "mapCalls")
	a.bytes(0x40, 0xf6, 0xc7, 4) // test dil, 4: U/S
	a.jcc(ccE, "mapCalls")
	a.bytes(0x40, 0xf6, 0xc7, pteA)
	a.jcc(ccE, stop)
	a.bytes(0x49, 0x89, 0xcd)                     // mov r13, rcx
	a.bytes(0x4d, 0x21, 0xc5)                     // and r13, r8: the guest-physical address
	a.bytes(0x40, 0xf6, 0xc7, pteRW)              //
	a.jcc(ccE, "mapRead")                         //
	a.bytes(0xf6, 0xc1, pteD)                     // test cl, imm8
	a.jcc(ccNE, "mapWrite")                       //
	a.bytes(0xf6, 0xc3, errWR)                    // test bl, imm8
	a.jcc(ccNE, stop)                             // the dirty bit is to be set
	a.label("mapRead")                            //
	a.bytes(0xf6, 0xc3, errWR)                    //
	a.jcc(ccNE, "mapCalls")                       // not allowed: the program faults again
	a.bytes(0x48, 0x0f, 0xba, 0xe2, 63)           // bt rdx, 63: XD
	a.jcc(ccAE, stop)                             //
	a.movImm(r12, unix.PROT_READ)                 //
	a.inWindow("mapReadPage", stop)               //
	a.bytes(0x4c, 0x29, 0xc9)                     // sub rcx, r9: the offset in the file
	a.bytes(0x49, 0x89, 0xce)                     // mov r14, rcx
	a.jmp("mapCalls")                             //
	a.label("mapWrite")                           //
	a.movImm(r12, unix.PROT_READ|unix.PROT_WRITE) //
	a.inWindow("mapWritePage", stop)              //
	a.bytes(0x4c, 0x29, 0xc9)                     // sub rcx, r9
	a.bytes(0x49, 0x89, 0xce)                     // mov r14, rcx
	a.bytes(0x48, 0xc1, 0xe9, 0x0c)               // shr rcx, 12
	a.ctl(true, rcx, oFlagsAt, 0, 0x03)           // add rcx, [FlagsAt]
	a.bytes(0x0f, 0xb6, 0x01)                     // movzx eax, byte [rcx]
	a.bytes(0x83, 0xe0, PageFlags)                // and eax, imm8
	a.cmpImm(rax, PageWrite)                      //
	a.jcc(ccNE, stop)                             //
	a.label("mapCalls")                           // R12D rights, R13 page, R14 its offset
	a.test32(r12)                                 //
	a.jcc(ccNE, "mapAsk")                         //
	a.cmp32(oNGone, 0)                            //
	a.jcc(ccE, "mapNone")                         //
	a.label("mapAsk")                             //
	a.rel("listens", 0xe8)                        // call
	a.test32(rax)                                 //
	a.jcc(ccE, stop)                              //
	a.hand(true, r15, hCalls, 0, 0x8d)            //
	a.zero(rbp)                                   // calls
	a.zero(rbx)                                   // the page, 0 for none
	a.load32(rdi, oNChanges)                      //
	a.bytes(0xc1, 0xe7, 4)                        // shl edi, 4
	a.area(true, rax, ChangesOff, 0, 0x8d)        //
	a.bytes(0x48, 0x01, 0xc7)                     // add rdi, rax
	a.test32(r12)                                 //
	a.jcc(ccE, "mapGone")                         //
	a.load64(rbx, oFaultVA)                       //
	a.bytes(0x48, 0x81, 0xe3)                     // and rbx, imm32
	a.imm32(^uint32(PageSize - 1))                //
	a.load64(rdx, oPageCall)                      //
	a.bytes(0x4c, 0x09, 0xe2)                     // or rdx, r12
	a.load64(rcx, oPageCall+8)                    //
	a.load64(r8, oPageCall+16)                    //
	a.bytes(0x4d, 0x89, 0xf1)                     // mov r9, r14
	a.handCall(sysMmap, rbx, rdx, rcx)            //
	a.bytes(0x41, 0x83, 0xe4, changeWrite)        // and r12d, imm8
	a.bytes(0x4d, 0x09, 0xe5)                     // or r13, r12
	a.bytes(0x49, 0x83, 0xcd, changePresent)      // or r13, 1
	a.change(rbx, r13)                            //
	a.ctl(false, 1, oMapRoom, 0, 0xff)            // dec
	a.label("mapGone")                            //
	a.load32(r10, oNGone)                         //
	a.cmpImm(r10, MaxGone+1)                      //
	a.jcc(ccAE, stop)                             // the guest kernel has written it
	a.ctl(true, rsi, oGone, 0, 0x8d)              //
	a.zero(rdx)                                   //
	a.zero(rcx)                                   //
	a.load64(r8, oDropCall)                       //
	a.load64(r9, oDropCall+8)                     //
	a.label("goneLoop")                           //
	a.test32(r10)                                 //
	a.jcc(ccE, "mapDone")                         //
	a.bytes(0x48, 0x8b, 0x06)                     // mov rax, [rsi]
	a.bytes(0x48, 0x83, 0xc6, 8)                  // add rsi, 8
	a.bytes(0x41, 0xff, 0xca)                     // dec r10d
	a.bytes(0x48, 0x39, 0xd8)                     // cmp rax, rbx
	a.jcc(ccE, "goneLoop")                        // it is mapped anew
	a.handCall(sysMunmap, rax, rdx, rcx)          //
	a.change(rax, rdx)                            //
	a.jmp("goneLoop")                             //
	a.label("mapDone")                            //
	a.hand(false, rbp, hNCalls, 0, 0x89)          // mov [NCalls], ebp
	a.area(true, rax, ChangesOff, 0, 0x8d)        //
	a.bytes(0x48, 0x29, 0xc7)                     // sub rdi, rax
	a.bytes(0xc1, 0xef, 4)                        // shr edi, 4
	a.store32(oNChanges, rdi)                     //
	a.label("mapNone")
	for _, off := range []int{oMapped, oNGone, oListens} {
		a.set32(off, 0)
	}
	for i, r := range []int{rcx, r11, rdx} {
		a.load64(r, oKeep+8*i)
	}
	a.jmp("giveUser")

	a.listens()
}

// Bits of Change.Entry. The second is that of PROT_WRITE, too.
const (
	changePresent = 1
	changeWrite   = 2
)

// handCall adds a call on one page: R15 where, EBP counts; the address, the third
// and the fourth argument in registers, the fifth and sixth in R8 and R9.
func (a *asm) handCall(nr uint32, va, third, fourth int) {
	imm := func(off int32, v uint32) {
		a.mem(true, 0, r15, off, 0xc7) // mov qword, imm32
		a.imm32(v)
	}
	imm(0, nr)
	a.mem(true, va, r15, 8, 0x89)
	imm(16, PageSize)
	a.mem(true, third, r15, 24, 0x89)
	a.mem(true, fourth, r15, 32, 0x89)
	a.mem(true, r8, r15, 40, 0x89)
	a.mem(true, r9, r15, 48, 0x89)
	a.bytes(0x49, 0x83, 0xc7, 64) // add r15, 64
	a.bytes(0xff, 0xc5)           // inc ebp
}

// change adds to the list at RDI.
func (a *asm) change(va, entry int) {
	a.mem(true, va, rdi, 0, 0x89)
	a.mem(true, entry, rdi, 8, 0x89)
	a.bytes(0x48, 0x83, 0xc7, 16) // add rdi, 16
}

// invlpg is INVLPG with the address and the place to go on at in scratch words.
func (a *asm) invlpg() {
	const stop, address = "sysretStop", oScratch + 16
	a.label("invlpg")
	a.saveAll()
	a.cmp32(oPaired, 0)
	a.jcc(ccE, stop)
	a.cmp32(oMapGive, 0)
	a.jcc(ccE, stop)
	a.load64(rax, oCR+24)
	a.ctl(true, rax, oUserCR3, 0, 0x3b)
	a.jcc(ccNE, stop)
	a.load64(rsi, address)
	a.userPage(stop)
	a.cmp32(oNGone, MaxGone)
	a.jcc(ccAE, stop)
	a.rel("listens", 0xe8) // call
	a.test32(rax)
	a.jcc(ccE, stop)
	a.load64(rsi, address)
	a.bytes(0x48, 0x81, 0xe6) // and rsi, imm32
	a.imm32(^uint32(PageSize - 1))
	a.load32(rax, oNGone)
	a.ctl(true, rdi, oGone, 0, 0x8d)
	a.bytes(0x48, 0x89, 0x34, 0xc7)  // mov [rdi+rax*8], rsi
	a.ctl(false, 0, oNGone, 0, 0xff) // inc
	a.bytes(0x48, 0xc1, 0xee, 0x0c)  // shr rsi, 12
	a.bytes(0x81, 0xe6)              // and esi, imm32
	a.imm32(UserTLBSize - 1)         //
	a.area(true, rdi, UserTLBOff, 0, 0x8d)
	a.bytes(0x48, 0x8d, 0x3c, 0xf7) // lea rdi, [rdi+rsi*8]
	a.movImm(rax, EmptyUser)
	a.mem(true, rax, rdi, 0, 0x89)
	a.mem(true, rax, rdi, userWrite, 0x89)
	a.goOn()
}
