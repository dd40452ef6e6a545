package bt

import (
	"encoding/hex"
	"strings"
	"testing"

	"ring3/internal/x86/insn"
)

const pc = 0xffffffff81000000

// TestUser translates accesses that may be of user memory.
func TestUser(t *testing.T) {
	const (
		tlbRead, tlbWrite, delta = "00005800", "00085800", "00105800"
		rest                     = "c4e2caf51425 c0100000 488d8e SIZE c4e2f2f50c25 c8100000"
		save                     = "48893425 08300000 48890c25 10300000 48891425 18300000"
		load                     = "488b3425 08300000 488b0c25 10300000 488b1425 18300000"
	)
	for _, c := range []struct {
		name, guest, lea, last, tags, want string
		kind                               ExitKind
	}{
		{"load", "488b4708", "488d7708", "07000000", tlbRead, "488b06", ExitUser},
		{"store", "66894708", "488d7708", "01000000", tlbWrite, "668906", ExitUserWrite},
		{"read and write", "f0480fc107", "488d37", "07000000", tlbWrite, "f0480fc106", ExitUserWrite},
		{"compare", "803f05", "488d37", "00000000", tlbRead, "803e05", ExitUser},
		{"index", "438b44e510", "4b8d74e510", "03000000", tlbRead, "408b06", ExitUser},
		{"high byte", "8827", "488d37", "00000000", tlbWrite, "8826", ExitUserWrite},
		{"segment prefix", "3e8b07", "488d37", "03000000", tlbRead, "8b06", ExitUser},
	} {
		b := translateIn(t, c.guest+"f4", true)
		if b.N != 1 || b.Exits[0].Kind != c.kind || b.Exits[0].RIP != pc || !b.Exits[0].AC {
			t.Errorf("%s: %d translated, exits %+v", c.name, b.N, b.Exits)
			continue
		}
		got := hex.EncodeToString(b.Code)
		start := strings.ReplaceAll(save+"T"+c.lea+strings.Replace(rest, "SIZE", c.last, 1), " ", "")
		i := strings.IndexByte(start, 'T')
		// The other register is RDI or R8: 8 bytes.
		if !strings.HasPrefix(got, start[:i]) || !strings.HasPrefix(got[i+16:], start[i+1:]) ||
			!strings.Contains(got, c.tags) || !strings.Contains(got, delta) ||
			!strings.Contains(got, c.want+"488b342508300000") || !strings.Contains(got, strings.ReplaceAll(load, " ", "")) {
			t.Errorf("%s: %s", c.name, got)
		}
	}
}

// TestContext translates what changes RFLAGS.AC, and what the block of one
// context leads to.
func TestContext(t *testing.T) {
	for _, c := range []struct {
		guest   string
		ac      bool
		n       int
		target  uint64
		context bool
	}{
		{"0f01cb90", false, 1, pc + 3, true},
		{"0f01ca90", true, 1, pc + 3, false},
		{"0f01ca eb05", false, 2, pc + 10, false},
		{"0f01cb eb05", true, 2, pc + 10, true},
	} {
		b := translateIn(t, c.guest, c.ac)
		if b.N != c.n || len(b.Exits) != 1 || b.Exits[0].Kind != ExitChain || b.Exits[0].RIP != c.target || b.Exits[0].AC != c.context {
			t.Errorf("%s: %d translated, exits %+v", c.guest, b.N, b.Exits)
		}
	}
	// Until the exit is complete, STAC has not been executed.
	b := translateIn(t, "0f01cb", false)
	if m := b.At(b.Exits[0].Stub); m.RIP != pc || m.Saved != None {
		t.Errorf("mark of the exit: %+v", m)
	}
	if k := Key(pc, true); k == pc || k>>62 != 2 || Key(pc, false) != pc {
		t.Errorf("key %#x", k)
	}
}

// TestUserInterpreted lists what is interpreted with AC set.
func TestUserInterpreted(t *testing.T) {
	for _, guest := range []string{
		"9c", "9d", "480f07", "48cf", "fb90", // pushfq, popfq, sysretq, iretq, sti
		"480fab07",   // bts [rdi], rax
		"480fc70f",   // cmpxchg16b
		"488927",     // mov [rdi], rsp
		"64488b07",   // fs
		"67488b07",   // 32-bit address
		"c4e2f8f207", // andn
		"ff20",       // jmp [rax]
		"f2a4",       // repne movs
		"a00000000000000000",
		"0fae3f", // clflush
	} {
		if b := translateIn(t, guest, true); b.N != 0 || b.Exits[0].Kind == ExitChain || !b.Exits[0].AC {
			t.Errorf("%s: %d translated, exits %+v", guest, b.N, b.Exits)
		}
	}
}

// TestUserSame lists what AC changes nothing about.
func TestUserSame(t *testing.T) {
	for _, guest := range []string{"48894424 08", "65488b042528000000", "488b0500000100", "50", "fa", "0f0d0f", "e800000000"} {
		a, b := translateIn(t, guest+"f4", false), translateIn(t, guest+"f4", true)
		if hex.EncodeToString(a.Code) != hex.EncodeToString(b.Code) || a.N != b.N {
			t.Errorf("%s: %x, with AC %x", guest, a.Code, b.Code)
		}
	}
}

// TestUserLong fills a block with the longest forms.
func TestUserLong(t *testing.T) {
	b := translateIn(t, strings.Repeat("f348a5", MaxInsts+1), true)
	if len(b.Code) > MaxCode || b.Exits[len(b.Exits)-1].Kind != ExitChain {
		t.Errorf("%d bytes, %d translated", len(b.Code), b.N)
	}
	for pos := 0; pos < len(b.Code); {
		var in insn.Inst
		if err := insn.Decode(b.Code[pos:], insn.Mode64, &in); err != nil {
			t.Fatal(err)
		}
		pos += int(in.Len)
	}
}
