package diskboot

import (
	"bytes"
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"ring3/internal/disk"
)

func replace(s, old, by string) string { return strings.ReplaceAll(s, old, by) }

const fsUUID = "5b0f3c1e-9a5d-4f0e-8a52-7d2f0c9b6a11"

// tool finds a program of the system administrator.
func tool(t testing.TB, name string) string {
	t.Helper()
	for _, n := range []string{name, "/sbin/" + name, "/usr/sbin/" + name} {
		if p, err := exec.LookPath(n); err == nil {
			return p
		}
	}
	t.Skipf("no %s on this host", name)
	return ""
}

// fileSystem makes an ext4 file system of 8 MiB with files in it.
func fileSystem(t testing.TB, files map[string]string) []byte {
	t.Helper()
	dir, image := t.TempDir(), filepath.Join(t.TempDir(), "fs")
	for name, data := range files {
		p := filepath.Join(dir, name)
		if err := errors.Join(os.MkdirAll(filepath.Dir(p), 0o755), os.WriteFile(p, []byte(data), 0o644)); err != nil {
			t.Fatal(err)
		}
	}
	if out, err := exec.Command(tool(t, "mke2fs"), "-q", "-F", "-t", "ext4", "-U", fsUUID, "-d", dir, image, "8M").CombinedOutput(); err != nil {
		t.Fatalf("mke2fs: %v\n%s", err, out)
	}
	b, err := os.ReadFile(image)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// partitioned makes a disk with volumes of 8 MiB in partitions 1, 2, ...
func partitioned(t testing.TB, label string, volumes ...[]byte) []byte {
	t.Helper()
	path := filepath.Join(t.TempDir(), "disk")
	b := make([]byte, 2<<20)
	script := "label: " + label + "\nlabel-id: 0x0000abcd\n"
	if label == "gpt" {
		script = "label: gpt\n"
	}
	for i, v := range volumes {
		b = append(b[:len(b)-1<<20], append(v, make([]byte, 1<<20)...)...)
		script += "start=" + []string{"2048", "18432"}[i] + ", size=16384"
		if label == "gpt" {
			script += ", uuid=3F1B6B0E-0A4C-4A55-8E0B-2C3A5C6D7E8" + []string{"A", "B"}[i]
		}
		script += "\n"
	}
	if err := os.WriteFile(path, b, 0o600); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(tool(t, "sfdisk"), "--quiet", path)
	cmd.Stdin = strings.NewReader(script)
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("sfdisk: %v\n%s", err, out)
	}
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// open opens a disk with the given content.
func open(t testing.TB, b []byte) disk.Image {
	t.Helper()
	path := filepath.Join(t.TempDir(), "x.img")
	if err := os.WriteFile(path, b, 0o600); err != nil {
		t.Fatal(err)
	}
	return openImage(t, path)
}

func openImage(t testing.TB, path string) disk.Image {
	t.Helper()
	img, err := disk.Open(disk.Options{Path: path, ReadOnly: true})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { img.Close() })
	return img
}

var debian = map[string]string{
	"etc/fstab":            "",
	"boot/vmlinuz-6.1":     "old",
	"boot/initrd.img-6.1":  "old initrd",
	"boot/vmlinuz-6.10":    "kernel",
	"boot/initrd.img-6.10": "initrd",
	"boot/config-6.10":     "",
}

// with returns files and more.
func with(files map[string]string, more ...string) map[string]string {
	m := map[string]string{}
	for k, v := range files {
		m[k] = v
	}
	for i := 0; i < len(more); i += 2 {
		m[more[i]] = more[i+1]
	}
	return m
}

func TestFind(t *testing.T) {
	const grub = "menuentry 'x' {\nlinux /vmlinuz-6.1 root=/dev/sda2 ro quiet\ninitrd /initrd.img-6.1\n}\n"
	separate := fileSystem(t, map[string]string{"vmlinuz-6.1": "kernel", "initrd.img-6.1": "initrd"})
	root := fileSystem(t, map[string]string{"etc/fstab": ""})
	for name, c := range map[string]struct {
		disk []byte
		want Boot
	}{
		"newest": {partitioned(t, "gpt", fileSystem(t, debian)), Boot{
			File{"x.img: partition 1: /boot/vmlinuz-6.10", []byte("kernel")}, File{"x.img: partition 1: /boot/initrd.img-6.10", []byte("initrd")},
			"root=PARTUUID=3f1b6b0e-0a4c-4a55-8e0b-2c3a5c6d7e8a ro"}},
		"whole disk": {fileSystem(t, debian), Boot{
			File{"x.img: /boot/vmlinuz-6.10", []byte("kernel")}, File{"x.img: /boot/initrd.img-6.10", []byte("initrd")},
			"root=UUID=" + fsUUID + " ro"}},
		"no initrd": {fileSystem(t, map[string]string{"etc/fstab": "", "boot/vmlinuz-6.1": "kernel"}), Boot{
			Kernel: File{"x.img: /boot/vmlinuz-6.1", []byte("kernel")}, Args: "root=/dev/vda ro"}},
		"GRUB": {partitioned(t, "dos", fileSystem(t, with(debian, "boot/grub/grub.cfg", replace(grub, " /", " /boot/")))), Boot{
			File{"x.img: partition 1: /boot/vmlinuz-6.1", []byte("old")}, File{"x.img: partition 1: /boot/initrd.img-6.1", []byte("old initrd")},
			"root=/dev/sda2 ro quiet"}},
		"GRUB with a kernel that is gone": {fileSystem(t, with(debian, "boot/grub/grub.cfg", grub)), Boot{
			File{"x.img: /boot/vmlinuz-6.10", []byte("kernel")}, File{"x.img: /boot/initrd.img-6.10", []byte("initrd")},
			"root=UUID=" + fsUUID + " ro"}},
		"boot loader specification": {fileSystem(t, with(debian, "boot/loader/entries/a-6.1.conf", "linux /boot/vmlinuz-6.1\noptions quiet",
			"boot/loader/entries/a-6.10.conf", "linux /boot/vmlinuz-6.10\ninitrd /boot/initrd.img-6.10\noptions root=LABEL=x rw")), Boot{
			File{"x.img: /boot/vmlinuz-6.10", []byte("kernel")}, File{"x.img: /boot/initrd.img-6.10", []byte("initrd")},
			"root=LABEL=x rw"}},
		"/boot apart": {partitioned(t, "dos", separate, root), Boot{
			File{"x.img: partition 1: /vmlinuz-6.1", []byte("kernel")}, File{"x.img: partition 1: /initrd.img-6.1", []byte("initrd")},
			"root=PARTUUID=0000abcd-02 ro"}},
		"second partition": {partitioned(t, "dos", make([]byte, 8<<20), fileSystem(t, debian)), Boot{
			File{"x.img: partition 2: /boot/vmlinuz-6.10", []byte("kernel")}, File{"x.img: partition 2: /boot/initrd.img-6.10", []byte("initrd")},
			"root=PARTUUID=0000abcd-02 ro"}},
	} {
		t.Run(name, func(t *testing.T) {
			b, err := Find(t.Context(), open(t, c.disk), "x.img")
			if err != nil {
				t.Fatal(err)
			}
			if b.Args != c.want.Args || b.Kernel.Name != c.want.Kernel.Name || !bytes.Equal(b.Kernel.Data, c.want.Kernel.Data) ||
				b.Initrd.Name != c.want.Initrd.Name || !bytes.Equal(b.Initrd.Data, c.want.Initrd.Data) {
				t.Errorf("%s\n%s\n%q", b.Kernel, b.Initrd, b.Args)
			}
		})
	}
}

// A qcow2 image is read as the machine reads it.
func TestQcow2(t *testing.T) {
	raw, qcow2 := filepath.Join(t.TempDir(), "raw"), filepath.Join(t.TempDir(), "x.qcow2")
	if err := os.WriteFile(raw, partitioned(t, "gpt", fileSystem(t, debian)), 0o600); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command(tool(t, "qemu-img"), "convert", "-c", "-O", "qcow2", raw, qcow2).CombinedOutput(); err != nil {
		t.Fatalf("qemu-img: %v\n%s", err, out)
	}
	b, err := Find(t.Context(), openImage(t, qcow2), "x.qcow2")
	if err != nil || string(b.Kernel.Data) != "kernel" {
		t.Errorf("%+v, %v", b, err)
	}
}

func TestNotFound(t *testing.T) {
	none := fileSystem(t, map[string]string{"etc/fstab": ""})
	for name, c := range map[string]struct {
		disk []byte
		want string
	}{
		"empty partition":  {partitioned(t, "gpt", make([]byte, 8<<20)), "x.img: no ext2, ext3 or ext4 file system in partition 1"},
		"no kernel":        {partitioned(t, "dos", make([]byte, 8<<20), none), "x.img: no ext2, ext3 or ext4 file system in partition 1, no /boot/vmlinuz-* in partition 2"},
		"no partition":     {partitioned(t, "gpt"), "x.img: no partition in its table"},
		"no root":          {partitioned(t, "gpt", fileSystem(t, map[string]string{"vmlinuz-1": "x"})), "x.img: partition 1: has a kernel, but no file system of this disk has /etc"},
		"data, whole disk": {none, ErrNoSystem.Error()},
		"nothing":          {make([]byte, 4096), ErrNoSystem.Error()},
	} {
		_, err := Find(t.Context(), open(t, c.disk), "x.img")
		var input *Error
		if err == nil || err.Error() != c.want || !errors.Is(err, ErrNoSystem) && !errors.As(err, &input) {
			t.Errorf("%s: %v", name, err)
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := Find(ctx, open(t, none), "x.img"); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v", err)
	}
}

// memory is an image in memory that cannot be written.
type memory struct {
	disk.Image
	b []byte
}

func (m memory) Size() int64 { return int64(len(m.b)) }

func (m memory) ReadAt(bufs [][]byte, off int64) error {
	for _, b := range bufs {
		off += int64(copy(b, m.b[off:]))
	}
	return nil
}

// FuzzFind damages a disk: each four bytes of the input are a place and what is
// written there.
func FuzzFind(f *testing.F) {
	image := partitioned(f, "gpt", fileSystem(f, with(debian, "boot/grub/grub.cfg", grubCfg)))
	f.Add([]byte{})
	f.Add([]byte{0, 2, 0, 1})
	f.Fuzz(func(t *testing.T, damage []byte) {
		undo := bytes.Buffer{}
		var at []int
		for ; len(damage) >= 4; damage = damage[4:] {
			a := (int(damage[0])<<16 | int(damage[1])<<8 | int(damage[2])) % len(image)
			at = append(at, a)
			undo.WriteByte(image[a])
			image[a] = damage[3]
		}
		b, err := Find(t.Context(), memory{b: image}, "x.img")
		if err == nil && b.Kernel.Name == "" {
			t.Errorf("%+v", b)
		}
		for i := len(at) - 1; i >= 0; i-- {
			image[at[i]] = undo.Bytes()[i]
		}
	})
}
