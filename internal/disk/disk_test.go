package disk

import (
	"bytes"
	"errors"
	"math/rand"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// file makes an image of size bytes, each of them that of its sector's number.
func file(t *testing.T, size int) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "disk.img")
	if err := os.WriteFile(path, pattern(size), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func pattern(size int) []byte {
	b := make([]byte, size)
	for i := range b {
		b[i] = byte(i/SectorSize) + 1
	}
	return b
}

func mustOpen(t *testing.T, o Options) Image {
	t.Helper()
	img, err := Open(o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := img.Close(); err != nil {
			t.Error(err)
		}
	})
	return img
}

func read(t *testing.T, img Image, off, n int64) []byte {
	t.Helper()
	b := make([]byte, n)
	bufs := [][]byte{b[:n/3], b[n/3 : n/2], b[n/2:]}
	if err := img.ReadAt(bufs, off); err != nil {
		t.Fatal(err)
	}
	cached := make([]byte, n)
	if img.ReadCached([][]byte{cached[:n/2], cached[n/2:]}, off) && !bytes.Equal(cached, b) {
		t.Errorf("the cache has something else in %d bytes at %d", n, off)
	}
	return b
}

func TestOpen(t *testing.T) {
	dir := t.TempDir()
	path := func(name, content string) string {
		p := filepath.Join(dir, name)
		if err := os.WriteFile(p, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		return p
	}
	pipe := filepath.Join(dir, "pipe")
	if err := unix.Mkfifo(pipe, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct{ path, why, mend string }{
		{filepath.Join(dir, "missing"), "no such file", "truncate"},
		{dir, "directory", ""},
		{path("empty", ""), "empty", "truncate"},
		{path("odd", strings.Repeat("x", 513)), "513 bytes long, not a multiple of 512", "truncate"},
		{pipe, "neither a file nor a block device", ""},
		{"/dev/null", "neither a file nor a block device", ""},
	} {
		for _, o := range []Options{{Path: tt.path}, {Path: tt.path, ReadOnly: true}, {Path: tt.path, Snapshot: true}} {
			_, err := Open(o)
			e, ok := errors.AsType[*Error](err)
			if !ok || e.Path != tt.path || !strings.Contains(e.Why, tt.why) || !strings.Contains(e.Mend, tt.mend) {
				t.Errorf("%v: %v", o, err)
			}
		}
	}
}

// TestPermission: as root there is nothing to see.
func TestPermission(t *testing.T) {
	if os.Getuid() == 0 {
		t.Skip("root may write to anything")
	}
	p := file(t, 4096)
	if err := os.Chmod(p, 0o400); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(Options{Path: p}); err == nil || !strings.Contains(err.Error(), "no permission to write to it (open it with ,ro or ,snapshot)") {
		t.Errorf("%v", err)
	}
	mustOpen(t, Options{Path: p, ReadOnly: true})
	mustOpen(t, Options{Path: p, Snapshot: true})
}

func TestLock(t *testing.T) {
	p := file(t, 4096)
	rw, ro, snap := Options{Path: p}, Options{Path: p, ReadOnly: true}, Options{Path: p, Snapshot: true}
	for _, tt := range []struct {
		first, second Options
		ok            bool
	}{{rw, rw, false}, {rw, ro, false}, {rw, snap, false}, {ro, rw, false}, {snap, rw, false}, {ro, ro, true}, {ro, snap, true}, {snap, snap, true}} {
		a, err := Open(tt.first)
		if err != nil {
			t.Fatal(err)
		}
		b, err := Open(tt.second)
		if (err == nil) != tt.ok {
			t.Errorf("%v while %v is open: %v", tt.second, tt.first, err)
		}
		if err == nil {
			b.Close()
		}
		a.Close()
	}
}

func TestRaw(t *testing.T) {
	const size = 1 << 20
	p := file(t, size)
	img := mustOpen(t, Options{Path: p})
	if img.Size() != size {
		t.Errorf("size %d", img.Size())
	}
	want := pattern(size)
	check := func(what string) {
		t.Helper()
		if err := img.Flush(); err != nil {
			t.Error(err)
		}
		got, err := os.ReadFile(p)
		if err != nil || !bytes.Equal(got, want) {
			t.Errorf("%s: the file is not as it should be: %v", what, err)
		}
		if !bytes.Equal(read(t, img, 0, size), want) {
			t.Errorf("%s: the image is not as it should be", what)
		}
	}
	check("new")
	if err := img.WriteAt([][]byte{[]byte("abc"), []byte("defg")}, 70000); err != nil {
		t.Error(err)
	}
	copy(want[70000:], "abcdefg")
	check("written")
	for _, unmap := range []bool{false, true} {
		off := map[bool]int{false: 8192, true: 32768}[unmap]
		if err := img.Zero(int64(off), 12288+512, unmap); err != nil {
			t.Error(err)
		}
		clear(want[off : off+12288+512])
		check("zeroed")
	}
	if err := img.Discard(0, 4096); err != nil {
		t.Error(err)
	}
}

// TestVectors: more buffers than one call takes.
func TestVectors(t *testing.T) {
	img := mustOpen(t, Options{Path: file(t, 1<<20)})
	var bufs [][]byte
	for i := range 3000 {
		bufs = append(bufs, bytes.Repeat([]byte{byte(i)}, 100))
	}
	if err := img.WriteAt(bufs, 512); err != nil {
		t.Fatal(err)
	}
	if got := read(t, img, 512, 300000); !bytes.Equal(got, bytes.Join(bufs, nil)) {
		t.Error("what was written is not what is read")
	}
}

// TestSnapshot does random things to a snapshot and to a slice.
func TestSnapshot(t *testing.T) {
	const size = 1<<20 + 3*SectorSize
	p := file(t, size)
	img := mustOpen(t, Options{Path: p, Snapshot: true})
	want := pattern(size)
	r := rand.New(rand.NewSource(1))
	for i := range 400 {
		off := r.Int63n(size/SectorSize) * SectorSize
		n := min(size-off, (1+r.Int63n(40))*SectorSize)
		var err error
		switch i % 4 {
		case 0, 1:
			b := make([]byte, n)
			r.Read(b)
			copy(want[off:], b)
			err = img.WriteAt([][]byte{b[:n/2], b[n/2:]}, off)
		case 2:
			clear(want[off : off+n])
			err = img.Zero(off, n, i%8 == 2)
		case 3:
			err = img.Flush()
		}
		if err != nil {
			t.Fatal(err)
		}
		if got := read(t, img, off, n); !bytes.Equal(got, want[off:off+n]) {
			t.Fatalf("step %d: %d bytes at %d differ", i, n, off)
		}
	}
	if !bytes.Equal(read(t, img, 0, size), want) {
		t.Error("the image is not as it should be")
	}
	if err := img.Discard(0, 8192); err != nil {
		t.Error(err)
	}
	if got, err := os.ReadFile(p); err != nil || !bytes.Equal(got, pattern(size)) {
		t.Errorf("the image below was changed: %v", err)
	}
}

// TestLeavesNothing: a snapshot has no file that somebody could find.
func TestLeavesNothing(t *testing.T) {
	p := file(t, 4096)
	t.Setenv("TMPDIR", t.TempDir())
	mustOpen(t, Options{Path: p, Snapshot: true})
	if ents, err := os.ReadDir(os.TempDir()); err != nil || len(ents) != 0 {
		t.Errorf("%v, %v", ents, err)
	}
}

// TestLarge: a snapshot of a disk that is much larger than the host's costs
// what is written.
func TestLarge(t *testing.T) {
	p := file(t, 4096)
	const size = 8 << 40
	if err := os.Truncate(p, size); err != nil {
		t.Skip("the host's file system has no such large files: ", err)
	}
	img := mustOpen(t, Options{Path: p, Snapshot: true})
	if err := img.WriteAt([][]byte{{1}}, size-1); err != nil {
		t.Fatal(err)
	}
	if got := read(t, img, size-6, 6); got[5] != 1 || got[0] != 0 {
		t.Errorf("% x", got)
	}
}
