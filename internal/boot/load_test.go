package boot

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"ring3/internal/cpu"
	"ring3/internal/x86"
)

func TestLoadBzImage(t *testing.T) {
	for name := range packers {
		m := newRAM(64 << 20)
		e, err := Load(m, Config{Kernel: file("k", makeBzImage(pack(t, name, testKernel()), nil)),
			Initrd: file("i", []byte("initrd")), Cmdline: "quiet", RSDP: 0xe0010, Seed: []byte("12345678")})
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		if e.RIP != testEntry || e.Kernel != (Range{testPhys, testPhys + 0x204000}) || e.Packing != name ||
			e.Version != "6.1.0-test (me) #1" || e.Cached {
			t.Errorf("%s: %+v", name, e)
		}
		if e.Initrd != (Range{64<<20 - 4096, 64<<20 - 4096 + 6}) || string(m.data[e.Initrd.Start:e.Initrd.End]) != "initrd" {
			t.Errorf("%s: initrd at %#x", name, e.Initrd)
		}
		checkZeroPage(t, m, e)
		checkTables(t, m)
	}
}

// checkZeroPage reads boot_params as the kernel does, by offsets.
func checkZeroPage(t *testing.T, m *ram, e Entry) {
	t.Helper()
	le := binary.LittleEndian
	z := m.data[ZeroPageAddr:][:4096]
	for _, c := range []struct {
		name      string
		got, want uint64
	}{
		{"acpi_rsdp_addr", le.Uint64(z[0x70:]), 0xe0010},
		{"ext_ramdisk_image", uint64(le.Uint32(z[0xc0:])), 0},
		{"ext_ramdisk_size", uint64(le.Uint32(z[0xc4:])), 0},
		{"ext_cmd_line_ptr", uint64(le.Uint32(z[0xc8:])), 0},
		{"e820_entries", uint64(z[0x1e8]), 4},
		{"sentinel", uint64(z[0x1ef]), 0},
		{"vid_mode", uint64(le.Uint16(z[0x1fa:])), 0xffff},
		{"boot_flag", uint64(le.Uint16(z[0x1fe:])), 0xaa55},
		{"header", uint64(le.Uint32(z[0x202:])), 0x53726448},
		{"version", uint64(le.Uint16(z[0x206:])), 0x20f},
		{"type_of_loader", uint64(z[0x210]), 0xff},
		{"loadflags", uint64(z[0x211]), 1},
		{"ramdisk_image", uint64(le.Uint32(z[0x218:])), e.Initrd.Start},
		{"ramdisk_size", uint64(le.Uint32(z[0x21c:])), 6},
		{"cmd_line_ptr", uint64(le.Uint32(z[0x228:])), CmdlineAddr},
		{"setup_data", le.Uint64(z[0x250:]), SetupDataAddr},
		{"init_size", uint64(le.Uint32(z[0x260:])), 0x300000},
		{"e820[3].addr", le.Uint64(z[0x2d0+60:]), 1 << 20},
		{"e820[3].size", le.Uint64(z[0x2d0+68:]), 63 << 20},
		{"e820[3].type", uint64(le.Uint32(z[0x2d0+76:])), 1},
		{"setup_data.next", m.u64(SetupDataAddr), 0},
		{"setup_data.type", m.u64(SetupDataAddr+8) & 0xffffffff, 9},
		{"setup_data.len", m.u64(SetupDataAddr+8) >> 32, 8},
	} {
		if c.got != c.want {
			t.Errorf("%s: %#x, want %#x", c.name, c.got, c.want)
		}
	}
	if got := string(m.data[SetupDataAddr+16:][:8]); got != "12345678" {
		t.Errorf("seed %q", got)
	}
	if got := string(m.data[CmdlineAddr:][:6]); got != "quiet\x00" {
		t.Errorf("command line %q", got)
	}
}

// checkTables walks the initial page tables and the GDT by hand.
func checkTables(t *testing.T, m *ram) {
	t.Helper()
	for _, la := range []uint64{0, 0x1234567, LowMax, LAPICAddr + 0x20, 1<<32 - 1} {
		e := uint64(PageTableAddr)
		for _, shift := range []uint{39, 30, 21} {
			e = m.u64(e&x86.PTEAddr + la>>shift&511*8)
			if e&(x86.PTEPresent|x86.PTEWrite) != x86.PTEPresent|x86.PTEWrite {
				t.Fatalf("%#x: entry %#x at shift %d", la, e, shift)
			}
		}
		if pa := e&x86.PTEAddr&^(1<<21-1) | la&(1<<21-1); e&x86.PTELarge == 0 || pa != la {
			t.Errorf("%#x is mapped to %#x (%#x)", la, pa, e)
		}
	}
	if e := m.u64(pdptAddr + 8*identityGiB); e != 0 {
		t.Errorf("something is mapped behind %d GiB: %#x", identityGiB, e)
	}
	if cs, ds := m.u64(GDTAddr+bootCS), m.u64(GDTAddr+bootDS); cs != 0x00af9b000000ffff || ds != 0x00cf93000000ffff {
		t.Errorf("GDT: CS %#x, DS %#x", cs, ds)
	}
}

func TestApply(t *testing.T) {
	var s cpu.State
	s.GPR[x86.RAX], s.Halted, s.CR8 = 5, true, 3
	Entry{RIP: testEntry}.Apply(&s)
	if s.RIP != testEntry || s.GPR[x86.RSI] != ZeroPageAddr || s.GPR[x86.RSP] != StackTop || s.GPR[x86.RAX] != 0 {
		t.Errorf("registers: %#x, RIP %#x", s.GPR, s.RIP)
	}
	if !s.Code64() || !s.Paging() || s.CPL != 0 || s.RFLAGS != x86.FlagFixed || s.CR3 != PageTableAddr || s.Halted || s.CR8 != 0 {
		t.Errorf("not in 64-bit mode with paging and interrupts off: %+v", s)
	}
	if s.Seg[x86.CS].Sel != 0x10 || s.Seg[x86.SS].Sel != 0x18 || s.Seg[x86.DS].Sel != 0x18 || s.Seg[x86.ES].Sel != 0x18 {
		t.Errorf("selectors: %+v", s.Seg)
	}
}

// TestLoadVmlinux boots an unpacked kernel, on a machine with RAM above the
// hole.
func TestLoadVmlinux(t *testing.T) {
	m := newRAM(5 << 30)
	e, err := Load(m, Config{Kernel: file("vmlinux", testKernel()), Initrd: file("i", []byte("initrd"))})
	if err != nil {
		t.Fatal(err)
	}
	if e.RIP != testEntry || e.Packing != "none" || e.Initrd.Start != 0x80000000-4096 {
		t.Errorf("%+v", e)
	}
	z := m.data[ZeroPageAddr:]
	if string(z[hdrMagic:hdrMagic+4]) != "HdrS" || z[zpE820Count] != 5 {
		t.Errorf("header %q, %d e820 entries", z[hdrMagic:hdrMagic+4], z[zpE820Count])
	}
	if m.u64(ZeroPageAddr+hdrSetupData) != 0 {
		t.Error("setup_data without a seed")
	}
}

func TestPlaceInitrd(t *testing.T) {
	kernel := Range{testPhys, testPhys + 4<<20}
	for _, c := range []struct {
		ram, size uint64
		max       uint32 // initrd_addr_max
		xload     uint16
		want      uint64 // 0: does not fit
	}{
		{64 << 20, 1, 0x7fffffff, 3, 64<<20 - 4096},
		{64 << 20, 4096, 0x7fffffff, 3, 64<<20 - 4096},
		{64 << 20, 4097, 0x7fffffff, 3, 64<<20 - 8192},
		{64 << 20, 44 << 20, 0x7fffffff, 3, testPhys + 4<<20},
		{64 << 20, 44<<20 + 1, 0x7fffffff, 3, 0},
		{64 << 20, 65 << 20, 0x7fffffff, 3, 0},
		{64 << 20, 1, 0x27fffff, 1, 0x2800000 - 4096},
		{4 << 30, 1, 0x7fffffff, 1, 0x80000000 - 4096},
		{4 << 30, 1, 0x37ffffff, 1, 0x38000000 - 4096},
		{4 << 30, 5 << 29, 0x7fffffff, 1, 0},
		{4 << 30, 5 << 29, 0x7fffffff, 3, LowMax - 5<<29},
		{7 << 30, 3<<30 + 1<<29, 0x7fffffff, 3, HighBase + 1<<29},
		{7 << 30, 5 << 30, 0x7fffffff, 3, 0},
		{64 << 20, 1, 0xffffffff, 3, 64<<20 - 4096},
	} {
		h := makeBzImage(nil, func(h []byte) {
			binary.LittleEndian.PutUint32(h[hdrInitrdMax:], c.max)
			binary.LittleEndian.PutUint16(h[hdrXLoadFlags:], c.xload)
		})
		got, err := placeInitrd(c.ram, c.size, h[:hdrMagic+0x6a], kernel)
		if got != c.want || (err != nil) != (c.want == 0) {
			t.Errorf("%+v: %#x, %v", c, got, err)
		}
	}
}

// TestInputErrors wants a single line that names the culprit, and the type
// that commands go by.
func TestInputErrors(t *testing.T) {
	le := binary.LittleEndian
	good := makeBzImage(pack(t, "gzip", testKernel()), nil)
	edit := func(f func(h []byte)) []byte { return makeBzImage(pack(t, "gzip", testKernel()), f) }
	elf32 := testKernel()
	elf32[4] = 1
	for _, c := range []struct {
		want    string
		kernel  []byte
		initrd  int
		cmdline string
		ram     uint64
	}{
		{"K: not a Linux kernel", []byte("# just text\n"), 0, "", 64 << 20},
		{"K: not a Linux kernel", nil, 0, "", 64 << 20},
		{"K: truncated bzImage: 1700 of", good[:1700], 0, "", 64 << 20},
		{"K: truncated bzImage: the file ends inside the setup header", good[:0x210], 0, "", 64 << 20},
		{"K: boot protocol 2.04 is too old", edit(func(h []byte) { h[hdrVersion] = 4 }), 0, "", 64 << 20},
		{"K: damaged bzImage: setup header of", edit(func(h []byte) { h[hdrJump] = 8 }), 0, "", 64 << 20},
		{"K: damaged bzImage: compressed kernel at", edit(func(h []byte) { le.PutUint32(h[hdrPayloadOff:], 1<<31) }), 0, "", 64 << 20},
		{"K: damaged bzImage: compressed kernel at", edit(func(h []byte) { le.PutUint32(h[hdrPayloadLen:], 3) }), 0, "", 64 << 20},
		{"K: cannot unpack the kernel (none): 32-bit kernel", makeBzImage(elf32, nil), 0, "", 64 << 20},
		{"K: cannot unpack the kernel: unknown compression", makeBzImage([]byte("no kernel at all"), nil), 0, "", 64 << 20},
		{"K: cannot unpack the kernel (gzip)", makeBzImage(pack(t, "gzip", testKernel())[:200], nil), 0, "", 64 << 20},
		{"K: cannot be booted: truncated ELF file", testKernel()[:5000], 0, "", 64 << 20},
		{"memory: 1 MiB is too little", good, 0, "", 1 << 20},
		{"memory: 18 MiB of memory is too little: kernel is linked to run up to 19 MiB, says K", good, 0, "", 18 << 20},
		{"I: initrd does not fit: 70 MiB long, the machine has 64 MiB", good, 70 << 20, "", 64 << 20},
		{"command line: 101 bytes, the kernel takes 100", good, 0, strings.Repeat("x", 101), 64 << 20},
		{"command line: NUL byte at position 2", good, 0, "ab\x00", 64 << 20},
	} {
		cfg := Config{Kernel: file("K", c.kernel), Cmdline: c.cmdline}
		if c.initrd > 0 {
			cfg.Initrd = file("I", make([]byte, c.initrd))
		}
		_, err := Load(newRAM(c.ram), cfg)
		var ie *InputError
		if !errors.As(err, &ie) || !strings.HasPrefix(err.Error(), c.want) || strings.Contains(err.Error(), "\n") {
			t.Errorf("%v, want %q", err, c.want)
		}
	}
}

func TestOpenFile(t *testing.T) {
	dir := t.TempDir()
	for path, want := range map[string]string{
		dir:                        "is a directory",
		filepath.Join(dir, "none"): "no such file or directory",
		"/dev/null":                "is a device",
	} {
		_, _, err := OpenFile(path)
		var ie *InputError
		if !errors.As(err, &ie) || !strings.HasPrefix(err.Error(), path+": ") || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %q", path, err, want)
		}
	}
	p := filepath.Join(dir, "k")
	if err := os.WriteFile(p, makeBzImage(pack(t, "gzip", testKernel()), nil), 0o600); err != nil {
		t.Fatal(err)
	}
	f, c, err := OpenFile(p)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if i, err := Identify(f); err != nil || i.Kind != "bzImage" || i.Release() != "6.1.0-test" {
		t.Errorf("%+v, %v", i, err)
	}
}

func TestIdentifyVmlinux(t *testing.T) {
	k := testKernel()
	k = append(k, bytes.Repeat([]byte{0}, 1<<20-len(k)-7)...) // across a read boundary
	k = append(k, "Linux version %s (%s)\n\x00Linux version 6.9.1 (me@here) #3\n\x00rest"...)
	if i, err := Identify(file("v", k)); err != nil || i.Kind != "vmlinux" || i.Version != "6.9.1 (me@here) #3" {
		t.Errorf("%+v, %v", i, err)
	}
	if i, err := Identify(file("v", testKernel())); err != nil || i.Version != "" {
		t.Errorf("%+v, %v", i, err)
	}
	if _, err := Identify(file("text", []byte("hello"))); err == nil {
		t.Error("a text file is a kernel")
	}
}

// memCache is a Cache in memory that can be made to lose things.
type memCache map[string][]byte

func (c memCache) Get(key string) (io.ReadCloser, error) {
	if b, ok := c[key]; ok {
		return io.NopCloser(bytes.NewReader(b)), nil
	}
	return nil, fs.ErrNotExist
}

func (c memCache) Put(key string, fill func(io.Writer) error) error {
	var b bytes.Buffer
	err := fill(&b)
	if err == nil {
		c[key] = b.Bytes()
	}
	return err
}

func TestLoadCache(t *testing.T) {
	c := memCache{}
	cfg := Config{Kernel: file("k", makeBzImage(pack(t, "xz", testKernel()), nil)), Cache: c}
	var first []byte
	for i, want := range []bool{false, true, false, true} {
		if i == 2 { // a damaged entry is replaced
			for k := range c {
				c[k] = c[k][:5000]
			}
		}
		m := newRAM(32 << 20)
		e, err := Load(m, cfg)
		if err != nil || e.Cached != want || e.RIP != testEntry || e.Version == "" {
			t.Fatalf("load %d: %+v, %v", i, e, err)
		}
		if i == 0 {
			first = m.data
		} else if !bytes.Equal(first, m.data) {
			t.Errorf("load %d: memory differs", i)
		}
	}
	cfg.Kernel = file("k", makeBzImage(pack(t, "xz", testKernel()[:5000]), nil))
	if _, err := Load(newRAM(32<<20), cfg); err == nil || len(c) != 1 {
		t.Errorf("a kernel with an error was cached: %v", err)
	}
}

func TestE820(t *testing.T) {
	for _, size := range []uint64{MinMemory, 256 << 20, LowMax, LowMax + 4096, 64 << 30} {
		var sum, end uint64
		for _, e := range E820(size) {
			if e.Addr < end {
				t.Errorf("%#x: entry at %#x is not behind %#x", size, e.Addr, end)
			}
			end = e.Addr + e.Size
			if e.Type == E820RAM {
				sum += e.Size
			}
		}
		if sum != size-HighMemAddr+EBDAAddr {
			t.Errorf("%#x bytes of RAM of %#x", sum, size)
		}
		if end != size && end != size+HoleSize {
			t.Errorf("%#x: map ends at %#x", size, end)
		}
	}
}

func FuzzParseBzImage(f *testing.F) {
	f.Add(makeBzImage(pack(f, "gzip", testKernel()), nil))
	f.Add(makeBzImage(testKernel()[:9000], func(h []byte) { h[hdrSetupSects] = 0 }))
	f.Add([]byte("MZ"))
	f.Fuzz(func(t *testing.T, b []byte) {
		k := file("k", b)
		if _, err := parseBzImage(k); err != nil {
			var ie *InputError
			if err != errNotBzImage && !errors.As(err, &ie) {
				t.Fatal(err)
			}
			return
		}
		Identify(k)
		m := &ram{size: 32 << 20}
		if _, err := Load(m, Config{Kernel: k, Initrd: file("i", []byte("i"))}); err != nil {
			var ie *InputError
			if !errors.As(err, &ie) {
				t.Fatal(err)
			}
		}
	})
}
