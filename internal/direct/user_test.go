package direct

import (
	"encoding/binary"
	"math/rand/v2"
	"testing"
	"time"

	"ring3/internal/bt"
	"ring3/internal/direct/stub"
	"ring3/internal/guestmem"
	"ring3/internal/x86"
)

// Where the kernel guest of user-memory tests has what.
const (
	uData    = 0x400000 // two pages to write, one to read, one absent, one clean
	uAlias   = 0x500000 // one page at the same index of the user TLB
	uTables  = kData + 16*4096
	uHandler = 0xf00 // in the page of code
)

// newUserGuest is a kernel guest with user memory and a handler for page
// faults, which goes on at R15 with CR2 in R13 and the error code in R14.
func newUserGuest(t testing.TB, code []byte, translate bool) *kernelGuest {
	t.Helper()
	page := make([]byte, 4096)
	if n := copy(page, code); n > uHandler {
		t.Fatal("code too long")
	}
	// pop %r14; mov %cr2, %r13; mov %r15, (%rsp); iretq
	copy(page[uHandler:], []byte{0x41, 0x5e, 0x41, 0x0f, 0x20, 0xd5, 0x4c, 0x89, 0x3c, 0x24, 0x48, 0xcf})
	g := newKernelGuest(t, page, translate)
	tables := make([]byte, 4096)
	put := func(off int, v uint64) { binary.LittleEndian.PutUint64(tables[off:], v) }
	put(0x10, 0x00af9b000000ffff)
	put(0x18, 0x00cf93000000ffff)
	const handler = kCode + uHandler
	put(0x100+16*x86.VecPF, handler&0xffff|0x10<<16|0x8e00<<32|handler>>16&0xffff<<48)
	put(0x108+16*x86.VecPF, handler>>32)
	const rw = x86.PTEPresent | x86.PTEWrite | x86.PTEAccessed | x86.PTEDirty | x86.PTENX
	g.mapPage(uTables, g.page(tables), rw)
	g.st.GDTR.Base, g.st.GDTR.Limit = uTables, 0xff
	g.st.IDTR.Base, g.st.IDTR.Limit = uTables+0x100, 0xeff
	for i, flags := range []uint64{rw, rw, rw &^ x86.PTEWrite, 0, rw &^ (x86.PTEAccessed | x86.PTEDirty)} {
		gpa := g.page([]byte{byte(i), 1, 2, 3, 4, 5, 6, 7, 8})
		g.pages = append(g.pages, gpa)
		if flags != 0 {
			flags |= x86.PTEUser
		}
		g.mapPage(uData+uint64(i)*4096, gpa, flags)
	}
	gpa := g.page(nil)
	g.pages = append(g.pages, gpa)
	g.mapPage(uAlias, gpa, rw|x86.PTEUser)
	return g
}

// userProgram makes random code that accesses user and kernel memory with and
// without AC, rounds times, and ends in HLT.
func userProgram(r *rand.Rand, rounds uint32) []byte {
	var b []byte
	emit := func(v ...byte) { b = append(b, v...) }
	data := []byte{x86.RAX, x86.RCX, x86.RDX, x86.R9, x86.R10, x86.R11}
	reg := func() byte { return data[r.IntN(len(data))] }
	ptrs := []byte{x86.RDI, x86.RSI, x86.RBX, x86.RBP, x86.R8, x86.R12}
	address := func() uint64 {
		off := uint64(r.IntN(4096-256) &^ 7)
		switch r.IntN(8) {
		case 0:
			return kData + off
		case 1:
			return uAlias + off
		case 2:
			return uData + 4096*uint64(r.IntN(5)) - uint64(r.IntN(24)) // crosses
		case 3:
			return uData + 4096*uint64(2+r.IntN(3)) + off
		}
		return uData + 4096*uint64(r.IntN(2)) + off
	}
	load := func(p byte) {
		emit(0x48|p>>3, 0xb8|p&7)
		b = binary.LittleEndian.AppendUint64(b, address())
	}
	// mem emits prefix bytes, opcode and a memory operand.
	mem := func(prefix []byte, w byte, op []byte, reg, p byte, index bool, imm ...byte) {
		emit(prefix...)
		rex := w | reg>>3<<2 | p>>3
		disp := byte(r.IntN(4) * 8)
		if rex != 0x40 || reg >= 4 {
			emit(rex)
		}
		emit(op...)
		switch {
		case index: // RCX is small
			emit(0x44|reg&7<<3, 0xc8|p&7, disp)
		case p&7 == 4:
			emit(0x44|reg&7<<3, 0x24, disp)
		default:
			emit(0x40|reg&7<<3|p&7, disp)
		}
		emit(imm...)
	}
	alu := []byte{0x01, 0x09, 0x11, 0x19, 0x21, 0x29, 0x31, 0x39, 0x89}
	emit(0x48, 0xc7, 0x84, 0x24, 0, 3, 0, 0) // mov qword [rsp+0x300], rounds
	b = binary.LittleEndian.AppendUint32(b, rounds)
	start := len(b)
	for range 8 + r.IntN(24) {
		p, s := ptrs[r.IntN(len(ptrs))], reg()
		w := []byte{0x40, 0x48}[r.IntN(2)]
		lea := len(b)
		emit(0x4c, 0x8d, 0x3d, 0, 0, 0, 0) // lea r15, [rip+end]
		load(p)
		if r.IntN(6) != 0 {
			emit(0x0f, 0x01, 0xcb) // stac
		}
		count := uint32(r.IntN(70))
		if r.IntN(8) == 0 {
			emit(0xfd) // std
		}
		switch r.IntN(10) {
		case 0:
			count = 0
		case 1:
			count = 600
		}
		op := alu[r.IntN(len(alu))]
		switch r.IntN(22) {
		case 0, 1:
			mem(nil, w, []byte{op}, s, p, false)
		case 2, 3:
			mem(nil, w, []byte{op | 2}, s, p, false)
		case 4: // mov to and from AH to BH
			emit(0x48, 0xc7, 0xc0|x86.RBX, 0, 0, 0, 0)
			load(x86.RDI)
			emit([]byte{0x88, 0x8a}[r.IntN(2)], 0x67|byte(r.IntN(4))<<3&0x18, 8)
		case 5: // lock xadd, lock cmpxchg
			mem([]byte{0xf0}, w, []byte{0x0f, []byte{0xc1, 0xb1}[r.IntN(2)]}, s, p, false)
		case 6: // movzx, movsx
			mem(nil, w, []byte{0x0f, []byte{0xb6, 0xb7, 0xbe, 0xbf}[r.IntN(4)]}, s, p, false)
		case 7: // with an index
			emit(0xb9, byte(r.IntN(8)), 0, 0, 0)
			mem(nil, w, []byte{0xc7}, 0, p, true, 1, 2, 3, 4)
		case 8: // push, pop
			mem(nil, 0x40, []byte{0xff}, 6, p, false)
			emit(0x41, 0x59)
			emit(0x41, 0x51)
			mem(nil, 0x40, []byte{0x8f}, 0, p, false)
			// A fault of POP leaves the stack as it was: RSP is set anew below.
		case 9, 10: // rep movs
			load(x86.RDI)
			load(x86.RSI)
			emit(0xb9)
			b = binary.LittleEndian.AppendUint32(b, count)
			emit([][]byte{{0xf3, 0xa4}, {0xf3, 0x48, 0xa5}, {0xf3, 0xa5}}[r.IntN(3)]...)
		case 11, 12: // rep stos
			load(x86.RDI)
			emit(0xb9)
			b = binary.LittleEndian.AppendUint32(b, count)
			emit([][]byte{{0xf3, 0xaa}, {0xf3, 0x48, 0xab}, {0xf3, 0x66, 0xab}}[r.IntN(3)]...)
		case 13: // movs, stos
			load(x86.RDI)
			load(x86.RSI)
			emit([][]byte{{0xa4}, {0x48, 0xa5}, {0xaa}, {0x48, 0xab}}[r.IntN(4)]...)
		case 14: // call over a jump to a RET
			emit(0xe8, 2, 0, 0, 0, 0xeb, 4, w|s>>3<<2|s>>3, 0x31, 0xc0|s&7<<3|s&7, 0xc3)
		case 15: // lea s, [rip+x]; call s
			emit(0x48|s>>3<<2, 0x8d, 0x05|s&7<<3, 5, 0, 0, 0)
			emit(0x40|s>>3, 0xff, 0xd0|s&7, 0xeb, 1, 0xc3)
		case 16: // bts, by an immediate or a register
			mem(nil, w, []byte{0x0f, 0xba}, 5, p, false, byte(r.IntN(64)))
			emit(0xb9, byte(r.IntN(200)), 0, 0, 0)
			mem(nil, w, []byte{0x0f, 0xab}, x86.RCX, p, false)
		case 17: // not, neg, inc
			mem(nil, w, []byte{0xf7}, 2+byte(r.IntN(2)), p, false)
			mem(nil, w, []byte{0xff}, 0, p, false)
		case 18: // jcc over an access
			emit(0x70|byte(r.IntN(16)), 0)
			from := len(b)
			mem(nil, w, []byte{0x39}, s, p, false)
			b[from-1] = byte(len(b) - from)
		case 19: // pushfq; pop
			emit(0x9c, 0x40|s>>3, 0x58|s&7)
		case 20: // 16 bits
			mem([]byte{0x66}, 0x40, []byte{op}, s, p, false)
			mem([]byte{0x66}, 0x40, []byte{0x81}, 0, p, false, 1, 2)
		case 21: // imul, xchg
			mem(nil, w, []byte{0x6b}, s, p, false, 7)
			emit(0x48|s>>3<<2|s>>3, 0x85, 0xc0|s&7<<3|s&7) // test: IMUL leaves flags undefined
			mem(nil, w, []byte{0x87}, s, p, false)
		}
		binary.LittleEndian.PutUint32(b[lea+3:], uint32(len(b)-lea-7))
		emit(0xfc, 0x48, 0xbc) // cld; mov rsp, imm64
		b = binary.LittleEndian.AppendUint64(b, kStack-0x400)
		if r.IntN(3) != 0 {
			emit(0x0f, 0x01, 0xca) // clac
		}
	}
	emit(0x48, 0xff, 0x8c, 0x24, 0, 3, 0, 0) // dec qword [rsp+0x300]
	emit(0x0f, 0x85)
	b = binary.LittleEndian.AppendUint32(b, uint32(start-len(b)-4))
	return append(b, 0xf4)
}

// runUser runs random programs both ways.
func runUser(t *testing.T, r *rand.Rand, rounds uint32, kick bool) {
	code := userProgram(r, rounds)
	var gs [2]*kernelGuest
	seed := r.Uint64()
	for i := range gs {
		g := newUserGuest(t, code, i == 0)
		q := rand.New(rand.NewPCG(seed, 0))
		for j := range g.st.GPR {
			if j != x86.RSP {
				g.st.GPR[j] = q.Uint64()
			}
		}
		g.st.RFLAGS |= q.Uint64() & x86.FlagsArith
		done, ended := make(chan bool), make(chan bool)
		if !kick || i != 0 {
			close(ended)
		} else {
			go func() {
				defer close(ended)
				for {
					select {
					case <-done:
						return
					case <-time.After(30 * time.Microsecond):
						g.k.Kick()
					}
				}
			}()
		}
		g.run()
		close(done)
		<-ended
		gs[i] = g
	}
	gs[0].diff(gs[1], code)
	for a := uint64(uData); a < uData+5*4096; a += 4096 {
		if x, y := *gs[0].pte(a), *gs[1].pte(a); x != y {
			t.Fatalf("code %x\nentry of %#x is %#x, interpreted %#x", code, a, x, y)
		}
	}
	if kick && gs[0].k.Stats().Kicks == 0 {
		t.Log("no kick arrived")
	}
	if err := gs[0].k.Close(); err != nil {
		t.Fatal(err)
	}
	gs[0].k = nil
}

// TestKernelUser runs random code that accesses user memory.
func TestKernelUser(t *testing.T) {
	r := rand.New(rand.NewPCG(3, 4))
	n := 60
	if testing.Short() {
		n = 5
	}
	for range n {
		runUser(t, r, 3, false)
	}
}

// TestKernelUserKick kicks such code.
func TestKernelUserKick(t *testing.T) {
	r := rand.New(rand.NewPCG(5, 6))
	for range 6 {
		runUser(t, r, 200, true)
	}
}

// TestStubConstants: package stub knows neither bt nor guestmem, and has some of
// their constants itself.
func TestStubConstants(t *testing.T) {
	if stub.UserTLBSize != bt.UserTLBSize || stub.EmptyUser != bt.EmptyUser ||
		stub.PageFlags != guestmem.PageCode|guestmem.PageStubWrite || stub.PageWrite != guestmem.PageStubWrite {
		t.Error("they are not the same")
	}
}

// TestKernelUserFlush changes what a user address means, in every way that
// empties the user TLB.
func TestKernelUserFlush(t *testing.T) {
	// stac; mov (%rbx), %rax; mov %rcx, 8(%rbx); clac; hlt
	code := []byte{0x0f, 0x01, 0xcb, 0x48, 0x8b, 0x03, 0x48, 0x89, 0x4b, 0x08, 0x0f, 0x01, 0xca, 0xf4}
	g := newUserGuest(t, code, true)
	g.st.GPR[x86.RBX] = uData
	const rw = x86.PTEPresent | x86.PTEWrite | x86.PTEUser | x86.PTEAccessed | x86.PTEDirty
	// run runs to the end, where RIP is off, without the interpreter.
	run := func(what string, off, want uint64) {
		t.Helper()
		g.st.RIP, g.st.RFLAGS = kCode, x86.FlagFixed
		if x, err := g.k.Run(); err != nil || x != KernelStep || g.st.RIP != kCode+off {
			t.Fatalf("%s: %v %v, rip %#x", what, x, err, g.st.RIP)
		}
		if got := g.st.GPR[x86.RAX]; got != want {
			t.Errorf("%s: read %#x, want %#x", what, got, want)
		}
		if ac := g.st.RFLAGS&x86.FlagAC != 0; ac != (off != 13) {
			t.Errorf("%s: AC is %v", what, ac)
		}
	}
	first := g.word(uData)
	run("at first", 13, first)
	misses := g.k.Stats().UserMisses
	run("again", 13, first)
	if n := g.k.Stats().UserMisses; n != misses {
		t.Errorf("%d misses for the same page", n-misses)
	}
	fills := g.k.Stats().UserFills
	g.k.Flush(Flush{Kind: FlushAll})
	run("after a flush", 13, first)
	if s := g.k.Stats(); s.UserMisses != misses || s.UserFills == fills {
		t.Errorf("the stub served %d misses after a flush, the monitor %d", s.UserFills-fills, s.UserMisses-misses)
	}
	g.mapPage(uData, g.page([]byte{21}), rw)
	g.k.Flush(Flush{Kind: FlushPage, Addr: uData})
	run("another page", 13, 21)
	other := g.pml4
	g.newTables()
	*g.mem.Word(g.st.CR3 + 511*8) = *g.mem.Word(other + 511*8)
	for i := 256; i < 511; i++ {
		*g.mem.Word(g.st.CR3 + uint64(i)*8) = *g.mem.Word(other + uint64(i)*8)
	}
	g.mapPage(uData, g.page([]byte{22}), rw)
	run("another address space", 13, 22)
	g.mem.MarkCode(g.gpa(uData))
	run("a page of code", 6, 22)
	if g.mem.Flags(g.gpa(uData)) == 0 {
		t.Error("it is none any more")
	}
	g.mapPage(uData, g.page([]byte{23}), rw&^x86.PTEWrite)
	g.k.Flush(Flush{Kind: FlushAll})
	run("a page to read", 6, 23)
	g.mapPage(uData, 0, 0)
	g.k.Flush(Flush{Kind: FlushAll})
	run("no page", 3, 23)
}
