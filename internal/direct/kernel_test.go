package direct

import (
	"math/rand/v2"
	"testing"
	"time"

	"ring3/internal/bt"
	"ring3/internal/bus"
	"ring3/internal/cpu"
	"ring3/internal/guestmem"
	"ring3/internal/interp"
	"ring3/internal/x86"
)

// Where the kernel guest has what.
const (
	kCode  = 0xffffffff81000000
	kData  = 0xffff888000200000
	kCPU   = 0xffff888000300000
	kStack = 0xffffc90000010000 // end
)

// kernelRAM is the size of the RAM that they have.
var kernelRAM uint64 = 16 << 20

// noEnv is a machine without anything, unless functions say so.
type noEnv struct {
	fpu     cpu.FPU
	flushed func(interp.Flush)
	cpuid   func(leaf, sub uint32) (a, b, c, d uint32)
	syncFPU func() *cpu.FPU
}

func (*noEnv) ReadMSR(uint32) (uint64, bool) { return 0, false }
func (*noEnv) WriteMSR(uint32, uint64) bool  { return false }
func (e *noEnv) CPUID(leaf, sub uint32) (a, b, c, d uint32) {
	if e.cpuid != nil {
		return e.cpuid(leaf, sub)
	}
	if leaf == 0 {
		return 7, 0, 0, 0
	}
	if leaf == 7 {
		b = 1 | 1<<20 // FSGSBASE, SMAP
	}
	return
}
func (*noEnv) TSC() uint64 { return 0 }
func (e *noEnv) SyncFPU() *cpu.FPU {
	if e.syncFPU != nil {
		return e.syncFPU()
	}
	return &e.fpu
}
func (*noEnv) SetCR8(uint64) {}
func (e *noEnv) Flushed(f interp.Flush) {
	if e.flushed != nil {
		e.flushed(f)
	}
}

// kernelGuest is a machine that runs kernel code, by the interpreter alone or
// with a translator.
type kernelGuest struct {
	*guest
	env *noEnv
	c   *interp.CPU
	k   *Kernel
	// Pages to compare.
	pages []uint64
}

func newKernelGuest(t testing.TB, code []byte, translate bool) *kernelGuest {
	t.Helper()
	mem, err := guestmem.New(kernelRAM)
	if err != nil {
		t.Fatal(err)
	}
	env := &noEnv{}
	c := interp.New(mem, &bus.Bus{}, &bus.Bus{}, env)
	g := &kernelGuest{env: env, guest: &guest{t: t, mem: mem, st: &c.State, next: 0x10000}, c: c}
	if translate {
		if g.k, err = NewKernel(Config{Mem: mem, State: g.st}); err != nil {
			t.Fatal(err)
		}
	}
	t.Cleanup(func() {
		if g.k != nil {
			if err := g.k.Close(); err != nil {
				t.Error(err)
			}
		}
		mem.Close()
	})
	st := g.st
	st.CR0 = x86.CR0PE | x86.CR0PG | x86.CR0WP | x86.CR0NE
	st.CR4 = x86.CR4PAE | x86.CR4PGE | x86.CR4SMAP | x86.CR4FSGSBASE
	st.KernelGSBase = kCPU + 0x800
	st.EFER = x86.EFERLME | x86.EFERLMA | x86.EFERNX
	st.RFLAGS = x86.FlagFixed
	const flat = cpu.AttrP | cpu.AttrS | cpu.AttrWritable | cpu.AttrAccessed | cpu.AttrG
	st.Seg[x86.CS] = cpu.Segment{Sel: 0x10, Limit: 0xffffffff, Attr: flat | cpu.AttrCode | cpu.AttrL}
	for _, r := range []int{x86.SS, x86.DS, x86.ES} {
		st.Seg[r] = cpu.Segment{Sel: 0x18, Limit: 0xffffffff, Attr: flat | cpu.AttrDB}
	}
	st.Seg[x86.GS] = cpu.Segment{Base: kCPU}
	st.RIP = kCode
	st.GPR[x86.RSP] = kStack - 0x400
	g.newTables()
	const rw = x86.PTEPresent | x86.PTEWrite | x86.PTEAccessed | x86.PTEDirty
	g.mapPage(kCode, g.page(code), x86.PTEPresent|x86.PTEAccessed)
	for _, a := range []uint64{kData, kData + 4096, kCPU, kStack - 4096} {
		gpa := g.page(nil)
		g.pages = append(g.pages, gpa)
		g.mapPage(a, gpa, rw|x86.PTENX)
	}
	return g
}

// run runs to HLT.
func (g *kernelGuest) run() {
	g.t.Helper()
	for start := time.Now(); !g.st.Halted; {
		if time.Since(start) > 20*time.Second {
			g.t.Fatalf("does not end; rip %#x", g.st.RIP)
		}
		if g.k != nil && g.k.Fits() {
			if x, err := g.k.Run(); x == KernelDied {
				g.t.Fatal(err)
			} else if x == KernelKick {
				continue
			}
		}
		if e := g.c.Run(1); e == interp.ExitShutdown {
			g.t.Fatalf("triple fault at rip %#x, cr2 %#x, gpr %x, translated %v", g.st.RIP, g.st.CR2, g.st.GPR, g.k != nil)
		}
	}
}

// diff compares two machines.
func (g *kernelGuest) diff(o *kernelGuest, code []byte) {
	g.t.Helper()
	if g.st.GPR != o.st.GPR || g.st.RIP != o.st.RIP || g.st.RFLAGS != o.st.RFLAGS ||
		g.st.Seg != o.st.Seg || g.st.KernelGSBase != o.st.KernelGSBase {
		g.t.Fatalf("code %x\ntranslated  %x rip %x flags %x\ninterpreted %x rip %x flags %x", code,
			g.st.GPR, g.st.RIP, g.st.RFLAGS, o.st.GPR, o.st.RIP, o.st.RFLAGS)
	}
	for _, p := range g.pages {
		a, _ := g.mem.Slice(p, 4096)
		b, _ := o.mem.Slice(p, 4096)
		for i := range a {
			if a[i] != b[i] {
				g.t.Fatalf("code %x\nmemory at %#x differs: %x, interpreted %x", code, p+uint64(i), a[i&^7:][:8], b[i&^7:][:8])
			}
		}
	}
}

// kernelProgram makes random code that ends in HLT. RDI, RSI and RBX stay
// pointers; RAX, RCX, RDX and R8 to R15 are data; RBP is a frame pointer.
func kernelProgram(r *rand.Rand) []byte {
	var b []byte
	regs := []byte{x86.RAX, x86.RCX, x86.RDX, x86.R8, x86.R9, x86.R10, x86.R11, x86.R12, x86.R13, x86.R14, x86.R15}
	reg := func() byte { return regs[r.IntN(len(regs))] }
	emit := func(v ...byte) { b = append(b, v...) }
	alu := []byte{0x01, 0x09, 0x11, 0x19, 0x21, 0x29, 0x31, 0x39, 0x85, 0x89, 0x87}
	for range 10 + r.IntN(60) {
		d, s := reg(), reg()
		op := alu[r.IntN(len(alu))]
		disp := byte(r.IntN(15) * 8)
		ptr := []byte{x86.RDI, x86.RSI, x86.RBX, x86.RBP}[r.IntN(4)]
		w := byte(0x48)
		if r.IntN(2) == 0 {
			w = 0x40
		}
		switch r.IntN(34) {
		case 0, 1, 2:
			emit(w|s>>3<<2|d>>3, op, 0xc0|s&7<<3|d&7)
		case 3, 4, 5: // on memory
			emit(w|s>>3<<2, op, 0x40|s&7<<3|ptr, disp)
		case 6: // load
			emit(w|s>>3<<2, 0x8b, 0x40|s&7<<3|ptr, disp)
		case 7: // on the stack
			emit(w|s>>3<<2, op, 0x44|s&7<<3, 0x24, disp)
		case 8: // per-CPU
			emit(0x65, w|s>>3<<2, op, 0x04|s&7<<3, 0x25, disp, 0, 0, 0)
		case 9: // lea of the stack
			emit(0x48|s>>3<<2, 0x8d, 0x44|s&7<<3, 0x24, disp)
		case 10: // mov reg, rsp
			emit(0x48|d>>3, 0x89, 0xe0|d&7)
		case 11: // push, pop
			emit(0x40|s>>3, 0x50|s&7, 0x40|d>>3, 0x58|d&7)
		case 12: // pushfq; pop
			emit(0x9c, 0x40|d>>3, 0x58|d&7)
		case 13: // cli or sti, and a plain instruction behind it
			emit(0xfa+byte(r.IntN(2)), 0x90)
		case 14: // call over the next bytes to a RET
			emit(0xe8, 2, 0, 0, 0, 0xeb, 4, w|s>>3<<2|d>>3, 0x31, 0xc0|s&7<<3|d&7, 0xc3)
		case 15: // jcc over an instruction
			emit(0x70|byte(r.IntN(16)), 3, w|s>>3<<2|d>>3, 0x29, 0xc0|s&7<<3|d&7)
		case 16: // push rdi; mov ecx, n; rep stosq; pop rdi
			emit(0x57, 0xb9, byte(r.IntN(9)), 0, 0, 0, 0xf3, 0x48, 0xab, 0x5f)
		case 17: // push rdi; push rsi; mov ecx, n; rep movsb; pop rsi; pop rdi
			emit(0x57, 0x56, 0xb9, byte(r.IntN(70)), 0, 0, 0, 0xf3, 0xa4, 0x5e, 0x5f)
		case 18: // push rbp; mov rbp, rsp; and rsp, -64; push; leave; test
			// (SF would be that of the folded RSP behind a call, which no
			// compiler passes it through.)
			emit(0x55, 0x48, 0x89, 0xe5, 0x48, 0x83, 0xe4, 0xc0, 0x40|s>>3, 0x50|s&7, 0xc9)
			emit(0x48|s>>3<<2|s>>3, 0x85, 0xc0|s&7<<3|s&7)
		case 19: // lea reg, [rip+x]; call reg: to a RET behind a jump
			emit(0x48|d>>3<<2, 0x8d, 0x05|d&7<<3, 5, 0, 0, 0)
			emit(0x40|d>>3, 0xff, 0xd0|d&7, 0xeb, 1, 0xc3)
		case 20: // lock xadd
			emit(0xf0, w|s>>3<<2, 0x0f, 0xc1, 0x40|s&7<<3|ptr, disp)
		case 21: // mov from a segment register
			emit(0x40|d>>3, 0x8c, 0xc0|byte(r.IntN(6))<<3|d&7)
		case 22: // mov mem, rsp
			emit(0x48, 0x89, 0x60|ptr, disp)
		case 23: // mov [rdi], rsp; change rsp; mov rsp, [rdi]
			emit(0x48, 0x89, 0x67, disp, 0x48, 0x83, 0xec, disp, 0x48, 0x8b, 0x67, disp)
		case 24: // push rsp; pop
			emit(0x54, 0x40|d>>3, 0x58|d&7)
		case 25: // push rsp; add qword [rsp], 8; pop rsp
			emit(0x54, 0x48, 0x83, 0x04, 0x24, 0, 0x5c)
		case 26: // lea d, [rsp+s*8+disp]
			emit(0x48|d>>3<<2|s>>3<<1, 0x8d, 0x44|d&7<<3, 0xc4|s&7<<3, disp)
		case 27: // mov r12d, disp; sub rsp, r12; add rsp, r12
			emit(0x41, 0xbc, disp, 0, 0, 0, 0x4c, 0x29, 0xe4, 0x4c, 0x01, 0xe4)
		case 28: // cmp rsp, s; cmp [ptr], rsp
			emit(0x48|s>>3<<2, 0x39, 0xc4|s&7<<3, 0x48, 0x39, 0x60|ptr, disp)
		case 29: // mov from CR0, 2, 3 or 4: CR3 is the same for both
			emit(0x40|d>>3, 0x0f, 0x20, []byte{0xc0, 0xd0, 0xd8, 0xe0}[r.IntN(4)]|d&7)
		case 30: // swapgs; per-CPU access
			emit(0x0f, 0x01, 0xf8, 0x65, w|s>>3<<2, op, 0x04|s&7<<3, 0x25, disp, 0, 0, 0)
		case 31: // rdgsbase d; wrgsbase d; rdfsbase d
			emit(0xf3, 0x48|d>>3, 0x0f, 0xae, 0xc8|d&7, 0xf3, 0x48|d>>3, 0x0f, 0xae, 0xd8|d&7)
			emit(0xf3, 0x48|d>>3, 0x0f, 0xae, 0xc0|d&7)
		case 32: // lea s, [rsp+disp]; wrfsbase s
			emit(0x48|s>>3<<2, 0x8d, 0x44|s&7<<3, 0x24, disp, 0xf3, 0x48|s>>3, 0x0f, 0xae, 0xd0|s&7)
		case 33: // pushfq; xor flags in the word, IF among them or IOPL; popfq
			emit(0x9c, 0x48, 0x81, 0x34, 0x24, byte(r.UintN(256))&0xd5, byte(r.UintN(256))&0x3a, 0, 0, 0x9d, 0xfc)
		}
	}
	return append(b, 0xf4)
}

// TestKernelRandom runs random kernel code both ways.
func TestKernelRandom(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	n := 40
	if testing.Short() {
		n = 5
	}
	for range n {
		code := kernelProgram(r)
		var gs [2]*kernelGuest
		seed := r.Uint64()
		for i := range gs {
			g := newKernelGuest(t, code, i == 0)
			q := rand.New(rand.NewPCG(seed, 0))
			for j := range g.st.GPR {
				if j != x86.RSP {
					g.st.GPR[j] = q.Uint64()
				}
			}
			g.st.GPR[x86.RDI], g.st.GPR[x86.RSI], g.st.GPR[x86.RBX] = kData+0x100, kData+0xff0, kData+0x800
			g.st.GPR[x86.RBP] = kStack - 0x200
			g.st.RFLAGS |= q.Uint64() & x86.FlagsArith
			g.run()
			gs[i] = g
		}
		gs[0].diff(gs[1], code)
		if err := gs[0].k.Close(); err != nil {
			t.Fatal(err)
		}
		gs[0].k = nil
	}
}

// TestKernelCodeChanges lets kernel code patch an instruction that has run.
func TestKernelCodeChanges(t *testing.T) {
	// call 1f; movb $imm, (%rbx); call 1f; hlt; 1: mov $1, %eax; add %eax, %ecx; ret
	code := []byte{0xe8, 9, 0, 0, 0, 0xc6, 0x03, 5, 0xe8, 1, 0, 0, 0, 0xf4, 0xb8, 1, 0, 0, 0, 0x01, 0xc1, 0xc3}
	g := newKernelGuest(t, code, true)
	const alias = kData + 8*4096
	g.mapPage(alias, g.gpa(kCode), x86.PTEPresent|x86.PTEWrite|x86.PTEAccessed|x86.PTEDirty)
	g.st.GPR[x86.RBX] = alias + 15
	g.run()
	if g.st.GPR[x86.RCX] != 6 {
		t.Errorf("sum %d, want 6", g.st.GPR[x86.RCX])
	}
}

// TestKernelFlush changes the mapping of a page of data, and then of code.
func TestKernelFlush(t *testing.T) {
	code := []byte{0x48, 0x8b, 0x03, 0xf4} // mov (%rbx), %rax; hlt
	g := newKernelGuest(t, code, true)
	g.st.GPR[x86.RBX] = kData
	again := func(want uint64) {
		t.Helper()
		g.st.RIP, g.st.Halted = kCode, false
		g.run()
		if got := g.st.GPR[x86.RAX]; got != want {
			t.Errorf("read %#x, want %#x", got, want)
		}
	}
	again(0)
	g.mapPage(kData, g.page([]byte{1}), x86.PTEPresent|x86.PTEAccessed)
	g.k.Flush(Flush{Kind: FlushPage, Addr: kData})
	again(1)
	g.mapPage(kCode, g.page([]byte{0x48, 0xc7, 0xc0, 9, 0, 0, 0, 0xf4}), x86.PTEPresent|x86.PTEAccessed)
	g.k.Flush(Flush{Kind: FlushAll})
	// The interpreter's TLB is another one; this instruction is not its.
	if x, err := g.k.Run(); err != nil || x == KernelDied {
		t.Fatal(x, err)
	}
	again2 := func() uint64 {
		g.st.RIP, g.st.Halted = kCode, false
		if x, err := g.k.Run(); err != nil || x != KernelStep {
			t.Fatal(x, err)
		}
		return g.st.GPR[x86.RAX]
	}
	if got := again2(); got != 9 {
		t.Errorf("old code ran: %d", got)
	}
}

// TestKernelGlobal has a mapping become global: a flush of the others compares it
// once more, and not again. One that is not is compared every time.
func TestKernelGlobal(t *testing.T) {
	code := []byte{0x48, 0x8b, 0x03, 0xf4} // mov (%rbx), %rax; hlt
	g := newKernelGuest(t, code, true)
	g.st.GPR[x86.RBX] = kData
	old, other := g.gpa(kData), g.page([]byte{1})
	const flags = x86.PTEPresent | x86.PTEAccessed
	read := func(what string, want uint64) {
		t.Helper()
		g.st.RIP, g.st.Halted = kCode, false
		if x, err := g.k.Run(); err != nil || x != KernelStep {
			t.Fatal(x, err)
		}
		if got := g.st.GPR[x86.RAX]; got != want {
			t.Errorf("%s: read %#x, want %#x", what, got, want)
		}
	}
	flush := func() { g.k.Flush(Flush{Kind: FlushNonGlobal}) }
	read("first", 0)
	for range 2 {
		flush()
		read("compared", 0)
		g.mapPage(kData, other, flags)
		flush()
		read("moved", 1)
		g.mapPage(kData, old, flags)
		flush()
		read("and back", 0)
	}
	l := g.k.s.leaf(bt.Fold(kData))
	for i, e := range l.entries { // its neighbours, too
		if a := bt.Unfold(l.base + uint64(i)*4096); e != 0 {
			*g.pte(a) |= x86.PTEGlobal
		}
	}
	flush()
	read("global", 0)
	g.mapPage(kData, other, flags|x86.PTEGlobal)
	flush()
	read("global, moved and spared", 0)
	g.k.Flush(Flush{Kind: FlushPage, Addr: kData})
	read("invalidated", 1)
}

// TestKernelKick stops an endless loop.
func TestKernelKick(t *testing.T) {
	g := newKernelGuest(t, []byte{0x48, 0xff, 0xc0, 0x9c, 0x5a, 0xe8, 2, 0, 0, 0, 0xeb, 0xf4, 0xc3}, true)
	for range 20 {
		time.AfterFunc(2*time.Millisecond, g.k.Kick)
		if x, err := g.k.Run(); x != KernelKick {
			t.Fatal(x, err)
		}
		off := g.st.RIP - kCode
		if off != 0 && off != 3 && off != 4 && off != 5 && off != 10 && off != 12 {
			t.Fatalf("stopped at offset %d", off)
		}
		if d := kStack - 0x400 - g.st.GPR[x86.RSP]; d != 0 && d != 8 {
			t.Fatalf("stopped at offset %d with RSP off by %d", off, d)
		}
	}
}

// TestKernelCrossing runs an instruction that lies in two pages, and changes
// its second half.
func TestKernelCrossing(t *testing.T) {
	page := make([]byte, 4096)
	copy(page[4093:], []byte{0x48, 0xc7, 0xc0}) // mov $7, %rax; hlt
	g := newKernelGuest(t, page, true)
	next := g.page([]byte{7, 0, 0, 0, 0xf4})
	g.mapPage(kCode+4096, next, x86.PTEPresent|x86.PTEAccessed)
	for _, want := range []uint64{7, 9} {
		if err := g.mem.WriteAt([]byte{byte(want)}, next); err != nil {
			t.Fatal(err)
		}
		g.st.RIP, g.st.Halted = kCode+4093, false
		if x, err := g.k.Run(); err != nil || x != KernelStep || g.st.RIP != kCode+4100 {
			t.Fatal(x, err, g.st.RIP)
		}
		if got := g.st.GPR[x86.RAX]; got != want {
			t.Errorf("RAX %d, want %d", got, want)
		}
	}
	// Another page there.
	g.mapPage(kCode+4096, g.page([]byte{11, 0, 0, 0, 0xf4}), x86.PTEPresent|x86.PTEAccessed)
	g.k.Flush(Flush{Kind: FlushAll})
	g.st.RIP = kCode + 4093
	if x, err := g.k.Run(); err != nil || x != KernelStep || g.st.GPR[x86.RAX] != 11 {
		t.Fatal(x, err, g.st.GPR[x86.RAX])
	}
}

// TestKernelLearned runs instructions that have met the lower half with
// addresses in both.
func TestKernelLearned(t *testing.T) {
	const low = 0x400000
	// loop: mov (%rsi,%r8), %rax; add %rax, 8(%rbx); push %rdi; push %rsi; mov $16, %ecx; rep movsb
	// pop %rsi; pop %rdi; xchg %rsi, %rdi; xchg %rbx, %r9; dec %edx; jnz loop; hlt
	code := []byte{0x4a, 0x8b, 0x04, 0x06, 0x48, 0x01, 0x43, 0x08, 0x57, 0x56, 0xb9, 16, 0, 0, 0, 0xf3, 0xa4,
		0x5e, 0x5f, 0x48, 0x87, 0xf7, 0x4c, 0x87, 0xcb, 0xff, 0xca, 0x75, 0xe3, 0xf4}
	var gs [2]*kernelGuest
	for i := range gs {
		g := newKernelGuest(t, code, i == 0)
		gpa := g.page([]byte("a page in the lower half, of the supervisor"))
		g.pages = append(g.pages, gpa)
		g.mapPage(low, gpa, x86.PTEPresent|x86.PTEWrite|x86.PTEAccessed|x86.PTEDirty|x86.PTENX)
		g.st.GPR[x86.RSI], g.st.GPR[x86.RDI], g.st.GPR[x86.R8] = low, kData+0x100, 8
		g.st.GPR[x86.RBX], g.st.GPR[x86.R9], g.st.GPR[x86.RDX] = kData+0x200, low+0x200, 9
		g.run()
		gs[i] = g
	}
	gs[0].diff(gs[1], code)
	if n := gs[0].k.Stats(); n.Learned == 0 || n.Faults > 8 {
		t.Errorf("%+v", n)
	}
}
