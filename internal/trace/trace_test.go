package trace

import (
	"fmt"
	"reflect"
	"strings"
	"testing"

	"ring3/internal/bt"
	"ring3/internal/direct"
	"ring3/internal/symbols"
)

const text = 0xffffffff81000000

func table(t *testing.T) *symbols.Table {
	t.Helper()
	syms, err := symbols.Parse(strings.NewReader(`ffffffff81000000 T start
ffffffff81000040 t twice
ffffffff81000080 t other
ffffffff810000c0 t twice
ffffffff81000100 D end
`))
	if err != nil {
		t.Fatal(err)
	}
	return syms
}

func TestRanges(t *testing.T) {
	syms := table(t)
	get := func() (*symbols.Table, error) { return syms, nil }
	for in, want := range map[string][]Range{
		"start":               {{text, text + 0x40}},
		"twice,start+3":       {{text + 0x40, text + 0x80}, {text + 0xc0, text + 0x100}, {text + 3, text + 4}},
		"other+0x1f":          {{text + 0x9f, text + 0xa0}},
		"0x10-20":             {{0x10, 0x20}},
		"ffffffff81000000-0x": nil,
		"20-20":               nil,
		"end":                 nil,
		"start+40":            nil,
		"start+z":             nil,
		"stat":                nil,
		"":                    nil,
		"start,":              nil,
	} {
		got, err := Ranges(in, get)
		if !reflect.DeepEqual(got, want) || (err != nil) != (want == nil) {
			t.Errorf("%q: %x, %v", in, got, err)
		}
		t.Logf("%q: %v", in, err)
	}
	if _, err := Ranges("strat", get); err == nil || !strings.Contains(err.Error(), "did you mean start?") {
		t.Errorf("error %v", err)
	}
	if _, err := Ranges("10-20", func() (*symbols.Table, error) { t.Error("symbols were asked for"); return nil, nil }); err != nil {
		t.Error(err)
	}
}

// translation translates code at rip.
func translation(rip uint64, code []byte) *direct.Translation {
	h := &bt.Host{Exit: 0x1000, Sysret: 0x1100, Lookup: 0x2000, LookupAC: 0x2100, Scratch: 0x3000, ExitID: 0x3100, IF: 0x3108,
		Want: 0x3110, Mask: 0x3118, Jumps: 0x200000}
	const at = 0x100000
	b := bt.Translate(h, rip, false, code, at, 7, bt.MaxInsts, func(uint64) bool { return false })
	return &direct.Translation{Block: b, Guest: code, Host: b.Code, At: at, Names: h}
}

func TestListing(t *testing.T) {
	tr := New([]Range{{text, text + 0x40}}, table(t))
	// mov (%rdi), %rax; call other; not translated, not listed: ret
	tr.Add(translation(text+1, []byte{0x48, 0x8b, 0x07, 0xe8, 0x77, 0, 0, 0, 0xc3}))
	// lgdt (%rax)
	tr.Add(translation(text+0x20, []byte{0x0f, 0x01, 0x10, 0xc3}))
	tr.Add(translation(text+0x40, []byte{0xc3})) // outside
	var b strings.Builder
	if _, err := tr.WriteTo(&b); err != nil {
		t.Fatal(err)
	}
	out := b.String()
	for _, want := range []string{
		"block 1: ffffffff81000001 start+0x1, 2 instructions, 8 bytes to ",
		"mov (%rdi),%rax",
		"mov %gs:(%rdi),%rax",
		"callq 0xffffffff81000080  # other",
		"# ExitID",
		"# exit routine",
		"  exit 0:\n",
		"exit 0: go on, ffffffff81000080 other",
		"block 2: ffffffff81000020 start+0x20, 0 instructions, 3 bytes to ",
		"lgdtl (%rax)",
		"exit 0: interpret, ffffffff81000020 start+0x20",
		"\n2 blocks\n",
	} {
		if !strings.Contains(out, want) {
			t.Errorf("no %q", want)
		}
	}
	if strings.Contains(out, "retq") {
		t.Error("more is listed than the block has")
	}
	if t.Failed() {
		t.Log(out)
	}
}

func TestBounded(t *testing.T) {
	tr := New([]Range{{text, text + 0x40}}, nil)
	x := translation(text, []byte{0x90, 0xc3})
	for tr.dropped < 3 {
		tr.Add(x)
	}
	var b strings.Builder
	tr.WriteTo(&b)
	end := fmt.Sprintf("\n%d blocks, and 3 more were left out: 16 MiB are full\n", tr.blocks)
	if b.Len() > maxBytes+4096 || !strings.HasSuffix(b.String(), end) {
		t.Errorf("%d bytes, ending in %q", b.Len(), b.String()[b.Len()-100:])
	}
	b.Reset()
	New(nil, nil).WriteTo(&b)
	if b.String() != "0 blocks: this code was never translated\n" {
		t.Errorf("%q", b.String())
	}
}
