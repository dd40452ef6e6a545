package boot

import (
	"bytes"
	"encoding/binary"
	"io"
	"strings"
	"testing"
	"testing/iotest"
)

// TestLoadELF loads the same kernel from readers that give it in pieces of
// many sizes.
func TestLoadELF(t *testing.T) {
	k := testKernel()
	for name, r := range map[string]io.Reader{
		"whole":  bytes.NewReader(k),
		"byte":   iotest.OneByteReader(bytes.NewReader(k)),
		"half":   iotest.HalfReader(bytes.NewReader(k)),
		"data+e": iotest.DataErrReader(bytes.NewReader(k)),
	} {
		m := newRAM(64 << 20)
		for i := range m.data {
			m.data[i] = 0xcc
		}
		im, err := loadELF(m, r, true)
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		if im.entry != testEntry || im.start != testPhys || im.end != testPhys+0x204000 {
			t.Errorf("%s: %+v", name, im)
		}
		want := bytes.Repeat([]byte("data"), 1000)
		want = append(want, make([]byte, 0x4000-4000)...)
		if got := m.data[testPhys+0x200000:][:0x4000]; !bytes.Equal(got, want) {
			t.Errorf("%s: second segment differs", name)
		}
		if got := m.data[testPhys : testPhys+8001]; string(got) != strings.Repeat("text", 2000)+"\xcc" {
			t.Errorf("%s: first segment differs", name)
		}
	}
}

// TestLoadELFOrder has segments whose data overlap in the file and go
// backwards in memory.
func TestLoadELFOrder(t *testing.T) {
	k := makeELF(0x300000, prog{0, 0x300000, 4, []byte("aaaa")}, prog{0, 0x200000, 4, []byte("bbbb")})
	binary.LittleEndian.PutUint64(k[64+56+8:], 4098) // second one's offset
	m := newRAM(16 << 20)
	if _, err := loadELF(m, bytes.NewReader(k), false); err != nil {
		t.Fatal(err)
	}
	if a, b := string(m.data[0x300000:0x300004]), string(m.data[0x200000:0x200004]); a != "aaaa" || b != "aabb" {
		t.Errorf("%q %q", a, b)
	}
}

func TestELFEntry(t *testing.T) {
	for _, c := range []struct {
		entry, want uint64 // want 0: an error
	}{
		{testPhys, testPhys},
		{testVirt + 8, testPhys + 8},
		{testPhys + 8000, 0},
		{0, 0},
	} {
		k := testKernel()
		binary.LittleEndian.PutUint64(k[24:], c.entry)
		im, err := parseELF(k, 64<<20)
		if (err != nil) != (c.want == 0) || err == nil && im.entry != c.want {
			t.Errorf("entry %#x: %+v, %v", c.entry, im, err)
		}
	}
}

func TestELFErrors(t *testing.T) {
	le := binary.LittleEndian
	for want, edit := range map[string]func(k []byte) []byte{
		"32-bit kernel":                            func(k []byte) []byte { k[4] = 1; return k },
		"not 64-bit little-endian":                 func(k []byte) []byte { k[5] = 2; return k },
		"another machine: EM_AARCH64":              func(k []byte) []byte { k[18] = 183; return k },
		"not executable: type ET_REL":              func(k []byte) []byte { k[16] = 1; return k },
		"not an ELF file (starts with 68 65 6c":    func(k []byte) []byte { return []byte(strings.Repeat("hello ", 20)) },
		"ends inside its header":                   func(k []byte) []byte { return k[:63] },
		"ends inside its program headers":          func(k []byte) []byte { return k[:100] },
		"truncated ELF file: 10000 of 16096":       func(k []byte) []byte { return k[:10000] },
		"0 program headers":                        func(k []byte) []byte { k[56] = 0; return k },
		"65535 program headers":                    func(k []byte) []byte { k[56], k[57] = 0xff, 0xff; return k },
		"program headers at offset 0xffffffffffff": func(k []byte) []byte { le.PutUint64(k[32:], 1<<48-1); return k },
		"nothing to load":                          func(k []byte) []byte { k[64], k[64+56] = 2, 2; return k },
		"program header 0 has impossible sizes":    func(k []byte) []byte { le.PutUint64(k[64+32:], 1<<62); return k },
		"program header 1 has impossible sizes":    func(k []byte) []byte { le.PutUint64(k[120+24:], 1<<64-8); return k },
		"below 1 MiB":                              func(k []byte) []byte { le.PutUint64(k[64+24:], 0x8000); return k },
		"beyond the 3072 MiB":                      func(k []byte) []byte { le.PutUint64(k[120+24:], 3<<30); return k },
		"32 MiB of memory is too little: kernel is linked to run up to 65 MiB": func(k []byte) []byte { le.PutUint64(k[120+24:], 64<<20); return k },
		"segments at 0x1000000 and 0x1001000 overlap":                          func(k []byte) []byte { le.PutUint64(k[120+24:], 0x1001000); return k },
		"entry 0x5 is in no segment":                                           func(k []byte) []byte { le.PutUint64(k[24:], 5); return k },
	} {
		_, err := loadELF(newRAM(32<<20), bytes.NewReader(edit(testKernel())), true)
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v, want %q", err, want)
		}
	}
}

func FuzzParseELF(f *testing.F) {
	f.Add(testKernel()[:9000])
	f.Add(testKernel()[:150])
	f.Add(makeELF(0x200000, prog{0, 0x200000, 1 << 20, []byte("x")}))
	f.Fuzz(func(t *testing.T, b []byte) {
		m := &ram{size: 8 << 20}
		im, err := loadELF(m, bytes.NewReader(b), true)
		if err != nil {
			if strings.Contains(err.Error(), "outside RAM") {
				t.Fatal(err)
			}
			return
		}
		if im.start < HighMemAddr || im.end > m.size || im.entry < im.start || im.entry >= im.end {
			t.Fatalf("%+v", im)
		}
	})
}
