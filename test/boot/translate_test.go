package boot

import (
	"strings"
	"testing"

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
