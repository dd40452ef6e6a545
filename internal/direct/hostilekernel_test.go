package direct

import (
	"bytes"
	"encoding/binary"
	"errors"
	"math/rand/v2"
	"strings"
	"testing"
	"time"

	"ring3/internal/bt"
	"ring3/internal/cpu"
	"ring3/internal/direct/stub"
	"ring3/internal/interp"
	"ring3/internal/x86"
)

// A guest kernel owns its stub: here it writes and jumps wherever an address
// leads, and executes code that no translator would emit. The monitor must
// survive, and another machine must not notice. The guest may lose its stub.

// hostileKernel is a guest that attacks, one beside it, and memory of the
// monitor that must not change.
type hostileKernel struct {
	*kernelGuest
	other  *kernelGuest
	canary []byte
	deaths int
}

// attackPage is the code: at 0 an honest program, at attackAt the attack.
const attackAt = 0x100

func newHostileKernel(t *testing.T, attack []byte) *hostileKernel {
	t.Helper()
	old := nap
	t.Cleanup(func() { nap = old })
	nap = 2 * time.Millisecond // do not take half a second for each that hangs
	// mov (%rbx), %rax; inc %rax; mov %rax, (%rbx); push %rax; pop %rcx; hlt
	page := make([]byte, attackAt, 4096)
	copy(page, []byte{0x48, 0x8b, 0x03, 0x48, 0xff, 0xc0, 0x48, 0x89, 0x03, 0x50, 0x59, 0xf4})
	page = append(page, attack...)
	h := &hostileKernel{kernelGuest: newUserGuest(t, page, true), other: newKernelGuest(t, page, true)}
	h.haltOnExceptions()
	h.canary = bytes.Repeat([]byte("monitor!"), 1<<15)
	h.honest(h.kernelGuest)
	return h
}

// haltOnExceptions makes all exceptions end in HLT, on a stack that is not the
// attack's (IST 1).
func (h *hostileKernel) haltOnExceptions() {
	const tss, stack, handler = kCPU + 0x400, kCPU + 0x1000, kCode + 11
	h.st.TR = cpu.Segment{Sel: 0x40, Base: tss, Limit: 0x67, Attr: cpu.AttrP | 0xb}
	*h.mem.Word(h.gpa(tss + 32)) = stack & 0xffffffff << 32
	*h.mem.Word(h.gpa(tss + 40)) = stack >> 32
	for v := range uint64(32) {
		gate := h.gpa(uTables + 0x100 + 16*v)
		*h.mem.Word(gate) = handler&0xffff | 0x10<<16 | 1<<32 | 0x8e00<<32 | handler>>16&0xffff<<48
		*h.mem.Word(gate + 8) = handler >> 32
	}
}

// honest runs the honest program.
func (h *hostileKernel) honest(g *kernelGuest) {
	h.t.Helper()
	for try := 0; ; try++ {
		g.reset()
		g.st.GPR[x86.RBX] = kData
		want := g.word(kData) + 1
		died := false
		for start := time.Now(); !g.st.Halted && !died; {
			if time.Since(start) > 20*time.Second {
				h.t.Fatalf("an honest program does not end; rip %#x", g.st.RIP)
			}
			if g.k.Fits() {
				switch x, err := g.k.Run(); x {
				case KernelKick:
					continue
				case KernelDied:
					// Late, of what the attack did.
					if died = true; try > 2 || g == h.other {
						h.t.Fatal(err)
					}
					continue
				}
			}
			if g.c.Run(1) == interp.ExitShutdown {
				h.t.Fatalf("triple fault in an honest program at %#x", g.st.RIP)
			}
		}
		if died {
			h.deaths++
			continue
		}
		if g.st.GPR[x86.RCX] != want || g.word(kData) != want {
			h.t.Fatalf("an honest program made %#x and %#x of %#x", g.st.GPR[x86.RCX], g.word(kData), want-1)
		}
		return
	}
}

// reset puts the virtual CPU at the start of the honest program.
func (g *kernelGuest) reset() {
	st := g.st
	st.Halted, st.InterruptShadow, st.CPL, st.RFLAGS = false, false, 0, x86.FlagFixed
	st.RIP, st.GPR[x86.RSP] = kCode, kStack-0x400
	st.Seg[x86.GS].Base, st.Seg[x86.FS].Base, st.KernelGSBase = kCPU, 0, kCPU+0x800
}

// attack runs from State until the guest halts, or for a few kicks.
func (h *hostileKernel) attack() {
	h.t.Helper()
	for kicks := 0; kicks < 4 && !h.st.Halted; {
		if h.k.Fits() {
			switch x, _ := h.k.Run(); x {
			case KernelKick:
				kicks++
				continue
			case KernelDied:
				h.deaths++
				return
			}
		}
		if e := h.c.Run(1); e == interp.ExitShutdown || e == interp.ExitUser {
			return
		}
		if !h.k.Fits() {
			kicks++
		}
	}
}

// unharmed checks everything that an attack must not reach.
func (h *hostileKernel) unharmed() {
	h.t.Helper()
	h.honest(h.kernelGuest)
	h.honest(h.other)
	if bytes.Count(h.canary, []byte("monitor!")) != 1<<15 {
		h.t.Fatal("memory of the monitor has changed")
	}
	if n := children(h.t); n > 4 { // two stubs, two zygotes
		h.t.Fatalf("%d processes", n)
	}
}

// target is a host address that the guest aims at.
func (h *hostileKernel) target(r *rand.Rand) uint64 {
	base := h.k.s.p.base
	switch r.IntN(9) {
	case 0:
		return base + r.Uint64N(stub.Extent)
	case 1:
		return base + stub.ControlOff + r.Uint64N(0x260)
	case 2: // jump table, user TLB, the first translations
		return h.k.c.base + r.Uint64N(codeOff+4096)
	case 3:
		return h.k.c.base + r.Uint64N(cacheSize)
	case 4:
		return r.Uint64N(4 << 20)
	case 5: // RAM once more, but for what the guest itself needs, and behind it
		return window + h.next + r.Uint64N(h.mem.Size()-h.next+1<<20)
	case 6:
		return bt.Fold(r.Uint64()) // most are not canonical
	case 7:
		return r.Uint64N(1 << 47)
	}
	return 1<<47 - 1 - r.Uint64N(1<<14)
}

// TestHostileKernelWrites: stores, string stores and pushes to all that the
// kernel's stub has mapped and to much that it has not.
func TestHostileKernelWrites(t *testing.T) {
	// mov %rax, (%rdi); mov $64, %ecx; rep stosq; mov %rdi, %rsp; push %rax; push %rax; call 1f; 1: hlt
	h := newHostileKernel(t, []byte{0x48, 0x89, 0x07, 0xb9, 64, 0, 0, 0, 0xf3, 0x48, 0xab,
		0x48, 0x89, 0xfc, 0x50, 0x50, 0xe8, 0, 0, 0, 0, 0xf4})
	starts := []uint64{0, 3, 11}
	ticker(t, h.k.e, 2*time.Millisecond)
	r := rand.New(rand.NewPCG(5, 6))
	n := 3000
	if testing.Short() {
		n = 300
	}
	for i := range n {
		h.honestIfGone()
		h.reset()
		at := h.target(r)
		h.st.RIP = kCode + attackAt + starts[r.IntN(len(starts))]
		h.st.GPR[x86.RDI] = bt.Unfold(at)
		h.st.GPR[x86.RAX] = r.Uint64()
		if i%2 == 0 { // more plausible
			h.st.GPR[x86.RAX] = h.target(r)
		}
		h.attack()
		if i%16 == 0 {
			h.unharmed()
		}
	}
	h.unharmed()
	t.Logf("the guest lost its stub %d times in %d attacks", h.deaths, n)
}

// honestIfGone makes sure that there is a stub to aim at.
func (h *hostileKernel) honestIfGone() {
	if h.k.s == nil {
		h.honest(h.kernelGuest)
	}
}

// TestHostileKernelBranches: branches to addresses that the jump table must not
// take for one of its entries, empty ones among them.
func TestHostileKernelBranches(t *testing.T) {
	// jmp *%rax; 2: stac; jmp *%rax
	h := newHostileKernel(t, []byte{0xff, 0xe0, 0x0f, 0x01, 0xcb, 0xff, 0xe0})
	to := []uint64{0, 1, 1 << 62, 1<<62 - 1, 1 << 63, 1<<63 - 1, 1<<64 - 1<<62, 1<<64 - 1, bt.TableSize - 1, kCode - 1<<63, kCode + attackAt - 1<<62}
	r := rand.New(rand.NewPCG(11, 12))
	for range 200 {
		empty := -bt.EmptyTag(r.IntN(bt.TableSize))
		to = append(to, empty, empty+1<<62, r.Uint64N(bt.TableSize))
	}
	for _, a := range to {
		for _, start := range []uint64{0, 2} {
			h.honestIfGone()
			h.reset()
			h.st.RIP, h.st.GPR[x86.RAX] = kCode+attackAt+start, a
			h.attack()
			if !h.st.Halted || h.st.RIP != kCode+12 {
				t.Errorf("branch to %#x: at %#x", a, h.st.RIP)
			}
		}
	}
	h.unharmed()
	if h.deaths != 0 {
		t.Errorf("the guest lost its stub %d times", h.deaths)
	}
}

// TestHostileKernelJumps runs the kernel's stub at bytes all over its program,
// and in the middle of translations, with registers that suit.
func TestHostileKernelJumps(t *testing.T) {
	h := newHostileKernel(t, nil)
	ticker(t, h.k.e, 2*time.Millisecond)
	r := rand.New(rand.NewPCG(7, 8))
	step := 7 // a death costs 10 ms
	if testing.Short() {
		step = 37
	}
	code := len(h.k.e.zygote.prog.Code)
	for off := 0; off < code+600; off += step {
		h.honestIfGone()
		h.reset()
		at := h.k.s.p.base + uint64(off)
		if off >= code {
			at = h.k.c.base + codeOff + r.Uint64N(uint64(h.k.c.used)-codeOff)
		}
		for i := range h.st.GPR {
			if r.IntN(2) == 0 {
				h.st.GPR[i] = h.target(r)
			} else {
				h.st.GPR[i] = r.Uint64N(512)
			}
		}
		if r.IntN(2) == 0 {
			h.st.GPR[x86.RSP] = bt.Unfold(h.k.s.p.base + stub.StackOff + r.Uint64N(stub.StackSize))
		}
		if _, err := h.k.enter(&cached{Block: &bt.Block{}, host: at}, nil); err != nil {
			h.deaths++
			h.k.fail(err)
		}
		h.honest(h.kernelGuest)
		if off%20 == 0 {
			h.unharmed()
		}
	}
	h.unharmed()
	t.Logf("the guest lost its stub %d times in %d bytes of code", h.deaths, code)
}

// TestHostileKernelLies: the kernel's stub says that it has stopped, and goes on
// running. It must be found out before it sees a secret, and before the monitor
// relies on what it has mapped.
func TestHostileKernelLies(t *testing.T) {
	for _, moment := range []string{"calls", "flush", "code", "run"} {
		t.Run(moment, func(t *testing.T) {
			h := newHostileKernel(t, nil)
			const at = cacheSize - 4096 // behind all translations
			// mov [Ready], 1; mov [Reason], ReasonExit; mov [ExitID], 0; mov [State], Stopped; jmp self
			copy(h.k.c.mem[at:], cat(
				[]byte{0xc7, 0x83}, imm32(0x68), imm32(1),
				[]byte{0xc7, 0x83}, imm32(0x18), imm32(stub.ReasonExit),
				[]byte{0xc7, 0x83}, imm32(0x120), imm32(0),
				[]byte{0xc7, 0x03}, imm32(stub.Stopped),
				[]byte{0xeb, 0xfe}))
			h.reset()
			p := h.k.s.p
			h.st.GPR[x86.RBX] = p.base + stub.ControlOff
			if _, err := h.k.enter(&cached{Block: &bt.Block{}, host: h.k.c.base + at}, nil); err != nil {
				t.Fatal(err)
			}
			ticker(t, h.k.e, 2*time.Millisecond)
			switch moment {
			case "calls":
				if err := errors.Join(p.munmap(bt.Fold(kData), 4096), p.execute()); err == nil || !strings.Contains(err.Error(), "stops were true") {
					t.Errorf("error %v", err)
				}
			case "flush":
				h.k.Flush(Flush{Kind: FlushPage, Addr: kData})
			case "code":
				h.k.DropCode(h.gpa(kCode), 1)
			}
			if (moment == "flush" || moment == "code") && h.k.s != nil && h.k.s.p == p {
				t.Error("the liar is still used")
			}
			h.unharmed()
			if h.k.s.p == p {
				t.Error("the liar lives")
			}
		})
	}
}

// TestHostileKernelScribbles overwrites the shared memory of the kernel's stub
// with random and with plausible numbers, and goes on.
func TestHostileKernelScribbles(t *testing.T) {
	// rep movsb; push %rax; call 1f; 1: pop %rax; mov (%rbx), %rax; ret
	h := newHostileKernel(t, []byte{0xf3, 0xa4, 0x50, 0xe8, 0, 0, 0, 0, 0x58, 0x48, 0x8b, 0x03, 0xc3})
	const src = kData + 32*4096
	for i := range uint64(stub.Extent / 4096) {
		h.mapPage(src+i*4096, h.page(nil), x86.PTEPresent|x86.PTEWrite|x86.PTEAccessed|x86.PTEDirty|x86.PTENX)
	}
	ticker(t, h.k.e, 2*time.Millisecond)
	r := rand.New(rand.NewPCG(9, 10))
	n := 600
	if testing.Short() {
		n = 60
	}
	for round := range n {
		h.honestIfGone()
		h.reset()
		b := make([]byte, stub.Extent-stub.ControlOff)
		for i := 0; i < len(b); i += 8 {
			v := r.Uint64()
			if round%2 == 0 {
				if v = r.Uint64N(8); r.IntN(4) == 0 {
					v = h.target(r)
				}
			}
			binary.LittleEndian.PutUint64(b[i:], v)
		}
		for i := 0; i < len(b); i += 4096 {
			h.poke(src+uint64(i), b[i:min(i+4096, len(b))])
		}
		off := r.Uint64N(uint64(len(b)))
		if round%3 == 0 {
			off = r.Uint64N(0x260)
		}
		h.st.RIP = kCode + attackAt
		h.st.GPR[x86.RSI], h.st.GPR[x86.RCX] = src+off, 1+r.Uint64N(uint64(len(b))-off)
		h.st.GPR[x86.RDI] = bt.Unfold(h.k.s.p.base + stub.ControlOff + off)
		h.st.GPR[x86.RBX] = kData
		h.attack()
		h.unharmed()
	}
	t.Logf("the guest lost its stub %d times in %d attacks", h.deaths, n)
}
