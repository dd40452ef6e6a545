package kernelstore

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"ring3/internal/boot"
)

func testStore(t *testing.T) *Store {
	t.Helper()
	s, err := Open(filepath.Join(t.TempDir(), "store"))
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// testVmlinux writes the smallest ELF kernel to a file.
func testVmlinux(t *testing.T, text string) string {
	t.Helper()
	b := make([]byte, 120)
	copy(b, "\x7fELF\x02\x01\x01")
	b[16], b[18], b[20] = 2, 62, 1                          // ET_EXEC, EM_X86_64
	copy(b[24:], []byte{0, 0, 0x20})                        // entry 2 MiB
	b[32], b[52], b[54], b[56] = 64, 64, 56, 1              // one program header
	b[64], b[72] = 1, 120                                   // PT_LOAD at offset 120
	copy(b[64+24:], []byte{0, 0, 0x20})                     // paddr
	b[64+32], b[64+40] = byte(len(text)), byte(len(text))   // filesz, memsz
	path := filepath.Join(t.TempDir(), "vmlinux-"+text[:1]) //
	err := os.WriteFile(path, append(b, text...), 0o600)    //
	if err != nil {
		t.Fatal(err)
	}
	return path
}

func TestAddAndLookup(t *testing.T) {
	s := testStore(t)
	if ks, err := s.List(); err != nil || len(ks) != 0 {
		t.Fatalf("new store: %v, %v", ks, err)
	}
	if _, err := s.Default(); !errors.Is(err, ErrNotFound) || !strings.Contains(err.Error(), "ring3 kernel fetch") {
		t.Errorf("default of an empty store: %v", err)
	}
	a, err := s.Add(t.Context(), testVmlinux(t, "Linux version 6.9.1-a (me)\n"), "")
	if err != nil || a.Name != "6.9.1-a" {
		t.Fatalf("%+v, %v", a, err)
	}
	b, err := s.Add(t.Context(), testVmlinux(t, "no banner"), "mine")
	if err != nil || b.Name != "mine" {
		t.Fatalf("%+v, %v", b, err)
	}
	c, err := s.Add(t.Context(), testVmlinux(t, "no banner"), "")
	if err != nil || c.Name != "vmlinux-n" {
		t.Fatalf("%+v, %v", c, err)
	}
	ks, err := s.List()
	if err != nil || len(ks) != 3 || ks[0].Name != c.Name || ks[2].Name != a.Name {
		t.Errorf("list: %+v, %v", ks, err)
	}
	if d, err := s.Default(); err != nil || d.Name != c.Name {
		t.Errorf("default: %+v, %v", d, err)
	}
	for _, what := range []string{"mine", b.Image} {
		if k, err := s.Lookup(what); err != nil || k.Image != b.Image {
			t.Errorf("Lookup(%q): %+v, %v", what, k, err)
		}
	}
	for what, want := range map[string]string{
		"other":       "other: no such kernel in the store (ring3 kernel list)",
		"./other":     "./other: no such file or directory",
		"../mine":     "../mine: no such file or directory",
		"..":          "", // a directory: there, and no kernel, as boot.OpenFile will say
		"cloud":       "cloud: no such kernel in the store (ring3 kernel list)",
		"/etc/passwd": "",
	} {
		if _, err := s.Lookup(what); (err == nil) != (want == "") || err != nil && err.Error() != want {
			t.Errorf("Lookup(%q): %v, want %q", what, err, want)
		}
	}
}

// TestAddReplaces adds two kernels under one name.
func TestAddReplaces(t *testing.T) {
	s := testStore(t)
	for _, text := range []string{"one", "two"} {
		k, err := s.Add(t.Context(), testVmlinux(t, text), "k")
		if err != nil {
			t.Fatal(err)
		}
		if b, err := os.ReadFile(k.Image); err != nil || !strings.HasSuffix(string(b), text) {
			t.Errorf("%.200q, %v", b, err)
		}
	}
	if _, err := os.Stat(filepath.Join(s.dir, "tmp")); !os.IsNotExist(err) {
		t.Errorf("something is left in tmp: %v", err)
	}
}

func TestAddErrors(t *testing.T) {
	s := testStore(t)
	text := filepath.Join(t.TempDir(), "text")
	if err := os.WriteFile(text, []byte("hello\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	var ie *boot.InputError
	if _, err := s.Add(t.Context(), text, ""); !errors.As(err, &ie) {
		t.Errorf("text file: %v", err)
	}
	if _, err := s.Add(t.Context(), text+"x", ""); !errors.As(err, &ie) {
		t.Errorf("no file: %v", err)
	}
	for _, name := range []string{"../x", ".x", "a/b", strings.Repeat("x", 101)} {
		if _, err := s.Add(t.Context(), testVmlinux(t, "k"), name); err == nil {
			t.Errorf("name %q was taken", name)
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := s.Add(ctx, testVmlinux(t, "k"), "k"); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v", err)
	}
	if ks, _ := s.List(); len(ks) != 0 {
		t.Errorf("in the store: %+v", ks)
	}
}

// TestConcurrent adds and reads one name from many goroutines: a reader finds
// the old kernel or the new one, and briefly none, but never half of one.
func TestConcurrent(t *testing.T) {
	s := testStore(t)
	path := testVmlinux(t, "Linux version 1 x\n")
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			for range 5 {
				if _, err := s.Add(t.Context(), path, "k"); err != nil {
					t.Error(err)
				}
				if k, err := s.Lookup("k"); err == nil && k.Release != "1" {
					t.Errorf("%+v", k)
				} else if err != nil && !errors.Is(err, ErrNotFound) {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
}

func TestLock(t *testing.T) {
	s := testStore(t)
	unlock, err := s.lock(t.Context(), nil)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	var log bytes.Buffer
	if _, err := s.lock(ctx, &log); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("second lock: %v", err)
	}
	if strings.Count(log.String(), "waiting for another ring3") != 1 {
		t.Errorf("progress %q", log.String())
	}
	unlock()
	unlock, err = s.lock(t.Context(), nil)
	if err != nil {
		t.Fatal(err)
	}
	unlock()
}

func put(t *testing.T, c *Cache, key string, size int) {
	t.Helper()
	err := c.Put(key, func(w io.Writer) error {
		_, err := w.Write(bytes.Repeat([]byte(key), size))
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
}

func TestCache(t *testing.T) {
	c := &Cache{dir: filepath.Join(t.TempDir(), "c"), max: 1000}
	has := func() string {
		var s string
		for _, k := range []string{"a", "b", "c", "d", "e"} {
			if r, err := os.Open(filepath.Join(c.dir, k)); err == nil {
				s += k
				r.Close()
			}
		}
		return s
	}
	for i, k := range []string{"a", "b", "c"} {
		put(t, c, k, 300)
		old := time.Now().Add(time.Duration(i-10) * time.Hour)
		os.Chtimes(filepath.Join(c.dir, k), old, old)
	}
	r, err := c.Get("a") // now the one used last
	if err != nil {
		t.Fatal(err)
	}
	b, _ := io.ReadAll(r)
	r.Close()
	if len(b) != 300 || b[0] != 'a' {
		t.Errorf("%.10q...", b)
	}
	put(t, c, "d", 300)
	if has() != "acd" {
		t.Errorf("after d: %s", has())
	}
	put(t, c, "e", 5000) // larger than all the cache, but kept while it is the latest
	if has() != "e" {
		t.Errorf("after e: %s", has())
	}
	if err := c.Put("b", func(w io.Writer) error { w.Write([]byte("half")); return io.ErrUnexpectedEOF }); err != io.ErrUnexpectedEOF {
		t.Errorf("error of fill: %v", err)
	}
	if ents, _ := os.ReadDir(c.dir); len(ents) != 1 {
		t.Errorf("left: %v", ents)
	}
	if _, err := c.Get("../c/e"); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("path as key: %v", err)
	}
}

// TestCacheUnwritable: what cannot be kept is no error.
func TestCacheUnwritable(t *testing.T) {
	f := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(f, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	c := &Cache{dir: filepath.Join(f, "c"), max: 1000}
	put(t, c, "a", 10)
	if _, err := c.Get("a"); err == nil {
		t.Error("found")
	}
}

func TestFetchErrors(t *testing.T) {
	s := testStore(t)
	if _, err := s.Fetch(t.Context(), "windows", nil); err == nil || !strings.Contains(err.Error(), "cloud, generic") {
		t.Error(err)
	}
	t.Setenv("PATH", "/nonexistent")
	_, err := s.Fetch(t.Context(), Cloud, nil)
	var se *Error
	if !errors.As(err, &se) || !strings.Contains(err.Error(), "no apt-get") || !strings.Contains(err.Error(), "ring3 kernel add FILE") {
		t.Error(err)
	}
}

// fakeTools puts shell scripts in front of the real tools.
func fakeTools(t *testing.T, tools map[string]string) {
	t.Helper()
	dir := t.TempDir()
	for name, script := range tools {
		if err := os.WriteFile(filepath.Join(dir, name), []byte("#!/bin/sh\n"+script), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	t.Setenv("PATH", dir+":"+os.Getenv("PATH"))
}

const fakeShow = `for p; do :; done
case $p in
linux-image-cloud-amd64) printf 'Package: %s\nVersion: 1\nDepends: linux-image-6-cloud-amd64 (= 1)\n' $p ;;
*) printf 'Package: %s\nVersion: 1\nSize: 10\n' $p ;;
esac
`

// TestFetchStaleLists has a first download fail as it does when the package
// lists are older than the archive.
func TestFetchStaleLists(t *testing.T) {
	fakeTools(t, map[string]string{
		"apt-cache": fakeShow,
		"apt-get": `for a; do case $a in
update) touch "$FAKE"/updated ;;
download) [ -e "$FAKE"/updated ] || { echo "E: Failed to fetch http://x/y.deb  404  Not Found" >&2; exit 100; }
	echo >k.deb ;;
esac; done`,
		"dpkg-deb": `cd "$FAKE" && tar c ./boot ./lib ./other`,
	})
	fake := t.TempDir()
	t.Setenv("FAKE", fake)
	for _, p := range []string{"boot/vmlinuz-6-cloud-amd64", "boot/config-6-cloud-amd64", "lib/modules/6-cloud-amd64/kernel/x.ko", "other/x"} {
		os.MkdirAll(filepath.Dir(filepath.Join(fake, p)), 0o755)
		if err := os.WriteFile(filepath.Join(fake, p), []byte(p), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Symlink("/etc", filepath.Join(fake, "lib/modules/6-cloud-amd64/build")); err != nil {
		t.Fatal(err)
	}
	s := testStore(t)
	var log bytes.Buffer
	k, err := s.Fetch(t.Context(), Cloud, &log)
	if err != nil {
		t.Fatalf("%v\n%s", err, log.String())
	}
	if k.Name != "6-cloud-amd64" || k.Version != "1" || k.Modules == "" {
		t.Errorf("%+v", k)
	}
	var names []string
	filepath.WalkDir(filepath.Dir(k.Image), func(p string, d os.DirEntry, err error) error {
		if err == nil && !d.IsDir() {
			names = append(names, strings.TrimPrefix(p, filepath.Dir(k.Image)+"/"))
		}
		return err
	})
	if got := fmt.Sprint(names); got != "[config meta.json modules/kernel/x.ko vmlinuz]" {
		t.Error(got)
	}
	if k2, err := s.Fetch(t.Context(), Cloud, &log); err != nil || !k2.Added.Equal(k.Added) || !strings.Contains(log.String(), "already here") {
		t.Errorf("second fetch: %+v, %v\n%s", k2, err, log.String())
	}
}

// TestFetchInterrupted ends a download, and an unpacking, that would go on for
// ever.
func TestFetchInterrupted(t *testing.T) {
	for name, tools := range map[string]map[string]string{
		"download":  {"apt-cache": fakeShow, "apt-get": "sleep 1000 & sleep 1000", "dpkg-deb": ""},
		"unpacking": {"apt-cache": fakeShow, "apt-get": "echo >k.deb", "dpkg-deb": "sleep 1000"},
	} {
		t.Run(name, func(t *testing.T) {
			fakeTools(t, tools)
			s := testStore(t)
			ctx, cancel := context.WithTimeout(t.Context(), 500*time.Millisecond)
			defer cancel()
			start := time.Now()
			_, err := s.Fetch(ctx, Cloud, nil)
			if !errors.Is(err, context.DeadlineExceeded) || time.Since(start) > 10*time.Second {
				t.Errorf("%v after %v", err, time.Since(start))
			}
			if ents, _ := os.ReadDir(s.dir); len(ents) != 1 || ents[0].Name() != "lock" {
				t.Errorf("left: %v", ents)
			}
		})
	}
}

// TestFetchToolErrors wants the tool's own words on one line.
func TestFetchToolErrors(t *testing.T) {
	fakeTools(t, map[string]string{"apt-cache": fakeShow,
		"apt-get":  `echo "W: a warning" >&2; echo "E: no network" >&2; exit 100`,
		"dpkg-deb": ""})
	_, err := testStore(t).Fetch(t.Context(), Cloud, nil)
	if err == nil || err.Error() != "apt-get failed: no network" {
		t.Error(err)
	}
	fakeTools(t, map[string]string{"apt-cache": fakeShow, "apt-get": "echo >k.deb",
		"dpkg-deb": `echo "dpkg-deb: error: not a Debian format archive" >&2; exit 2`})
	_, err = testStore(t).Fetch(t.Context(), Cloud, nil)
	if err == nil || err.Error() != "dpkg-deb failed: not a Debian format archive" {
		t.Error(err)
	}
}

// TestBusyBoxInstalled: without apt, a static BusyBox of the system will do,
// and a dynamic one will not.
func TestBusyBoxInstalled(t *testing.T) {
	s, err := Open("")
	if err != nil {
		t.Fatal(err)
	}
	static, err := s.FetchBusyBox(t.Context(), nil)
	if err != nil {
		t.Fatal(err)
	}
	dynamic, err := exec.LookPath("sh")
	if err != nil {
		t.Fatal(err)
	}
	for program, ok := range map[string]bool{static: true, dynamic: false} {
		dir := t.TempDir()
		if err := os.Symlink(program, filepath.Join(dir, "busybox")); err != nil {
			t.Fatal(err)
		}
		t.Setenv("PATH", dir)
		p, err := testStore(t).FetchBusyBox(t.Context(), nil)
		if ok && (err != nil || p != filepath.Join(dir, "busybox")) || !ok && err == nil {
			t.Errorf("%s: %q, %v", program, p, err)
		}
	}
}
