package kernelstore

import (
	"bytes"
	"context"
	"os"
	"path/filepath"
	"testing"
	"time"

	"ring3/internal/boot"
)

// ram is guest memory for loading: one block below the device hole.
type ram []byte

func (r ram) Size() uint64 { return uint64(len(r)) }

func (r ram) WriteAt(p []byte, gpa uint64) error {
	copy(r[gpa:gpa+uint64(len(p))], p)
	return nil
}

// TestStockKernel fetches the distribution's kernel, if there is none in the
// user's store, and loads all kernels of the store, unpacked and then from the
// cache.
func TestStockKernel(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
	defer cancel()
	s, err := Open("")
	if err != nil {
		t.Fatal(err)
	}
	var log bytes.Buffer
	if _, err := s.Ensure(ctx, Cloud, &log); err != nil {
		t.Fatalf("%v\n%s", err, log.String())
	}
	ks, err := s.List()
	if err != nil {
		t.Fatal(err)
	}
	for _, k := range ks {
		t.Run(k.Name, func(t *testing.T) { loadTwice(t, k) })
	}
}

func loadTwice(t *testing.T, k Kernel) {
	f, c, err := boot.OpenFile(k.Image)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	info, err := boot.Identify(f)
	if err != nil || info.Release() != k.Release {
		t.Fatalf("Identify: %+v, %v; the package says %s", info, err, k.Release)
	}
	cache := &Cache{dir: t.TempDir(), max: DefaultCacheSize}
	var mem [2]ram
	for i := range mem {
		mem[i] = make(ram, 128<<20)
		start := time.Now()
		e, err := boot.Load(mem[i], boot.Config{Kernel: f, Cmdline: "console=ttyS0", Cache: cache})
		if err != nil {
			t.Fatal(err)
		}
		t.Logf("%s %s: entry %#x, kernel %#x, %v", info.Release(), e.Packing, e.RIP, e.Kernel, time.Since(start))
		if want := i == 1 && info.Kind == "bzImage"; e.Cached != want {
			t.Errorf("load %d: Cached = %v", i, e.Cached)
		}
		if e.RIP < e.Kernel.Start || e.RIP >= e.Kernel.End {
			t.Errorf("entry %#x outside the kernel %#x", e.RIP, e.Kernel)
		}
		if k.Release != "" && !bytes.Contains(mem[i], []byte("Linux version "+k.Release)) {
			t.Error("no banner in guest memory")
		}
	}
	if !bytes.Equal(mem[0], mem[1]) {
		t.Error("memory differs when loaded from the cache")
	}
	if k.Package == "" {
		return
	}
	for _, name := range []string{"config", "System.map"} {
		if _, err := os.Stat(filepath.Join(filepath.Dir(k.Image), name)); err != nil {
			t.Error(err)
		}
	}
}

// TestBusyBox fetches BusyBox if it is not in the user's store.
func TestBusyBox(t *testing.T) {
	s, err := Open("")
	if err != nil {
		t.Fatal(err)
	}
	var log bytes.Buffer
	p, err := s.FetchBusyBox(t.Context(), &log)
	if err != nil {
		t.Fatalf("%v\n%s", err, log.String())
	}
	b, err := os.ReadFile(p)
	if err != nil || !bytes.HasPrefix(b, []byte("\x7fELF")) {
		t.Fatalf("%s is no program: %v", p, err)
	}
}
