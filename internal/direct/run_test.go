package direct

import (
	"testing"
	"time"

	"ring3/internal/cpu"
	"ring3/internal/x86"
)

func TestSyscallRegisters(t *testing.T) {
	// not of every register but RSP, then SYSCALL
	var code []byte
	for r := range 16 {
		if r != x86.RSP {
			code = append(code, 0x48|byte(r>>3), 0xf7, 0xd0|byte(r&7)) // not r64
		}
	}
	at := uint64(len(code))
	code = append(code, 0x0f, 0x05)
	g := newGuest(t, code, Config{})
	for round := range 3 {
		var want [16]uint64
		for r := range 16 {
			if r != x86.RSP {
				g.st.GPR[r] = 0x0123456789abcdef*uint64(r+1) + uint64(round)
				want[r] = ^g.st.GPR[r]
			}
		}
		want[x86.RSP] = g.st.GPR[x86.RSP]
		g.st.RIP = codeVA
		g.st.Seg[x86.FS].Base, g.st.Seg[x86.GS].Base = 0x7f0012345678, 0xffff800000001000
		g.want(ExitSyscall)
		g.wantRIP(codeVA + at)
		want[x86.RCX] = codeVA + at + 2
		want[x86.R11] = g.st.GPR[x86.R11]
		if g.st.GPR != want {
			t.Errorf("registers\n%x, want\n%x", g.st.GPR, want)
		}
		if f := g.st.GPR[x86.R11]; f&x86.FlagIF == 0 {
			t.Errorf("r11 %#x is not RFLAGS", f)
		}
		if g.st.Seg[x86.FS].Base != 0x7f0012345678 || g.st.Seg[x86.GS].Base != 0xffff800000001000 {
			t.Errorf("bases %#x %#x", g.st.Seg[x86.FS].Base, g.st.Seg[x86.GS].Base)
		}
	}
}

func TestPageFaults(t *testing.T) {
	load := []byte{0x48, 0x8b, 0x03}  // mov rax, [rbx]
	store := []byte{0x48, 0x89, 0x03} // mov [rbx], rax
	jump := []byte{0xff, 0xe3}        // jmp rbx
	g := newGuest(t, cat(load, insnSyscall), Config{NoEager: true})
	g.poke(codeVA+0x100, cat(store, insnSyscall))
	g.poke(codeVA+0x1ff, cat([]byte{0x53}, jump)) // push rbx; jmp rbx
	g.poke(dataVA, imm64(0x1122334455667788))

	// Lazily mapped; A set, D not.
	g.st.GPR[x86.RBX] = dataVA
	g.want(ExitSyscall)
	if g.st.GPR[x86.RAX] != 0x1122334455667788 {
		t.Errorf("loaded %#x", g.st.GPR[x86.RAX])
	}
	if f := *g.pte(dataVA); f&(x86.PTEAccessed|x86.PTEDirty) != x86.PTEAccessed {
		t.Errorf("pte %#x after a load", f)
	}
	// Write upgrade sets D.
	g.st.RIP, g.st.GPR[x86.RAX] = codeVA+0x100, 42
	g.want(ExitSyscall)
	if f := *g.pte(dataVA); f&x86.PTEDirty == 0 {
		t.Errorf("pte %#x after a store", f)
	}
	if g.word(dataVA) != 42 {
		t.Errorf("stored %d", g.word(dataVA))
	}
	for _, c := range []struct {
		name      string
		rip, addr uint64
		code      uint32
	}{
		{"load unmapped", codeVA, 0x700000, 4},
		{"load upper half", codeVA, 0xffff888000000000, 4},
		{"load lowest page", codeVA, 0, 4},
		{"store unmapped", codeVA + 0x100, 0x700008, 6},
		{"store read-only", codeVA + 0x100, codeVA, 7},
		{"fetch unmapped", codeVA + 0x200, 0x700000, 0x14},
		{"fetch no-execute", codeVA + 0x200, dataVA, 0x15},
		{"fetch upper half", codeVA + 0x200, 0xffffffff81000000, 0x14},
		{"fetch vsyscall page", codeVA + 0x200, 0xffffffffff600000, 0x14},
		{"fetch vsyscall page, stack mapped", codeVA + 0x1ff, 0xffffffffff600000, 0x14},
	} {
		g.st.RIP, g.st.GPR[x86.RBX] = c.rip, c.addr
		sp := g.st.GPR[x86.RSP]
		x := g.e.Run()
		if x.Kind != ExitException || x.Vector != x86.VecPF || !x.HasErr || x.ErrCode != c.code || x.CR2 != c.addr {
			t.Errorf("%s: %#x/%#x %v %+v at %#x", c.name, x.ErrCode, c.code, x.Kind, x, g.st.RIP)
		}
		rip := c.rip
		if c.rip >= codeVA+0x1ff {
			rip = c.addr
		}
		if c.rip == codeVA+0x1ff {
			sp -= 8
		}
		if g.st.RIP != rip || g.st.GPR[x86.RSP] != sp {
			t.Errorf("%s: rip %#x rsp %#x, want %#x", c.name, g.st.RIP, g.st.GPR[x86.RSP], sp)
		}
	}
	// Non-canonical and outside RAM.
	g.st.RIP, g.st.GPR[x86.RBX] = codeVA, 0x8000_0000_0000_0000
	g.want(ExitNeedStep)
	g.wantRIP(codeVA)
	g.mapPage(0x700000, 0xfee00000, pteRW)
	g.st.GPR[x86.RBX] = 0x700000
	g.want(ExitNeedStep)
	g.wantRIP(codeVA)
}

func TestExceptions(t *testing.T) {
	g := newGuest(t, nil, Config{})
	for i, c := range []struct {
		name string
		code []byte
		vec  uint8
		off  uint64 // of the reported RIP
	}{
		{"div by zero", []byte{0x31, 0xc9, 0xf7, 0xf1}, x86.VecDE, 2},       // xor ecx,ecx; div ecx
		{"ud2", []byte{0x90, 0x0f, 0x0b}, x86.VecUD, 1},                     // nop; ud2
		{"int3", []byte{0x90, 0xcc}, x86.VecBP, 2},                          // nop; int3
		{"unmasked SSE", []byte{0x0f, 0xae, 0x13, 0x0f, 0x5e, 0xc1}, 19, 3}, // ldmxcsr [rbx]; divps xmm0, xmm1
	} {
		at := codeVA + uint64(i)*64
		g.poke(at, c.code)
		g.poke(dataVA, imm32(0)) // MXCSR: all exceptions unmasked
		g.st.RIP, g.st.GPR[x86.RBX] = at, dataVA
		x := g.e.Run()
		if x.Kind != ExitException || x.Vector != c.vec || g.st.RIP != at+c.off {
			t.Errorf("%s: %v %+v at +%#x", c.name, x.Kind, x, g.st.RIP-at)
		}
	}
	for i, c := range [][]byte{
		{0xf4},             // hlt
		{0xec},             // in al, dx
		{0xcd, 0x20},       // int 20h
		{0xfa},             // cli
		{0x0f, 0x20, 0xc0}, // mov rax, cr0
		{0x8e, 0xd8},       // mov ds, eax with a bad selector
		{0xcd, 0x80},       // int 80h: seccomp, not #GP
		{0x0f, 0xc7, 0xf8}, // (rdseed eax) is fine: see below
	} {
		if i == 7 {
			break
		}
		at := codeVA + 0x400 + uint64(i)*64
		g.poke(at, c)
		g.st.RIP, g.st.GPR[x86.RAX], g.st.GPR[x86.RDX] = at, 0x123, 0x3f8
		if x := g.e.Run(); x.Kind != ExitNeedStep || g.st.RIP != at || g.st.GPR[x86.RAX] != 0x123 {
			t.Errorf("% x: %v %+v at +%#x rax %#x", c, x.Kind, x, g.st.RIP-at, g.st.GPR[x86.RAX])
		}
	}
}

func TestSingleStep(t *testing.T) {
	g := newGuest(t, []byte{0x90, 0x90, 0xff, 0xc0, 0x9c, 0x0f, 0x05}, Config{}) // nop; nop; inc eax; pushf; syscall
	g.st.RFLAGS |= x86.FlagTF
	g.st.GPR[x86.RAX] = 7
	for _, off := range []uint64{1, 2, 4, 5} {
		g.st.DR[6] = 0xffff0ff0
		g.wantException(x86.VecDB)
		g.wantRIP(codeVA + off)
		if g.st.DR[6]&(1<<14) == 0 {
			t.Error("DR6.BS is clear")
		}
	}
	if g.st.GPR[x86.RAX] != 8 {
		t.Errorf("eax %d", g.st.GPR[x86.RAX])
	}
	if f := g.word(g.st.GPR[x86.RSP]); f&x86.FlagTF == 0 {
		t.Errorf("pushed flags %#x", f)
	}
	g.want(ExitSyscall)
	g.wantRIP(codeVA + 5)
}

func TestCompat(t *testing.T) {
	// mov eax,[ebx]; inc dword [ebx]; int 80h
	g := newGuest(t, []byte{0x8b, 0x03, 0xff, 0x03, 0xcd, 0x80}, Config{})
	g.mode32()
	stack := uint64(0x0800_0000)
	g.mapPage(stack-4096, g.page(nil), pteRW)
	g.st.GPR[x86.RSP] = stack - 16
	g.st.GPR[x86.RBX] = dataVA
	g.poke(dataVA, imm32(1234))
	g.want(ExitNeedStep)
	g.wantRIP(codeVA + 4)
	if g.st.GPR[x86.RAX] != 1234 || g.word(dataVA) != 1235 {
		t.Errorf("eax %d, memory %d", g.st.GPR[x86.RAX], g.word(dataVA))
	}
	// Far jump to 64-bit code, there SYSCALL.
	g.poke(codeVA+0x100, cat([]byte{0xea}, imm32(codeVA+0x200), []byte{0x33, 0}))
	g.poke(codeVA+0x200, []byte{0x49, 0xff, 0xc0, 0x0f, 0x05}) // inc r8; syscall
	gdt := g.page(nil)
	g.mapPage(0xffff_8000_0000_0000, gdt, x86.PTEPresent|x86.PTEWrite)
	g.st.GDTR = cpu.Table{Base: 0xffff_8000_0000_0000, Limit: 127}
	g.mem.WriteAt(imm64(0x00affb000000ffff), gdt+0x30)
	g.st.RIP = codeVA + 0x100
	g.want(ExitSyscall)
	if g.st.Seg[x86.CS].Sel != 0x33 || !g.st.Code64() || g.st.GPR[x86.R8] != 1 {
		t.Errorf("cs %+v r8 %d", g.st.Seg[x86.CS], g.st.GPR[x86.R8])
	}
	// TLS through GDT entry 12: mov gs, eax; mov eax, gs:[4]; int 80h
	g.mode32()
	const tlsBase = dataVA + 0x100
	g.mem.WriteAt(imm64(0x00cff3000000ffff|tlsBase&0xffffff<<16|tlsBase>>24<<56), gdt+0x60)
	g.poke(tlsBase+4, imm32(0xabcd))
	g.poke(codeVA+0x300, []byte{0x8e, 0xe8, 0x65, 0xa1, 4, 0, 0, 0, 0xcd, 0x80})
	g.st.RIP, g.st.GPR[x86.RAX] = codeVA+0x300, 0x63
	g.want(ExitNeedStep)
	g.wantRIP(codeVA + 0x308)
	if g.st.GPR[x86.RAX] != 0xabcd || g.st.Seg[x86.GS].Sel != 0x63 || g.st.Seg[x86.GS].Base != tlsBase {
		t.Errorf("eax %#x gs %+v", g.st.GPR[x86.RAX], g.st.Seg[x86.GS])
	}
	// The guest kernel changes the entry; the base follows.
	g.mem.WriteAt(imm64(0x00cff3000000ffff|(tlsBase+8)&0xffffff<<16), gdt+0x60)
	g.poke(tlsBase+12, imm32(0x5678))
	g.st.Seg[x86.GS].Base = tlsBase + 8
	g.st.RIP = codeVA + 0x302
	g.want(ExitNeedStep)
	if g.st.GPR[x86.RAX] != 0x5678 {
		t.Errorf("eax %#x after a change of the descriptor", g.st.GPR[x86.RAX])
	}
}

// A kick that comes between the preparation of a stub and its command finds
// segment registers that are not loaded yet. They were taken for loaded, and
// 32-bit code then ran with a null GS.
func TestKickBeforeSelectors(t *testing.T) {
	g := newGuest(t, []byte{0x65, 0xa1, 4, 0, 0, 0, 0xcd, 0x80}, Config{}) // mov eax, gs:[4]; int 80h
	g.mode32()
	const tlsBase = dataVA + 0x100
	gdt := g.page(nil)
	g.mapPage(0xffff_8000_0000_0000, gdt, x86.PTEPresent|x86.PTEWrite)
	g.st.GDTR = cpu.Table{Base: 0xffff_8000_0000_0000, Limit: 127}
	g.mem.WriteAt(imm64(0x00cff3000000ffff|tlsBase&0xffffff<<16|tlsBase>>24<<56), gdt+0x60)
	g.poke(tlsBase+4, imm32(0xabcd))
	g.st.Seg[x86.GS] = g.st.Seg[x86.DS]
	g.st.Seg[x86.GS].Sel, g.st.Seg[x86.GS].Base = 0x63, tlsBase
	s, err := g.e.space()
	if err != nil {
		t.Fatal(err)
	}
	if err := g.e.prepare(s); err != nil {
		t.Fatal(err)
	}
	g.e.kick.pending.Store(true)
	if kicked, _, err := g.e.enter(s); !kicked || err != nil {
		t.Fatalf("enter with a kick pending: %v, %v", kicked, err)
	}
	g.e.kick.pending.Store(false)
	g.want(ExitNeedStep)
	g.wantRIP(codeVA + 6)
	if g.st.GPR[x86.RAX] != 0xabcd {
		t.Errorf("eax %#x", g.st.GPR[x86.RAX])
	}
}

func TestKick(t *testing.T) {
	g := newGuest(t, []byte{0xff, 0xc0, 0xeb, 0xfc}, Config{}) // inc eax; jmp back
	g.e.Kick()
	g.want(ExitKick) // also when nothing runs yet
	start := time.Now()
	for i := range 3000 {
		kickAfter(g.e, time.Duration(i*7919%101)*time.Microsecond)
		g.want(ExitKick)
		if rip := g.st.RIP; rip != codeVA && rip != codeVA+2 {
			t.Fatalf("rip %#x", rip)
		}
	}
	t.Logf("%v a kick; %+v", time.Since(start)/3000, g.e.Stats())
}

// A kick must not lose or change a register, wherever it finds the stub.
func TestKickStorm(t *testing.T) {
	// mov rcx, 2000; loop: add rax, 1; vector too: paddq xmm0, xmm1; syscall-free; loop; syscall
	g := newGuest(t, cat(
		[]byte{0x48, 0xff, 0xc0},       // inc rax
		[]byte{0x66, 0x0f, 0xd4, 0xc1}, // paddq xmm0, xmm1
		[]byte{0x48, 0xff, 0xc9},       // dec rcx
		[]byte{0x75, 0xf4},             // jnz back
		insnSyscall), Config{})
	f := g.e.FPU()
	f.Area[512] = 3    // x87, SSE
	f.Area[160+16] = 1 // xmm1 = 1
	stop := make(chan bool)
	go func() {
		for {
			select {
			case <-stop:
				return
			default:
				g.e.Kick()
				for range 300 {
				}
			}
		}
	}()
	var total uint64
	kicks := 0
	deadline := time.Now().Add(3 * time.Second)
	for time.Now().Before(deadline) {
		g.st.RIP, g.st.GPR[x86.RCX] = codeVA, 200
		for {
			x := g.e.Run()
			if x.Kind == ExitKick {
				kicks++
				continue
			}
			if x.Kind != ExitSyscall {
				t.Fatalf("%v %+v", x.Kind, x)
			}
			break
		}
		total += 200
		if g.st.GPR[x86.RAX] != total {
			t.Fatalf("rax %d, want %d", g.st.GPR[x86.RAX], total)
		}
	}
	close(stop)
	if f := g.e.FPU(); uint64(f.Area[160])|uint64(f.Area[161])<<8|uint64(f.Area[162])<<16|uint64(f.Area[163])<<24 != total {
		t.Errorf("xmm0 % x, want %x", f.Area[160:176], total)
	}
	t.Logf("%d kicks, %d rounds; %+v", kicks, total/200, g.e.Stats())
}
