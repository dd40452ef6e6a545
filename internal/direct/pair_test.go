package direct

import (
	"bytes"
	"runtime"
	"testing"
	"time"

	"ring3/internal/cpu"
	"ring3/internal/direct/stub"
	"ring3/internal/interp"
	"ring3/internal/x86"
)

// pairGuest is a machine with kernel and user code, run as package vcpu does.
type pairGuest struct {
	*kernelGuest
	u    *Engine
	look func() // at State, before user code runs
}

// syscallCode counts at gs:20 and returns RAX+RDI:
//
//	swapgs; mov [gs:10], rsp; mov rsp, [gs:18]; push r11; push rcx
//	inc qword [gs:20]; add rax, rdi
//	pop rcx; pop r11; mov rsp, [gs:10]; swapgs; sysretq
var syscallCode = cat([]byte{0x0f, 0x01, 0xf8}, []byte{0x65, 0x48, 0x89, 0x24, 0x25, 0x10, 0, 0, 0},
	[]byte{0x65, 0x48, 0x8b, 0x24, 0x25, 0x18, 0, 0, 0}, []byte{0x41, 0x53, 0x51},
	[]byte{0x65, 0x48, 0xff, 0x04, 0x25, 0x20, 0, 0, 0}, []byte{0x48, 0x01, 0xf8},
	[]byte{0x59, 0x41, 0x5b}, []byte{0x65, 0x48, 0x8b, 0x24, 0x25, 0x10, 0, 0, 0}, []byte{0x0f, 0x01, 0xf8, 0x48, 0x0f, 0x07})

// callerCode makes n system calls, EBX counting down, and checks results, red
// zone and XMM5; then it goes to end. A wrong result is INT3.
//
//	    mov ebx, n
//	1:  mov eax, ebx; mov edi, 7; call f; lea ecx, [rbx+7]; cmp ecx, eax; jne bad
//	    dec ebx; jnz 1b
//	    end
//	f:  mov [rsp-8], rbx; movq xmm5, rbx; syscall
//	    cmp [rsp-8], rbx; jne bad; movq rcx, xmm5; cmp rcx, rbx; jne bad
//	    mov r10d, 1; ret
func callerCode(n uint32, end []byte) []byte {
	code := make([]byte, 0x100)
	for i := range code {
		code[i] = 0x90
	}
	copy(code, cat([]byte{0xbb}, imm32(n),
		[]byte{0x89, 0xd8, 0xbf, 7, 0, 0, 0, 0xe8, 0x80 - 17, 0, 0, 0, 0x8d, 0x4b, 7, 0x39, 0xc1, 0x75, 0x70 - 24},
		[]byte{0xff, 0xcb, 0x75, 0x100 + 5 - 28}, end))
	for i := 0x70; i < 0x80; i++ {
		code[i] = 0xcc // also when f is moved by a few bytes
	}
	copy(code[0x80:], cat([]byte{0x48, 0x89, 0x5c, 0x24, 0xf8}, []byte{0x66, 0x48, 0x0f, 0x6e, 0xeb}, insnSyscall,
		[]byte{0x48, 0x39, 0x5c, 0x24, 0xf8}, []byte{0x75, 0x100 + 0x70 - 0x93}, []byte{0x66, 0x48, 0x0f, 0x7e, 0xe9},
		[]byte{0x48, 0x39, 0xd9}, []byte{0x75, 0x100 + 0x70 - 0x9d}, []byte{0x41, 0xba, 1, 0, 0, 0}, []byte{0xc3}))
	return code
}

func newPairGuest(t *testing.T, user []byte) *pairGuest { return newPairGuestAs(t, user, true) }

// newPairGuestAs makes a machine whose stubs hand over to each other if paired.
func newPairGuestAs(t *testing.T, user []byte, paired bool) *pairGuest {
	runtime.LockOSThread() // its affinity changes; it ends with the test
	g := &pairGuest{kernelGuest: newKernelGuest(t, syscallCode, true)}
	var err error
	if g.u, err = New(Config{Mem: g.mem, State: g.st, Invalidated: g.c.Invalidate}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := g.u.Close(); err != nil {
			t.Error(err)
		}
	})
	if paired {
		if err := Pair(g.u, g.k); err != nil {
			t.Fatal(err)
		}
	}
	g.mapPage(codeVA, g.page(user), pteUser|x86.PTEAccessed)
	g.mapPage(stackVA-4096, g.page(nil), pteRW|x86.PTENX|x86.PTEAccessed|x86.PTEDirty)
	g.poke(kCPU+0x18, imm64(kStack-0x400))
	st := g.st
	st.CR0 |= x86.CR0AM
	st.CR4 |= x86.CR4OSFXSR | x86.CR4OSXMMEXCPT | x86.CR4OSXSAVE
	st.EFER |= x86.EFERSCE
	st.LSTAR, st.STAR = kCode, 0x23<<48|0x10<<32
	st.SFMASK = x86.FlagTF | x86.FlagIF | x86.FlagDF | x86.FlagNT | x86.FlagAC
	st.LeaveSyscall()
	st.Seg[x86.DS], st.Seg[x86.ES] = cpu.Segment{Unusable: true}, cpu.Segment{Unusable: true}
	st.Seg[x86.FS], st.Seg[x86.GS] = cpu.Segment{Unusable: true, Base: 0x1234}, cpu.Segment{Unusable: true, Base: 0x5678}
	st.KernelGSBase = kCPU
	st.RFLAGS |= x86.FlagIF
	st.RIP, st.GPR[x86.RSP] = codeVA, stackVA-256
	g.c.StopAtUser = true
	runtime.LockOSThread()
	t.Cleanup(func() { g.u.Leave(); runtime.UnlockOSThread() })
	g.u.near.due = never
	if shareOne {
		g.u.near.scarce, g.u.near.since = true, time.Now()
	}
	return g
}

// run runs until user code leaves with something else than a system call.
func (g *pairGuest) run() Exit {
	x, ok := g.runFor(30 * time.Second)
	if !ok {
		g.t.Fatalf("does not end; rip %#x, cpl %d", g.st.RIP, g.st.CPL)
	}
	return x
}

// runFor does for a while; ok is false when it has not ended then.
func (g *pairGuest) runFor(d time.Duration) (x Exit, ok bool) {
	for start := time.Now(); time.Since(start) < d; {
		if g.st.CPL == 3 {
			if g.look != nil {
				g.look()
			}
			switch x := g.u.Run(); x.Kind {
			case ExitKick, ExitKernel:
			case ExitSyscall:
				g.c.Step()
			default:
				return x, true
			}
			continue
		}
		if g.k.Fits() {
			x, err := g.k.Run()
			switch x {
			case KernelDied:
				g.t.Fatal(err)
			case KernelKick:
				continue
			case KernelUser:
				if e, left := g.k.UserExit(); left && e.Kind == ExitSyscall {
					g.c.Step()
				} else if left && e.Kind != ExitKick {
					return e, true
				}
				continue
			}
		}
		if e := g.c.Run(1); e == interp.ExitShutdown {
			g.t.Fatalf("triple fault at rip %#x", g.st.RIP)
		}
	}
	return Exit{}, false
}

// TestPair has user code make system calls that the stubs hand to each other,
// quietly and while it is kicked all the time.
func TestPair(t *testing.T) {
	for _, kicks := range []bool{false, true} {
		const n = 3000
		g := newPairGuest(t, callerCode(n, []byte{0xf4}))
		stop, stopped := make(chan struct{}), make(chan struct{})
		go func() {
			defer close(stopped)
			for kicks {
				select {
				case <-stop:
					return
				case <-time.After(100 * time.Microsecond):
					g.u.Kick()
				}
			}
		}()
		x := g.run()
		close(stop)
		<-stopped
		if x.Kind != ExitNeedStep || g.st.RIP != codeVA+28 || g.st.GPR[x86.RBX] != 0 || g.st.CPL != 3 {
			t.Fatalf("kicks %v: exit %+v at %#x, rbx %#x, cpl %d", kicks, x, g.st.RIP, g.st.GPR[x86.RBX], g.st.CPL)
		}
		if c := g.word(kCPU + 0x20); c != n {
			t.Errorf("kicks %v: the kernel counts %d system calls, want %d", kicks, c, n)
		}
		st := g.st
		if st.Seg[x86.FS].Base != 0x1234 || st.Seg[x86.GS].Base != 0x5678 || st.KernelGSBase != kCPU ||
			st.GPR[x86.RSP] != stackVA-256 || st.RFLAGS&x86.FlagIF == 0 || st.Seg[x86.CS].Sel != 0x33 {
			t.Errorf("kicks %v: state %+v", kicks, st)
		}
		if h := g.u.stats.Handed; h < n/2 {
			t.Errorf("kicks %v: %d of %d system calls were handed over", kicks, h, n)
		}
	}
}

// TestPairBase has user code change the base of FS between system calls: a
// kick finds the new one, wherever it hits.
func TestPairBase(t *testing.T) {
	const n = 20_000
	// The called function starts with wrfsbase rbx.
	code := callerCode(n, []byte{0xf4})
	g := newPairGuest(t, cat(code[:0x80], []byte{0xf3, 0x48, 0x0f, 0xae, 0xd3}, code[0x80:]))
	g.st.Seg[x86.FS].Base = 0
	kicks := 0
	g.look = func() {
		kicks++
		rbx, base := g.st.GPR[x86.RBX], g.st.Seg[x86.FS].Base
		if base != 0 && base != rbx && base != rbx+1 {
			t.Errorf("at rip %#x: rbx %#x, fs base %#x", g.st.RIP, rbx, base)
		}
	}
	ticker(t, g.u, 20*time.Microsecond)
	if x := g.run(); x.Kind != ExitNeedStep || g.st.RIP != codeVA+28 {
		t.Fatalf("exit %+v at %#x", x, g.st.RIP)
	}
	t.Logf("%d kicks", kicks)
}

// TestPairFlush has memory taken from a user stub that listens.
func TestPairFlush(t *testing.T) {
	g := newPairGuest(t, callerCode(100, []byte{0xf4}))
	if x := g.run(); x.Kind != ExitNeedStep {
		t.Fatalf("exit %+v", x)
	}
	// Pretend that the kernel was left by an interrupt of a system call.
	s := g.u.cur
	g.st.RIP = codeVA
	g.u.Kick()
	g.run()
	g.u.Flush(Flush{Kind: FlushAll})
	if s.p.waits || s.p.unproven != 0 {
		t.Error("a listening stub was not stopped for a flush")
	}
	g.st.RIP = codeVA
	if x := g.run(); x.Kind != ExitNeedStep || g.st.RIP != codeVA+28 {
		t.Fatalf("after the flush: exit %+v at %#x", x, g.st.RIP)
	}
}

// TestPairLie has user code ring both bells by itself, as a program may that
// wants to be returned to, or to have another one be returned to, with
// registers of its choice. Nobody but itself may notice.
func TestPairLie(t *testing.T) {
	g := newPairGuest(t, callerCode(50, []byte{0xf4}))
	if x := g.run(); x.Kind != ExitNeedStep {
		t.Fatalf("exit %+v", x)
	}
	first := g.st.CR3
	// mov rax, hand-over page; mov dword [rax], 1; mov dword [rax+40h], 1
	g.poke(codeVA+28, cat([]byte{0x48, 0xb8}, imm64(g.u.zygote.prog.Base+stub.HandoffOff),
		[]byte{0xc7, 0x00, 1, 0, 0, 0, 0xc7, 0x40, 0x40, 1, 0, 0, 0}, []byte{0xf4}))
	g.mem.Changed(g.gpa(codeVA+28), 32)
	g.st.RIP = codeVA
	if x := g.run(); x.Kind != ExitNeedStep && x.Kind != ExitDied {
		t.Errorf("the liar: exit %+v at %#x", x, g.st.RIP)
	}
	// Another address space with the same kernel.
	g.newTables()
	for i := range uint64(256) {
		*g.mem.Word(g.pml4 + 2048 + 8*i) = *g.mem.Word(first&x86.CR3Addr + 2048 + 8*i)
	}
	g.mapPage(codeVA, g.page(callerCode(50, []byte{0xf4})), pteUser|x86.PTEAccessed)
	g.mapPage(stackVA-4096, g.page(nil), pteRW|x86.PTENX|x86.PTEAccessed|x86.PTEDirty)
	g.st.LeaveSyscall()
	g.st.RIP, g.st.GPR[x86.RSP] = codeVA, stackVA-256
	if x := g.run(); x.Kind != ExitNeedStep || g.st.RIP != codeVA+28 || g.st.GPR[x86.RBX] != 0 {
		t.Errorf("another program: exit %+v at %#x, rbx %#x", x, g.st.RIP, g.st.GPR[x86.RBX])
	}
}

// TestPairTrap is TestPair with SYSCALLs that cannot be patched: there is no
// room for the jump. (Numbers from 335 on may be a host system call that passes
// all filters.)
func TestPairTrap(t *testing.T) {
	for _, every := range []time.Duration{0, 300 * time.Microsecond, 30 * time.Microsecond} {
		const n = 330
		code := callerCode(n, []byte{0xf4})
		for i := bytes.LastIndexByte(code, 0xc3) + 1; i < len(code); i++ {
			code[i] = 0xf4
		}
		g := newPairGuest(t, code)
		if every != 0 {
			ticker(t, g.u, every)
		}
		x := g.run()
		if x.Kind != ExitNeedStep || g.st.RIP != codeVA+28 || g.st.GPR[x86.RBX] != 0 || g.word(kCPU+0x20) != n {
			t.Fatalf("kicks %v: exit %+v at %#x, rbx %#x, %d system calls", every, x, g.st.RIP, g.st.GPR[x86.RBX], g.word(kCPU+0x20))
		}
		if s := g.u.stats; s.Sites != 0 || every == 0 && s.Handed < n*3/4 {
			t.Errorf("kicks %v: %d sites patched, %d of %d system calls handed over", every, s.Sites, s.Handed, n)
		}
	}
}
