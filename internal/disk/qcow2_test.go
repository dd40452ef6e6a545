package disk

import (
	"bytes"
	"compress/flate"
	"math/rand"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// Places in an image that smallQcow2 makes, of clusters of 512 bytes: one that
// is plain, one compressed, one of zeros, one that is not there.
const (
	smallL1, smallL2, smallPlain, smallPacked, smallName = 0x200, 0x400, 0x600, 0x810, 0x1a0
	smallSize                                            = 4 * 512
)

func cluster(c byte) []byte { return bytes.Repeat([]byte{c}, 512) }

// smallQcow2 makes an image over another, if that has a name.
func smallQcow2(backing string) []byte {
	b := make([]byte, 0xa00)
	copy(b, qcowMagic)
	be.PutUint32(b[qcowVersion:], 3)
	be.PutUint32(b[qcowClusterBits:], 9)
	be.PutUint64(b[qcowSize:], smallSize)
	be.PutUint32(b[qcowL1Size:], 1)
	be.PutUint64(b[qcowL1Offset:], smallL1)
	be.PutUint32(b[qcowHeaderLength:], 104)
	be.PutUint32(b[104:], extensionBackingFormat)
	be.PutUint32(b[108:], 3)
	copy(b[112:], "raw")
	if backing != "" {
		be.PutUint64(b[qcowBackingOffset:], smallName)
		be.PutUint32(b[qcowBackingSize:], uint32(copy(b[smallName:], backing)))
	}
	be.PutUint32(b[qcowRefOrder:], refOrder16)
	be.PutUint64(b[qcowRefOffset:], smallL2+0x100) // without counts yet
	be.PutUint32(b[qcowRefClusters:], 1)
	be.PutUint64(b[smallL1:], smallL2)
	be.PutUint64(b[smallL2:], smallPlain)
	be.PutUint64(b[smallL2+8:], entryCompressed|smallPacked)
	be.PutUint64(b[smallL2+16:], entryZeros|smallPlain)
	copy(b[smallPlain:], cluster('p'))
	var packed bytes.Buffer
	w, _ := flate.NewWriter(&packed, 9)
	w.Write(cluster('c'))
	w.Close()
	copy(b[smallPacked:], packed.Bytes())
	return b
}

func save(t testing.TB, dir, name string, b []byte) string {
	t.Helper()
	p := filepath.Join(dir, name)
	if err := os.WriteFile(p, b, 0o600); err != nil {
		t.Fatal(err)
	}
	return p
}

func TestQcow2(t *testing.T) {
	dir := t.TempDir()
	save(t, dir, "below", bytes.Repeat([]byte("b"), 3*512+100)) // ends in the fourth cluster
	p := save(t, dir, "above.qcow2", smallQcow2("below"))
	want := bytes.Join([][]byte{cluster('p'), cluster('c'), cluster(0), bytes.Repeat([]byte("b"), 100), make([]byte, 412)}, nil)
	for _, o := range []Options{{Path: p, ReadOnly: true}, {Path: p, Snapshot: true}} {
		img := mustOpen(t, o)
		if img.Size() != smallSize {
			t.Errorf("size %d", img.Size())
		}
		for off := int64(0); off < smallSize; off += 100 {
			n := min(777, smallSize-off)
			if got := read(t, img, off, n); !bytes.Equal(got, want[off:off+n]) {
				t.Errorf("%v: %d bytes at %d differ", o, n, off)
			}
		}
	}
	img := mustOpen(t, Options{Path: p, Snapshot: true})
	if err := img.WriteAt([][]byte{[]byte("new")}, 600); err != nil {
		t.Error(err)
	}
	copy(want[600:], "new")
	if got := read(t, img, 0, smallSize); !bytes.Equal(got, want) {
		t.Error("a snapshot has something else than was written")
	}
}

// TestFormat: what the guest of a raw image can write there does not make it a
// qcow2 image.
func TestFormat(t *testing.T) {
	dir := t.TempDir()
	q, other := smallQcow2(""), make([]byte, 4096)
	for _, tt := range []struct {
		name    string
		content []byte
		format  string
		size    int64 // 0: refused
	}{
		{"a", q, "", 0}, {"a.img", q, "", 0}, {"a", q, Raw, int64(len(q))}, {"a", q, Qcow2, smallSize},
		{"a.qcow2", q, "", smallSize}, {"a.qcow2", q, Raw, int64(len(q))}, {"b.qcow2", other, "", 4096}, {"b", other, Qcow2, 0},
	} {
		img, err := Open(Options{Path: save(t, dir, tt.name, tt.content), Format: tt.format})
		if (err == nil) != (tt.size != 0) {
			t.Errorf("%s with format %q: %v", tt.name, tt.format, err)
		}
		if err == nil {
			if img.Size() != tt.size {
				t.Errorf("%s with format %q has %d bytes, want %d", tt.name, tt.format, img.Size(), tt.size)
			}
			img.Close()
		}
	}
}

// TestQcow2Refused: images that are not read, and why.
func TestQcow2Refused(t *testing.T) {
	for name, tt := range map[string]struct {
		change func(b []byte)
		why    string
	}{
		"version":      {func(b []byte) { b[qcowVersion+3] = 4 }, "version 4"},
		"clusters":     {func(b []byte) { b[qcowClusterBits+3] = 8 }, "clusters of 2^8"},
		"clusters big": {func(b []byte) { be.PutUint32(b[qcowClusterBits:], 1<<31) }, "clusters of"},
		"size 0":       {func(b []byte) { be.PutUint64(b[qcowSize:], 0) }, "size of 0"},
		"size odd":     {func(b []byte) { be.PutUint64(b[qcowSize:], 513) }, "size of 513"},
		"size huge":    {func(b []byte) { be.PutUint64(b[qcowSize:], 1<<63) }, "size of"},
		"table small":  {func(b []byte) { be.PutUint64(b[qcowSize:], 1<<20) }, "first table has 1 entries, needs 32"},
		"table huge": {func(b []byte) {
			be.PutUint64(b[qcowSize:], 1<<62)
			be.PutUint32(b[qcowL1Size:], 0xffffffff)
		}, "first table"},
		"table outside": {func(b []byte) { be.PutUint64(b[qcowL1Offset:], 1<<40) }, "first table"},
		"table before":  {func(b []byte) { be.PutUint64(b[qcowL1Offset:], 1<<63) }, "first table"},
		"encryption":    {func(b []byte) { b[qcowCrypt+3] = 1 }, "encryption"},
		"damaged":       {func(b []byte) { b[qcowIncompatible+7] = qcowCorrupt }, "qemu-img check"},
		"external":      {func(b []byte) { b[qcowIncompatible+7] = qcowExternal }, "external data file"},
		"subclusters":   {func(b []byte) { b[qcowIncompatible+7] = qcowExtendedL2 }, "subclusters"},
		"feature":       {func(b []byte) { b[qcowIncompatible] = 1 }, "features 0x1"},
		"compression": {func(b []byte) {
			b[qcowHeaderLength+3] = qcowHeaderMax
			b[qcowCompression] = 9
		}, "compression 9"},
		"long name":  {func(b []byte) { be.PutUint64(b[qcowBackingOffset:], 8); be.PutUint32(b[qcowBackingSize:], 2000) }, "2000 bytes"},
		"name where": {func(b []byte) { be.PutUint64(b[qcowBackingOffset:], 1<<40); b[qcowBackingSize+3] = 9 }, "the name of"},
		"missing":    {func(b []byte) { backing(b, "missing") }, "missing: no such file"},
		"directory":  {func(b []byte) { backing(b, "/") }, "directory"},
		"device":     {func(b []byte) { backing(b, "/dev/zero") }, "neither a file nor"},
		"itself":     {func(b []byte) { backing(b, "x.qcow2"); copy(b[108:], "\x00\x00\x00\x05qcow2") }, "more than 8 images"},
		"format":     {func(b []byte) { backing(b, "x.qcow2"); copy(b[108:], "\x00\x00\x00\x04vmdk") }, `format "vmdk"`},
	} {
		b := smallQcow2("")
		tt.change(b)
		p := save(t, t.TempDir(), "x.qcow2", b)
		if _, err := Open(Options{Path: p, ReadOnly: true}); err == nil || !strings.Contains(err.Error(), tt.why) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func backing(b []byte, name string) { copy(b, smallQcow2(name)) }

// TestQcow2Damaged: tables that lie give errors or zeros.
func TestQcow2Damaged(t *testing.T) {
	for name, entry := range map[string]uint64{
		"outside":            1 << 40,
		"compressed nothing": entryCompressed,
		"compressed header":  entryCompressed | 0x10,
		"compressed outside": entryCompressed | 1<<50,
		"compressed long":    entryCompressed | 1<<61 | smallPlain,
	} {
		b := smallQcow2("")
		be.PutUint64(b[smallL2:], entry)
		img := mustOpen(t, Options{Path: save(t, t.TempDir(), "x", b), ReadOnly: true, Format: Qcow2})
		got := make([]byte, 512)
		for range 2 {
			if err := img.ReadAt([][]byte{got}, 0); (err == nil) != (name == "outside") {
				t.Errorf("%s: %v", name, err)
			}
		}
		if name == "outside" && !bytes.Equal(got, cluster(0)) {
			t.Errorf("%s: % x", name, got[:8])
		}
	}
}

// tool is qemu-img, run in a directory of its own with a raw image "raw" of the
// content that it returns: blocks that are random, repeated, or empty.
func tool(t *testing.T) (content []byte, run func(args ...string)) {
	t.Helper()
	qemuImg, err := exec.LookPath("qemu-img")
	if err != nil {
		t.Skip("no qemu-img: install qemu-utils")
	}
	if _, err := os.Stat("/dev/shm"); err == nil {
		t.Setenv("TMPDIR", "/dev/shm") // a disk would be flushed a thousand times
	}
	dir := t.TempDir()
	t.Chdir(dir)
	content = make([]byte, 5<<20+1536)
	r := rand.New(rand.NewSource(1))
	for off := 0; off < len(content); off += 30000 {
		b := content[off:min(off+30000, len(content))]
		switch r.Intn(3) {
		case 0:
			r.Read(b)
		case 1:
			copy(b, bytes.Repeat([]byte("ring3 "), 5000))
		}
	}
	save(t, dir, "raw", content)
	return content, func(args ...string) {
		t.Helper()
		if out, err := exec.Command(qemuImg, args...).CombinedOutput(); err != nil {
			t.Fatalf("qemu-img %s: %v\n%s", strings.Join(args, " "), err, out)
		}
	}
}

// kinds makes images with the content of "raw", and empty ones over it.
func kinds(run func(args ...string)) (names []string) {
	for name, options := range map[string][]string{
		"plain":    {},
		"version2": {"-o", "compat=0.10"},
		"small":    {"-o", "cluster_size=512"},
		"big":      {"-o", "cluster_size=2M"},
		"prealloc": {"-o", "preallocation=metadata"},
		"deflate":  {"-c"},
		"zstd":     {"-c", "-o", "compression_type=zstd"},
	} {
		args := append([]string{"convert", "-f", "raw", "-O", "qcow2"}, options...)
		run(append(args, "raw", name)...)
		names = append(names, name)
	}
	run("convert", "-f", "raw", "-O", "qcow2", "-c", "raw", "base")
	run("create", "-f", "qcow2", "-b", "base", "-F", "qcow2", "overlay")
	run("create", "-f", "qcow2", "-o", "compat=0.10", "-b", "raw", "-F", "raw", "overraw")
	run("create", "-f", "qcow2", "-o", "cluster_size=512", "-b", "raw", "-F", "raw", "smallover")
	return append(names, "overlay", "overraw", "smallover")
}

// TestQcow2Tool reads what qemu-img has written.
func TestQcow2Tool(t *testing.T) {
	want, run := tool(t)
	r := rand.New(rand.NewSource(1))
	for _, name := range kinds(run) {
		img := mustOpen(t, Options{Path: name, Snapshot: true, Format: Qcow2})
		if got := read(t, img, 0, img.Size()); !bytes.Equal(got, want) {
			t.Errorf("%s: the content differs", name)
		}
		for range 200 {
			off := r.Int63n(int64(len(want)))
			n := min(r.Int63n(100000), int64(len(want))-off)
			if !bytes.Equal(read(t, img, off, n), want[off:off+n]) {
				t.Fatalf("%s: %d bytes at %d differ", name, n, off)
			}
		}
	}
}

// TestQcow2Write does random things to images of all kinds. Twice on the way the
// file is looked at as it is after the monitor was killed: what was flushed last
// must be in it, and no more be wrong than clusters that nobody uses. In the end
// nothing is, for qemu-img either.
func TestQcow2Write(t *testing.T) {
	content, run := tool(t)
	for _, name := range kinds(run) {
		t.Run(name, func(t *testing.T) {
			want := bytes.Clone(content)
			size := int64(len(want))
			img, err := Open(Options{Path: name, Format: Qcow2})
			if err != nil {
				t.Fatal(err)
			}
			r := rand.New(rand.NewSource(int64(len(name))))
			for i := range 400 {
				off := r.Int63n(size/SectorSize) * SectorSize
				n := min(size-off, (1+r.Int63n(1<<r.Intn(10)))*SectorSize)
				var err error
				switch r.Intn(8) {
				default:
					b := make([]byte, n)
					r.Read(b)
					copy(want[off:], b)
					err = img.WriteAt([][]byte{b[:n/3], b[n/3:]}, off)
				case 0:
					clear(want[off : off+n])
					err = img.Zero(off, n, i%2 == 0)
				case 1:
					err = img.Flush()
				case 2:
					if err = img.Discard(off, n); err == nil { // may be anything
						err = img.ReadAt([][]byte{want[off : off+n]}, off)
					}
				}
				if err != nil {
					t.Fatal(err)
				}
				if got := read(t, img, off, n); !bytes.Equal(got, want[off:off+n]) {
					t.Fatalf("step %d: %d bytes at %d differ", i, n, off)
				}
				if i%150 == 149 {
					if err := img.Flush(); err != nil {
						t.Fatal(err)
					}
					killed(t, name, want)
				}
			}
			if !bytes.Equal(read(t, img, 0, size), want) {
				t.Error("the image is not as it should be")
			}
			if err := img.Close(); err != nil {
				t.Fatal(err)
			}
			run("check", "-f", "qcow2", name)
			run("convert", "-f", "qcow2", "-O", "raw", name, "out")
			if got, err := os.ReadFile("out"); err != nil || !bytes.Equal(got, want) {
				t.Errorf("qemu-img sees something else: %v", err)
			}
			again := mustOpen(t, Options{Path: name, Format: Qcow2})
			if !bytes.Equal(read(t, again, 0, size), want) {
				t.Error("opened again it is not as it should be")
			}
		})
	}
}

// killed looks at a copy of an image that is open.
func killed(t *testing.T, name string, want []byte) {
	t.Helper()
	b, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	p := save(t, ".", name+".killed", b)
	// 3: there are leaks.
	if out, err := exec.Command("qemu-img", "check", "-f", "qcow2", p).CombinedOutput(); err != nil && !strings.Contains(err.Error(), "exit status 3") {
		t.Errorf("check: %v\n%s", err, out)
	}
	img, err := Open(Options{Path: p, Format: Qcow2})
	if err != nil {
		t.Fatal(err)
	}
	defer img.Close()
	if !bytes.Equal(read(t, img, 0, img.Size()), want) {
		t.Error("what was flushed is not there")
	}
}

// FuzzQcow2: an image that is anything, which is read and written.
func FuzzQcow2(f *testing.F) {
	f.Add(smallQcow2(""))
	f.Add(smallQcow2("x"))
	fd, err := unix.MemfdCreate("image", unix.MFD_CLOEXEC)
	if err != nil {
		f.Fatal(err)
	}
	defer unix.Close(fd)
	f.Fuzz(func(t *testing.T, b []byte) {
		img, err := Open(Options{Path: save(t, "/proc/self/fd", strconv.Itoa(fd), b), Format: Qcow2})
		if err != nil {
			return
		}
		defer img.Close()
		p := make([]byte, 4000)
		for _, off := range []int64{0, 512, img.Size() / 2, img.Size() - 1} {
			n := min(int64(len(p)), img.Size()-off)
			img.ReadAt([][]byte{p[:n/2], p[n/2 : n]}, max(off, 0))
			img.WriteAt([][]byte{p[:n/2], p[n/2 : n]}, max(off, 0))
			img.Zero(max(off, 0), n, true)
		}
	})
}
