package symbols

import (
	"encoding/binary"
	"fmt"
	"slices"
	"strings"
	"testing"
)

const systemMap = `0000000000000000 D fixed_percpu_data
ffffffff81000000 T _stext
ffffffff81000000 T startup_64
ffffffff81000100 t helper
ffffffff81000140 t helper
ffffffff81000180 W memset
ffffffff81000200 D data
ffffffffc0000010 t probe	[virtio_net]
`

func TestParse(t *testing.T) {
	tab, err := Parse(strings.NewReader(systemMap))
	if err != nil {
		t.Fatal(err)
	}
	if s := tab.Named("helper"); len(s) != 2 || s[1].Addr != 0xffffffff81000140 {
		t.Errorf("helper: %v", s)
	}
	if e := tab.End(0xffffffff81000000); e != 0xffffffff81000100 {
		t.Errorf("_stext ends at %#x", e)
	}
	for addr, want := range map[uint64]string{
		0xffffffff81000000: "_stext",
		0xffffffff81000150: "helper",
		0xffffffff810001ff: "memset",
		0xffffffffc0000010: "probe",
		0xffffffffa0000000: "",
		0xffffffff80ffffff: "",
	} {
		if s, _ := tab.At(addr); s.Name != want {
			t.Errorf("%#x is %q, want %q", addr, s.Name, want)
		}
	}
	for name, want := range map[string]string{"memzet": "memset", "startup": "startup_64", "dat": "", "help": "helper"} {
		if n := strings.Join(tab.Near(name, 3), " "); n != want {
			t.Errorf("near %s: %q, want %q", name, n, want)
		}
	}
}

func TestParseErrors(t *testing.T) {
	for text, want := range map[string]string{
		"":                                  "no symbols",
		"x":                                 "line 1 is not",
		"ffffffffffffffff B The real one":   "line 1 is not",
		"ffffffff81000000 T a\nq T b\n":     "line 2 begins with no",
		"0000000000000000 T a\n0 T b\n":     "shows them to root only",
		"ffffffff81000000 T a b\n":          "line 1 is not",
		strings.Repeat("f", 1<<17) + " T a": "too long",
	} {
		if _, err := Parse(strings.NewReader(text)); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%.40q: error %v, want %q", text, err, want)
		}
	}
}

func FuzzParse(f *testing.F) {
	f.Add(systemMap)
	f.Add("ffffffffffffffff B The real System.map is elsewhere\n")
	f.Add("0 T a [m]\n")
	f.Fuzz(func(t *testing.T, text string) {
		tab, err := Parse(strings.NewReader(text))
		if err != nil {
			return
		}
		// What was read can be written and read again.
		var b strings.Builder
		for _, s := range tab.syms {
			fmt.Fprintf(&b, "%x %c %s\n", s.Addr, s.Type, s.Name)
			if at, ok := tab.At(s.Addr); !ok || at.Addr != s.Addr {
				t.Errorf("%#x is %v", s.Addr, at)
			}
			if tab.End(s.Addr) < s.Addr {
				t.Errorf("%#x ends at %#x", s.Addr, tab.End(s.Addr))
			}
		}
		again, err := Parse(strings.NewReader(b.String()))
		if err != nil || !slices.Equal(again.syms, tab.syms) {
			t.Errorf("%v: %q became %q", err, text, b.String())
		}
	})
}

// table makes the tables of FromKernel, with tokens of one character each, but
// for "ab" in place of 1.
func table(syms []Symbol, seqs bool) []byte {
	var offsets, names, markers, order, tokens, index []byte
	const base = 0xffffffff81000000
	u32 := binary.LittleEndian.AppendUint32
	align := func(b []byte) []byte { return append(b, make([]byte, -len(b)&7)...) }
	for i, s := range syms {
		off := uint32(s.Addr)
		if s.Addr >= base {
			off = uint32(base - 1 - s.Addr)
		}
		offsets = u32(offsets, off)
		if i%256 == 0 {
			markers = u32(markers, uint32(len(names)))
		}
		name := strings.ReplaceAll(string(s.Type)+s.Name, "ab", "\x01")
		if len(name) >= 0x80 {
			names = append(names, byte(len(name))|0x80, byte(len(name)>>7))
		} else {
			names = append(names, byte(len(name)))
		}
		names = append(names, name...)
		if seqs {
			order = append(order, byte(i>>16), byte(i>>8), byte(i))
		}
	}
	for i := range 256 {
		index = binary.LittleEndian.AppendUint16(index, uint16(len(tokens)))
		switch {
		case i == 1:
			tokens = append(tokens, "ab"...)
		case i != 0:
			tokens = append(tokens, byte(i))
		}
		tokens = append(tokens, 0)
	}
	n := u32(nil, uint32(len(syms)))
	b := []byte("some code, 0\x001\x002\x003\x004\x005\x006\x007\x008\x009\x00 and data")
	for _, part := range [][]byte{offsets, binary.LittleEndian.AppendUint64(nil, base), n, names, markers, order, tokens, index} {
		b = append(align(b), part...)
	}
	return append(b, "and more"...)
}

func TestFromKernel(t *testing.T) {
	for _, n := range []int{1, 2, 255, 256, 257, 600} {
		syms := []Symbol{{0x1000, 'A', "percpu"}}
		for i := range n - 1 {
			syms = append(syms, Symbol{0xffffffff81000000 + uint64(i)*16, 't', fmt.Sprintf("abc_%d%s", i, strings.Repeat("x", i%7*40))})
		}
		tab, err := FromKernel(table(syms, n%2 == 0))
		if err != nil || !slices.Equal(tab.syms, syms) {
			t.Errorf("%d symbols: %v", n, err)
		}
	}
	if _, err := FromKernel(make([]byte, 1<<16)); err == nil {
		t.Error("symbols in nothing")
	}
}

func FuzzFromKernel(f *testing.F) {
	f.Add(table([]Symbol{{0x1000, 'A', "percpu"}, {0xffffffff81000000, 'T', "_text"}}, true))
	f.Fuzz(func(t *testing.T, image []byte) { FromKernel(image) })
}
