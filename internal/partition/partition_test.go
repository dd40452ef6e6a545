package partition

import (
	"bytes"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

const mib = 1 << 20

// makeDisk has sfdisk partition an empty disk of 16 MiB.
func makeDisk(t testing.TB, script string) []byte {
	t.Helper()
	sfdisk, err := exec.LookPath("sfdisk")
	if err != nil {
		if sfdisk, err = exec.LookPath("/sbin/sfdisk"); err != nil {
			t.Skip("no sfdisk on this host")
		}
	}
	path := filepath.Join(t.TempDir(), "disk")
	if err := os.WriteFile(path, make([]byte, 16*mib), 0o600); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(sfdisk, "--quiet", path)
	cmd.Stdin = strings.NewReader(script)
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("sfdisk: %v\n%s", err, out)
	}
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

const gptScript = `label: gpt
1: start=2048, size=4096, uuid=3F1B6B0E-0A4C-4A55-8E0B-2C3A5C6D7E8F
5: start=8192, size=2048, uuid=00112233-4455-6677-8899-AABBCCDDEEFF
`

var gptWant = []Partition{
	{1, mib, 2 * mib, "3f1b6b0e-0a4c-4a55-8e0b-2c3a5c6d7e8f"},
	{5, 4 * mib, mib, "00112233-4455-6677-8899-aabbccddeeff"},
}

const mbrScript = `label: dos
label-id: 0x1234abcd
start=2048, size=4096, type=83, bootable
start=8192, size=20480, type=5
start=10240, size=2048, type=83
start=14336, size=4096, type=82
`

var mbrWant = []Partition{
	{1, mib, 2 * mib, "1234abcd-01"},
	{5, 5 * mib, mib, "1234abcd-05"},
	{6, 7 * mib, 2 * mib, "1234abcd-06"},
}

func read(b []byte) ([]Partition, error) { return Read(bytes.NewReader(b), int64(len(b))) }

func TestRead(t *testing.T) {
	for _, c := range []struct {
		script string
		want   []Partition
	}{{gptScript, gptWant}, {mbrScript, mbrWant}, {"label: gpt\n", nil}} {
		if got, err := read(makeDisk(t, c.script)); err != nil || !slices.Equal(got, c.want) {
			t.Errorf("%s\nis %v, %v", c.script, got, err)
		}
	}
}

func TestBackup(t *testing.T) {
	b := makeDisk(t, gptScript)
	clear(b[SectorSize : 2*SectorSize])
	if got, err := read(b); err != nil || !slices.Equal(got, gptWant) {
		t.Errorf("without the first header: %v, %v", got, err)
	}
	b[len(b)-SectorSize+20]++
	if got, err := read(b); err == nil {
		t.Errorf("without any: %v", got)
	}
}

func TestNone(t *testing.T) {
	fat := make([]byte, mib) // its boot sector ends in the same two bytes
	copy(fat[440:], "code, code, code, code, code, code, code")
	fat[510], fat[511] = 0x55, 0xaa
	signed := make([]byte, mib)
	signed[510], signed[511] = 0x55, 0xaa
	for _, b := range [][]byte{make([]byte, SectorSize), make([]byte, mib), fat, signed} {
		if got, err := read(b); !errors.Is(err, ErrNone) {
			t.Errorf("%v, %v", got, err)
		}
	}
}

// A table that is longer than its disk, and links of an extended partition in a circle.
func TestBad(t *testing.T) {
	gpt, mbr := makeDisk(t, gptScript), makeDisk(t, mbrScript)
	for _, b := range [][]byte{gpt[:3*mib], mbr[:2*mib], nil, gpt[:100]} {
		if got, err := read(b); err == nil {
			t.Errorf("%v", got)
		}
	}
	copy(mbr[4*mib+462:], []byte{0, 0, 0, 0, 5, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0}) // the chain begins again
	if got, err := read(mbr); err != nil || !slices.Equal(got, mbrWant[:2]) {
		t.Errorf("circle: %v, %v", got, err)
	}
}

// FuzzRead damages both kinds of tables.
func FuzzRead(f *testing.F) {
	gpt, mbr := makeDisk(f, gptScript), makeDisk(f, mbrScript)
	f.Add(true, gpt[:SectorSize], gpt[SectorSize:16*SectorSize])
	f.Add(false, mbr[:SectorSize], mbr[10240*SectorSize:10241*SectorSize])
	f.Fuzz(func(t *testing.T, first bool, a, b []byte) {
		disk, at := mbr, 8192*SectorSize
		if first {
			disk, at = gpt, SectorSize
		}
		a, b = a[:min(len(a), SectorSize)], b[:min(len(b), mib)]
		defer copy(disk, slices.Clone(disk[:len(a)]))
		defer copy(disk[at:], slices.Clone(disk[at:][:len(b)]))
		copy(disk, a)
		copy(disk[at:], b)
		got, _ := read(disk)
		if len(got) > Max {
			t.Errorf("%d partitions", len(got))
		}
		for _, p := range got {
			if p.Start <= 0 || p.Size <= 0 || p.Start+p.Size > int64(len(disk)) {
				t.Errorf("%+v", p)
			}
		}
	})
}
