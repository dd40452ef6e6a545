package interp

import (
	"testing"

	"ring3/internal/x86"
)

// Instructions of the 16- and 32-bit modes, which the host CPU does not
// execute for us to compare. Values are from the descriptions in SDM vol. 2.
func TestLegacyInstructions(t *testing.T) {
	const cf, af = x86.FlagCF, x86.FlagAF
	for name, k := range map[string]struct {
		code           []byte
		ax, flags      uint64
		wantAX, wantFl uint64 // CF and AF
	}{
		"DAA":        {[]byte{0x27}, 0xae, 0, 0x14, cf | af}, // after 79h + 35h
		"DAA carry":  {[]byte{0x27}, 0x2e, 0, 0x34, af},
		"DAS":        {[]byte{0x2f}, 0xbc, cf | af, 0x56, cf | af}, // 35h - 47h is eeh; low digits alone
		"AAA":        {[]byte{0x37}, 0x000f, 0, 0x0105, cf | af},
		"AAA none":   {[]byte{0x37}, 0x0105, 0, 0x0105, 0},
		"AAS":        {[]byte{0x3f}, 0x02ff, af, 0x0109, cf | af},
		"AAM":        {[]byte{0xd4, 10}, 0x3f, 0, 0x0603, 0},
		"AAD":        {[]byte{0xd5, 10}, 0x0603, 0, 0x003f, 0},
		"SALC":       {[]byte{0xd6}, 0x00, cf, 0xff, cf},
		"INC r16":    {[]byte{0x66, 0x40}, 0xffff, cf, 0, cf | af},
		"POP/PUSH A": {[]byte{0x60, 0xb0, 0x99, 0x61}, 0x1234, 0, 0x1234, 0},
	} {
		t.Run(name, func(t *testing.T) {
			c := newMachine(t)
			code32(c)
			load(t, c, append(k.code, 0xf4)...)
			c.GPR[x86.RAX], c.RFLAGS = k.ax, c.RFLAGS|k.flags
			run(t, c)
			want(t, "RIP", c.RIP, testCode+uint64(len(k.code))+1)
			want(t, "AX", c.GPR[x86.RAX], k.wantAX)
			if len(k.code) == 1 {
				want(t, "flags", c.RFLAGS&(cf|af), k.wantFl)
			}
		})
	}
}

// shutdownAt expects a fault: without an IDT that ends in a triple fault, with
// RIP at the instruction.
func shutdownAt(t *testing.T, c *CPU, rip uint64) {
	t.Helper()
	c.IDTR.Limit = 0
	if e := c.Run(1000); e != ExitShutdown {
		t.Fatal("exit", e)
	}
	want(t, "RIP", c.RIP, rip)
}

func TestSegmentLimits(t *testing.T) {
	t.Run("data beyond limit", func(t *testing.T) {
		c := newMachine(t)
		code32(c)
		load(t, c, 0x8b, 0x03, 0x8b, 0x43, 0x01)
		c.Seg[x86.DS].Limit = testData + 3
		c.GPR[x86.RBX] = testData
		shutdownAt(t, c, testCode+2)
	})
	t.Run("expand down", func(t *testing.T) {
		c := newMachine(t)
		code32(c)
		load(t, c, 0x8b, 0x43, 0x01, 0x8b, 0x03)
		c.Seg[x86.DS].Attr = 0xc097
		c.Seg[x86.DS].Limit = testData
		c.GPR[x86.RBX] = testData
		shutdownAt(t, c, testCode+3)
	})
	t.Run("code beyond limit", func(t *testing.T) {
		c := newMachine(t)
		code32(c)
		load(t, c, 0x90, 0xb8, 1, 2, 3, 4, 0xf4)
		c.Seg[x86.CS].Limit = testCode + 4
		shutdownAt(t, c, testCode+1)
	})
	t.Run("jump beyond limit", func(t *testing.T) {
		c := newMachine(t)
		code32(c)
		load(t, c, 0xeb, 0x20)
		c.Seg[x86.CS].Limit = testCode + 8
		shutdownAt(t, c, testCode)
	})
	t.Run("write to code segment", func(t *testing.T) {
		c := newMachine(t)
		code32(c)
		load(t, c, 0x2e, 0x89, 0x03)
		c.GPR[x86.RBX] = testData
		shutdownAt(t, c, testCode)
	})
}

func TestWraparound(t *testing.T) {
	t.Run("16-bit address", func(t *testing.T) {
		c := newMachine(t)
		code16(c)
		c.Seg[x86.CS].Base, c.RIP = testCode, 0
		c.Seg[x86.DS].Base = testData
		load(t, c, 0x8a, 0x40, 0x10, 0xf4) // mov al, [bx+si+16]
		c.Mem.WriteAt([]byte{0x5a}, testData+5)
		c.GPR[x86.RBX], c.GPR[x86.RSI] = 0xfff0, 5
		run(t, c)
		want(t, "AL", c.GPR[x86.RAX]&0xff, 0x5a)
	})
	t.Run("16-bit stack", func(t *testing.T) {
		c := newMachine(t)
		code16(c)
		c.Seg[x86.CS].Base, c.RIP = testCode, 0
		c.Seg[x86.SS].Base = testData
		load(t, c, 0x50, 0xf4)
		c.GPR[x86.RSP], c.GPR[x86.RAX] = 0xabcd0000, 0x1234
		run(t, c)
		want(t, "ESP", c.GPR[x86.RSP], 0xabcdfffe)
	})
	t.Run("32-bit base and offset", func(t *testing.T) {
		c := newMachine(t)
		code32(c)
		load(t, c, 0x8a, 0x03, 0xf4)
		c.Seg[x86.DS].Base = 0xffff0000
		c.GPR[x86.RBX] = testData + 0x10000
		c.Mem.WriteAt([]byte{0x77}, testData)
		run(t, c)
		want(t, "AL", c.GPR[x86.RAX]&0xff, 0x77)
	})
	t.Run("JCXZ and LOOP count in CX", func(t *testing.T) {
		c := newMachine(t)
		code32(c)
		load(t, c, 0x67, 0xe2, 0xfd, 0xf4) // loop with 16-bit address size, to itself
		c.GPR[x86.RCX] = 0xabcd0003
		run(t, c)
		want(t, "ECX", c.GPR[x86.RCX], 0xabcd0000)
	})
}

// ENTER with nesting copies the frame pointers of the outer levels.
func TestEnterLevels(t *testing.T) {
	c := newMachine(t)
	load(t, c, 0xc8, 0x20, 0x00, 0x03, 0xf4)
	sp := c.GPR[x86.RSP]
	c.GPR[x86.RBP] = testData + 0x100
	c.store64(testData+0xf8, 0x1111)
	c.store64(testData+0xf0, 0x2222)
	run(t, c)
	want(t, "RBP", c.GPR[x86.RBP], sp-8)
	want(t, "RSP", c.GPR[x86.RSP], sp-8-24-0x20)
	for i, w := range []uint64{testData + 0x100, 0x1111, 0x2222, sp - 8} {
		v, _ := c.load64(sp - 8 - 8*uint64(i))
		want(t, "frame word", v, w)
	}
}

func TestRealMode(t *testing.T) {
	c := newMachine(t)
	c.State.Reset()
	c.Seg[x86.CS].Sel, c.Seg[x86.CS].Base, c.RIP = testCode>>4, testCode, 0
	// mov ax, 0x2000; mov ds, ax; mov [0x10], ax; mov bx, cs:[0]; hlt
	load(t, c, 0xb8, 0x00, 0x20, 0x8e, 0xd8, 0xa3, 0x10, 0x00, 0x2e, 0x8b, 0x1e, 0x00, 0x00, 0xf4)
	run(t, c)
	v, _ := c.load16(testData + 0x10)
	want(t, "[2000:10]", v, 0x2000)
	want(t, "BX", c.GPR[x86.RBX]&0xffff, 0x00b8)
}
