package bt

import (
	"encoding/hex"
	"math/bits"
	"strings"
	"testing"

	"ring3/internal/x86"
	"ring3/internal/x86/insn"
)

var host = Host{ExitID: 0x1000, Scratch: 0x3008, Exit: 0x2000, IF: 0x1028, Want: 0x1030, Mask: 0x1038, TSCAux: 0x1040,
	PopMask: 0x1048, IFMask: 0x1050, Upper: 0x1058, CR: 0x1060, Sel: 0x1090, FS: 0x10a8, GS: 0x10b0, Kernel: 0x10b8, FSGSBase: true,
	Jumps: 0x100000, Lookup: 0x500000, LookupAC: 0x500100, SMAP: true,
	UserTLB: true, UserRead: 0x580000, UserWrite: 0x580800, UserDelta: 0x581000, UserIndex: 0x10c0, UserSalt: 0x1200, UserPage: 0x10c8, DFMask: 0x10d0, Room: 0x10d8}

const at = 0x600000

func translate(t *testing.T, code string) *Block { return translateIn(t, code, false) }

func translateIn(t *testing.T, code string, ac bool) *Block {
	t.Helper()
	b, err := hex.DecodeString(strings.ReplaceAll(code, " ", ""))
	if err != nil {
		t.Fatal(err)
	}
	return Translate(&host, 0xffffffff81000000, ac, b, at, 7, MaxInsts, func(uint64) bool { return false })
}

// Parts of forms.
const (
	save0  = "48890c25 08300000" // mov [Scratch], rcx
	save1  = "48891425 10300000"
	load0  = "488b0c25 08300000"
	load1  = "488b1425 10300000"
	rspRCX = "48ba 0000000010780000 488da411 00000000" // rsp = rcx + Delta
)

// TestForms translates single instructions, each followed by HLT, which is
// interpreted, and compares the bytes before that exit.
func TestForms(t *testing.T) {
	for _, c := range []struct{ name, guest, want string }{
		{"register", "4801d8", "4801d8"},
		{"load", "488b07", "65488b07"},
		{"store through rbp", "48894508", "6548894508"},
		{"stack needs no prefix", "48894424 08", "4889442408"},
		{"locked", "f048ff07", "65f048ff07"},
		{"operand size", "66c7070100", "6566c7070100"},
		{"DS dropped", "3e488b07", "65488b07"},
		{"per-CPU absolute", "65488b042528000000", "64488b042528000000"},
		{"RIP-relative", "488b0500000100", "65488b0425 07000181"},
		{"RIP-relative with an immediate", "c7050000010002000000", "65c70425 0a000181 02000000"},
		{"lea RIP-relative", "488d0500000100", "48b8 07000181ffffffff"},
		{"lea of the stack", "488d442408", "48b8 08000000f087ffff 488d8404 00000000"},
		{"mov from rsp", "4889e5", "48bd 00000000f087ffff 488dac2c 00000000"},
		{"stack adjustment", "4883ec18", "4883ec18"},
		{"align", "4883e4f0", "4883e4f0"},
		{"nop dropped", "0f1f440000", ""},
		{"endbr dropped", "f30f1efa", ""},
		{"cli", "fa", "48c70425 28100000 00feffff"},
		{"rdtsc", "0f31", "0f31"},
		{"rdtscp", "0f01f9", "0faee80f31 8b0c25 40100000"},
		{"push memory", "ff7708", "65ff7708"},
		{"push rsp", "54", save0 + "48b9 00000000f087ffff 488d8c0c 00000000 51" + load0},
		{"pop rsp", "5c", save0 + save1 + "488b0c24" + rspRCX + load0 + load1},
		{"store of rsp", "488927", save0 + "48b9 00000000f087ffff 488d8c0c 00000000 6548890f" + load0},
		{"load of rsp", "488b27", save0 + save1 + "65488b0f" + rspRCX + load0 + load1},
		{"cmp with rsp", "4839e0", save0 + "48b9 00000000f087ffff 488d8c0c 00000000 4839c8" + load0},
		{"sub from rsp", "4829c4", save0 + save1 + "48b9 00000000f087ffff 488d8c0c 00000000" +
			"48ba 000000001078 0000 4829c1 488da411 00000000" + load0 + load1},
		{"lea of the stack with an index", "488d44c408", save0 + "48b9 08000000f087ffff 488d8c0c 00000000 488d04c1" + load0},
		{"lea of the low half of rsp", "8d442408", "8d442408"},
		{"mov from cr3", "0f20d8", "488b0425 78100000"},
		{"mov from ss", "8cd2", "8b1425 98100000"},
		{"rdgsbase", "f3480faec8", "488b0425 b0100000"},
		{"wrfsbase", "f3480faed0", save0 + "f3480faed8 48b9 0000000010780000 f3480faed9 48890425 a8100000" + load0},
		{"wrgsbase", "f3480faed8", save0 + "f3480faed8 48b9 0000000010780000 f3480faed9" +
			"488d8c08 00000000 f3480faed1 48890425 b0100000" + load0},
		{"clflush", "0fae3f", "650fae3f"},
		{"pause", "f390", "f390"},
		{"mfence", "0faef0", "0faef0"},
	} {
		b := translate(t, c.guest+"f4")
		x := b.Exits[len(b.Exits)-1]
		if x.Kind != ExitStep || x.RIP != 0xffffffff81000000+uint64(len(strings.ReplaceAll(c.guest, " ", ""))/2) {
			t.Errorf("%s: exit %+v", c.name, x)
			continue
		}
		got := hex.EncodeToString(b.Code[:b.Marks[len(b.Marks)-1].Off])
		if want := strings.ReplaceAll(c.want, " ", ""); got != want {
			t.Errorf("%s: %s, want %s", c.name, got, want)
		}
	}
}

// TestInterpreted lists what must not be translated.
func TestInterpreted(t *testing.T) {
	for _, c := range []struct{ name, guest string }{
		{"hlt", "f4"},
		{"in", "ec"},
		{"cpuid", "0fa2"},
		{"sti; hlt", "fbf4"},
		{"syscall", "0f05"},
		{"sgdt", "0f0100"},
		{"vector", "660fefc0"},
		{"x87", "d9e8"},
		{"fs operand", "64488b00"},
		{"32-bit address", "67488b00"},
		{"32-bit wrgsbase", "f30faed8"},
		{"mov to cr4", "0f22e0"},
		{"mov from cr8", "440f20c0"},
		{"store of ds", "8c1f"},
		{"verw", "0f00 2c24"},
		{"rdpid", "f30fc7f8"},
		{"ud2", "0f0b"},
		{"far return", "48cb"},
		{"truncated", "48"},
	} {
		if b := translate(t, c.guest); b.N != 0 || len(b.Exits) != 1 || b.Exits[0].Kind == ExitChain {
			t.Errorf("%s: %d translated, exits %+v", c.name, b.N, b.Exits)
		}
	}
}

// TestFlagless decodes everything that is emitted around guest instructions:
// nothing of it may write a flag.
func TestFlagless(t *testing.T) {
	for _, code := range []string{
		"48cf", "0f22df", "4889e5", "4889ec", "488d6424f8", "488d65e8", "c9", "f348ab", "48a5", "f3a4", "9c", "fb90",
		"c3", "ffe0", "ff10", "ff5020", "ff542410", "e800010000", "7410", "eb05", "41ff14c7",
		"54", "5c", "488927", "488b27", "488d44c408", "0f20d8", "8cd2", "0f01f8",
	} {
		flagless(t, code, translate(t, code+"90f4"))
	}
	for _, code := range []string{
		"488907", "4c8b44c508", "f0480fb10f", "f348a5", "f366ab", "a4", "8826", "ff7708", "c7042501000000 02000000",
		"0f01ca", "c3", "ffd0", "4881478800010000",
	} {
		flagless(t, code, translateIn(t, code+"90f4", true))
	}
	flagless(t, "lookup", Lookup(&host, 0))
	flagless(t, "lookup with AC", LookupAC(&host, 0))
}

// flagless checks that nothing writes a flag but the guest instructions that
// are about to.
func flagless(t *testing.T, code string, b *Block) {
	t.Helper()
	for pos := 0; pos < len(b.Code); {
		var in insn.Inst
		if err := insn.Decode(b.Code[pos:], insn.Mode64, &in); err != nil {
			t.Fatalf("%s: at %d of %x: %v", code, pos, b.Code, err)
		}
		if in.Enc.FlagsWritten|in.Enc.FlagsUndef != 0 && in.Op != insn.OpCMPXCHG && in.Op != insn.OpADD {
			t.Errorf("%s: %v writes flags", code, in.Op)
		}
		pos += int(in.Len)
	}
}

// TestGuard translates instructions that were seen to access the lower half.
func TestGuard(t *testing.T) {
	for _, c := range []struct{ name, guest, want string }{
		{"load", "488b4708", save0 + "488d8f08000000 c4e2f2f50c2558100000 e30a" + load0 + "eb18"},
		{"load with an index", "498b04cc", save0 + "498d8ccc00000000 c4e2f2f50c2558100000 e30a" + load0 + "eb18"},
		{"movs", "f3a4", save0 + "c4e2c2f50c2558100000 e316 c4e2caf50c2558100000 e30a" + load0 + "eb18"},
	} {
		g, _ := hex.DecodeString(c.guest)
		b := Translate(&host, 0xffffffff81000000, false, append(g, 0xf4), at, 7, MaxInsts, func(a uint64) bool { return a == 0xffffffff81000000 })
		if b.N != 1 || len(b.Exits) != 2 || b.Exits[0].RIP != 0xffffffff81000000 {
			t.Errorf("%s: %d translated, exits %+v", c.name, b.N, b.Exits)
		}
		want := strings.ReplaceAll(c.want, " ", "")
		if got := hex.EncodeToString(b.Code); !strings.HasPrefix(got, want) {
			t.Errorf("%s: %s, want %s...", c.name, got, want)
		}
	}
	b := Translate(&host, 0xffffffff81000000, false, []byte{0x48, 0x8b, 0x04, 0x24, 0xf4}, at, 7, MaxInsts, func(uint64) bool { return true })
	if b.N != 0 {
		t.Error("an access of the stack is guarded")
	}
}

// TestCrossing wants an instruction in two pages to be a block of its own.
func TestCrossing(t *testing.T) {
	b := translate(t, "90 488b")
	if b.N != 1 || b.Len != 1 || len(b.Exits) != 1 || b.Exits[0].Kind != ExitChain || b.Exits[0].RIP != 0xffffffff81000001 {
		t.Errorf("%d translated, exits %+v", b.N, b.Exits)
	}
}

// TestMarks checks that every offset of a block has a mark and that the marks
// are in order.
func TestMarks(t *testing.T) {
	b := translate(t, "9c4889e548ab740248f7d8c3")
	last := int64(-1)
	for _, m := range b.Marks {
		if int64(m.Off) <= last {
			t.Fatalf("marks %+v", b.Marks)
		}
		last = int64(m.Off)
	}
	if b.Marks[0].Off != 0 {
		t.Errorf("first mark %+v", b.Marks[0])
	}
	if m := b.At(0); m.RIP != 0xffffffff81000000 {
		t.Errorf("mark of offset 0: %+v", m)
	}
	if len(b.Exits) != 2 {
		t.Errorf("exits %+v", b.Exits)
	}
}

func TestFold(t *testing.T) {
	if Fold(Lowest) != Low || Unfold(Low) != Lowest {
		t.Errorf("lowest address %#x folds to %#x", uint64(Lowest), Fold(Lowest))
	}
	for _, g := range []uint64{0xffff888000000000, 0xffffc90000000000, 0xffffffff81000000, 0xffffffffffffffff} {
		if h := Fold(g); h < Low || h >= 1<<47 || Unfold(h) != g {
			t.Errorf("%#x folds to %#x", g, h)
		}
	}
	if Delta%x86.PageSize != 0 || Delta%(1<<36) != 0 {
		t.Error("folding moves less than AND of RSP keeps")
	}
}

// FuzzTranslate wants no panic and blocks whose exits and marks make sense.
func FuzzTranslate(f *testing.F) {
	f.Add([]byte{0x48, 0x8b, 0x07, 0xff, 0x14, 0x25, 0, 0, 0, 0})
	f.Add([]byte{0xfb, 0xc3, 0x9c, 0xf3, 0x48, 0xab})
	f.Fuzz(func(t *testing.T, code []byte) {
		b := Translate(&host, 0xffffffff81000000, len(code)%2 != 0, code, at, 0, MaxInsts, func(uint64) bool { return false })
		if len(b.Code) > MaxCode || len(b.Marks) == 0 || b.Marks[0].Off != 0 {
			t.Fatalf("%d bytes, marks %+v", len(b.Code), b.Marks)
		}
		for _, x := range b.Exits {
			if x.Kind == ExitChain && (int(x.Stub) >= len(b.Code) || int(x.Patch) >= len(b.Code)) {
				t.Fatalf("exit %+v of %d bytes", x, len(b.Code))
			}
		}
	})
}

// TestEmptyTag: no address has a place in the jump table where the tag of an
// empty entry is its own.
func TestEmptyTag(t *testing.T) {
	for i := range TableSize {
		a := -EmptyTag(i)
		if p := Indices(a); p != [2]int{pext(a, IndexMasks[0]), pext(a, IndexMasks[1])} {
			t.Fatalf("%#x: places %#x", a, p)
		}
		for _, j := range Indices(a) {
			if i == j {
				t.Fatalf("entry %#x: %#x has place %#x", i, a, j)
			}
		}
	}
}

// pext is PEXT (SDM vol. 2B).
func pext(v, mask uint64) (r int) {
	for n := 0; mask != 0; n++ {
		r |= int(v>>bits.TrailingZeros64(mask)&1) << n
		mask &= mask - 1
	}
	return r
}
