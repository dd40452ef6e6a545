//go:build soak

package boot

import (
	"strings"
	"testing"
	"time"

	"ring3/internal/kernelstore"
)

// TestBoots boots each stock kernel 100 times in a row, with changing amounts
// of memory.
func TestBoots(t *testing.T) {
	sizes := []uint64{256, 512, 1024, 4096}
	for _, flavour := range kernelstore.Flavours() {
		for i := range 100 {
			start := time.Now()
			o := guest{flavour: flavour, memory: sizes[i%len(sizes)] << 20, args: []string{"echo", "up"}}.run(t).must(t)
			if o.stdout != "up\n" {
				t.Errorf("stdout %q", o.stdout)
			}
			t.Logf("%s boot %d, %d MiB: %v", flavour, i+1, sizes[i%len(sizes)], time.Since(start).Round(time.Millisecond))
			if t.Failed() {
				t.FailNow()
			}
		}
	}
}

// TestRandomCodeLong executes random bytes in the guest's user mode for ten
// minutes.
func TestRandomCodeLong(t *testing.T) {
	g := guest{args: []string{"fuzz", "600", "0x123456789"}, timeout: 15 * time.Minute}
	g.files = append(g.files, compile(t, "fuzz", false))
	start := time.Now()
	o := g.run(t).must(t)
	if !strings.Contains(o.stdout, "PASS fuzz") {
		t.Errorf("the fuzzer did not finish, after %v\nstderr:\n%s\nconsole:\n%s", time.Since(start), o.stderr, tail(o.console))
	}
	t.Log(o.stdout)
}

// TestVerifiedWhole compares every translated block of a boot with the
// interpreter.
func TestVerifiedWhole(t *testing.T) {
	verified(t, guest{verify: 1, timeout: 2 * time.Hour}, 50_000_000)
}
