package ext4

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"math/rand"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// tree is what the images of the tests have in them.
func tree(t testing.TB) (dir string, files map[string][]byte) {
	t.Helper()
	dir = t.TempDir()
	random := func(n int) []byte {
		b := make([]byte, n)
		rand.New(rand.NewSource(int64(n))).Read(b)
		return b
	}
	files = map[string][]byte{
		"empty":            {},
		"one":              {1},
		"etc/fstab":        []byte("none\n"),
		"boot/vmlinuz-6.1": random(3<<20 + 17),
		"a/b/c/d/deep":     []byte("deep"),
	}
	for i := range 300 {
		files[fmt.Sprintf("many/%s-%d", strings.Repeat("n", 100), i)] = fmt.Append(nil, i)
	}
	for name, data := range files {
		p := filepath.Join(dir, name)
		if err := errors.Join(os.MkdirAll(filepath.Dir(p), 0o755), os.WriteFile(p, data, 0o644)); err != nil {
			t.Fatal(err)
		}
	}
	// Holes: before, between and behind data, so many that the extents need a tree.
	f, err := os.Create(filepath.Join(dir, "sparse"))
	if err != nil {
		t.Fatal(err)
	}
	sparse := make([]byte, 6<<20)
	for i := 1; i < 350; i++ {
		copy(sparse[i*16<<10:], random(100+i))
		if _, err := f.WriteAt(random(100+i), int64(i*16<<10)); err != nil {
			t.Fatal(err)
		}
	}
	if err := errors.Join(f.Truncate(int64(len(sparse))), f.Close()); err != nil {
		t.Fatal(err)
	}
	files["sparse"] = sparse
	for name, target := range map[string]string{
		"vmlinuz":      "boot/vmlinuz-6.1",
		"absolute":     "/a/b/../../one",
		"a/up":         "../../../../one", // .. of the root is the root
		"long":         strings.Repeat("./", 100) + "one",
		"dir":          "a/b",
		"loop":         "loop",
		"dangling":     "nothing",
		"boot/outside": "/etc/fstab",
	} {
		if err := os.Symlink(target, filepath.Join(dir, name)); err != nil {
			t.Fatal(err)
		}
	}
	return dir, files
}

// makeImage makes a file system of dir with mke2fs.
func makeImage(t testing.TB, dir string, flags ...string) string {
	t.Helper()
	mkfs, err := exec.LookPath("mke2fs")
	if err != nil {
		if mkfs, err = exec.LookPath("/sbin/mke2fs"); err != nil {
			t.Skip("no mke2fs on this host")
		}
	}
	image := filepath.Join(t.TempDir(), "image")
	args := append([]string{"-q", "-F", "-d", dir}, append(flags, image, "32M")...)
	if out, err := exec.Command(mkfs, args...).CombinedOutput(); err != nil {
		t.Fatalf("mke2fs %v: %v\n%s", flags, err, out)
	}
	return image
}

const uuid = "01234567-89ab-cdef-0123-456789abcdef"

func TestRead(t *testing.T) {
	dir, files := tree(t)
	for name, flags := range map[string][]string{
		"ext4":         {"-t", "ext4"},
		"ext4 64bit":   {"-t", "ext4", "-O", "64bit,metadata_csum,metadata_csum_seed"},
		"ext4 1 KiB":   {"-t", "ext4", "-b", "1024"},
		"ext4 32-bit":  {"-t", "ext4", "-O", "^64bit,^metadata_csum"},
		"ext3":         {"-t", "ext3"},
		"ext2":         {"-t", "ext2", "-b", "1024"},
		"ext2 rev 0":   {"-t", "ext2", "-r", "0", "-O", "none"},
		"small inodes": {"-t", "ext4", "-I", "128"},
	} {
		t.Run(name, func(t *testing.T) {
			f, size := openFile(t, makeImage(t, dir, append(flags, "-U", uuid)...))
			fsys, err := Open(f, size)
			if err != nil {
				t.Fatal(err)
			}
			if fsys.UUID() != uuid {
				t.Errorf("UUID %s", fsys.UUID())
			}
			for name, want := range files {
				got, err := fsys.ReadFile("/"+name, 8<<20)
				if err != nil || !bytes.Equal(got, want) {
					t.Errorf("%s: %d bytes, %v; want %d", name, len(got), err, len(want))
				}
			}
			for name, like := range map[string]string{
				"vmlinuz": "boot/vmlinuz-6.1", "absolute": "one", "a/up": "one", "long": "one",
				"dir/c/d/deep": "a/b/c/d/deep", "dir/../b/c/d/deep": "a/b/c/d/deep", "boot/outside": "etc/fstab",
			} {
				got, err := fsys.ReadFile(name, 8<<20)
				if err != nil || !bytes.Equal(got, files[like]) {
					t.Errorf("%s: %d bytes, %v; want those of %s", name, len(got), err, like)
				}
			}
			for _, name := range []string{"nothing", "dangling", "one/two", "many/n"} {
				if _, err := fsys.ReadFile(name, 8<<20); !errors.Is(err, fs.ErrNotExist) {
					t.Errorf("%s: %v", name, err)
				}
			}
			for _, name := range []string{"loop", "a", "."} {
				if _, err := fsys.ReadFile(name, 8<<20); err == nil || errors.Is(err, ErrCorrupt) {
					t.Errorf("%s: %v", name, err)
				}
			}
			if _, err := fsys.ReadFile("one", 0); !errors.Is(err, ErrTooLarge) {
				t.Errorf("limit: %v", err)
			}
			names, err := fsys.ReadDir("/boot")
			slices.Sort(names)
			if err != nil || !slices.Equal(names, []string{"outside", "vmlinuz-6.1"}) {
				t.Errorf("/boot has %q, %v", names, err)
			}
			if names, err := fsys.ReadDir("many"); err != nil || len(names) != 300 {
				t.Errorf("many has %d names, %v", len(names), err)
			}
		})
	}
}

func openFile(t testing.TB, path string) (*os.File, int64) {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	st, err := f.Stat()
	if err != nil {
		t.Fatal(err)
	}
	return f, st.Size()
}

// What is no file system, or only its beginning, is an error.
func TestNothing(t *testing.T) {
	for _, b := range [][]byte{nil, make([]byte, 100), make([]byte, 4096)} {
		if _, err := Open(bytes.NewReader(b), int64(len(b))); !errors.Is(err, ErrMagic) {
			t.Errorf("%d bytes: %v", len(b), err)
		}
	}
	f, _ := openFile(t, makeImage(t, t.TempDir(), "-t", "ext4"))
	fsys, err := Open(f, 4096)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := fsys.ReadDir("/"); !errors.Is(err, ErrCorrupt) {
		t.Errorf("4 KiB of a file system: %v", err)
	}
}

// FuzzRead damages a file system: each four bytes of the input are a place among
// the structures and what is written there.
func FuzzRead(f *testing.F) {
	dir := f.TempDir()
	if err := errors.Join(os.Mkdir(dir+"/boot", 0o755), os.Symlink("boot/x", dir+"/link"),
		os.WriteFile(dir+"/boot/x", make([]byte, 100<<10), 0o644)); err != nil {
		f.Fatal(err)
	}
	image, err := os.ReadFile(makeImage(f, dir, "-t", "ext4", "-b", "1024", "-N", "64", "-O", "^has_journal,^resize_inode"))
	if err != nil {
		f.Fatal(err)
	}
	image = image[:1<<20]
	f.Add([]byte{})
	f.Add([]byte{0, 4, 0x18, 6})
	f.Add([]byte{0, 4, 0x28, 1, 0, 4, 0x58, 0x80})
	f.Fuzz(func(t *testing.T, damage []byte) {
		b := slices.Clone(image)
		for ; len(damage) >= 4; damage = damage[4:] {
			at := int(damage[0])<<16 | int(damage[1])<<8 | int(damage[2])
			b[at%len(b)] = damage[3]
		}
		fsys, err := Open(bytes.NewReader(b), int64(len(b)))
		if err != nil {
			return
		}
		fsys.ReadDir("/")
		for _, name := range []string{"/boot/x", "/link", "/boot", "/lost+found/../link"} {
			if got, _ := fsys.ReadFile(name, 1<<20); len(got) > 1<<20 {
				t.Errorf("%s has %d bytes", name, len(got))
			}
		}
	})
}
