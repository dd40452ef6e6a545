package direct

import (
	"encoding/binary"
	"math/rand/v2"
	"testing"
	"time"

	"ring3/internal/x86"
	"ring3/internal/x86/cpuid"
)

// showCPUID gives an engine the answers of a virtual CPU, and returns what the
// interpreter would answer.
func showCPUID(e *Engine) func(leaf, sub uint32) cpuid.Regs {
	t := cpuid.New(cpuid.ReadHost(), cpuid.Options{CPUs: 4, TSCkHz: 2_345_678})
	st := e.state
	ctx := func() cpuid.Context {
		return cpuid.Context{XCR0: st.XCR0, OSXSAVE: st.CR4&x86.CR4OSXSAVE != 0}
	}
	e.cfg.CPUID = func() []cpuid.Answer { return t.Answers(ctx()) }
	return func(leaf, sub uint32) cpuid.Regs { return t.Lookup(leaf, sub, ctx()) }
}

var cpuidUD2 = []byte{0x0f, 0xa2, 0x0f, 0x0b}

// TestCPUID executes CPUID with many leaves: in the stub, with the answers of
// the interpreter and nothing else changed, or not at all.
func TestCPUID(t *testing.T) {
	g := newGuest(t, cpuidUD2, Config{})
	want := showCPUID(g.e)
	r := rand.New(rand.NewPCG(1, 2))
	var subs []uint32
	for sub := range uint32(20) {
		subs = append(subs, sub)
	}
	subs = append(subs, 63, 256, 0x8000_0000, ^uint32(0))
	served := uint64(0)
	st := g.st
	for _, base := range []uint32{0, 0x2000_0000, 0x4000_0000, 0x8000_0000, 0xc000_0000, 0xffff_ffe0} {
		for leaf := base; leaf-base < 0x30 && leaf >= base; leaf++ {
			for _, sub := range subs {
				for i := range st.GPR {
					if i != x86.RSP {
						st.GPR[i] = r.Uint64()
					}
				}
				st.GPR[x86.RAX] = st.GPR[x86.RAX]&^0xffff_ffff | uint64(leaf)
				st.GPR[x86.RCX] = st.GPR[x86.RCX]&^0xffff_ffff | uint64(sub)
				st.RFLAGS = x86.FlagFixed | x86.FlagIF | r.Uint64()&(x86.FlagsArith|x86.FlagDF|x86.FlagID|x86.FlagAC|x86.FlagNT)
				st.RIP = codeVA
				area := &g.e.FPU().Area
				area[xStateBV] |= 2
				binary.LittleEndian.PutUint32(area[xMXCSR:], 0x1f80)
				for i := range 32 {
					area[160+i] = byte(r.Uint32()) // XMM0 and 1
				}
				red := imm64(r.Uint64())
				g.poke(st.GPR[x86.RSP]-8, red)
				before, fpu := *st, *g.e.FPU()
				x := g.e.Run()
				after := before
				if x.Kind == ExitException && x.Vector == x86.VecUD {
					served++
					v := want(leaf, sub)
					after.GPR[x86.RAX], after.GPR[x86.RBX] = uint64(v.A), uint64(v.B)
					after.GPR[x86.RCX], after.GPR[x86.RDX] = uint64(v.C), uint64(v.D)
					after.RIP += 2
				} else if x.Kind != ExitNeedStep {
					t.Fatalf("leaf %#x, %#x: %v %+v", leaf, sub, x.Kind, x)
				}
				if st.GPR != after.GPR || st.RIP != after.RIP || st.RFLAGS&^x86.FlagRF != after.RFLAGS || st.Seg != after.Seg {
					t.Fatalf("leaf %#x, %#x, %v: %+v\n want %+v", leaf, sub, x.Kind, *st, after)
				}
				if got := g.word(st.GPR[x86.RSP] - 8); string(imm64(got)) != string(red) {
					t.Fatalf("red zone %#x", got)
				}
				if got := g.e.FPU(); [32]byte(got.Area[160:]) != [32]byte(fpu.Area[160:]) {
					t.Fatalf("vector registers % x", got.Area[160:192])
				}
			}
		}
	}
	if n := g.e.Stats().CPUIDs; n != served || n < 32*uint64(len(subs)) {
		t.Errorf("%d served, counted %d", served, n)
	}
	// CR4.OSXSAVE and XCR0 show (SDM vol. 2A, CPUID, leaves 1 and 0DH).
	for _, xcr0 := range []uint64{1, 3, 7} {
		for _, cr4 := range []uint64{0, x86.CR4OSXSAVE} {
			st.XCR0 = xcr0
			st.CR4 = st.CR4&^x86.CR4OSXSAVE | cr4
			for leaf := range uint32(0xe) {
				st.RIP, st.GPR[x86.RAX], st.GPR[x86.RCX] = codeVA, uint64(leaf), 0
				v := want(leaf, 0)
				g.wantException(x86.VecUD)
				if st.GPR[x86.RBX] != uint64(v.B) || st.GPR[x86.RCX] != uint64(v.C) {
					t.Errorf("xcr0 %d, cr4 %#x, leaf %#x: %#x, %#x, want %#x", xcr0, cr4, leaf, st.GPR[x86.RBX], st.GPR[x86.RCX], v)
				}
			}
		}
	}
}

// TestCPUIDLeft has CPUIDs that are the monitor's.
func TestCPUIDLeft(t *testing.T) {
	t.Run("single step", func(t *testing.T) {
		g := newGuest(t, cpuidUD2, Config{})
		showCPUID(g.e)
		g.st.RFLAGS |= x86.FlagTF
		g.want(ExitNeedStep)
		g.wantRIP(codeVA)
	})
	t.Run("prefix", func(t *testing.T) {
		g := newGuest(t, cat([]byte{0x66}, cpuidUD2), Config{})
		showCPUID(g.e)
		g.want(ExitNeedStep)
		g.wantRIP(codeVA)
	})
	t.Run("segment loaded", func(t *testing.T) {
		g := newGuest(t, cat([]byte{0xba}, imm32(selData), []byte{0x8e, 0xe2}, cpuidUD2), Config{}) // mov edx, sel; mov fs, edx
		showCPUID(g.e)
		g.want(ExitNeedStep)
		g.wantRIP(codeVA + 7)
		if g.st.Seg[x86.FS].Sel != selData {
			t.Errorf("fs %#x", g.st.Seg[x86.FS].Sel)
		}
		g.wantException(x86.VecUD)
	})
	t.Run("hlt", func(t *testing.T) {
		g := newGuest(t, cat([]byte{0xf4}, cpuidUD2), Config{})
		showCPUID(g.e)
		g.want(ExitNeedStep)
		g.wantRIP(codeVA)
		g.st.RIP++
		g.wantException(x86.VecUD)
	})
}

func TestCPUID32(t *testing.T) {
	g := newGuest(t, cpuidUD2, Config{})
	v := showCPUID(g.e)(0, 0)
	g.mode32()
	g.wantException(x86.VecUD)
	if st := g.st; st.GPR[x86.RAX] != uint64(v.A) || st.GPR[x86.RBX] != uint64(v.B) || st.Seg[x86.CS].Sel != selCS32 {
		t.Errorf("%+v", st)
	}
}

// TestCPUIDLists maps, changes and unmaps pages with CPUIDs: stubs serve those
// that are there.
func TestCPUIDLists(t *testing.T) {
	const other = 0x7000_0000
	g := newGuest(t, cpuidUD2, Config{MaxStubs: 1})
	showCPUID(g.e)
	page := g.gpa(codeVA)
	run := func(at uint64, k ExitKind) {
		t.Helper()
		g.st.RIP, g.st.GPR[x86.RAX] = at, 0
		g.want(k)
	}
	list := func(want ...uint64) {
		t.Helper()
		l := cpuids(g.e.cur.p.slot)
		if n := int(l.N); n != len(want) || n != len(g.e.cur.cpuids) {
			t.Fatalf("%d listed, want %#x", n, want)
		}
		for i, a := range want {
			if l.Addr[i] != a {
				t.Errorf("%#x listed, want %#x", l.Addr[i], a)
			}
		}
	}
	g.mapPage(other, page, pteUser)
	run(codeVA, ExitException)
	run(other, ExitException)
	list(codeVA, other)
	// One address is unmapped.
	*g.pte(codeVA) = g.page([]byte{0xf4}) | pteUser
	g.e.Flush(Flush{Kind: FlushAll})
	run(other, ExitException)
	list(other)
	run(codeVA, ExitNeedStep)
	// The page changes.
	g.mem.Changed(page, 1)
	g.poke(other, cat([]byte{0x90}, cpuidUD2))
	run(other, ExitException)
	list(other + 1)
	// A hostile program lists its own, and its stub gets another address space.
	l := cpuids(g.e.cur.p.slot)
	l.N, l.Addr[0] = 1, codeVA
	run(codeVA, ExitException) // it has what it wants: its HLT is a CPUID
	g.newTables()
	g.mapPage(codeVA, g.page([]byte{0xf4}), pteUser)
	run(codeVA, ExitNeedStep)
	list()
}

// TestCPUIDKicked kicks all the time a program that checks what CPUID does:
//
//	1: inc r9; wrfsbase r9; movq xmm5, r9; mov [rsp-8], r9
//	   mov eax, r8d; xor ecx, ecx; stc; cpuid; jnc bad
//	   cmp eax, r12d; jne bad; cmp ebx, r13d; jne bad; cmp ecx, r14d; jne bad; cmp edx, r15d; jne bad
//	   cmp [rsp-8], r9; jne bad; movq rax, xmm5; cmp rax, r9; jne bad
//	   rdfsbase rax; cmp rax, r9; jne bad; jmp 1b
//	bad: int3
func TestCPUIDKicked(t *testing.T) {
	var code []byte
	var fixes []int
	op := func(b ...byte) { code = append(code, b...) }
	bad := func(cc byte) { op(cc, 0); fixes = append(fixes, len(code)) }
	op(0x49, 0xff, 0xc1)
	op(0xf3, 0x49, 0x0f, 0xae, 0xd1)
	op(0x66, 0x49, 0x0f, 0x6e, 0xe9)
	op(0x4c, 0x89, 0x4c, 0x24, 0xf8)
	op(0x44, 0x89, 0xc0, 0x31, 0xc9, 0xf9, 0x0f, 0xa2)
	bad(0x73)
	for _, b := range []byte{0xe0, 0xeb, 0xf1, 0xfa} { // eax, r12d; ebx, r13d; ecx, r14d; edx, r15d
		op(0x44, 0x39, b)
		bad(0x75)
	}
	op(0x4c, 0x39, 0x4c, 0x24, 0xf8)
	bad(0x75)
	op(0x66, 0x48, 0x0f, 0x7e, 0xe8, 0x4c, 0x39, 0xc8)
	bad(0x75)
	op(0xf3, 0x48, 0x0f, 0xae, 0xc0, 0x4c, 0x39, 0xc8)
	bad(0x75)
	op(0xeb, byte(-len(code)-2))
	for _, at := range fixes {
		code[at-1] = byte(len(code) - at)
	}
	op(0xcc)
	g := newGuest(t, code, Config{})
	const leaf = 1
	v := showCPUID(g.e)(leaf, 0)
	st := g.st
	st.GPR[x86.R8] = leaf
	st.GPR[x86.R12], st.GPR[x86.R13], st.GPR[x86.R14], st.GPR[x86.R15] = uint64(v.A), uint64(v.B), uint64(v.C), uint64(v.D)
	ticker(t, g.e, 50*time.Microsecond)
	for start := time.Now(); time.Since(start) < time.Second; {
		if x := g.e.Run(); x.Kind != ExitKick {
			t.Fatalf("%v %+v at %#x: %+v", x.Kind, x, st.RIP, st)
		}
		if st.RIP-codeVA >= uint64(len(code)) {
			t.Fatalf("kicked at rip %#x", st.RIP)
		}
		if d := st.GPR[x86.R9] - st.Seg[x86.FS].Base; d > 1 {
			t.Fatalf("kicked at rip %#x with fs base %#x, r9 %#x", st.RIP, st.Seg[x86.FS].Base, st.GPR[x86.R9])
		}
		// What has no frame of its own moves, too.
		if st.GPR[x86.R9]%16 == 0 {
			g.e.FPU()
		}
	}
	s := g.e.Stats()
	if s.CPUIDs < 1000 || s.CPUIDs > st.GPR[x86.R9] || st.GPR[x86.R9]-s.CPUIDs > 1 {
		t.Errorf("%d served in %d rounds", s.CPUIDs, st.GPR[x86.R9])
	}
	t.Logf("%d rounds, %d kicks", st.GPR[x86.R9], s.Exits[ExitKick])
}

// TestCPUIDPaired has CPUID between system calls that are handed over.
func TestCPUIDPaired(t *testing.T) {
	const n = 3000
	// The called function starts with mov ebp, ebx; xor eax, eax; cpuid; mov
	// ebx, ebp, and loads its arguments again.
	code := callerCode(n, []byte{0xf4})
	g := newPairGuest(t, cat(code[:0x80], []byte{0x89, 0xdd, 0x31, 0xc0, 0x0f, 0xa2, 0x89, 0xeb, 0x89, 0xd8, 0xbf, 7, 0, 0, 0}, code[0x80:]))
	showCPUID(g.u)
	ticker(t, g.u, 200*time.Microsecond)
	x := g.run()
	if x.Kind != ExitNeedStep || g.st.RIP != codeVA+28 || g.st.GPR[x86.RBX] != 0 {
		t.Fatalf("exit %+v at %#x, rbx %#x", x, g.st.RIP, g.st.GPR[x86.RBX])
	}
	s := g.u.Stats()
	if s.CPUIDs < n-10 || s.Handed < n/2 {
		t.Errorf("%d served, %d of %d system calls were handed over", s.CPUIDs, s.Handed, n)
	}
}
