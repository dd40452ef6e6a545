package boot

import (
	"crypto/md5"
	"fmt"
	"testing"

	"ring3/internal/boot"
	"ring3/internal/kernelstore"
	"ring3/internal/machine"
	"ring3/internal/symbols"
)

// TestSymbols compares the symbols that are found in a kernel's image with
// those that the running kernel shows.
func TestSymbols(t *testing.T) {
	for _, flavour := range kernelstore.Flavours() {
		t.Run(flavour, func(t *testing.T) {
			f, closer, err := boot.OpenFile(kernel(t, flavour).Image)
			if err != nil {
				t.Fatal(err)
			}
			defer closer.Close()
			image, err := boot.Image(f, store.Cache())
			if err != nil {
				t.Fatal(err)
			}
			table, err := symbols.FromKernel(image)
			if err != nil {
				t.Fatal(err)
			}
			sum, n := md5.New(), 0
			for s := range table.All() {
				fmt.Fprintf(sum, "%016x %c %s\n", s.Addr, s.Type, s.Name)
				n++
			}
			o := guest{flavour: flavour, engine: machine.EngineTranslate, args: []string{"md5sum", "/proc/kallsyms"}}.run(t).must(t)
			if want := fmt.Sprintf("%x  /proc/kallsyms\n", sum.Sum(nil)); o.stdout != want || n < 50_000 {
				t.Errorf("%d symbols in the image, %q; the kernel has %q", n, want, o.stdout)
			}
		})
	}
}
