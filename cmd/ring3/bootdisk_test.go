package main

import (
	"context"
	"encoding/binary"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"ring3/internal/cli"
	"ring3/internal/disk"
	"ring3/internal/machine"
	"ring3/internal/vcpu"
)

// A disk that has partitions and nothing to boot is refused in one line.
func TestNothingToBoot(t *testing.T) {
	b := make([]byte, 1<<20)
	b[446+4] = 0x83
	binary.LittleEndian.PutUint32(b[446+8:], 2)
	binary.LittleEndian.PutUint32(b[446+12:], 1000)
	b[510], b[511] = 0x55, 0xaa
	image := filepath.Join(t.TempDir(), "x.img")
	if err := os.WriteFile(image, b, 0o600); err != nil {
		t.Fatal(err)
	}
	o := &runOptions{memory: 512 << 20, disks: cli.Disks{{Path: image}}}
	err := run(t.Context(), o)
	if statusOf(err) != statusUsage || !strings.Contains(err.Error(), "x.img: no ext2, ext3 or ext4 file system in partition 1 (give --kernel;") {
		t.Errorf("status %d: %v", statusOf(err), err)
	}
	img, err := disk.Open(disk.Options{Path: image})
	if err != nil {
		t.Fatalf("the image is still in use: %v", err)
	}
	img.Close()
}

// actor is a guest that ends as it is told to.
type actor struct {
	end machine.End
	say string
	cfg machine.Config
}

func (a *actor) Run(ctx context.Context) (machine.Result, error) {
	io.WriteString(a.cfg.Serial[0], a.say)
	return machine.Result{End: a.end}, ctx.Err()
}
func (a *actor) SerialWriter(int) io.Writer   { return io.Discard }
func (a *actor) WriteStats(w io.Writer) error { return nil }
func (a *actor) PowerButton()                 {}
func (a *actor) Close() error                 { return nil }

// A system on a disk boots again when it reboots; other machines end.
func TestReboot(t *testing.T) {
	dir := t.TempDir()
	t.Setenv("XDG_CACHE_HOME", dir)
	image := filepath.Join(dir, "fs")
	mkfs, err := exec.LookPath("mke2fs")
	if err != nil {
		if mkfs, err = exec.LookPath("/sbin/mke2fs"); err != nil {
			t.Skip("no mke2fs on this host")
		}
	}
	tree := t.TempDir()
	for _, name := range []string{"etc/fstab", "boot/vmlinuz-1", "boot/initrd.img-1"} {
		p := filepath.Join(tree, name)
		if err := errors.Join(os.MkdirAll(filepath.Dir(p), 0o755), os.WriteFile(p, []byte(name), 0o644)); err != nil {
			t.Fatal(err)
		}
	}
	if out, err := exec.Command(mkfs, "-q", "-F", "-t", "ext4", "-d", tree, image, "8M").CombinedOutput(); err != nil {
		t.Fatalf("mke2fs: %v\n%s", err, out)
	}
	for name, c := range map[string]struct {
		noReboot bool
		ends     []*actor
		machines int
		status   int
	}{
		"twice":       {false, []*actor{{end: vcpu.Reset}, {end: vcpu.Reset}, {end: vcpu.PowerOff}}, 3, 0},
		"--no-reboot": {true, []*actor{{end: vcpu.Reset}}, 1, 0},
		"panic":       {false, []*actor{{end: vcpu.Reset, say: "[    1.0] Kernel panic - not syncing: no\n"}}, 1, statusPanic},
		"triple":      {false, []*actor{{end: vcpu.TripleFault}}, 1, statusTripleFault},
	} {
		t.Run(name, func(t *testing.T) {
			old := newGuest
			defer func() { newGuest = old }()
			n := 0
			newGuest = func(cfg machine.Config) (guest, error) {
				if string(cfg.KernelData) != "boot/vmlinuz-1" || string(cfg.InitrdData) != "boot/initrd.img-1" ||
					!strings.Contains(cfg.CmdLine, "root=UUID=") || !strings.Contains(cfg.CmdLine, "console=ttyS0") || len(cfg.Images) != 1 {
					t.Errorf("%q %q %q", cfg.KernelData, cfg.InitrdData, cfg.CmdLine)
				}
				a := c.ends[n]
				a.cfg = cfg
				n++
				return a, nil
			}
			o := &runOptions{memory: 512 << 20, disks: cli.Disks{{Path: image}}}
			o.noReboot = c.noReboot
			err := run(t.Context(), o)
			if n != c.machines || statusOrZero(err) != c.status {
				t.Errorf("%d machines, %v; want %d and status %d", n, err, c.machines, c.status)
			}
		})
	}
}

func statusOrZero(err error) int {
	if err == nil {
		return 0
	}
	return statusOf(err)
}
