package boot

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"ring3/internal/kernelstore"
	"ring3/internal/machine"
)

// TestTranslated boots both stock kernels with their own code translated. With
// RING3_TEST_ENGINE=translate all other tests here do that too.
func TestTranslated(t *testing.T) {
	for _, flavour := range kernelstore.Flavours() {
		t.Run(flavour, func(t *testing.T) {
			g := guest{flavour: flavour, engine: machine.EngineTranslate, args: []string{"sh", "-c",
				"i=0; while [ $i -lt 50 ]; do /bin/busybox true; i=$((i+1)); done; head -c 3000000 /dev/zero | tee /tmp/z | md5sum; md5sum </tmp/z; echo $i"}}
			o := g.run(t).must(t)
			lines := strings.Fields(o.stdout)
			if len(lines) != 5 || lines[0] != lines[2] || lines[4] != "50" {
				t.Errorf("stdout %q", o.stdout)
			}
		})
	}
}

// TestVerified boots the cloud kernel and compares samples of its translated
// code with the interpreter.
func TestVerified(t *testing.T) {
	verified(t, guest{verify: 500}, 100_000)
}

// verified runs a command in g and wants so many blocks compared.
func verified(t *testing.T, g guest, blocks int) {
	t.Helper()
	g.args = []string{"sh", "-c", "echo $(busybox seq 3 | busybox wc -l)"}
	start := time.Now()
	o := g.run(t).must(t)
	if o.stdout != "3\n" {
		t.Errorf("stdout %q", o.stdout)
	}
	n := compared(o.table, "blocks")
	if n < blocks {
		t.Errorf("%d blocks were compared, want %d at least:\n%s", n, blocks, o.table)
	}
	t.Logf("%d blocks, %d instructions compared in %v", n, compared(o.table, "instructions"), time.Since(start).Round(time.Second))
}

// compared is a count of the table of exits.
func compared(table, what string) (n int) {
	_, rest, _ := strings.Cut(table, what+" compared")
	fmt.Sscan(rest, &n)
	return n
}
