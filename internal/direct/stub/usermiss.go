package stub

// The user TLB of the kernel stub (package bt): UserTLBSize tags for reading,
// as many for writing, and what to add to an address.
const (
	UserTLBSize = 256
	userWrite   = 8 * UserTLBSize
	userDelta   = 2 * userWrite
	EmptyUser   = 1
)

// Bits of page-table entries (SDM vol. 3A, table 4-20).
const (
	pteRW = 1 << 1
	pteA  = 1 << 5
	pteD  = 1 << 6
)

// Page flags of package guestmem: all that there are, and those of a page that
// stubs may write and that no code was taken from.
const (
	PageFlags = 3
	PageWrite = 2
)

// userMiss are the routines for a miss of the user TLB: the address is in a
// scratch word, and translated code tries again. Accessed and dirty bits are for
// the monitor to set, and pages for it to make writable. It also executes what
// misses again: what crosses a page never hits, and of a copy between two pages
// that have the same entry, each takes it from the other.
func (a *asm) userMiss(delta, lowest uint64) {
	const address, again = oScratch + 32, oScratch + 24
	a.label("userMissWrite")
	a.saveAll()
	a.movImm(rbx, 1)
	a.jmp("userMiss")
	a.label("userMissRead")
	a.saveAll()
	a.zero(rbx)
	a.label("userMiss")
	a.cmp32(oUserFill, 0)
	a.jcc(ccE, "sysretStop")
	a.load64(rsi, address)
	a.load64(rax, again)
	a.ctl(true, rax, oMissAt, 0, 0x3b) // cmp rax, [MissAt]
	a.jcc(ccNE, "userMissNew")
	for i := range 2 {
		a.ctl(true, rsi, oMissEA+8*i, 0, 0x3b) // cmp rsi, [MissEA+8i]
		a.jcc(ccE, "userMissAgain")
	}
	a.load64(rcx, oMissEA)
	a.store64(oMissEA+8, rcx)
	a.store64(oMissEA, rsi)
	a.jmp("userMissWalk")
	a.label("userMissAgain")
	a.zero(rax)
	a.store64(oMissAt, rax)
	a.jmp("sysretStop")
	a.label("userMissNew")
	a.store64(oMissAt, rax)
	a.store64(oMissEA, rsi)
	a.store64(oMissEA+8, rsi)

	a.label("userMissWalk")
	a.movImm(r12, 1)
	a.movImm64(rcx, delta)
	a.movImm64(rax, lowest)
	a.bytes(0x48, 0x39, 0xc6) // cmp rsi, rax
	a.jcc(ccAE, "userFill")   // the kernel's own memory: it is mapped by page faults
	a.bytes(0x48, 0x89, 0xf0) // mov rax, rsi
	a.bytes(0x48, 0xc1, 0xe8, 0x2f)
	a.jcc(ccNE, "sysretStop")
	a.walk("user", "sysretStop", "sysretStop")
	a.bytes(0x40, 0xf6, 0xc7, pteA) // test dil, imm8
	a.jcc(ccE, "sysretStop")
	a.bytes(0x41, 0x89, 0xcc)              // mov r12d, ecx
	a.bytes(0x41, 0x81, 0xe4)              // and r12d, imm32
	a.imm32(pteD)                          //
	a.bytes(0x83, 0xe7, pteRW)             // and edi, imm8
	a.bytes(0x44, 0x0f, 0xaf, 0xe7)        // imul r12d, edi: 0 unless both
	a.inWindow("userPage", "sysretStop")   //
	a.bytes(0x48, 0x89, 0xc8)              // mov rax, rcx
	a.bytes(0x4c, 0x29, 0xc8)              // sub rax, r9
	a.bytes(0x48, 0xc1, 0xe8, 0x0c)        // shr rax, 12
	a.ctl(true, rax, oFlagsAt, 0, 0x03)    // add rax, [FlagsAt]
	a.bytes(0x0f, 0xb6, 0x00)              // movzx eax, byte [rax]
	a.bytes(0x83, 0xe0, PageFlags)         // and eax, imm8
	a.cmpImm(rax, PageWrite)               //
	a.jcc(ccE, "userMayWrite")             //
	a.zero(r12)                            //
	a.label("userMayWrite")                //
	a.bytes(0x48, 0x89, 0xf0)              // mov rax, rsi
	a.bytes(0x48, 0x25)                    // and rax, imm32
	a.imm32(^uint32(PageSize - 1))         //
	a.bytes(0x48, 0x29, 0xc1)              // sub rcx, rax
	a.label("userFill")                    // RSI address, RCX delta, R12D writable
	a.test32(r12)                          //
	a.jcc(ccNE, "userTag")                 //
	a.test32(rbx)                          //
	a.jcc(ccNE, "sysretStop")              //
	a.label("userTag")                     //
	a.bytes(0x48, 0xc1, 0xee, 0x0c)        // shr rsi, 12
	a.bytes(0x89, 0xf0)                    // mov eax, esi
	a.bytes(0x25)                          // and eax, imm32
	a.imm32(UserTLBSize - 1)               //
	a.area(true, rdi, UserTLBOff, 0, 0x8d) // lea rdi, [user TLB]
	a.bytes(0x48, 0x8d, 0x3c, 0xc7)        // lea rdi, [rdi+rax*8]
	a.bytes(0x48, 0xf7, 0xde)              // neg rsi
	a.ctl(true, rsi, oUserSalt, 0, 0x2b)   // sub rsi, [UserSalt]
	a.mem(true, rsi, rdi, 0, 0x89)         //
	a.mem(true, rcx, rdi, userDelta, 0x89) //
	a.movImm(rax, EmptyUser)               //
	a.test32(r12)                          //
	a.bytes(0x48, 0x0f, 0x45, 0xc6)        // cmovne rax, rsi
	a.mem(true, rax, rdi, userWrite, 0x89) //
	a.ctl(true, 0, oUserFills, 0, 0xff)    // inc
	a.goOn()
}
