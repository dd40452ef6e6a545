package direct

import (
	"bytes"
	"testing"

	"ring3/internal/x86"
)

// siteCodePage is a function that makes the system call in EAX and returns,
// with padding behind it up to a multiple of 16, and a loop that calls it. It
// keeps a value in the red zone and one in XMM5.
//
//	0:  call 0x40; jmp 0
//	40: mov eax, 39; mov [rsp-8], rbx; movq xmm5, rbx; syscall; movq r8, xmm5; mov r9, [rsp-8]; mov r10d, 1; ret; nops
func siteCodePage() []byte {
	code := make([]byte, 0x80)
	copy(code, []byte{0xe8, 0x3b, 0, 0, 0, 0xeb, 0xf9})
	f := cat([]byte{0xb8, 39, 0, 0, 0}, []byte{0x48, 0x89, 0x5c, 0x24, 0xf8}, []byte{0x66, 0x48, 0x0f, 0x6e, 0xeb},
		insnSyscall, []byte{0x66, 0x49, 0x0f, 0x7e, 0xe8}, []byte{0x4c, 0x8b, 0x4c, 0x24, 0xf8}, []byte{0x41, 0xba, 1, 0, 0, 0}, []byte{0xc3})
	copy(code[0x40:], f)
	for i := 0x40 + len(f); i < 0x80; i++ {
		code[i] = 0x90
	}
	return code
}

const siteAt = codeVA + 0x40 + 15

// finish does what a kernel does with a system call: SYSCALL and SYSRET.
func (g *guest) finishSyscall(ret uint64) {
	g.st.GPR[x86.RCX] = g.st.RIP + 2
	g.st.GPR[x86.R11] = g.st.RFLAGS
	g.st.GPR[x86.RAX] = ret
	g.st.RIP += 2
}

func TestPatchedSyscall(t *testing.T) {
	g := newGuest(t, siteCodePage(), Config{})
	g.st.GPR[x86.RBX] = 0x1234_5678_9abc_def0
	const rounds = 50
	for i := range rounds {
		g.want(ExitSyscall)
		g.wantRIP(siteAt)
		st := g.st
		if st.GPR[x86.RAX] != 39 || i > 0 && (st.GPR[x86.R8] != st.GPR[x86.RBX] || st.GPR[x86.R9] != st.GPR[x86.RBX]) {
			t.Fatalf("round %d: rax %#x r8 %#x r9 %#x", i, st.GPR[x86.RAX], st.GPR[x86.R8], st.GPR[x86.R9])
		}
		if i%7 == 3 {
			g.e.FPU() // moves the extended state to the monitor and back
		}
		if i%5 == 2 {
			g.e.Kick()
			g.finishSyscall(0)
			g.want(ExitKick)
			continue
		}
		g.finishSyscall(0)
	}
	if n := g.e.stats.FastSyscalls; n != rounds-hotSite {
		t.Errorf("%d of %d system calls came without a signal, want %d", n, rounds, rounds-hotSite)
	}
	// What a kick tells that hits between the instruction and the stub.
	s := g.e.cur
	j := g.e.code.pages[g.gpa(codeVA)].jumps[0]
	low := g.e.sites.base + sitesCode + siteCode*uint64(j.site)
	for _, rip := range []uint64{siteAt, codeVA + uint64(j.island), low, low + 8} {
		if p := g.e.precise(s, rip); p != siteAt {
			t.Errorf("at %#x: rip %#x, want %#x", rip, p, siteAt)
		}
	}
	if p := g.e.precise(s, siteAt+2); p != siteAt+2 {
		t.Errorf("behind the instruction: rip %#x", p)
	}
	// A restart: the kernel sets RIP back to the instruction.
	g.want(ExitSyscall)
	g.st.GPR[x86.RAX] = 24
	g.want(ExitSyscall)
	g.wantRIP(siteAt)
	if g.st.GPR[x86.RAX] != 24 {
		t.Errorf("restarted with rax %#x", g.st.GPR[x86.RAX])
	}
	// A single step must not show the jump.
	g.st.RFLAGS |= x86.FlagTF
	g.want(ExitNeedStep)
	g.wantRIP(siteAt)
	g.st.RFLAGS &^= x86.FlagTF
	// A write to the page takes the patch away, and its site can be used again.
	free := len(g.e.sites.free)
	g.mem.Changed(g.gpa(siteAt), 2)
	if len(g.e.sites.free) != free+1 {
		t.Errorf("%d free sites after the page changed, %d before", len(g.e.sites.free), free)
	}
	g.want(ExitSyscall)
}

// TestPatchedSyscallTwice runs a page of code at two addresses: in one address
// space the patch is taken back, in two it serves both.
func TestPatchedSyscallTwice(t *testing.T) {
	for _, spaces := range []int{1, 2} {
		g := newGuest(t, siteCodePage(), Config{})
		page := g.gpa(codeVA)
		const other = 0x7000_0000
		run := func(at uint64) {
			for range 10 {
				g.st.RIP = at
				g.want(ExitSyscall)
				g.wantRIP(siteAt - codeVA + at)
			}
		}
		run(codeVA)
		if spaces == 2 {
			g.newTables()
			g.mapPage(stackVA-4096, g.page(nil), pteRW|x86.PTENX)
		}
		g.mapPage(other, page, pteUser)
		run(other)
		if jumps := len(g.e.code.pages[page].jumps); jumps != spaces-1 {
			t.Errorf("%d spaces: %d patches", spaces, jumps)
		}
	}
}

// TestSitesBeside has a program that has memory below 2 MiB read more of it,
// where the low area is: it must not find that.
func TestSitesBeside(t *testing.T) {
	g := newGuest(t, siteCodePage(), Config{})
	for range 10 {
		g.want(ExitSyscall)
		g.finishSyscall(0)
	}
	area := g.e.sites.base
	if area < 1<<20 || area+sitesSize > 2<<20 {
		t.Fatalf("the low area is at %#x", area)
	}
	// mov rcx, [rdi]; hlt
	g.mapPage(0x80000, g.page([]byte{0x48, 0x8b, 0x0f, 0xf4}), pteUser|x86.PTEAccessed)
	g.st.RIP, g.st.GPR[x86.RDI] = 0x80000, area+sitesCode
	x := g.e.Run()
	if x.Kind != ExitException || x.Vector != x86.VecPF || x.CR2 != area+sitesCode {
		t.Errorf("exit %+v at %#x, rcx %#x", x, g.st.RIP, g.st.GPR[x86.RCX])
	}
}

// TestSitesCollide maps guest memory where the low area is.
func TestSitesCollide(t *testing.T) {
	g := newGuest(t, siteCodePage(), Config{})
	for range 10 {
		g.want(ExitSyscall)
		g.finishSyscall(0)
	}
	g.mapPage(g.e.sites.base, g.page(bytes.Repeat([]byte{0xcc}, 16)), pteUser)
	g.e.walk.Walk(g.st, g.e.sites.base, userFetch) // sets the accessed bits, as a kernel does that maps a page
	g.e.Flush(Flush{Kind: FlushAll})
	before := g.e.stats.FastSyscalls
	for range 10 {
		g.want(ExitSyscall)
		g.wantRIP(siteAt)
		g.finishSyscall(0)
	}
	if g.e.stats.FastSyscalls != before {
		t.Error("patched system calls in spite of guest memory")
	}
	g.st.RIP = g.e.sites.base
	g.wantException(x86.VecBP)
}
