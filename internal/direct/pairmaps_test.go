package direct

import (
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"
	"time"

	"ring3/internal/direct/stub"
	"ring3/internal/x86"
)

// remapCode is a system call that makes entry RDI of the table at kPT RSI, and
// invalidates RDX:
//
//	swapgs; mov [gs:10], rsp; mov rsp, [gs:18]; push r11; push rcx
//	mov rax, kPT; mov [rax+rdi*8], rsi; invlpg [rdx]; inc qword [gs:20]
//	pop rcx; pop r11; mov rsp, [gs:10]; swapgs; sysretq
var remapCode = cat([]byte{0x0f, 0x01, 0xf8}, gsWord(0x89, x86.RSP, 0x10), gsWord(0x8b, x86.RSP, 0x18), []byte{0x41, 0x53, 0x51},
	[]byte{0x48, 0xb8}, imm64(kPT), []byte{0x48, 0x89, 0x34, 0xf8, 0x0f, 0x01, 0x3a}, gsWord(0xff, 0, 0x20),
	[]byte{0x59, 0x41, 0x5b}, gsWord(0x8b, x86.RSP, 0x10), []byte{0x0f, 0x01, 0xf8, 0x48, 0x0f, 0x07})

// remapProgram changes what pages of the area are, and reads and writes them
// then. R10 becomes what result says.
func remapProgram(r *rand.Rand, frames uint64, n int) (code []byte, result uint64) {
	emit := func(b ...byte) { code = append(code, b...) }
	set := func(reg int, v uint64) {
		emit(byte(0x48|reg>>3), byte(0xb8|reg&7))
		emit(imm64(v)...)
	}
	const pages, backing = 12, 40
	content := make([]uint64, backing)
	for i := range content {
		content[i] = uint64(i)
	}
	for i := range n {
		// One to three at once: the last one is used.
		var page, frame uint64
		write := false
		for range 1 + r.IntN(3) {
			page, frame = uint64(r.IntN(pages)), uint64(r.IntN(backing))
			pte := frames + frame*4096 | pteUser | x86.PTENX | x86.PTEAccessed
			if write = r.IntN(2) == 0; write {
				pte |= x86.PTEWrite | x86.PTEDirty
			}
			set(x86.RDI, page)
			set(x86.RSI, pte)
			set(x86.RDX, areaVA+page*4096+uint64(r.IntN(4096)))
			emit(0x0f, 0x05)
		}
		set(x86.RDI, areaVA+page*4096)
		emit(0x4d, 0x6b, 0xd2, 31) // imul r10, r10, 31
		emit(0x4c, 0x03, 0x57, 8)  // add r10, [rdi+8]
		result = result*31 + content[frame]
		if write {
			set(x86.RBX, uint64(i+1000))
			emit(0x48, 0x89, 0x5f, 8) // mov [rdi+8], rbx
			content[frame] = uint64(i + 1000)
		}
	}
	return code, result
}

// sum runs a program, kicked every so often, which is to make R10 want.
func (g *faultGuest) sum(code []byte, every time.Duration, want uint64) {
	g.t.Helper()
	end := codeVA + uint64(len(code))
	code = append(code, 0xf4)
	for off := 0; off < len(code); off += 4096 {
		g.mapPage(codeVA+uint64(off), g.page(code[off:min(off+4096, len(code))]), pteUser|x86.PTEAccessed)
	}
	if every != 0 {
		ticker(g.t, g.u, every)
	}
	g.st.GPR[x86.R10] = 0
	g.runTo(end)
	if got := g.st.GPR[x86.R10]; got != want {
		g.t.Errorf("the program has read %#x, want %#x", got, want)
	}
}

// TestPairRemap has pages change under a program, by INVLPG in translated code:
// what it reads is what its page tables say at every moment, quietly and kicked
// all the time.
func TestPairRemap(t *testing.T) {
	for _, every := range []time.Duration{0, 300 * time.Microsecond, 30 * time.Microsecond} {
		t.Run(fmt.Sprint("kicks ", every), func(t *testing.T) {
			g := newFaultGuest(t, nil, true)
			g.poke(kCode, remapCode)
			g.mem.Changed(g.gpa(kCode), len(remapCode))
			for i := range uint64(40) {
				g.mem.WriteAt(imm64(i), g.frames+4096*i+8)
				g.mem.AllowStubWrite(g.frames + 4096*i)
			}
			for i := range uint64(512) {
				g.poke(kPT+8*i, imm64(0))
				g.poke(kWant+8*i, imm64(g.frames|pteUser|x86.PTENX|x86.PTEAccessed))
			}
			code, want := remapProgram(rand.New(rand.NewPCG(1, 9)), g.frames, 500)
			told := 0
			invalidated := g.u.cfg.Invalidated
			g.u.cfg.Invalidated = func(va uint64) { told++; invalidated(va) }
			g.sum(code, every, want)
			s := g.u.stats
			t.Logf("%d pages mapped and unmapped while the monitor slept, which was told of %d; %d system calls and %d faults handed over",
				s.Changes, told, s.Handed, s.HandedFaults)
			if every == 0 && (s.Changes < 500 || told < 500) {
				t.Error("those are too few")
			}
		})
	}
}

// TestPairMaps has a program touch pages that its kernel makes present at the
// fault: the stubs map them, and the monitor's books say so when it wakes.
func TestPairMaps(t *testing.T) {
	for _, every := range []time.Duration{0, 300 * time.Microsecond, 30 * time.Microsecond} {
		t.Run(fmt.Sprint("kicks ", every), func(t *testing.T) {
			g := newFaultGuest(t, nil, true)
			g.poke(kFault, faultHandlerAs(false))
			for i := range uint64(512) {
				frame := g.frames + 4096*i
				g.mem.WriteAt(imm64(i), frame+8)
				g.mem.AllowStubWrite(frame)
				g.poke(kPT+8*i, imm64(0))
				g.poke(kWant+8*i, imm64(frame|pteUser|x86.PTENX|x86.PTEAccessed))
				g.poke(kWant+0x2000+8*i, imm64(frame|pteRW|x86.PTENX|x86.PTEAccessed|x86.PTEDirty))
			}
			var code []byte
			var want uint64
			r := rand.New(rand.NewPCG(2, 7))
			content := map[uint64]uint64{}
			for i := range 700 {
				page := uint64(r.IntN(512))
				if _, ok := content[page]; !ok {
					content[page] = page
				}
				code = cat(code, []byte{0x48, 0xbf}, imm64(areaVA+4096*page))
				if r.IntN(2) == 0 {
					code = cat(code, []byte{0x48, 0xc7, 0x47, 8}, imm32(uint32(i+1000))) // mov qword [rdi+8], imm32
					content[page] = uint64(i + 1000)
				}
				code = cat(code, []byte{0x4d, 0x6b, 0xd2, 31, 0x4c, 0x03, 0x57, 8}) // imul r10, r10, 31; add r10, [rdi+8]
				want = want*31 + content[page]
			}
			g.sum(code, every, want)
			for i := range uint64(512) {
				ent, pte := g.u.cur.get(areaVA+4096*i), g.word(kPT+8*i)
				if ent != 0 && (pte&x86.PTEPresent == 0 || ent.gpa() != pte&x86.PTEAddr || ent&entWrite != 0 && pte&x86.PTEWrite == 0) {
					t.Errorf("page %d is in the books as %#x, in the page table as %#x", i, ent, pte)
				}
			}
			s := g.u.stats
			t.Logf("%d changes while the monitor slept; %d faults handed over, %d of the host, %d hints", s.Changes, s.HandedFaults, s.HostFaults, s.Hints)
			if s.Changes < s.HandedFaults/2 {
				t.Error("those are too few")
			}
		})
	}
}

// TestPairListensNot has programs that hand a fault over and run on, waiting for
// the secrets of the call that would map a page.
func TestPairListensNot(t *testing.T) {
	defer func(d time.Duration) { nap = d }(nap)
	nap = time.Millisecond
	g := newTwoPrograms(t)
	handler := faultHandlerAs(false)
	g.poke(kFault, handler)
	g.mem.Changed(g.gpa(kFault), len(handler))
	const done, calls, callSize = 0x200, 0x240, 64
	// RDI is the hand-over page, R8 a page of its own.
	store := func(off, v uint32) []byte { return cat([]byte{0x48, 0xc7, 0x87}, imm32(off), imm32(v)) }
	page := uint32(areaVA + 0x5000)
	b := cat(store(0x1d0, hSpin), store(0x1d8, 0x202), store(0x1e0, page), store(0x1e8, 6),
		[]byte{0xc7, 0x07, stub.BellFault, 0, 0, 0}, // mov dword [rdi], BellFault
		[]byte{0xc7, 0x87}, imm32(done), imm32(1))   // mov dword [rdi+done], 1
	for _, off := range []uint32{calls + 24, calls + 32, calls + 40, calls + 48, calls + callSize + 40, calls + callSize + 48} {
		b = cat(b, []byte{0x48, 0x8b, 0x87}, imm32(off), []byte{0x49, 0x09, 0x00}) // mov rax, [rdi+off]; or [r8], rax
	}
	b = cat(b, []byte{0xe9}, imm32(uint32(-len(b)-5)))
	const at = codeVA + 0x400
	g.st.CR3 = g.hostile
	g.poke(at, b)
	*g.pte(areaVA) = 0
	table := g.st.CR3 & x86.CR3Addr
	for shift := 39; shift > 12; shift -= 9 {
		w := g.mem.Word(table + areaVA>>shift&511*8)
		*w |= x86.PTEAccessed // what is to be set is the monitor's
		table = *w & x86.PTEAddr
	}
	g.mapPage(kPT, table, kernelRW)
	for i := range uint64(512) {
		g.poke(kWant+0x2000+8*i, imm64((g.frames+4096*i)|pteRW|x86.PTENX|x86.PTEAccessed|x86.PTEDirty))
		g.mem.AllowStubWrite(g.frames + 4096*i)
	}
	g.k.Flush(Flush{Kind: FlushAll})
	// The program's own faults first, so that the handler is translated.
	var touch []byte
	for i := range uint32(8) {
		touch = cat(touch, []byte{0x89, 0x04, 0x25}, imm32(areaVA+0x20000+i<<12)) // mov [page], eax
	}
	const touchAt = at + 0x200
	g.poke(touchAt, append(touch, 0xf4))
	for range 3 {
		for i := range uint64(8) {
			g.poke(kPT+8*(0x20+i), imm64(0))
		}
		g.u.Flush(Flush{Kind: FlushAll})
		g.k.Flush(Flush{Kind: FlushAll})
		g.user(g.hostile, touchAt)
		g.runTo(touchAt + uint64(len(touch)))
	}
	if g.u.stats.Changes < 8 {
		t.Fatalf("%d pages mapped while the monitor slept: the test tests nothing", g.u.stats.Changes)
	}
	ticker(t, g.u, 3*time.Millisecond)
	events := uint64(0)
	for i := range 4 {
		g.poke(kPT+8*5, imm64(0))
		g.poke(kCPU+0x28, imm64(kLog))
		before := g.word(kCPU + 0x20)
		g.user(g.hostile, at)
		g.st.GPR[x86.RDI], g.st.GPR[x86.R8] = g.u.zygote.prog.Base+stub.HandoffOff, hBuf
		for start := time.Now(); time.Since(start) < 30*time.Millisecond; {
			if x, ok := g.runFor(5 * time.Millisecond); ok && x.Kind == ExitDied {
				break
			} else if ok {
				t.Fatalf("exit %v %+v at %#x", x.Kind, x, g.st.RIP)
			}
		}
		events += g.word(kCPU+0x20) - before
		g.st.CR3 = g.hostile
		if v := g.word(hBuf); v != 0 {
			t.Fatalf("round %d: the program has seen %#x", i, v)
		}
	}
	t.Logf("the kernel saw %d faults; %d stubs died", events, g.u.stats.Deaths)
	if events == 0 {
		t.Error("the attack did not reach the kernel")
	}
}

// TestPairTables has a program use RAM in more places than the monitor's books
// allow, as one can whose kernel gives its secrets away. Its stub is given up.
func TestPairTables(t *testing.T) {
	// 1: mov rax, [rdi]; add rdi, 2 MiB; dec rsi; jnz 1b; 2: syscall; jmp 2b
	code := cat([]byte{0x48, 0x8b, 0x07, 0x48, 0x81, 0xc7}, imm32(2<<20), []byte{0x48, 0xff, 0xce, 0x75, 0xf1, 0x0f, 0x05, 0xeb, 0xfc})
	g := newPairGuest(t, cat(code, []byte{0xf4}))
	ticker(t, g.u, 5*time.Millisecond)
	g.st.RIP = codeVA + uint64(len(code)) - 4
	if _, ok := g.runFor(20 * time.Millisecond); ok {
		t.Fatal("the program ended")
	}
	const n = tablesSlack/4096 + 1000
	g.u.maxLeaves = 100
	for st := g.st; st.CPL != 3; {
		g.runFor(time.Millisecond)
	}
	p := g.u.cur.p
	for i := range uint64(n) {
		if err := p.mmap(areaVA+i<<21, 4096, protRead, stub.FDRAM, 0); err != nil {
			t.Fatal(err)
		}
	}
	if err := p.execute(); err != nil {
		t.Fatal(err)
	}
	g.st.RIP, g.st.GPR[x86.RDI], g.st.GPR[x86.RSI] = codeVA, areaVA, n
	x, ok := g.runFor(10 * time.Second)
	if !ok || x.Kind != ExitDied || !strings.Contains(x.Err.Error(), "page tables") {
		t.Errorf("exit %v %+v, %v", x.Kind, x, ok)
	}
}
