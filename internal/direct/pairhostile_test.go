package direct

import (
	"encoding/binary"
	"math/rand/v2"
	"testing"
	"time"

	"ring3/internal/cpu"
	"ring3/internal/direct/stub"
	"ring3/internal/x86"
)

// twoPrograms is a faultGuest with two address spaces: a hostile program may do
// what it likes, and afterwards an honest one must run right.
type twoPrograms struct {
	*faultGuest
	hostile, honest uint64 // CR3
}

const absent = 0x2000_0000 // no program has this page

// Parts of the hostile program. All faults lead to hHalt.
const (
	hHalt  = skipTo
	hSpin  = codeVA + 0x110
	hCall  = codeVA + 0x120
	hAgain = codeVA + 0x130
	hFault = codeVA + 0x150
	hBuf   = dataVA
)

// hostileCode copies RCX bytes from RSI to RDI, R10 from R8 to R9, and goes to
// R11.
func hostileCode() []byte {
	b := make([]byte, 0x180)
	copy(b, []byte{0xf3, 0xa4, 0x4c, 0x89, 0xc6, 0x4c, 0x89, 0xcf, 0x4c, 0x89, 0xd1, 0xf3, 0xa4, 0x41, 0xff, 0xe3})
	copy(b[hHalt-codeVA:], []byte{0xf4})
	copy(b[hSpin-codeVA:], []byte{0xeb, 0xfe})
	copy(b[hCall-codeVA:], []byte{0x0f, 0x05, 0xf4})
	copy(b[hAgain-codeVA:], cat([]byte{0x4c, 0x89, 0xe6, 0x4c, 0x89, 0xef, 0x4c, 0x89, 0xf1, 0xe9}, imm32(1<<32-(hAgain+14-codeVA))))
	copy(b[hFault-codeVA:], cat([]byte{0x8b, 0x04, 0x25}, imm32(absent), []byte{0xf4}))
	return b
}

// honestCalls is the number of system calls of the honest program, which then
// faults once.
const honestCalls = 20

func newTwoPrograms(t *testing.T) *twoPrograms {
	// The end: mov eax, [absent]; skipTo: hlt.
	code := append(callerCode(honestCalls, cat([]byte{0x8b, 0x04, 0x25}, imm32(absent))), 0xf4)
	g := &twoPrograms{faultGuest: newFaultGuest(t, code, true)}
	g.poke(kFault, skipHandler)
	g.honest = g.st.CR3
	g.run2()
	g.newTables()
	g.hostile = g.st.CR3
	for i := range uint64(256) {
		*g.mem.Word(g.pml4 + 2048 + 8*i) = *g.mem.Word(g.honest&x86.CR3Addr + 2048 + 8*i)
	}
	g.mapPage(codeVA, g.page(hostileCode()), pteUser|x86.PTEAccessed)
	for i := range uint64(2) {
		g.mapPage(hBuf+4096*i, g.page(nil), pteRW|x86.PTENX|x86.PTEAccessed|x86.PTEDirty)
	}
	g.mapPage(stackVA-4096, g.page(nil), pteRW|x86.PTENX|x86.PTEAccessed|x86.PTEDirty)
	return g
}

// user makes State that of user code at rip.
func (g *twoPrograms) user(cr3, rip uint64) {
	st := g.st
	st.CR3 = cr3
	st.LeaveSyscall()
	for r, base := range map[int]uint64{x86.DS: 0, x86.ES: 0, x86.FS: 0x1234, x86.GS: 0x5678} {
		st.Seg[r] = cpu.Segment{Unusable: true, Base: base}
	}
	st.KernelGSBase = kCPU
	st.RFLAGS = x86.FlagFixed | x86.FlagIF
	st.RIP, st.GPR[x86.RSP] = rip, stackVA-256
}

// run2 runs the honest program.
func (g *twoPrograms) run2() {
	g.t.Helper()
	for try := 0; ; try++ {
		g.user(g.honest, codeVA)
		events := g.word(kCPU + 0x20)
		x, ok := g.runFor(time.Minute)
		for ok && x.Kind == ExitException && x.Vector == x86.VecPF {
			g.c.Inject(x.Vector, x.HasErr, x.ErrCode, x.CR2)
			x, ok = g.runFor(time.Minute)
		}
		if x.Kind == ExitDied && try == 0 {
			continue // late, of what the other one has done
		}
		events = g.word(kCPU+0x20) - events
		st := g.st
		if !ok || x.Kind != ExitNeedStep || st.RIP != skipTo || st.GPR[x86.RBX] != 0 || events != honestCalls+1 ||
			g.word(kCPU+0x58) != absent || g.word(kCPU+0x50) != x86.PFUser ||
			st.Seg[x86.FS].Base != 0x1234 || st.Seg[x86.GS].Base != 0x5678 || st.KernelGSBase != kCPU {
			g.t.Fatalf("the honest program: ended %v, exit %+v at %#x, %d events, state %+v", ok, x, st.RIP, events, st)
		}
		return
	}
}

// TestPairHostile has a program write what it likes to the hand-over page and
// to its stub's control page, ring all bells, and jump into the stub.
func TestPairHostile(t *testing.T) {
	defer func(d time.Duration) { nap = d }(nap)
	nap = time.Millisecond
	g := newTwoPrograms(t)
	ticker(t, g.u, time.Millisecond)
	r := rand.New(rand.NewPCG(7, 8))
	h := g.u.pair.h
	n := 150
	if testing.Short() {
		n = 30
	}
	pick := func(v ...uint64) uint64 { return v[r.IntN(len(v))] }
	ends := map[string]int{}
	var longest time.Duration
	for i := range n {
		g.st.CR3 = g.hostile
		prog := g.u.zygote.prog
		anywhere := func() uint64 {
			return pick(0, 1, r.Uint64(), ^uint64(0), 1<<47, 1<<63, kCode, kStack, codeVA, hHalt, hSpin, hFault, absent, stackVA-64,
				prog.Base+r.Uint64()%stub.Extent)
		}
		// What the page gets: plausible or not.
		b := make([]byte, 0x1f0)
		le := binary.LittleEndian
		for off, max := range map[int]int{0: 10, 0x40: 10, 0x80: 2, 0x84: 2, 0xc0: 2, 0x100: 2, 0x104: 2} {
			le.PutUint32(b[off:], uint32(r.IntN(max)))
		}
		for off := 0x140; off < 0x1f0; off += 8 {
			le.PutUint64(b[off:], anywhere())
		}
		if r.IntN(4) != 0 {
			le.PutUint64(b[0x1d8:], 0x202|r.Uint64()&pick(0, 0xcd5, 1<<21, 1<<18, 1<<14, 1<<8, ^uint64(0)))
			le.PutUint64(b[0x1e0:], pick(absent, codeVA, stackVA, kCode, r.Uint64()>>17))
			le.PutUint64(b[0x1e8:], pick(0, 4, 5, 6, 7, 0x14, 0x15, 0x1c, 1<<15, r.Uint64()))
		}
		ctl := cat(imm64(pick(uint64(r.IntN(9)), anywhere(), uint64(r.Uint32()))))
		g.poke(hBuf, b)
		g.poke(hBuf+0x800, ctl)
		off := []uint64{0, 4, 8, 0xc, 0x10, 0x14, 0x18, 0x20, 0x28, 0x30, 0x38, 0x40, 0x48, 0x60, 0x68, 0x78, 0xf8, 0x108, 0x110,
			0x25c, 0x260, 0x264, 0x278}[r.IntN(23)]
		st := g.st
		for i := range st.GPR {
			st.GPR[i] = anywhere()
		}
		st.GPR[x86.RSI], st.GPR[x86.RDI], st.GPR[x86.RCX] = hBuf+0x800, prog.Base+stub.ControlOff+off, pick(0, 4, 8)
		st.GPR[x86.R8], st.GPR[x86.R9], st.GPR[x86.R10] = hBuf, prog.Base+stub.HandoffOff, 0x1f0
		if r.IntN(4) == 0 { // the bells only
			st.GPR[x86.R10] = pick(4, 0x44, 0x84, 0xc4)
		}
		if r.IntN(4) == 0 { // the words behind them only
			st.GPR[x86.R8] += 0xc0
			st.GPR[x86.R9] += 0xc0
			st.GPR[x86.R10] = pick(4, 0x48)
		}
		if r.IntN(4) == 0 { // calls for the stub to make
			calls := make([]byte, 0x1fc)
			le.PutUint32(calls, uint32(r.IntN(9)))
			for off := 0x3c; off+8 <= len(calls); off += 8 {
				le.PutUint64(calls[off:], pick(0, 9, 11, 4096, 3, 0x8011, codeVA, absent, 1<<32, anywhere()))
			}
			g.poke(hBuf+0x900, calls)
			st.GPR[x86.R8], st.GPR[x86.R9], st.GPR[x86.R10] = hBuf+0x900, prog.Base+stub.HandoffOff+0x204, uint64(len(calls))
		}
		st.GPR[x86.R12], st.GPR[x86.R13], st.GPR[x86.R14] = hBuf+0x800, prog.Base+stub.ControlOff+off, 4
		var waits []uint64
		for _, b := range prog.Bells {
			if b.Op == 0 {
				waits = append(waits, b.Site)
			}
		}
		st.GPR[x86.R11] = pick(hHalt, hSpin, hCall, hAgain, hFault, hFault, prog.Fast, prog.Sysret, prog.Iret, prog.ResumeStart,
			waits[r.IntN(len(waits))], prog.Base+uint64(r.IntN(len(prog.Code))))
		g.user(g.hostile, codeVA)
		start := time.Now()
		x, ok := g.runFor(30 * time.Millisecond)
		for ok && x.Kind == ExitException && x.Vector == x86.VecPF {
			g.c.Inject(x.Vector, x.HasErr, x.ErrCode, x.CR2)
			x, ok = g.runFor(10 * time.Millisecond)
		}
		longest = max(longest, time.Since(start))
		if ends[x.Kind.String()]++; !ok {
			ends["time"]++
		}
		if i%3 == 0 {
			g.u.Flush(Flush{Kind: FlushAll})
			g.k.Flush(Flush{Kind: FlushAll})
		}
		g.run2()
	}
	t.Logf("ends %v; longest %v; %d deaths; %d faults and %d system calls handed over; bells %d, %d",
		ends, longest, g.u.stats.Deaths, g.u.stats.HandedFaults, g.u.stats.Handed, h.KernelBell, h.UserBell)
	if n := children(t); n > 5 {
		t.Errorf("%d processes", n)
	}
}

// TestPairAsleep has a program write that the kernel stub does not sleep while
// it does. Who rings it afterwards must wake it.
func TestPairAsleep(t *testing.T) {
	g := newTwoPrograms(t)
	g.run2()
	// 1: pause; cmp dword [rdi], 0; je 1b; mov dword [rdi], 0; hlt
	g.user(g.hostile, codeVA+0x200)
	g.poke(codeVA+0x200, []byte{0xf3, 0x90, 0x83, 0x3f, 0, 0x74, 0xf9, 0xc7, 0x07, 0, 0, 0, 0, 0xf4})
	for _, flush := range []bool{true, false} {
		g.user(g.hostile, codeVA+0x200)
		g.st.GPR[x86.RDI] = g.u.zygote.prog.Base + stub.HandoffOff + 0xc0
		if x, ok := g.runFor(time.Second); !ok || x.Kind != ExitNeedStep {
			t.Fatalf("exit %+v at %#x", x, g.st.RIP)
		}
		g.u.pair.h.KernelSleeps = 0 // also if it has been woken since
		if flush {
			g.k.Flush(Flush{Kind: FlushAll})
		}
		g.run2()
	}
}

// TestPairListens has programs that make their stubs listen: without having
// rung, with the kernel stub listening too. They are given up soon.
func TestPairListens(t *testing.T) {
	g := newTwoPrograms(t)
	ticker(t, g.u, 5*time.Millisecond)
	for _, b := range g.u.zygote.prog.Bells {
		if b.Op != 0 {
			continue
		}
		start := time.Now()
		g.user(g.hostile, b.Site)
		if x, ok := g.runFor(time.Minute); x.Kind != ExitDied {
			t.Errorf("exit %+v, %v", x, ok)
		}
		if d := time.Since(start); d > 8*time.Second {
			t.Errorf("it took %v", d)
		}
		g.run2()
	}
}

// TestPairTells looks for what the hand-over page must not tell.
func TestPairTells(t *testing.T) {
	const secret = 0x5ec2e7_5ec2e7
	tells := func(g *pairGuest) bool {
		for _, v := range g.u.pair.h.GPR {
			if v == secret {
				return true
			}
		}
		return false
	}
	t.Run("kernel", func(t *testing.T) {
		g := newTwoPrograms(t)
		g.run2()
		// mov rcx, rsp; mov eax, ss; push rax; push rcx; pushfq; mov eax, cs
		// push rax; lea rax, [rip+3]; push rax; iretq; hlt
		g.poke(kCode+0xa00, []byte{0x48, 0x89, 0xe1, 0x8c, 0xd0, 0x50, 0x51, 0x9c, 0x8c, 0xc8,
			0x50, 0x48, 0x8d, 0x05, 3, 0, 0, 0, 0x50, 0x48, 0xcf, 0xf4})
		g.st.EnterSyscall()
		g.st.RIP, g.st.GPR[x86.RSP], g.st.GPR[x86.RBX] = kCode+0xa00, kStack-0x400, secret
		g.st.Seg[x86.GS].Base = kCPU
		runs := g.k.stats.Runs
		g.kernelGuest.run()
		if g.st.RIP != kCode+0xa16 || g.k.stats.Runs == runs {
			t.Fatalf("rip %#x, %d runs", g.st.RIP, g.k.stats.Runs-runs)
		}
		if tells(g.pairGuest) {
			t.Error("registers of kernel code are in the hand-over page")
		}
	})
	t.Run("program", func(t *testing.T) {
		g := newPairGuest(t, callerCode(50, []byte{0xf4}))
		first := g.st.CR3
		g.st.GPR[x86.RBP] = secret
		g.run()
		if !tells(g) {
			t.Error("the test tests nothing")
		}
		g.newTables()
		for i := range uint64(256) {
			*g.mem.Word(g.pml4 + 2048 + 8*i) = *g.mem.Word(first&x86.CR3Addr + 2048 + 8*i)
		}
		g.mapPage(codeVA, g.page([]byte{0xf4}), pteUser|x86.PTEAccessed)
		g.st.RIP = codeVA
		if x := g.run(); x.Kind != ExitNeedStep || tells(g) {
			t.Errorf("exit %+v; registers of another program in the hand-over page: %v", x, tells(g))
		}
	})
}

// TestPairGate changes what the delivery of page faults depends on, between
// two faults and without a flush where none is needed.
func TestPairGate(t *testing.T) {
	const other = kCode + 0xc00
	const stack2, idt2 = 0xffffc90000020000, kGDT + 0x8000
	g := newTwoPrograms(t)
	g.poke(other, cat([]byte{0x0f, 0x01, 0xf8}, gsWord(0xff, 0, 0x60), []byte{0x0f, 0x01, 0xf8}, skipHandler))
	g.poke(kFault, cat([]byte{0x0f, 0x01, 0xf8}, gsWord(0x89, x86.RSP, 0x68), []byte{0x0f, 0x01, 0xf8}, skipHandler))
	g.mem.Changed(g.gpa(kFault), 64)
	g.mapPage(stack2-4096, g.page(nil), kernelRW)
	g.mapPage(idt2, g.page(nil), kernelRW)
	fault := func(what string, viaOther bool, rsp uint64, handed int) {
		t.Helper()
		n, o, f := g.word(kCPU+0x20), g.word(kCPU+0x60), g.u.stats.HandedFaults
		g.user(g.hostile, hFault)
		g.runTo(hHalt)
		n, o, f = g.word(kCPU+0x20)-n, g.word(kCPU+0x60)-o, g.u.stats.HandedFaults-f
		if n != 1 || o == 1 != viaOther || !viaOther && g.word(kCPU+0x68) != rsp || handed >= 0 && f != uint64(handed) {
			t.Errorf("%s: %d faults, %d by the other handler, rsp %#x, %d handed over", what, n, o, g.word(kCPU+0x68), f)
		}
	}
	flush := func(a uint64) {
		g.u.Flush(Flush{Kind: FlushPage, Addr: a})
		g.k.Flush(Flush{Kind: FlushPage, Addr: a})
	}
	// The interpreter's TLB is emptied by another CR3.
	switched := func() {
		g.run2()
		g.st.CR3 = g.hostile
	}
	const rsp = kStack - frameSize
	fault("first", false, rsp, -1)
	fault("before", false, rsp, 1)
	g.setGate(other, 0x8e00)
	fault("gate", true, 0, 0)
	g.setGate(kFault, 0x8e00)
	fault("gate back", false, rsp, 1)
	g.setGate(kFault, 0x8f00)
	fault("trap gate", false, rsp, 0)
	g.setGate(kFault, 0x8e00)
	g.poke(kTSS+4, imm64(stack2-8))
	fault("rsp0", false, stack2-16-frameSize, 0)
	flush(stack2)
	fault("rsp0, later", false, stack2-16-frameSize, 1)
	g.poke(kTSS+4, imm64(kStack))
	fault("rsp0 back", false, rsp, 0)
	flush(stack2)
	fault("rsp0 back, later", false, rsp, 1)

	g.poke(idt2+16*x86.VecPF, cat(imm64(other&0xffff|0x10<<16|0x8e00<<32|other>>16&0xffff<<48), imm64(other>>32)))
	g.st.IDTR.Base = idt2
	fault("idtr", true, 0, 1)
	g.st.IDTR.Base = kIDT
	fault("idtr back", false, rsp, 1)

	// The stack moves to another frame.
	old, gpa := g.gpa(kStack-4096), g.page(nil)
	g.mapPage(kStack-4096, gpa, kernelRW)
	flush(kStack - 4096)
	switched()
	clearOld, _ := g.mem.Slice(old, 4096)
	clear(clearOld)
	fault("stack remapped", false, rsp, 1)
	if g.word(kStack-16) != stackVA-256 || leWord(clearOld[4080:]) != 0 {
		t.Errorf("the frame is at the old place: %#x, %#x", g.word(kStack-16), leWord(clearOld[4080:]))
	}
	// It becomes code: writes must be seen.
	g.mem.MarkCode(gpa)
	fault("stack is code", false, rsp, 0)
	fault("stack was code", false, rsp, -1)
	// It becomes read-only.
	*g.pte(kStack - 4096) &^= x86.PTEWrite
	flush(kStack - 4096)
	if g.u.pair.setFault() != 0 {
		t.Error("a read-only stack is written to")
	}
	g.mapPage(kStack-4096, gpa, kernelRW)
	*g.pte(kStack - 4096) &^= x86.PTEDirty
	flush(kStack - 4096)
	switched()
	fault("stack is clean", false, rsp, -1)
	if *g.pte(kStack - 4096)&x86.PTEDirty == 0 {
		t.Error("the dirty bit is clear")
	}
}

// TestPairEvict has a hint of a handed-over fault evict more pages than one
// list of calls can unmap, while the stub listens.
func TestPairEvict(t *testing.T) {
	// 1: mov rax, [rdi]; add rdx, rax; add rdi, 2000h; cmp rdi, rsi; jb 1b; hlt
	code := []byte{0x48, 0x8b, 0x07, 0x48, 0x01, 0xc2, 0x48, 0x81, 0xc7, 0, 0x20, 0, 0, 0x48, 0x39, 0xf7, 0x72, 0xee, 0xf4}
	g := newFaultGuest(t, code, true)
	g.u.cfg.MaxMaps = 180
	const n = 250
	frame := func(i, gen uint64) uint64 { return g.frames + 4096*(i*2+gen) }
	sum := func(gen uint64) (want uint64) {
		for i := range uint64(n) {
			g.mem.WriteAt(imm64(gen*1000+i), frame(i, gen))
			g.poke(kWant+16*i, imm64(frame(i, gen)|pteUser|x86.PTENX|x86.PTEAccessed))
			g.poke(kPT+16*i, imm64(0))
			want += gen*1000 + i
		}
		return want
	}
	for gen := range uint64(2) {
		want := sum(gen)
		g.u.Flush(Flush{Kind: FlushAll})
		g.k.Flush(Flush{Kind: FlushAll})
		g.poke(kCPU+0x28, imm64(kLog))
		g.st.LeaveSyscall()
		g.st.RIP, g.st.GPR[x86.RDI], g.st.GPR[x86.RSI], g.st.GPR[x86.RDX] = codeVA, areaVA, areaVA+n*0x2000, 0
		g.runTo(codeVA + uint64(len(code)) - 1)
		if got := g.st.GPR[x86.RDX]; got != want {
			t.Errorf("generation %d: the sum is %d, want %d: stale pages are mapped", gen, got, want)
		}
	}
	if s := g.u.stats; s.Evictions == 0 || s.HandedFaults < n {
		t.Errorf("%d evictions, %d faults handed over", s.Evictions, s.HandedFaults)
	}
}
