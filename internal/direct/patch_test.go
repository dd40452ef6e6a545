package direct

import (
	"bytes"
	"testing"

	"ring3/internal/x86"
)

// With CPUID patched or faulting, the guest never sees the host's answer.
func TestPatchedInstructions(t *testing.T) {
	for _, c := range []struct {
		name string
		code []byte
		m32  bool
	}{
		{"cpuid", []byte{0x0f, 0xa2}, false},
		{"rdpid rax", []byte{0xf3, 0x0f, 0xc7, 0xf8}, false},
		{"rdpid r8", []byte{0xf3, 0x41, 0x0f, 0xc7, 0xf8}, false},
		{"rdtscp", []byte{0x0f, 0x01, 0xf9}, false},
		{"lsl eax, ecx", []byte{0x0f, 0x03, 0xc1}, false},
		{"lar rax, rcx", []byte{0x48, 0x0f, 0x02, 0xc1}, false},
		{"verr cx", []byte{0x0f, 0x00, 0xe1}, false},
		{"verw cx", []byte{0x0f, 0x00, 0xe9}, false},
		{"sgdt [rbx]", []byte{0x0f, 0x01, 0x03}, false},
		{"sidt [rbx]", []byte{0x0f, 0x01, 0x0b}, false},
		{"smsw eax", []byte{0x0f, 0x01, 0xe0}, false},
		{"sldt eax", []byte{0x0f, 0x00, 0xc0}, false},
		{"str eax", []byte{0x0f, 0x00, 0xc8}, false},
		{"rdpkru", []byte{0x0f, 0x01, 0xee}, false},
		{"cpuid", []byte{0x0f, 0xa2}, true},
		{"sysenter", []byte{0x0f, 0x34}, true},
		{"syscall", []byte{0x0f, 0x05}, true},
	} {
		t.Run(c.name, func(t *testing.T) {
			// mov edx, 0x0f; the instruction; SYSCALL or INT 80h. A page that
			// starts with code, a candidate within an instruction, and data
			// behind the code that looks like the instruction.
			code := cat([]byte{0xba, 0x0f, 0, 0, 0}, c.code)
			after := len(code)
			if c.m32 {
				code = cat(code, []byte{0xcd, 0x80})
			} else {
				code = cat(code, insnSyscall)
			}
			code = cat(code, bytes.Repeat([]byte{0xff}, 64), c.code, bytes.Repeat([]byte{0xff}, 64))
			g := newGuest(t, code, Config{})
			stop := ExitSyscall
			if c.m32 {
				g.mode32()
				stop = ExitNeedStep
			}
			g.st.GPR[x86.RBX] = dataVA
			g.st.GPR[x86.RAX] = 0x1111
			g.want(ExitNeedStep)
			g.wantRIP(codeVA + 5)
			if g.st.GPR[x86.RAX] != 0x1111 || g.st.GPR[x86.RDX] != 0xf {
				t.Errorf("rax %#x, rdx %#x", g.st.GPR[x86.RAX], g.st.GPR[x86.RDX])
			}
			g.st.RIP = codeVA + uint64(after)
			g.want(stop)
			if n := g.e.Stats().Patches; n != 1 {
				t.Errorf("%d patches", n)
			}
			// RAM is untouched.
			if !bytes.Contains(g.e.page(g.gpa(codeVA))[:after], c.code) {
				t.Error("RAM was patched")
			}
		})
	}
}

// The instruction lies across a page end.
func TestPatchAcrossPages(t *testing.T) {
	for split := 1; split < 4; split++ {
		insn := []byte{0xf3, 0x0f, 0xc7, 0xf8} // rdpid rax
		g := newGuest(t, bytes.Repeat([]byte{0x90}, 4096), Config{})
		g.mapPage(codeVA+4096, g.page(nil), pteUser)
		g.poke(codeVA+4096-uint64(split), insn[:split])
		g.poke(codeVA+4096, cat(insn[split:], insnSyscall))
		g.st.RIP = codeVA + 4000
		g.st.GPR[x86.RAX] = 0x1111
		g.want(ExitNeedStep)
		g.wantRIP(codeVA + 4096 - uint64(split))
		g.st.RIP += 4
		g.want(ExitSyscall)
		g.wantRIP(codeVA + 4096 + 4 - uint64(split))
		if g.st.GPR[x86.RAX] != 0x1111 {
			t.Errorf("rax %#x", g.st.GPR[x86.RAX])
		}
	}
}

// The guest kernel changes code: what was patched there is gone.
func TestCodeChanges(t *testing.T) {
	g := newGuest(t, []byte{0x0f, 0xa2, 0x0f, 0x05}, Config{})
	g.want(ExitNeedStep)
	g.poke(codeVA, []byte{0xff, 0xc0, 0xeb, 0, 0x0f, 0x05}) // inc eax; jmp; syscall
	g.st.GPR[x86.RAX] = 1
	g.want(ExitSyscall)
	g.wantRIP(codeVA + 4)
	if g.st.GPR[x86.RAX] != 2 {
		t.Errorf("rax %d", g.st.GPR[x86.RAX])
	}
	g.poke(codeVA+4, []byte{0x0f, 0xa2}) // now CPUID there
	g.st.RIP = codeVA
	g.want(ExitNeedStep)
	g.wantRIP(codeVA + 4)
}

// A just-in-time compiler writes and executes one page in turn.
func TestWriteExecuteFlips(t *testing.T) {
	const jit = 0x800000
	// loop: mov [rbx], r8; call rbx; inc rcx; cmp rcx, rdx; jne loop; syscall
	g := newGuest(t, cat([]byte{0x4c, 0x89, 0x03}, []byte{0xff, 0xd3},
		[]byte{0x48, 0xff, 0xc1}, []byte{0x48, 0x39, 0xd1}, []byte{0x75, 0xf3}, insnSyscall), Config{})
	g.mapPage(jit, g.page(nil), pteRW)
	g.st.GPR[x86.RBX], g.st.GPR[x86.RDX] = jit, 100
	g.st.GPR[x86.R8] = 0xc3_c0ff // inc eax; ret
	g.want(ExitSyscall)
	if g.st.GPR[x86.RAX] != 100 {
		t.Errorf("rax %d", g.st.GPR[x86.RAX])
	}
	st := g.e.Stats()
	if st.WXUnscanned != 1 || st.WXFlips < maxFlips || st.WXFlips > maxFlips+2 {
		t.Errorf("flips %d, unscanned %d", st.WXFlips, st.WXUnscanned)
	}
	// Written bytes take effect at once, and are seen by the kernel.
	g.st.RIP, g.st.GPR[x86.RCX], g.st.GPR[x86.RDX] = codeVA, 0, 1
	g.st.GPR[x86.R8] = 0xc3_c8ff // dec eax; ret
	g.want(ExitSyscall)
	if g.st.GPR[x86.RAX] != 99 || g.word(jit) != 0xc3_c8ff {
		t.Errorf("rax %d, memory %#x", g.st.GPR[x86.RAX], g.word(jit))
	}
	// Through two addresses of one page, as hardened compilers do.
	const alias = 0x900000
	gpa := g.gpa(jit)
	*g.pte(jit) = 0
	g.mapPage(jit, gpa, pteUser)
	g.mapPage(alias, gpa, pteRW|x86.PTENX)
	g.e.Flush(Flush{Kind: FlushAll})
	// mov [rsi], r8; call rbx; ...
	g.poke(codeVA+0x100, cat([]byte{0x4c, 0x89, 0x06}, []byte{0xff, 0xd3},
		[]byte{0x48, 0xff, 0xc1}, []byte{0x48, 0x39, 0xd1}, []byte{0x75, 0xf3}, insnSyscall))
	g.st.GPR[x86.RCX], g.st.GPR[x86.RDX], g.st.GPR[x86.RSI] = 0, 100, alias
	g.st.RIP, g.st.GPR[x86.RAX] = codeVA+0x100, 100
	g.want(ExitSyscall)
	if g.st.GPR[x86.RAX] != 0 {
		t.Errorf("rax %d", g.st.GPR[x86.RAX])
	}
}

// Bytes that look like CPUID behind the end of a page, inside an instruction
// that starts in it, are judged with the page and are no patch of it.
func TestCandidateBehindPage(t *testing.T) {
	g := newGuest(t, nil, Config{})
	g.mapPage(codeVA+0x1000, g.page([]byte{0x00, 0x0f, 0xa2, 0x00, 0x0f, 0x05}), pteUser) // ... syscall
	g.poke(codeVA+0xfff, []byte{0xb8})                                                    // mov eax, 0x00a20f00
	g.st.RIP = codeVA + 0xfff
	g.want(ExitSyscall)
	g.wantRIP(codeVA + 0x1004)
	if g.st.GPR[x86.RAX] != 0xa20f00 {
		t.Errorf("eax %#x", g.st.GPR[x86.RAX])
	}
}
