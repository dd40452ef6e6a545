package interp

import (
	"encoding/binary"
	"math/rand/v2"
	"testing"

	"ring3/internal/cpu"
	"ring3/internal/x86"
)

// randomState scatters addresses over mapped, unmapped and odd places.
func randomState(c *CPU, r *rand.Rand) {
	for i := range c.GPR {
		switch r.IntN(6) {
		case 0:
			c.GPR[i] = r.Uint64()
		case 1:
			c.GPR[i] = r.Uint64N(testSize * 2)
		case 2:
			c.GPR[i] = testData + r.Uint64N(0x3000)
		case 3:
			c.GPR[i] = testCode + r.Uint64N(64)
		case 4:
			c.GPR[i] = r.Uint64N(256)
		case 5:
			c.GPR[i] = 1<<47 - 8 + r.Uint64N(16)
		}
	}
	c.RFLAGS = r.Uint64()&(x86.FlagsArith|x86.FlagDF|x86.FlagTF|x86.FlagAC|x86.FlagRF|x86.FlagIOPL) | x86.FlagFixed
	if r.IntN(4) != 0 {
		c.RFLAGS &^= x86.FlagTF
	}
	if r.IntN(3) == 0 {
		c.CR0 |= x86.CR0AM
	}
	if r.IntN(3) == 0 {
		c.CR4 |= x86.CR4SMAP | x86.CR4SMEP
	}
	if r.IntN(8) == 0 {
		c.DR[7] = r.Uint64() & 0xffff00ff
		c.DR[0], c.DR[1] = testCode+r.Uint64N(32), testData+r.Uint64N(64)
	}
	switch r.IntN(5) {
	case 0:
		user(c)
	case 1:
		code32(c)
	case 2:
		code16(c)
	case 3:
		user(c)
		c.Seg[x86.CS] = cpu.Segment{Sel: 0x1b, Limit: 0xffffffff, Attr: 0xc0fb}
	}
}

func fuzzOne(t testing.TB, c *CPU, code []byte, seed uint64) {
	r := rand.New(rand.NewPCG(seed, 1))
	if len(code) > 4096 {
		code = code[:4096]
	}
	at := uint64(testCode)
	if r.IntN(2) == 0 {
		at += 4096 - min(uint64(len(code)), r.Uint64N(16))
	}
	if err := c.Mem.WriteAt(code, at); err != nil {
		t.Fatal(err)
	}
	randomState(c, r)
	c.RIP = at
	for range 16 {
		switch c.Run(300) {
		case ExitHalt:
			c.Halted = false
		case ExitShutdown:
			return
		}
		if r.IntN(4) == 0 {
			c.Step()
		}
		if r.IntN(4) == 0 {
			c.Interrupt(uint8(r.Uint32()))
		}
	}
}

// FuzzRun executes arbitrary bytes from arbitrary states: nothing may panic or
// hang.
func FuzzRun(f *testing.F) {
	f.Add([]byte{0x48, 0x8b, 0x06, 0x0f, 0xb6, 0x56, 0x10}, uint64(1))
	f.Add([]byte{0xf3, 0xa4, 0xf3, 0x48, 0xab, 0xe8, 0, 0, 0, 0}, uint64(2))
	f.Add([]byte{0xf0, 0x48, 0x0f, 0xc7, 0x0e, 0x9d, 0xcf}, uint64(3))
	c := newMachine(f)
	f.Fuzz(func(t *testing.T, code []byte, seed uint64) {
		if len(code) == 0 {
			return
		}
		resetMachine(c)
		fuzzOne(t, c, code, seed)
	})
}

// TestRandomCode is a short deterministic part of the fuzzing: random bytes,
// and random but likely opcodes.
func TestRandomCode(t *testing.T) {
	n := 3000
	if testing.Short() {
		n = 300
	}
	c := newMachine(t)
	for i := range n {
		r := rand.New(rand.NewPCG(uint64(i), 7))
		code := make([]byte, 64)
		for j := 0; j+8 <= len(code); j += 8 {
			binary.LittleEndian.PutUint64(code[j:], r.Uint64())
		}
		if i%2 == 0 {
			for j := 0; j < len(code); j += 4 + r.IntN(5) {
				code[j] = [...]byte{0x0f, 0x48, 0x66, 0xf2, 0xf3, 0xf0, 0x65, 0x67, 0x0f, 0xff, 0x8b, 0x89, 0x83, 0xc7}[r.IntN(14)]
			}
		}
		resetMachine(c)
		fuzzOne(t, c, code, uint64(i))
	}
}
