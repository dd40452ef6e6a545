package interp

import (
	"testing"

	"ring3/internal/x86"
)

// pf expects a page fault at addr with the given code.
func pf(t *testing.T, c *CPU, addr, code uint64) {
	t.Helper()
	run(t, c)
	want(t, "RIP", c.RIP, testStubs+16*x86.VecPF+1)
	want(t, "CR2", c.CR2, addr)
	got, _ := c.Mem.Slice(c.GPR[x86.RSP], 8)
	want(t, "error code", uint64(got[0])|uint64(got[1])<<8, code)
}

func pte(c *CPU, addr uint64) *uint64 { return c.Mem.Word(testPT + addr>>12*8) }

// A stale translation may be used until the guest invalidates it, not longer.
func TestInvalidation(t *testing.T) {
	for name, flush := range map[string]func(*CPU){
		"INVLPG":    func(c *CPU) { c.flushTLB(Flush{Kind: FlushPage, Addr: testData}) },
		"CR3":       func(c *CPU) { c.flushTLB(Flush{Kind: FlushNonGlobal}) },
		"all":       func(c *CPU) { c.flushTLB(Flush{Kind: FlushAll}) },
		"CR3 value": func(c *CPU) { *c.Mem.Word(0x9000) = testPDPT | 7; c.CR3 = 0x9000 },
	} {
		c := newMachine(t)
		load(t, c, 0x8b, 0x03, 0xf4) // mov eax, [rbx]; hlt
		c.GPR[x86.RBX] = testData
		run(t, c)
		*pte(c, testData) &^= x86.PTEPresent
		c.RIP = testCode
		flush(c)
		t.Run(name, func(t *testing.T) { pf(t, c, testData, 0) })
	}
}

// TestInvalidateCode moves a page of code that another page jumps to: Invalidate
// is for fetches, too.
func TestInvalidateCode(t *testing.T) {
	c := newMachine(t)
	load(t, c, 0xb8, 0, 0, 0, 0, 0xff, 0xd3, 0xf4) // mov eax, 0; call rbx; hlt
	const other = testData + x86.PageSize
	for i, at := range []uint64{testData, other} {
		if err := c.Mem.WriteAt([]byte{0xb8, byte(i + 1), 0, 0, 0, 0xc3}, at); err != nil { // mov eax, i+1; ret
			t.Fatal(err)
		}
	}
	c.GPR[x86.RBX] = testData
	for i, to := range []uint64{testData, other} {
		*pte(c, testData) = *pte(c, testData)&^x86.PTEAddr | to
		c.Invalidate(testData)
		for range 2 { // the second time by the block's own jump
			c.RIP, c.Halted = testCode, false
			run(t, c)
			want(t, "EAX", c.GPR[x86.RAX], uint64(i+1))
		}
	}
}

func TestGlobalSurvives(t *testing.T) {
	c := newMachine(t)
	load(t, c, 0x8b, 0x03, 0xf4)
	c.GPR[x86.RBX] = testData
	*pte(c, testData) |= x86.PTEGlobal
	run(t, c)
	*pte(c, testData) &^= x86.PTEPresent
	c.flushTLB(Flush{Kind: FlushNonGlobal})
	c.RIP = testCode
	run(t, c)
	want(t, "RIP", c.RIP, testCode+3)
	c.flushTLB(Flush{Kind: FlushPage, Addr: testData})
	c.RIP = testCode
	pf(t, c, testData, 0)
}

// INVLPG of one address drops the whole large page.
func TestInvalidateLargePage(t *testing.T) {
	c := newMachine(t)
	load(t, c, 0x8b, 0x03, 0xf4)
	c.GPR[x86.RBX] = 0x400000 + 0x5000
	run(t, c)
	*c.Mem.Word(testPD + 2*8) = 0
	c.flushTLB(Flush{Kind: FlushPage, Addr: 0x400000})
	c.RIP = testCode
	pf(t, c, 0x405000, 0)
}

// The dirty bit is set by the first write, not by reads before it; the
// accessed bit by either.
func TestTLBAccessedDirty(t *testing.T) {
	c := newMachine(t)
	load(t, c, 0x8b, 0x03, 0xf4, 0x89, 0x03, 0xf4)
	c.GPR[x86.RBX] = testData
	run(t, c)
	want(t, "A and D after a read", *pte(c, testData)&0x60, x86.PTEAccessed)
	run(t, c)
	want(t, "A and D after a write", *pte(c, testData)&0x60, x86.PTEAccessed|x86.PTEDirty)
}

func TestTLBPermissions(t *testing.T) {
	type setup func(*CPU)
	ro := func(c *CPU) { *pte(c, testData) &^= x86.PTEWrite }
	super := func(c *CPU) {
		*pte(c, testData) &^= x86.PTEUser
		user(c)
	}
	smap := func(c *CPU) {
		c.CR4 |= x86.CR4SMAP
		for a := uint64(0); a < 0x20000; a += 4096 {
			*pte(c, a) &^= x86.PTEUser
		}
		*pte(c, testStack-8) &^= x86.PTEUser
	}
	for name, k := range map[string]struct {
		code  []byte
		setup setup
		err   uint64
	}{
		"write to read-only":          {[]byte{0x89, 0x03, 0xf4}, ro, 3},
		"read-modify-write of it":     {[]byte{0x83, 0x03, 0x01, 0xf4}, ro, 3},
		"locked":                      {[]byte{0xf0, 0x83, 0x03, 0x01, 0xf4}, ro, 3},
		"failing CMPXCHG":             {[]byte{0x0f, 0xb1, 0x0b, 0xf4}, ro, 3},
		"user reads supervisor page":  {[]byte{0x8b, 0x03, 0xf4}, super, 5},
		"user writes supervisor page": {[]byte{0x89, 0x03, 0xf4}, super, 7},
		"SMAP":                        {[]byte{0x8b, 0x03, 0xf4}, smap, 1},
		"SMAP after CLAC":             {[]byte{0x0f, 0x01, 0xcb, 0x8b, 0x0b, 0x0f, 0x01, 0xca, 0x8b, 0x03, 0xf4}, smap, 1},
	} {
		t.Run(name, func(t *testing.T) {
			c := newMachine(t)
			load(t, c, k.code...)
			c.GPR[x86.RBX], c.GPR[x86.RAX] = testData, 0x77
			k.setup(c)
			pf(t, c, testData, k.err)
			want(t, "RAX", c.GPR[x86.RAX], 0x77)
		})
	}
	t.Run("WP clear", func(t *testing.T) {
		c := newMachine(t)
		ro(c)
		c.CR0 &^= x86.CR0WP
		load(t, c, 0x89, 0x03, 0xf4)
		c.GPR[x86.RBX] = testData
		run(t, c)
		want(t, "RIP", c.RIP, testCode+3)
		// Setting WP again takes the cached right to write away.
		c.CR0 |= x86.CR0WP
		c.RIP = testCode
		pf(t, c, testData, 3)
	})
}

func TestFetchFaults(t *testing.T) {
	const edge = testCode + 0x1000
	set := func(c *CPU) {
		c.Mem.WriteAt([]byte{0x90, 0xb8}, edge-2) // nop; mov eax, imm32 over the edge
		c.RIP = edge - 2
		c.GPR[x86.RAX] = 0x77
	}
	t.Run("second page not present", func(t *testing.T) {
		c := newMachine(t)
		set(c)
		*pte(c, edge) = 0
		pf(t, c, edge, 0x10) // CR2 is the first byte that is missing
		want(t, "RAX", c.GPR[x86.RAX], 0x77)
		ret, _ := c.Mem.Slice(c.GPR[x86.RSP]+8, 8)
		want(t, "low byte of the saved RIP", uint64(ret[0]), 0xff)
	})
	t.Run("second page not executable", func(t *testing.T) {
		c := newMachine(t)
		set(c)
		*pte(c, edge) |= x86.PTENX
		pf(t, c, edge, 0x11)
	})
	t.Run("SMEP", func(t *testing.T) {
		c := newMachine(t)
		load(t, c, 0xff, 0xe3) // jmp rbx
		for a := uint64(0); a < testData; a += 4096 {
			*pte(c, a) &^= x86.PTEUser
		}
		*pte(c, testStack-8) &^= x86.PTEUser
		c.CR4 |= x86.CR4SMEP
		c.GPR[x86.RBX] = testData + 4
		pf(t, c, testData+4, 0x11)
	})
	t.Run("ends on the page", func(t *testing.T) {
		c := newMachine(t)
		c.Mem.WriteAt([]byte{0xb0, 0x42, 0xf4}, edge-3)
		*pte(c, edge) = 0
		c.RIP = edge - 3
		run(t, c)
		want(t, "RAX", c.GPR[x86.RAX], 0x42)
	})
}

// Accesses that cross into a page that faults change nothing.
func TestCrossingFaults(t *testing.T) {
	const edge = testData + 0x1000
	for name, code := range map[string][]byte{
		"load":       {0x48, 0x8b, 0x03, 0xf4},
		"store":      {0x48, 0x89, 0x03, 0xf4},
		"add":        {0x48, 0x01, 0x03, 0xf4},
		"xchg":       {0x48, 0x87, 0x03, 0xf4},
		"push [rbx]": {0xff, 0x33, 0xf4},
		"pop [rbx]":  {0x8f, 0x03, 0xf4},
		"call [rbx]": {0xff, 0x13, 0xf4},
	} {
		t.Run(name, func(t *testing.T) {
			c := newMachine(t)
			load(t, c, code...)
			c.Mem.WriteAt([]byte{1, 2, 3, 4}, edge-4)
			*pte(c, edge) = 0
			c.GPR[x86.RBX], c.GPR[x86.RAX] = edge-4, 0x1122334455667788
			c.GPR[x86.RSP] = testStack - 0x100
			run(t, c)
			want(t, "CR2", c.CR2, edge)
			want(t, "RAX", c.GPR[x86.RAX], 0x1122334455667788)
			got, _ := c.Mem.Slice(edge-4, 4)
			want(t, "memory", uint64(got[0])|uint64(got[3])<<8, 0x401)
			frame, _ := c.Mem.Slice(c.GPR[x86.RSP]+32, 8)
			want(t, "saved RSP", uint64(frame[0])|uint64(frame[1])<<8, (testStack-0x100)&0xffff)
		})
	}
}
