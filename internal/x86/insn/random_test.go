package insn

import (
	"bytes"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strconv"
	"testing"
)

// randomStart makes the beginning of an instruction that is likely to get past
// the first opcode byte.
func randomStart(rng *rand.Rand) []byte {
	code := make([]byte, 20)
	for i := range code {
		code[i] = byte(rng.Uint32())
	}
	prefixes := []byte{0x66, 0xf2, 0xf3, 0xf0, 0x2e, 0x64, 0x67, 0x48, 0x41, 0x4f}
	n := 0
	for rng.IntN(3) == 0 && n < 3 {
		code[n] = prefixes[rng.IntN(len(prefixes))]
		n++
	}
	switch rng.IntN(8) {
	case 0, 1:
		code[n] = 0x0f
	case 2:
		code[n], code[n+1] = 0x0f, []byte{0x38, 0x3a, 0x0f, 0x01, 0xae, 0xc7, 0x1e}[rng.IntN(7)]
	case 3:
		code[n], code[n+1] = 0xc4, code[n+1]&0xe0|byte(1+rng.IntN(3))
		code[n+2] |= []byte{0x78, 0}[rng.IntN(2)]
	case 4:
		code[n], code[n+1] = 0x62, code[n+1]&0xf0|byte(1+rng.IntN(6))
		code[n+2] |= []byte{0x7c, 4}[rng.IntN(2)]
		code[n+3] = code[n+3]&^0x17 | 8
	case 5:
		code[n] = 0xd8 + byte(rng.IntN(8))
	case 6:
		code[n] = []byte{0x8f, 0xc5, 0xff, 0xfe, 0xf6, 0xf7, 0x80, 0x8c, 0x8e}[rng.IntN(9)]
	}
	return code
}

// TestRandomAgainstObjdump compares random bytes. RING3_TEST_RANDOM gives the
// number of instructions per mode.
func TestRandomAgainstObjdump(t *testing.T) {
	n := 20000
	if s := os.Getenv("RING3_TEST_RANDOM"); s != "" {
		n, _ = strconv.Atoi(s)
	}
	for _, mode := range []Mode{Mode64, Mode32, Mode16} {
		rng := rand.New(rand.NewPCG(uint64(n), uint64(mode)))
		codes := make([][]byte, n)
		for i := range codes {
			codes[i] = randomStart(rng)
		}
		r := report{t: t}
		bad, valid := 0, 0
		for i, l := range objdumpSlots(t, mode, codes) {
			if Decode(codes[i], mode, new(Inst)) == nil {
				valid++
			}
			if d := disagreement(l, codes[i], mode); d != "" {
				bad++
				r.add(codes[i][:15], "mode "+strconv.Itoa(int(mode))+": "+d)
			}
		}
		t.Logf("mode %d: %d valid of %d, %d disagreements", mode, valid, n, bad)
	}
}

// TestKernelText checks every ELF file in the directory RING3_TEST_KERNEL_TEXT:
// a vmlinux and modules.
func TestKernelText(t *testing.T) {
	dir := os.Getenv("RING3_TEST_KERNEL_TEXT")
	if dir == "" {
		t.Skip("RING3_TEST_KERNEL_TEXT not set")
	}
	total := 0
	err := filepath.WalkDir(dir, func(path string, d os.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() || filepath.Base(path) != "vmlinux" && filepath.Ext(path) != ".ko" {
			return err
		}
		total += compareFile(t, path) // some modules have no text
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if total == 0 {
		t.Error("nothing disassembled")
	}
}

// checkDecode holds for all input: no panic, sane length, and the same result
// for the bytes of the instruction alone.
func checkDecode(t *testing.T, code []byte, mode Mode) {
	var in, again Inst
	err := Decode(code, mode, &in)
	if err != nil {
		return
	}
	_ = Format(&in, 0x1000)
	n := int(in.Len)
	if n == 0 || n > MaxLen || n > len(code) {
		t.Fatalf("% x: length %d", code, n)
	}
	if err := Decode(code[:n], mode, &again); err != nil || again != in {
		t.Fatalf("% x: differs when cut to %d bytes: %v", code, n, err)
	}
	for k := range n {
		if err := Decode(code[:k], mode, &again); err == nil {
			t.Fatalf("% x: valid when cut to %d bytes, too", code, k)
		}
	}
	for _, part := range [][2]uint8{{in.DispOff, in.DispLen}, {in.ImmOff, in.ImmLen}} {
		if part[1] != 0 && (part[0] == 0 || int(part[0]+part[1]) > n) {
			t.Fatalf("% x: field at %d, %d bytes, of %d", code, part[0], part[1], n)
		}
	}
}

func FuzzDecode(f *testing.F) {
	rng := rand.New(rand.NewPCG(3, 4))
	for range 200 {
		f.Add(randomStart(rng))
	}
	f.Fuzz(func(t *testing.T, code []byte) {
		for _, mode := range []Mode{Mode16, Mode32, Mode64} {
			checkDecode(t, code, mode)
		}
	})
}

func TestDecodeInvariants(t *testing.T) {
	rng := rand.New(rand.NewPCG(5, 6))
	for range 200000 {
		code := randomStart(rng)
		checkDecode(t, code, []Mode{Mode16, Mode32, Mode64}[rng.IntN(3)])
	}
}

func TestTooLong(t *testing.T) {
	code := bytes.Repeat([]byte{0x66}, 20)
	var in Inst
	if err := Decode(code, Mode64, &in); err != ErrTooLong {
		t.Errorf("20 prefixes: %v", err)
	}
	if err := Decode(code[:14], Mode64, &in); err != ErrTruncated {
		t.Errorf("14 prefixes: %v", err)
	}
	code[14] = 0x90
	if err := Decode(code, Mode64, &in); err != nil || in.Len != 15 {
		t.Errorf("15 bytes: %v, length %d", err, in.Len)
	}
	code[14], code[15] = 0x01, 0xc0
	if err := Decode(code, Mode64, &in); err != ErrTooLong {
		t.Errorf("16 bytes: %v", err)
	}
}
