package direct

import (
	"testing"

	"ring3/internal/bt"
	"ring3/internal/x86"
)

// TestKernelStats counts what a small program does.
func TestKernelStats(t *testing.T) {
	// mov (%rbx), %rax; call 1f; hlt; 1: ret. The call is started over when the
	// stack is mapped, as a block of its own.
	g := newKernelGuest(t, []byte{0x48, 0x8b, 0x03, 0xe8, 1, 0, 0, 0, 0xf4, 0xc3}, true)
	g.st.GPR[x86.RBX] = kData
	g.run()
	n := g.k.Stats()
	want := KernelCounts{Insts: 4, GuestBytes: 14, EmittedBytes: n.EmittedBytes, Mapped: 2}
	want.ModeFlushes = 1 // at the start
	want.Left[bt.ExitChain] = 1
	if n.KernelCounts != want || n.Translated != 4 || n.Misses != 1 || n.Exits != 2 || n.Faults != 2 || n.EmittedBytes < 40 {
		t.Errorf("%+v", n)
	}
	g.k.DropCode(g.gpa(kCode), 1)
	g.mapPage(kCode, g.page([]byte{0xf4}), x86.PTEPresent|x86.PTEAccessed)
	g.k.Flush(Flush{Kind: FlushAll})
	g.st.RIP, g.st.Halted = kCode, false
	if x, err := g.k.Run(); err != nil || x != KernelStep {
		t.Fatal(x, err)
	}
	if n := g.k.Stats(); n.Written != 1 || n.Moved != n.Dropped-1 || n.Moved == 0 {
		t.Errorf("%+v", n)
	}
}
