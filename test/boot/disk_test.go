package boot

import (
	"bytes"
	"crypto/md5"
	"fmt"
	"math/rand"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"ring3/internal/disk"
	"ring3/internal/kernelstore"
	"ring3/internal/machine"
)

const mib = 1 << 20

// image makes a disk of random bytes.
func image(t *testing.T, size int) (path string, content []byte) {
	t.Helper()
	content = make([]byte, size)
	rand.New(rand.NewSource(int64(size))).Read(content)
	path = filepath.Join(t.TempDir(), "disk.img")
	if err := os.WriteFile(path, content, 0o600); err != nil {
		t.Fatal(err)
	}
	return path, content
}

func sum(b []byte) string { return fmt.Sprintf("%x", md5.Sum(b)) }

// content is what the host has in a file.
func content(t *testing.T, path string) []byte {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// useDisks reads and writes four disks: vda, vdb (read-only), vdc (snapshot), vdd
// for a file system. $1 to $3 are the sums of the first three; /rnd has what is
// written.
const useDisks = `
fail() { echo "FAIL $*"; }
is() { [ "$(md5sum <$1)" = "$2  -" ] || fail $1 reads wrong; }
is /dev/vda $1; is /dev/vdb $2; is /dev/vdc $3
dd if=/dev/urandom of=/tmp/rnd bs=64k count=40 2>/dev/null
dd if=/tmp/rnd of=/dev/vda bs=4k seek=3 conv=notrunc,fsync 2>/dev/null || fail write vda
dd if=/tmp/rnd of=/dev/vdb bs=4k conv=notrunc,fsync 2>/dev/null && fail wrote to vdb
dd if=/tmp/rnd of=/dev/vdc bs=512 seek=77 conv=notrunc,fsync 2>/dev/null || fail write vdc
echo 3 >/proc/sys/vm/drop_caches
dd if=/dev/vdc bs=512 skip=77 count=5120 2>/dev/null | cmp - /tmp/rnd || fail vdc forgot
blkdiscard -o 8192 -l 8192 /dev/vdc || fail discard
mke2fs /dev/vdd >/dev/null || fail mke2fs
mount -t ext4 /dev/vdd /mnt || fail mount
cp /tmp/rnd /mnt/rnd && mkdir /mnt/d && cp /bin/busybox /mnt/d || fail copy
umount /mnt || fail umount
echo 3 >/proc/sys/vm/drop_caches
mount -t ext4 /dev/vdd /mnt || fail mount again
cmp /mnt/rnd /tmp/rnd && cmp /mnt/d/busybox /bin/busybox || fail compare
fstrim /mnt || fail fstrim
umount /mnt || fail umount again
cat /sys/block/vda/serial /sys/block/vdb/ro
[ $(head -c 100 /dev/hwrng | wc -c) = 100 ] || fail hwrng
dmesg | grep -iE 'I/O error|virtio.*fail|needs reset'
md5sum </tmp/rnd
`

// TestDisks uses disks of all kinds in different machines, and looks at what is
// in their files then.
func TestDisks(t *testing.T) {
	for name, g := range map[string]guest{
		"interp":    {engine: machine.EngineInterp, cmdline: defaults + " pci=nomsi"}, // by the interrupt pin
		"translate": {engine: machine.EngineTranslate},
		"verify":    {verify: 500, flavour: kernelstore.Generic},
	} {
		t.Run(name, func(t *testing.T) {
			vda, a := image(t, 6*mib)
			vdb, b := image(t, 2*mib)
			vdc, c := image(t, 5*mib+512)
			vdd, _ := image(t, 16*mib)
			g.disks = []disk.Options{{Path: vda}, {Path: vdb, ReadOnly: true}, {Path: vdc, Snapshot: true}, {Path: vdd}}
			g.args = []string{"sh", "-c", useDisks, "sh", sum(a), sum(b), sum(c)}
			o := g.run(t).must(t)
			check(t, o.stdout)
			lines := strings.Fields(o.stdout)
			if len(lines) != 3 || lines[0] != "vda1" {
				t.Fatalf("the guest says %q %s", o.stdout, o.stderr)
			}
			got := content(t, vda)
			if sum(got[3*4096:3*4096+40*64<<10]) != lines[1] {
				t.Error("vda has not what the guest wrote")
			}
			if !bytes.Equal(got[:3*4096], a[:3*4096]) || !bytes.Equal(got[3*4096+40*64<<10:], a[3*4096+40*64<<10:]) {
				t.Error("vda was changed where the guest did not write")
			}
			if !bytes.Equal(content(t, vdb), b) || !bytes.Equal(content(t, vdc), c) {
				t.Error("a read-only disk or one below a snapshot was changed")
			}
			if fsck, err := exec.LookPath("e2fsck"); err != nil {
				t.Log("no e2fsck on this host: the file system is not checked")
			} else if out, err := exec.Command(fsck, "-fn", vdd).CombinedOutput(); err != nil {
				t.Errorf("e2fsck: %v\n%s", err, out)
			}
		})
	}
}
