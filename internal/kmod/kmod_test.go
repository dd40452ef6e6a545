package kmod

import (
	"bytes"
	"debug/elf"
	"encoding/binary"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// object is an ELF file with nothing but a .modinfo section, and that only if
// info is not empty.
func object(info string) []byte {
	const names = "\x00.shstrtab\x00.modinfo\x00"
	h := elf.Header64{Ident: [16]byte{0x7f, 'E', 'L', 'F', 2, 1, 1}, Type: uint16(elf.ET_REL), Machine: uint16(elf.EM_X86_64),
		Version: 1, Ehsize: 64, Shentsize: 64, Shnum: 2, Shstrndx: 1}
	sections := []elf.Section64{{}, {Name: 1, Type: uint32(elf.SHT_STRTAB), Off: 64, Size: uint64(len(names))}}
	if info != "" {
		h.Shnum = 3
		sections = append(sections, elf.Section64{Name: 11, Type: uint32(elf.SHT_PROGBITS), Off: 64 + uint64(len(names)), Size: uint64(len(info))})
	}
	h.Shoff = 64 + uint64(len(names)+len(info))
	var b bytes.Buffer
	binary.Write(&b, binary.LittleEndian, h)
	b.WriteString(names + info)
	binary.Write(&b, binary.LittleEndian, sections)
	return b.Bytes()
}

func tree(t *testing.T, files map[string]string) string {
	t.Helper()
	dir := t.TempDir()
	for name, info := range files {
		data := []byte(info)
		if strings.HasSuffix(name, ".ko") {
			data = object(info)
		}
		p := filepath.Join(dir, name)
		if err := errors.Join(os.MkdirAll(filepath.Dir(p), 0o755), os.WriteFile(p, data, 0o600)); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

func TestFind(t *testing.T) {
	dir := tree(t, map[string]string{
		"modules.builtin":        "kernel/crypto/crc-x.ko\n",
		"kernel/a/top-level.ko":  "license=GPL\x00depends=mid,base_one,crc_x\x00",
		"kernel/b/mid.ko":        "depends=base-one\x00softdep=pre: late crc32c other\x00",
		"kernel/b/base-one.ko":   "depends=\x00",
		"kernel/c/late.ko":       "depends=mid\x00", // each other: the order has no answer
		"kernel/d/incomplete.ko": "depends=gone\x00",
		"kernel/d/odd.ko":        "",
	})
	found, err := Find(dir, "top_level", "mid", "crc_x")
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, m := range found {
		names = append(names, m.Name)
	}
	if want := []string{"base_one", "late", "mid", "top_level"}; !slices.Equal(names, want) {
		t.Errorf("order %v, want %v", names, want)
	}
	for _, name := range []string{"missing", "incomplete"} {
		if _, err := Find(dir, name); !errors.Is(err, ErrNotFound) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := Find(dir, "odd"); err == nil || !strings.Contains(err.Error(), "modinfo") {
		t.Errorf("odd: %v", err)
	}
	if _, err := Find(filepath.Join(dir, "nowhere"), "a"); err == nil {
		t.Error("a directory that is not there has modules")
	}
}
