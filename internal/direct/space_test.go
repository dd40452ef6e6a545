package direct

import (
	"encoding/binary"
	"testing"

	"ring3/internal/mmu"
	"ring3/internal/x86"
)

// touch: mov rax,[rbx]; syscall
var touch = []byte{0x48, 0x8b, 0x03, 0x0f, 0x05}

func (g *guest) load(gva uint64) uint64 {
	g.t.Helper()
	g.st.RIP, g.st.GPR[x86.RBX] = codeVA, gva
	g.want(ExitSyscall)
	return g.st.GPR[x86.RAX]
}

func TestRevalidation(t *testing.T) {
	for _, kind := range []FlushKind{FlushAll, FlushNonGlobal, FlushPCID, FlushPage} {
		g := newGuest(t, touch, Config{})
		const base = 0x700000
		for i := range uint64(8) {
			g.mapPage(base+i*4096, g.page(imm64(100+i)), pteRW|x86.PTENX)
		}
		for i := range uint64(8) {
			if v := g.load(base + i*4096); v != 100+i {
				t.Fatalf("page %d: %d", i, v)
			}
		}
		// Stale entries may be used until flushed; afterwards not.
		g.mapPage(base, g.page(imm64(777)), pteRW)
		*g.pte(base + 4096) = 0
		*g.pte(base + 2*4096) &^= x86.PTEUser
		before := g.e.Stats()
		for i := range uint64(3) {
			g.e.Flush(Flush{Kind: kind, Addr: base + i*4096 + 5})
		}
		if v := g.load(base); v != 777 {
			t.Errorf("flush %d: remapped page reads %d", kind, v)
		}
		g.st.RIP, g.st.GPR[x86.RBX] = codeVA, base+4096
		if x := g.wantException(x86.VecPF); x.ErrCode != 4 {
			t.Errorf("error code %#x", x.ErrCode)
		}
		g.st.RIP, g.st.GPR[x86.RBX] = codeVA, base+2*4096
		if x := g.wantException(x86.VecPF); x.ErrCode != 5 {
			t.Errorf("error code %#x", x.ErrCode)
		}
		for i := uint64(3); i < 8; i++ {
			if v := g.load(base + i*4096); v != 100+i {
				t.Errorf("page %d: %d", i, v)
			}
		}
		after := g.e.Stats()
		if n := after.PagesDropped - before.PagesDropped; n != 3 {
			t.Errorf("flush %d: %d pages dropped, 3 changed", kind, n)
		}
		if n := after.Unmaps - before.Unmaps; n != 1 {
			t.Errorf("flush %d: %d unmap calls for adjacent pages", kind, n)
		}
		// Writing is taken away when the dirty bit is cleared (page cache
		// write-back), and comes back with the next write.
		g.poke(codeVA+0x100, []byte{0x48, 0x89, 0x03, 0x0f, 0x05})
		store := func() {
			g.st.RIP, g.st.GPR[x86.RBX] = codeVA+0x100, base+7*4096
			g.want(ExitSyscall)
		}
		store()
		*g.pte(base + 7*4096) &^= x86.PTEDirty
		g.e.Flush(Flush{Kind: kind, Addr: base + 7*4096})
		store()
		if *g.pte(base + 7*4096)&x86.PTEDirty == 0 {
			t.Error("a store after the flush did not set the dirty bit")
		}
	}
}

func TestAddressSpaces(t *testing.T) {
	const spaces = 7
	g := newGuest(t, touch, Config{MaxStubs: 3})
	code := g.gpa(codeVA)
	var cr3 [spaces]uint64
	for i := range cr3 {
		g.newTables()
		cr3[i] = g.st.CR3
		g.mapPage(codeVA, code, pteUser)
		g.mapPage(dataVA, g.page(imm64(uint64(i))), pteRW)
	}
	for round := range 40 {
		i := round * 5 % spaces
		g.st.CR3 = cr3[i]
		if v := g.load(dataVA); v != uint64(i) {
			t.Fatalf("round %d: space %d reads %d", round, i, v)
		}
		if n := children(t); n > 4 {
			t.Fatalf("%d processes", n)
		}
	}
	if n := children(t); n != 4 {
		t.Errorf("%d processes, want 3 stubs and a zygote", n)
	}
	if st := g.e.Stats(); st.Recycled == 0 || st.Forks != 3 {
		t.Errorf("%+v", st)
	}
}

// Extended state goes with the virtual CPU, not with the address space, and
// survives whatever happens to stubs.
func TestFPUState(t *testing.T) {
	// vpaddq ymm0, ymm0, ymm1; fld1; faddp; syscall
	g := newGuest(t, []byte{0xc5, 0xfd, 0xd4, 0xc1, 0xd9, 0xe8, 0xde, 0xc1, 0x0f, 0x05}, Config{})
	if g.e.xmask&4 == 0 {
		t.Skip("the host has no AVX")
	}
	code := g.gpa(codeVA)
	a := g.st.CR3
	g.newTables()
	b := g.st.CR3
	g.mapPage(codeVA, code, pteUser)
	g.st.CR3 = a

	const ymmHi = 576 // standard format offset of component 2
	le := binary.LittleEndian
	f := g.e.FPU()
	le.PutUint64(f.Area[512:], 7)
	for i := range 2 {
		le.PutUint64(f.Area[176+8*i:], uint64(1+i))      // xmm1
		le.PutUint64(f.Area[ymmHi+16+8*i:], uint64(3+i)) // ymm1 high
	}
	// ST0 = 0.0, tag word says register 7 is in use, top of stack 7.
	le.PutUint16(f.Area[2:], 7<<11)
	f.Area[4] = 1 << 7
	check := func(n uint64) {
		t.Helper()
		f := g.e.FPU()
		for i := range 2 {
			if v := le.Uint64(f.Area[160+8*i:]); v != n*uint64(1+i) {
				t.Errorf("xmm0[%d] = %d, want %d", i, v, n*uint64(1+i))
			}
			if v := le.Uint64(f.Area[ymmHi+8*i:]); v != n*uint64(3+i) {
				t.Errorf("ymm0 high[%d] = %d, want %d", i, v, n*uint64(3+i))
			}
		}
		mant, exp := le.Uint64(f.Area[32:]), le.Uint16(f.Area[40:])
		if n > 0 && mant>>(63-(exp-0x3fff)) != n {
			t.Errorf("st0 = %#x * 2^%d, want %d", mant, int(exp)-0x3fff-63, n)
		}
	}
	for i := range uint64(20) {
		g.st.RIP = codeVA
		g.want(ExitSyscall)
		switch i % 4 {
		case 0:
			g.st.CR3 = a + b - g.st.CR3
		case 1:
			check(i + 1)
		case 2:
			g.e.Kick()
			g.want(ExitKick)
		}
	}
	check(20)
	if f := g.e.FPU(); le.Uint32(f.Area[24:]) != 0x1f80 {
		t.Errorf("MXCSR %#x", le.Uint32(f.Area[24:]))
	}
}

func TestEviction(t *testing.T) {
	g := newGuest(t, touch, Config{MaxMaps: 24})
	const n = 200
	for i := range uint64(n) {
		// Scattered pages: no two merge.
		g.mapPage(0x1000_0000+i*0x10000, g.page(imm64(i)), pteRW)
	}
	for round := range 3 {
		for i := range uint64(n) {
			if v := g.load(0x1000_0000 + i*0x10000); v != i {
				t.Fatalf("round %d, page %d: %d", round, i, v)
			}
			if s := g.e.cur; s.maps > 24 {
				t.Fatalf("%d mappings", s.maps)
			}
		}
	}
	if g.e.Stats().Evictions == 0 {
		t.Error("no eviction")
	}
}

// RAM that is mapped at many places does not fill the monitor's books, though
// neighbours merge.
func TestEvictionOfAliases(t *testing.T) {
	g := newGuest(t, touch, Config{})
	g.e.maxPages, g.e.maxLeaves = 512, 32
	pages := g.page(imm64(1))
	for range 15 {
		g.page(imm64(1))
	}
	for i := range uint64(16 * 100) {
		stride := uint64(x86.PageSize)
		if i >= 16*50 {
			stride = 2 << 20 // one leaf for each
		}
		g.mapPage(0x1000_0000+i*stride, pages+i%16*x86.PageSize, pteRW)
	}
	for i := range uint64(16 * 100) {
		stride := uint64(x86.PageSize)
		if i >= 16*50 {
			stride = 2 << 20
		}
		g.load(0x1000_0000 + i*stride)
		if s := g.e.cur; s.pages > 512+16 || len(s.leaves) > 32+1 {
			t.Fatalf("%d pages in %d leaves", s.pages, len(s.leaves))
		}
	}
}

// The count of host mappings is what /proc says.
func TestMapCount(t *testing.T) {
	g := newGuest(t, touch, Config{})
	for i := range uint64(64) {
		gpa := g.next
		if i%7 == 3 {
			g.next += 4096
		}
		_ = gpa
		g.mapPage(0x1000_0000+i*4096, g.page(imm64(i)), pteUser|x86.PTENX|x86.PTEWrite*(i/9%2))
	}
	for i := range uint64(64) {
		g.load(0x1000_0000 + i*29%64*4096)
	}
	s := g.e.cur
	const own = 6 // code, control pages, hand-over page, answers and low area of the stub
	want := s.maps + own
	if got := mapsOfPID(t, s.p.pid); got != want {
		t.Errorf("the engine counts %d mappings, the host %d", want, got)
	}
	*g.pte(0x1000_0000 + 5*4096) = 0
	*g.pte(0x1000_0000 + 30*4096) = 0
	g.e.Flush(Flush{Kind: FlushAll})
	g.load(0x1000_0000)
	if got := mapsOfPID(t, s.p.pid); got != s.maps+own {
		t.Errorf("after unmapping the engine counts %d mappings, the host %d", s.maps+own, got)
	}
}

func TestMapHint(t *testing.T) {
	g := newGuest(t, touch, Config{})
	g.load(dataVA)
	before := g.e.Stats()
	g.st.RIP, g.st.GPR[x86.RBX] = codeVA, 0x700000
	x := g.wantException(x86.VecPF)
	g.e.MapHint(x.CR2, x.ErrCode)
	g.mapPage(0x700000, g.page(imm64(5)), pteRW|x86.PTEAccessed|x86.PTEDirty)
	if v := g.load(0x700000); v != 5 {
		t.Errorf("read %d", v)
	}
	after := g.e.Stats()
	if after.Hints != before.Hints+1 || after.HostFaults != before.HostFaults {
		t.Errorf("hints %d, host faults %d", after.Hints-before.Hints, after.HostFaults-before.HostFaults)
	}
	// A hint for a page that stays absent does nothing.
	g.st.RIP, g.st.GPR[x86.RBX] = codeVA, 0x900000
	g.wantException(x86.VecPF)
	g.e.MapHint(0x900000, x86.PFUser)
	g.wantException(x86.VecPF)
}

// The guest has memory where the stub is.
func TestRelocation(t *testing.T) {
	g := newGuest(t, touch, Config{})
	g.load(dataVA)
	at := g.e.zygote.prog.Base + 0x3000
	g.mapPage(at, g.page(imm64(4711)), pteRW|x86.PTEAccessed)
	g.e.walk.Walk(g.st, at, mmu.User) // the kernel has read it for the program
	g.e.Flush(Flush{Kind: FlushNonGlobal})
	if v := g.load(at); v != 4711 {
		t.Errorf("read %#x", v)
	}
	if st := g.e.Stats(); st.Relocations != 1 || children(t) != 2 {
		t.Errorf("%d relocations, %d processes", st.Relocations, children(t))
	}
}
