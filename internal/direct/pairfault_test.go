package direct

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"testing"
	"time"

	"ring3/internal/cpu"
	"ring3/internal/interp"
	"ring3/internal/mmu"
	"ring3/internal/x86"
)

// Where a guest with page faults has what.
const (
	kGDT  = 0xffff888000400000
	kIDT  = kGDT + 0x1000
	kTSS  = kGDT + 0x2000
	kPT   = 0xffff888000500000 // the page table of areaVA
	kWant = 0xffff888000510000 // what its entries become: by a read,
	kWX   = kWant + 0x10000    // by a fetch, and 2000H behind by a write
	kLog  = 0xffff888000600000

	areaVA  = 0x1000_0000 // 512 pages
	kFault  = kCode + 0x800
	maxLog  = 1024
	logSize = 0x100
)

const kernelRW = x86.PTEPresent | x86.PTEWrite | x86.PTEAccessed | x86.PTEDirty | x86.PTENX

// gsWord is an instruction with a quadword at gs:off and register reg.
func gsWord(op byte, reg int, off uint32) []byte {
	return cat([]byte{0x65, 0x48, op, byte(reg<<3 | 4), 0x25}, imm32(off))
}

// faultHandler logs registers, frame, CR2 and bases; it counts at gs:20 and
// makes the page-table entry what kWant says:
//
//	swapgs; mov [gs:30], rax; mov [gs:38], rcx; mov [gs:40], rdx
//	mov rax, [gs:28]; mov [rax+8*r], r ...
//	mov rcx, [rsp+8*i]; mov [rax+80+8*i], rcx ...
//	mov rcx, cr2 ...; rdfsbase rcx ...; swapgs; rdgsbase rcx; swapgs ...
//	add rax, logSize; mov [gs:28], rax; inc qword [gs:20]
//	mov rcx, cr2; shr rcx, 9; and ecx, ff8
//	mov rdx, [rsp]; and edx, 12; shl edx, 12; add rdx, rcx
//	mov rax, kWant; mov rax, [rax+rdx]; mov rdx, kPT; xchg [rdx+rcx], rax
//	test al, 1; jz 1f; mov rax, cr2; invlpg [rax]
//	1: ... swapgs; add rsp, 8; iretq
func faultHandler() []byte { return faultHandlerAs(true) }

// faultHandlerAs leaves the base of the user's GS alone unless told otherwise:
// there are some with which SWAPGS is interpreted from then on.
func faultHandlerAs(gsBase bool) []byte {
	swapgs := []byte{0x0f, 0x01, 0xf8}
	storeRCX := func(off uint32) []byte { return cat([]byte{0x48, 0x89, 0x88}, imm32(off)) }
	b := cat(swapgs, gsWord(0x89, x86.RAX, 0x30), gsWord(0x89, x86.RCX, 0x38), gsWord(0x89, x86.RDX, 0x40),
		gsWord(0x8b, x86.RAX, 0x28))
	for r := 1; r < 16; r++ {
		if r != x86.RSP {
			b = append(b, byte(0x48|r>>3<<2), 0x89, byte(0x40|r&7<<3), byte(8*r))
		}
	}
	b = cat(b, gsWord(0x8b, x86.RCX, 0x30), storeRCX(0))
	for i := range 6 {
		b = cat(b, []byte{0x48, 0x8b, 0x4c, 0x24, byte(8 * i)}, storeRCX(uint32(0x80+8*i)))
	}
	b = cat(b, []byte{0x0f, 0x20, 0xd1}, storeRCX(0xb0), []byte{0xf3, 0x48, 0x0f, 0xae, 0xc1}, storeRCX(0xb8))
	if gsBase {
		b = cat(b, swapgs, []byte{0xf3, 0x48, 0x0f, 0xae, 0xc9}, swapgs, storeRCX(0xc0))
	}
	b = cat(b, []byte{0x48, 0x05}, imm32(logSize), gsWord(0x89, x86.RAX, 0x28), gsWord(0xff, 0, 0x20))
	b = cat(b, []byte{0x0f, 0x20, 0xd1, 0x48, 0xc1, 0xe9, 9, 0x81, 0xe1}, imm32(0xff8),
		[]byte{0x48, 0x8b, 0x14, 0x24, 0x83, 0xe2, 0x12, 0xc1, 0xe2, 12, 0x48, 0x01, 0xca},
		[]byte{0x48, 0xb8}, imm64(kWant), []byte{0x48, 0x8b, 0x04, 0x10},
		[]byte{0x48, 0xba}, imm64(kPT), []byte{0x48, 0x87, 0x04, 0x0a},
		[]byte{0xa8, 1, 0x74, 6, 0x0f, 0x20, 0xd0, 0x0f, 0x01, 0x38})
	return cat(b, gsWord(0x8b, x86.RAX, 0x30), gsWord(0x8b, x86.RCX, 0x38), gsWord(0x8b, x86.RDX, 0x40),
		swapgs, []byte{0x48, 0x83, 0xc4, 8, 0x48, 0xcf})
}

// skipTo is where skipHandler goes on.
const skipTo = codeVA + 0x100

// skipHandler counts, keeps error code and CR2, and goes on at skipTo:
//
//	swapgs; mov [gs:30], rax; mov rax, [rsp]; mov [gs:50], rax
//	mov rax, cr2; mov [gs:58], rax; mov rax, [gs:30]; inc qword [gs:20]
//	mov qword [rsp+8], skipTo; swapgs; add rsp, 8; iretq
var skipHandler = cat([]byte{0x0f, 0x01, 0xf8}, gsWord(0x89, x86.RAX, 0x30), []byte{0x48, 0x8b, 0x04, 0x24}, gsWord(0x89, x86.RAX, 0x50),
	[]byte{0x0f, 0x20, 0xd0}, gsWord(0x89, x86.RAX, 0x58), gsWord(0x8b, x86.RAX, 0x30), gsWord(0xff, 0, 0x20),
	[]byte{0x48, 0xc7, 0x44, 0x24, 8}, imm32(skipTo), []byte{0x0f, 0x01, 0xf8, 0x48, 0x83, 0xc4, 8, 0x48, 0xcf})

// faultGuest is a pairGuest whose kernel serves page faults.
type faultGuest struct {
	*pairGuest
	frames uint64 // of areaVA
}

// newFaultGuest makes one. Without paired, user and kernel stub know nothing
// of each other.
func newFaultGuest(t *testing.T, user []byte, paired bool) *faultGuest {
	g := &faultGuest{pairGuest: newPairGuestAs(t, user, paired)}
	g.poke(kFault, faultHandler())
	for _, a := range []uint64{kGDT, kIDT, kTSS, kWant, kWant + 0x2000, kWX} {
		g.mapPage(a, g.page(nil), kernelRW)
	}
	for i := range uint64(maxLog * logSize / 4096) {
		g.mapPage(kLog+4096*i, g.page(nil), kernelRW)
	}
	for i, d := range map[uint64]uint64{2: 0x00af9b000000ffff, 3: 0x00cf93000000ffff,
		4: 0x00cffb000000ffff, 5: 0x00cff3000000ffff, 6: 0x00affb000000ffff} {
		g.poke(kGDT+8*i, imm64(d))
	}
	g.setGate(kFault, 0x8e00)
	g.poke(kTSS+4, imm64(kStack))
	g.poke(kCPU+0x28, imm64(kLog))
	st := g.st
	st.GDTR, st.IDTR = cpu.Table{Base: kGDT, Limit: 0x4f}, cpu.Table{Base: kIDT, Limit: 0xfff}
	st.TR = cpu.Segment{Sel: 0x40, Base: kTSS, Limit: 0x67, Attr: cpu.AttrP | 0xb}
	st.XCR0 = 7
	g.frames = g.next
	for range 512 {
		g.page([]byte{0xc3}) // ret
	}
	*g.pte(areaVA) = 0 // makes the page table
	g.mapPage(kPT, g.tableOf(areaVA), kernelRW)
	g.env.flushed = func(f interp.Flush) {
		d := Flush{FlushKind(f.Kind), f.PCID, f.Addr}
		g.u.Flush(d)
		g.k.Flush(d)
	}
	return g
}

func leWord(b []byte) uint64 { return binary.LittleEndian.Uint64(b) }

// tableOf is the page table that has the entry for gva.
func (g *guest) tableOf(gva uint64) uint64 {
	table := g.st.CR3 & x86.CR3Addr
	for shift := 39; shift > 12; shift -= 9 {
		table = *g.mem.Word(table + gva>>shift&511*8) & x86.PTEAddr
	}
	return table
}

// setGate makes the gate of the page fault.
func (g *faultGuest) setGate(to, attr uint64) {
	g.poke(kIDT+16*x86.VecPF, cat(imm64(to&0xffff|0x10<<16|attr<<32|to>>16&0xffff<<48), imm64(to>>32)))
}

// runTo runs until user code is at end, the only HLT.
func (g *faultGuest) runTo(end uint64) {
	g.t.Helper()
	for {
		x := g.run()
		switch {
		case x.Kind == ExitNeedStep && g.st.RIP == end:
			return
		case x.Kind == ExitNeedStep:
			g.c.Step()
		case x.Kind == ExitException && x.Vector == x86.VecPF:
			g.c.Inject(x.Vector, x.HasErr, x.ErrCode, x.CR2)
			g.u.MapHint(x.CR2, x.ErrCode)
		default:
			g.t.Fatalf("exit %v %+v at %#x", x.Kind, x, g.st.RIP)
		}
	}
}

// log is what the handler has logged, and n the number of records.
func (g *faultGuest) log() (log []byte, n uint64) {
	n = g.word(kCPU + 0x20)
	if n > maxLog {
		g.t.Fatalf("%d faults", n)
	}
	for i := uint64(0); i < n*logSize; i += 4096 {
		b := make([]byte, min(4096, n*logSize-i))
		if err := g.mem.ReadAt(b, g.gpa(kLog+i)); err != nil {
			g.t.Fatal(err)
		}
		log = append(log, b...)
	}
	return log, n
}

// faultProgram touches pages of the area in all ways, with random registers,
// flags, bases and vectors, and checks what it can: a wrong vector is INT3.
// RBX, RDI and RSI have a purpose; R10 sums up flags and bases.
func faultProgram(r *rand.Rand, touches int) (code []byte, end uint64) {
	var bad []int // offsets of jumps there
	emit := func(b ...byte) { code = append(code, b...) }
	set := func(reg int, v uint64) {
		emit(byte(0x48|reg>>3), byte(0xb8|reg&7))
		emit(imm64(v)...)
	}
	add := func() { emit(0x4d, 0x8d, 0x14, 0x12) } // lea r10, [r10+rdx]
	for range touches {
		page := areaVA + uint64(r.IntN(512))*4096
		for range 3 {
			set([]int{x86.RAX, x86.RCX, x86.RDX, x86.R8, x86.R9, x86.R11, x86.R12, x86.R13, x86.R14, x86.R15}[r.IntN(10)], r.Uint64())
		}
		set(x86.RBX, r.Uint64())
		set(x86.RBP, r.Uint64()>>17)
		set(x86.RDI, page)
		set(x86.RSI, areaVA+uint64(r.IntN(512))*4096+16)
		switch r.IntN(6) {
		case 0:
			emit(0xf3, 0x48, 0x0f, 0xae, 0xd5) // wrfsbase rbp
		case 1:
			emit(0xf3, 0x48, 0x0f, 0xae, 0xdd) // wrgsbase rbp
		}
		emit(0x66, 0x48, 0x0f, 0x6e, 0xeb) // movq xmm5, rbx
		emit(0xc4, 0xe2, 0x7d, 0x59, 0xf5) // vpbroadcastq ymm6, xmm5
		emit(0x68)                         // push imm32; popfq
		emit(imm32(uint32(x86.FlagFixed | x86.FlagIF | r.Uint64()&(x86.FlagsArith|x86.FlagDF|x86.FlagID)))...)
		emit(0x9d)
		switch r.IntN(7) {
		case 0:
			emit(0x48, 0x8b, 0x0f) // mov rcx, [rdi]
		case 1:
			emit(0x48, 0x8b, 0x8f) // mov rcx, [rdi+0ffch]
			emit(imm32(0xffc)...)
		case 2:
			emit(0x48, 0x89, 0x5f, 8) // mov [rdi+8], rbx
		case 3:
			emit(0x48, 0x01, 0x5f, 8) // add [rdi+8], rbx
		case 4:
			emit(0x48, 0x8d, 0x7f, 32, 0x48, 0xa5) // lea rdi, [rdi+32]; movsq
		default:
			emit(0xff, 0xd7) // call rdi
		}
		emit(0x9c, 0x5a) // pushfq; pop rdx
		add()
		emit(0xf3, 0x48, 0x0f, 0xae, 0xc2) // rdfsbase rdx
		add()
		emit(0xf3, 0x48, 0x0f, 0xae, 0xca) // rdgsbase rdx
		add()
		for _, insn := range [][]byte{{0xc4, 0xe3, 0x7d, 0x39, 0xf7, 1, 0x66, 0x48, 0x0f, 0x7e, 0xf9}, // vextracti128 xmm7, ymm6, 1; movq rcx, xmm7
			{0x66, 0x48, 0x0f, 0x7e, 0xe9}} { // movq rcx, xmm5
			emit(insn...)
			emit(0x48, 0x39, 0xd9, 0x0f, 0x85) // cmp rcx, rbx; jne
			bad = append(bad, len(code))
			emit(imm32(0)...)
		}
	}
	end = codeVA + uint64(len(code))
	emit(0xf4, 0xcc)
	for _, off := range bad {
		copy(code[off:], imm32(uint32(len(code)-1-off-4)))
	}
	return code, end
}

// TestPairFault has user code fault in all ways, quietly and kicked all the
// time. What its kernel sees, and what it goes on with, is compared with a
// machine whose monitor sees all faults and interprets their delivery.
func TestPairFault(t *testing.T) {
	code, end := faultProgram(rand.New(rand.NewPCG(1, 2)), 400)
	machine := func(t *testing.T, paired bool) *faultGuest {
		g := newFaultGuest(t, code[:4096], paired)
		for off := 4096; off < len(code); off += 4096 {
			g.mapPage(codeVA+uint64(off), g.page(code[off:min(off+4096, len(code))]), pteUser|x86.PTEAccessed)
		}
		r := rand.New(rand.NewPCG(3, 4))
		for i := range uint64(512) {
			frame := g.frames + 4096*i
			entries := []uint64{0, 0, 0, r.Uint64() &^ 1, // absent
				frame | pteUser | x86.PTENX | x86.PTEAccessed, // copy on write
				frame | kernelRW,          // the kernel's
				frame | pteRW | x86.PTENX} // right
			g.poke(kPT+8*i, imm64(entries[r.IntN(len(entries))]))
			g.poke(kWant+8*i, imm64(frame|pteUser|x86.PTENX|x86.PTEAccessed))
			g.poke(kWant+0x2000+8*i, imm64(frame|pteRW|x86.PTENX|x86.PTEAccessed|x86.PTEDirty))
			g.poke(kWX+8*i, imm64(frame|pteUser|x86.PTEAccessed))
		}
		return g
	}
	ref := machine(t, false)
	ref.runTo(end)
	want, n := ref.log()
	kinds := map[uint64]int{}
	for i := range n {
		kinds[leWord(want[i*logSize+0x80:])]++
	}
	t.Logf("%d faults, by error code %v", n, kinds)
	if len(kinds) < 6 {
		t.Errorf("error codes %v", kinds)
	}
	for _, every := range []time.Duration{0, 300 * time.Microsecond, 30 * time.Microsecond} {
		t.Run(fmt.Sprint("kicks ", every), func(t *testing.T) {
			g := machine(t, true)
			listened := 0
			flush := g.env.flushed
			g.env.flushed = func(f interp.Flush) {
				// XMM5 is RBX: in the signal frame of a stub that listens too.
				if g.u.cur.p.waits {
					listened++
				}
				fpu := g.u.FPU()
				log, n := g.log()
				if v, want := leWord(fpu.Area[160+16*5:]), leWord(log[(n-1)*logSize+8*x86.RBX:]); v != want {
					t.Errorf("fault %d: xmm5 %#x, want %#x", n-1, v, want)
				}
				flush(f)
			}
			if every != 0 {
				ticker(t, g.u, every)
			}
			g.runTo(end)
			log, m := g.log()
			for i := range min(n, m) {
				a, b := log[i*logSize:][:logSize], want[i*logSize:][:logSize]
				if !bytes.Equal(a, b) {
					for j := 0; j < logSize; j += 8 {
						t.Logf("%#x: %#x, want %#x", j, leWord(a[j:]), leWord(b[j:]))
					}
					t.Fatalf("fault %d differs", i)
				}
			}
			if m != n {
				t.Fatalf("%d faults, want %d", m, n)
			}
			if g.st.GPR != ref.st.GPR || g.st.RFLAGS != ref.st.RFLAGS || g.st.Seg != ref.st.Seg || g.st.KernelGSBase != ref.st.KernelGSBase {
				t.Errorf("state %+v\nwant %+v", g.st, ref.st)
			}
			a, _ := g.mem.Slice(g.frames, 512*4096)
			b, _ := ref.mem.Slice(ref.frames, 512*4096)
			if !bytes.Equal(a, b) {
				t.Error("the memory of the program differs")
			}
			h := g.u.stats.HandedFaults
			t.Logf("%d of %d faults handed over, %d pages mapped or unmapped meanwhile", h, n, g.u.stats.Changes)
			if every == 0 && (h < n*3/4 || listened == 0) || every > 100*time.Microsecond && h < n/4 {
				t.Errorf("%d of %d faults were handed over, the stub listened at %d flushes", h, n, listened)
			}
		})
	}
}

// TestPairWalk has user code access memory by random page tables, and compares
// what the kernel stub does, deliver the fault or give it back, with package
// mmu.
func TestPairWalk(t *testing.T) {
	defer func(n uint64) { kernelRAM = n }(kernelRAM)
	kernelRAM = 4 << 30 // of which 1 GiB above 4 GiB
	const top = 5 << 30
	const addr = 0x1234_5678_9000 // has a PML4 entry of its own
	const read, write, fetch, hlt = codeVA, codeVA + 0x10, codeVA + 0x20, skipTo
	code := make([]byte, 0x101)
	copy(code, []byte{0x48, 0x8b, 0x0f, 0xe9, 0xf8, 0, 0, 0})        // mov rcx, [rdi]; jmp hlt
	copy(code[0x10:], []byte{0x48, 0x89, 0x1f, 0xe9, 0xe8, 0, 0, 0}) // mov [rdi], rbx; jmp hlt
	copy(code[0x20:], []byte{0xff, 0xd7, 0xe9, 0xd9, 0, 0, 0})       // call rdi; jmp hlt
	code[0x100] = 0xf4
	g := newFaultGuest(t, code, true)
	g.poke(kFault, skipHandler)
	// Tables of the three lower levels, and a page, in low RAM and in high.
	var tables [2][4]uint64
	for i := range 4 {
		tables[0][i] = g.page([]byte{0xc3})
		tables[1][i] = top - 0x100000 + uint64(i)<<12
		if err := g.mem.WriteAt([]byte{0xc3}, tables[1][i]); err != nil {
			t.Fatal(err)
		}
	}
	r := rand.New(rand.NewPCG(5, 6))
	n := 4000
	if testing.Short() {
		n = 400
	}
	g.st.RIP, g.st.GPR[x86.RDI] = read, addr
	g.runTo(hlt) // the first one is the monitor's: the kernel stub has not run
	var delivered, back, allowed int
	codes := map[uint32]int{}
	for i := range n {
		a := addr + uint64(r.IntN(4096-8))
		odd := r.IntN(4) // how unusual the entries are: 0 not at all
		large := false
		table := g.st.CR3 & x86.CR3Addr
		for level, shift := range []int{39, 30, 21, 12} {
			next := tables[r.IntN(2)][level]
			e := next | pteRW
			for range odd {
				switch r.IntN(60) {
				case 0, 1, 2:
					e = r.Uint64() &^ 1
				case 3, 4, 5, 6:
					e &^= x86.PTEWrite
				case 7, 8, 9, 10:
					e &^= x86.PTEUser
				case 11, 12, 13, 14:
					e |= x86.PTENX
				case 15, 16:
					e |= 1 << (46 + r.IntN(6)) // reserved
				case 17: // outside RAM
					e = e&0xfff | []uint64{3 << 30, top, 1<<46 - 4096, 4<<30 - 4096, 1 << 40}[r.IntN(5)]
				case 18, 19, 20:
					e |= x86.PTELarge // reserved in a PML4E, PAT in a PTE
				case 21:
					e = 1<<30 | pteRW | x86.PTELarge // 1 GiB of RAM that nobody uses
				default:
					e |= r.Uint64() & (x86.PTEAccessed | x86.PTEDirty | 0xe18 | 0x7f<<52) // ignored
				}
			}
			*g.mem.Word(table + a>>shift&511*8) = e
			large = large || e&(x86.PTELarge|x86.PTEPresent) == x86.PTELarge|x86.PTEPresent && shift != 12
			if table = e & x86.PTEAddr; e&x86.PTEPresent == 0 || g.mem.Word(table) == nil || large {
				break
			}
		}
		g.u.Flush(Flush{Kind: FlushAll})
		g.k.Flush(Flush{Kind: FlushAll})
		what := []struct {
			rip uint64
			acc mmu.Access
		}{{read, mmu.Read}, {write, mmu.Write}, {fetch, mmu.Fetch}}[r.IntN(3)]
		tr, want, ok := g.k.e.walk.Walk(g.st, a, mmu.User|what.acc)
		if ok && what.acc == mmu.Fetch {
			if g.mem.Word(tr.GPA&^7) == nil {
				continue // not RAM
			}
			g.mem.WriteAt([]byte{0xc3}, tr.GPA)
			g.mem.Changed(tr.GPA, 1)
		}
		g.st.LeaveSyscall()
		g.st.RIP, g.st.GPR[x86.RDI], g.st.GPR[x86.RSP] = what.rip, a, stackVA-256
		faults, handed := g.word(kCPU+0x20), g.u.stats.HandedFaults
		g.runTo(hlt)
		faults, handed = g.word(kCPU+0x20)-faults, g.u.stats.HandedFaults-handed
		here := fmt.Sprintf("case %d, %#x, access %#x: allowed %v, code %#x; faults %d, handed over %d, code %#x",
			i, a, what.acc, ok, want, faults, handed, g.word(kCPU+0x50))
		switch {
		case ok:
			if allowed++; faults != 0 {
				t.Error(here)
			}
		case faults != 1 || g.word(kCPU+0x50) != uint64(want) || g.word(kCPU+0x58) != a:
			t.Error(here)
		case handed == 1:
			delivered++
			codes[want]++
		case want&x86.PFRsvd == 0 && !large:
			t.Error(here)
		default:
			back++
		}
	}
	t.Logf("%d accesses allowed, %d faults delivered, %d given back, by code %v", allowed, delivered, back, codes)
	if allowed < n/10 || delivered < n/10 || back == 0 {
		t.Error("the cases are not well chosen")
	}
}
