package interp

import (
	"testing"

	"ring3/internal/x86"
	"ring3/internal/x86/insn"
)

// run runs c until it halts.
func run(t *testing.T, c *CPU) {
	t.Helper()
	for range 1000 {
		switch e := c.Run(100000); e {
		case ExitHalt:
			c.Halted = false
			return
		case ExitShutdown:
			t.Fatalf("shutdown, RIP %#x", c.RIP)
		}
	}
	t.Fatalf("does not halt, RIP %#x", c.RIP)
}

func want(t *testing.T, what string, got, want uint64) {
	t.Helper()
	if got != want {
		t.Errorf("%s is %#x, want %#x", what, got, want)
	}
}

// A store into the block that is running takes effect with the next
// instruction (SDM vol. 3A, section 8.1.3, on current processors).
func TestStoreIntoRunningBlock(t *testing.T) {
	for name, code := range map[string][]byte{
		"next instruction": {
			0xc6, 0x05, 0x00, 0x00, 0x00, 0x00, 0x42, // mov byte [rip+0], 0x42
			0xb0, 0x00, // mov al, 0x00: the write changes the first byte
			0xf4,
		},
		"next is a NOP": {
			0xc7, 0x05, 0x00, 0x00, 0x00, 0x00, 0xb0, 0x42, 0xf4, 0x90, // mov dword [rip], "mov al, 0x42; hlt; nop"
			0x90, 0x90, 0x90, 0x90, 0x90, 0xf4,
		},
		"behind a NOP": {
			0xc6, 0x05, 0x02, 0x00, 0x00, 0x00, 0x42, // mov byte [rip+2], 0x42
			0x90, 0xb0, 0x00, // nop; mov al, 0
			0xf4,
		},
	} {
		c := newMachine(t)
		load(t, c, code...)
		if name == "next instruction" {
			c.Mem.WriteAt([]byte{0x42}, testCode+6)
			// 0x42 0x00.. would be a REX prefix: write an opcode instead.
			c.Mem.WriteAt([]byte{0xb3}, testCode+6) // mov bl, 0x00
		}
		c.GPR[x86.RAX], c.GPR[x86.RBX] = 0x99, 0x99
		run(t, c)
		if name == "next instruction" {
			want(t, name+": RAX", c.GPR[x86.RAX], 0x99)
			want(t, name+": RBX", c.GPR[x86.RBX], 0)
			continue
		}
		want(t, name+": RAX", c.GPR[x86.RAX], 0x42)
	}
}

// Code that was written after it ran is decoded anew, also through another
// mapping, and also when only the second page of an instruction changes.
func TestStaleCode(t *testing.T) {
	const edge = testCode + 0x1000 - 2
	c := newMachine(t)
	// mov eax, 1; hlt at the end of the page: two bytes of it on the first
	c.Mem.WriteAt([]byte{0xb8, 1, 0, 0, 0, 0xf4}, edge)
	c.RIP = edge
	run(t, c)
	want(t, "RAX", c.GPR[x86.RAX], 1)

	// The guest writes to the second page: mov byte [edge+2], 2; jmp edge
	c.GPR[x86.RBX] = edge
	load(t, c, 0xc6, 0x43, 0x02, 0x02, 0xff, 0xe3)
	c.RIP = testCode
	run(t, c)
	want(t, "RAX after the guest's write", c.GPR[x86.RAX], 0x201)

	// A device writes.
	c.Mem.WriteAt([]byte{7}, edge+1)
	c.RIP = edge
	run(t, c)
	want(t, "RAX after a device's write", c.GPR[x86.RAX], 0x207)

	// The second page is mapped elsewhere: same first bytes, other rest.
	second := uint64(testCode + 0x1000)
	c.Mem.WriteAt([]byte{9, 0, 0, 0xf4}, 0x40000)
	pte := c.Mem.Word(testPT + second>>12*8)
	*pte = *pte&^x86.PTEAddr | 0x40000
	c.flushTLB(Flush{Kind: FlushPage, Addr: second})
	c.RIP = edge
	run(t, c)
	want(t, "RAX after remapping", c.GPR[x86.RAX], 0x907)
}

// Data beside code on one page can be written without dropping the code.
func TestDropOnlyOverlapping(t *testing.T) {
	c := newMachine(t)
	load(t, c, 0x90, 0xeb, 0x00, 0xf4) // nop; jmp +0; hlt
	run(t, c)
	before := c.Counters().Invalidated
	c.Mem.WriteAt([]byte{1, 2, 3}, testCode+0x800)
	want(t, "blocks dropped by a write beside", c.Counters().Invalidated-before, 0)
	c.Mem.WriteAt([]byte{0xf4}, testCode+3)
	want(t, "blocks dropped by a write to one", c.Counters().Invalidated-before, 1)
	if c.Mem.Flags(testCode) == 0 {
		t.Error("the page lost its flag while a block of it is left")
	}
	c.Mem.WriteAt([]byte{0x90}, testCode)
	if c.Mem.Flags(testCode) != 0 {
		t.Error("the page kept its flag without blocks")
	}
}

// A page whose data is cached for writing becomes code: the next write to it
// must be noticed.
func TestWritableThenCode(t *testing.T) {
	c := newMachine(t)
	// mov [rbx], al twice with a call of rbx between
	load(t, c, 0x88, 0x03, 0xff, 0xd3, 0x88, 0x43, 0x01, 0xff, 0xd3, 0xf4)
	c.GPR[x86.RBX], c.GPR[x86.RAX] = testData, 0xc3 // ret
	c.Mem.WriteAt([]byte{0xc3, 0x90}, testData)
	run(t, c)                                         // calls ret, writes, calls again
	c.Mem.WriteAt([]byte{0xb0, 0x11, 0xc3}, testData) // mov al, 0x11; ret
	c.RIP, c.GPR[x86.RAX] = testCode, 0xb0
	run(t, c)
	// The second write made it mov al, 0x11 with the immediate replaced by AL.
	want(t, "RAX", c.GPR[x86.RAX], 0x11)
}

func TestManyBlocksFlush(t *testing.T) {
	if testing.Short() {
		t.Skip("fills the block cache")
	}
	c := newMachine(t)
	// A chain of jumps over all of memory above 2 MiB, more than fit.
	n := 0
	for at := uint64(2 << 20); at+16 < testSize; at += 16 {
		c.Mem.WriteAt([]byte{0xff, 0xc0, 0xeb, 0x0c}, at) // inc eax; jmp +12
		n++
	}
	c.Mem.WriteAt([]byte{0xf4}, 2<<20+uint64(n)*16)
	for range 2 {
		c.RIP, c.GPR[x86.RAX] = 2<<20, 0
		run(t, c)
		want(t, "jumps", c.GPR[x86.RAX], uint64(n))
	}
	if c.Counters().CacheFlushes == 0 {
		t.Error("the cache was never full")
	}
}

// What is kept of an instruction is what was decoded, also when its bytes
// change meanwhile: vector instructions run on the host CPU.
func TestDecodeRace(t *testing.T) {
	c := newMachine(t)
	load(t, c, 0x0f, 0x28, 0xc1, 0xf4) // movaps xmm0, xmm1; hlt
	p := bytesAt(c.at(testCode), 8)
	stop, done := make(chan bool), make(chan bool)
	go func() {
		defer close(done)
		for i := 0; ; i++ {
			select {
			case <-stop:
				return
			default:
				p[1] = [2]byte{0x28, 0x05}[i&1] // syscall
			}
		}
	}()
	defer func() { close(stop); <-done }()
	c.enter()
	for range 50000 {
		c.code.flush()
		ce, ok := c.fetchPage(testCode)
		if !ok {
			t.Fatal("the code is not mapped")
		}
		for _, o := range c.buildBlock(testCode, ce).ops {
			if o.inst == nil || o.inst.Enc == nil {
				continue
			}
			var in insn.Inst
			if err := insn.Decode(o.inst.code[:], insn.Mode64, &in); err != nil || in.Op != o.inst.Op {
				t.Fatalf("%v was decoded, the bytes kept are % x", o.inst.Op, o.inst.code[:o.inst.Len])
			}
		}
	}
}
