package acpi

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"ring3/internal/device/acpipm"
)

var full = Config{CPUs: 4, UARTs: 4}

func build(t *testing.T, cfg Config) []byte {
	t.Helper()
	b, at, err := Build(cfg)
	if err != nil {
		t.Fatal(err)
	}
	if at != Base || len(b) > Size {
		t.Fatalf("RSDP at %#x, %d bytes of tables", at, len(b))
	}
	return b
}

func sum(b []byte) (s byte) {
	for _, v := range b {
		s += v
	}
	return s
}

// at returns the table at a guest-physical address, checked.
func at(t *testing.T, b []byte, addr uint64, signature string) []byte {
	t.Helper()
	if addr < Base || addr+36 > Base+uint64(len(b)) {
		t.Fatalf("%s at %#x", signature, addr)
	}
	b = b[addr-Base:]
	b = b[:le.Uint32(b[4:])]
	if string(b[:4]) != signature {
		t.Fatalf("signature %q at %#x, want %s", b[:4], addr, signature)
	}
	if signature != "FACS" && sum(b) != 0 {
		t.Errorf("%s: sum %#x", signature, sum(b))
	}
	return b
}

// tables walks from the RSDP as an operating system does.
func tables(t *testing.T, b []byte) map[string][]byte {
	t.Helper()
	if string(b[:8]) != "RSD PTR " || b[15] != 2 || sum(b[:20]) != 0 || sum(b[:36]) != 0 {
		t.Fatalf("RSDP % x", b[:36])
	}
	rsdt := at(t, b, uint64(le.Uint32(b[16:])), "RSDT")
	xsdt := at(t, b, le.Uint64(b[24:]), "XSDT")
	out := map[string][]byte{"RSDT": rsdt, "XSDT": xsdt}
	names := []string{"FACP", "APIC"}
	if len(rsdt) != 36+4*len(names) || len(xsdt) != 36+8*len(names) {
		t.Fatalf("RSDT of %d bytes, XSDT of %d", len(rsdt), len(xsdt))
	}
	for i, name := range names {
		p := le.Uint64(xsdt[36+8*i:])
		if uint64(le.Uint32(rsdt[36+4*i:])) != p {
			t.Errorf("%s: RSDT and XSDT differ", name)
		}
		out[name] = at(t, b, p, name)
	}
	fadt := out["FACP"]
	out["DSDT"] = at(t, b, le.Uint64(fadt[140:]), "DSDT")
	facs := uint64(le.Uint32(fadt[36:]))
	if facs%64 != 0 {
		t.Errorf("FACS at %#x", facs)
	}
	out["FACS"] = at(t, b, facs, "FACS")
	return out
}

func TestTables(t *testing.T) {
	ts := tables(t, build(t, full))
	f := ts["FACP"]
	if len(f) != 276 || f[8] != 6 {
		t.Errorf("FADT of %d bytes, revision %d", len(f), f[8])
	}
	if le.Uint64(f[140:]) != uint64(le.Uint32(f[40:])) {
		t.Error("DSDT and X_DSDT differ")
	}
	if got := le.Uint32(f[76:]); got != acpipm.Port+acpipm.TimerBlock {
		t.Errorf("PM timer at %#x", got)
	}
	if got := le.Uint16(f[109:]); got != bootLegacy|bootNoVGA {
		t.Errorf("boot flags %#x", got)
	}
	if got := le.Uint64(f[120:]); got != 0xcf9 || f[128] != 6 {
		t.Errorf("reset register %#x, value %#x", got, f[128])
	}
	f = tables(t, build(t, Config{CPUs: 1, Keyboard: true}))["FACP"]
	if le.Uint16(f[109:])&boot8042 == 0 {
		t.Error("no keyboard controller announced")
	}
}

func TestMADT(t *testing.T) {
	m := tables(t, build(t, full))["APIC"]
	if le.Uint32(m[36:]) != 0xfee00000 || m[40] != 1 {
		t.Errorf("header % x", m[36:44])
	}
	var types []byte
	for e := m[44:]; len(e) > 0; e = e[e[1]:] {
		types = append(types, e[0])
		switch {
		case e[0] == madtOverride && e[3] == 0 && le.Uint32(e[4:]) != 2:
			t.Errorf("IRQ0 override % x", e[:10])
		case e[0] == madtOverride && e[3] == 9 && (le.Uint32(e[4:]) != 9 || le.Uint16(e[8:]) != 0xd):
			t.Errorf("SCI override % x", e[:10])
		case e[0] == madtLAPIC && (e[3] != byte(len(types)-1) || e[4] != 1):
			t.Errorf("LAPIC % x", e[:8])
		}
	}
	if !bytes.Equal(types, []byte{0, 0, 0, 0, 1, 2, 2, 4}) {
		t.Errorf("structures %v", types)
	}
}

func TestLimits(t *testing.T) {
	build(t, Config{CPUs: MaxCPUs, UARTs: 99})
	for _, n := range []int{-1, 0, 256} {
		if _, _, err := Build(Config{CPUs: n}); err == nil {
			t.Errorf("%d processors accepted", n)
		}
	}
}

func TestAML(t *testing.T) {
	for _, c := range []struct {
		name      string
		got, want []byte
	}{
		{"EISA ID", eisaID("PNP0501"), []byte{0x0c, 0x41, 0xd0, 0x05, 0x01}},
		{"word", integer(0x1234), []byte{0x0b, 0x34, 0x12}},
		{"name", named("_S5", pkg(integer(5), integer(0))), []byte{8, '_', 'S', '5', '_', 0x12, 5, 2, 0x0a, 5, 0}},
		{"resources", resources(io(0x3f8, 8), irq(4)),
			[]byte{0x11, 16, 0x0a, 13, 0x47, 1, 0xf8, 3, 0xf8, 3, 1, 8, 0x22, 0x10, 0, 0x79, 0}},
	} {
		if !bytes.Equal(c.got, c.want) {
			t.Errorf("%s: % x, want % x", c.name, c.got, c.want)
		}
	}
	for n, want := range map[int][]byte{62: {63}, 63: {0x41, 4}, 4093: {0x4f, 0xff}, 4094: {0x81, 0x00, 0x01}} {
		if got := sized(make([]byte, n)); !bytes.Equal(got[:len(want)], want) || len(got) != n+len(want) {
			t.Errorf("length of %d: % x, want % x", n, got[:3], want)
		}
	}
}

// iasl, of the Debian package acpica-tools, has an opinion on every table. It
// may be absent on a developer's machine, not in CI.
func TestIASL(t *testing.T) {
	iasl, err := exec.LookPath("iasl")
	if err != nil {
		if os.Getenv("CI") != "" {
			t.Fatal("no iasl: install acpica-tools")
		}
		t.Skip("no iasl: install acpica-tools")
	}
	dir := t.TempDir()
	run := func(args ...string) string {
		t.Helper()
		cmd := exec.Command(iasl, args...)
		cmd.Dir = dir
		out, err := cmd.CombinedOutput()
		if err != nil || bytes.Contains(out, []byte("Warning  ")) || bytes.Contains(out, []byte("Error  ")) {
			t.Errorf("iasl %s: %v\n%s", strings.Join(args, " "), err, out)
		}
		return string(out)
	}
	for name, b := range tables(t, build(t, full)) {
		file := strings.ToLower(name)
		if err := os.WriteFile(filepath.Join(dir, file+".dat"), b, 0o600); err != nil {
			t.Fatal(err)
		}
		run("-d", file+".dat")
		src, err := os.ReadFile(filepath.Join(dir, file+".dsl"))
		if err != nil {
			t.Error(err)
			continue
		}
		if bytes.Contains(src, []byte("Invalid")) || bytes.Contains(src, []byte("incorrect checksum")) {
			t.Errorf("%s", src)
		}
		if name != "DSDT" {
			continue
		}
		t.Logf("%s", src)
		if out := run(file + ".dsl"); !strings.Contains(out, "0 Errors, 0 Warnings") {
			t.Errorf("%s", out)
		}
	}
}
