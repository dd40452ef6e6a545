// Package diskboot finds what a disk boots: the kernel, its initial RAM disk and
// its arguments, where an installed Linux keeps them in /boot. It stands for the
// boot loader of the disk, whose code is not executed.
//
// The partitions are searched in the order of their numbers, or the disk as a whole
// if it has no partition table; the first with a kernel in an ext2, ext3 or ext4 file
// system wins. The kernel is that of
//
//  1. the default entry of grub/grub.cfg, or
//  2. the newest entry of loader/entries, or
//  3. the newest vmlinuz-* with the initrd.img-* of the same version.
//
// A configuration that takes more than reading, with variables or scripts in what
// matters, counts as none. /boot may be a directory or a file system of its own.
package diskboot

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"strings"

	"ring3/internal/disk"
	"ring3/internal/ext4"
	"ring3/internal/partition"
)

// Limits of what is read, in bytes.
const (
	maxKernel = 256 << 20
	maxInitrd = 1 << 30
	maxConfig = 1 << 20
	// maxRead bounds all of it: a file system that was made to waste time can name
	// the same blocks again and again.
	maxRead = 4 << 30
)

// Boot is what to boot.
type Boot struct {
	Kernel File
	Initrd File   // without a Name if there is none
	Args   string // for the kernel's command line; says where the root file system is
}

// File is a file of the disk.
type File struct {
	Name string // where it is, for messages: IMAGE: partition 1: /boot/vmlinuz-6.1
	Data []byte
}

// ErrNoSystem is returned for a disk without a partition table and without a
// kernel: one for data.
var ErrNoSystem = errors.New("neither a partition table nor a kernel in /boot")

// Error is a disk that should have a system and has none that can be found: the
// message names what is missing where.
type Error struct{ Reason string }

func (e *Error) Error() string { return e.Reason }

// volume is a part of a disk with a file system that can be read.
type volume struct {
	name string // "partition 1"
	uuid string // PARTUUID, "" for a disk without partitions
	fs   *ext4.FS
}

// Find searches a disk; name is that of its image, for messages. Errors are *Error,
// ErrNoSystem, those of the image, and ctx's.
func Find(ctx context.Context, img disk.Image, name string) (*Boot, error) {
	r := &reader{ctx: ctx, img: img, left: maxRead}
	b, err := find(r, img.Size(), name)
	if err != nil && r.err != nil {
		return nil, fmt.Errorf("%s: %w", name, r.err)
	}
	return b, err
}

func find(r io.ReaderAt, size int64, name string) (*Boot, error) {
	parts, err := partition.Read(r, size)
	if errors.Is(err, partition.ErrNone) {
		return findWhole(r, size, name)
	} else if err != nil {
		return nil, &Error{fmt.Sprintf("%s: %v", name, err)}
	}
	var volumes []volume
	var without []string // why, for each partition
	for _, p := range parts {
		v := volume{name: fmt.Sprintf("partition %d", p.Number), uuid: p.UUID}
		if v.fs, err = ext4.Open(io.NewSectionReader(r, p.Start, p.Size), p.Size); err != nil {
			without = append(without, fmt.Sprintf("%v in %s", err, v.name))
			continue
		}
		volumes = append(volumes, v)
	}
	for _, v := range volumes {
		b, err := v.boot(name, volumes)
		if !errors.Is(err, errNoKernel) {
			return b, err
		}
		without = append(without, fmt.Sprintf("%v in %s", err, v.name))
	}
	if len(parts) == 0 {
		without = []string{"no partition in its table"}
	}
	return nil, &Error{fmt.Sprintf("%s: %s", name, strings.Join(without, ", "))}
}

// findWhole searches a disk without a partition table.
func findWhole(r io.ReaderAt, size int64, name string) (*Boot, error) {
	fsys, err := ext4.Open(r, size)
	if err != nil {
		return nil, ErrNoSystem
	}
	v := volume{fs: fsys}
	b, err := v.boot(name, []volume{v})
	if errors.Is(err, errNoKernel) {
		err = ErrNoSystem
	}
	return b, err
}

// errNoKernel is returned for a volume that boots nothing.
var errNoKernel = errors.New("no /boot/vmlinuz-*")

// boot reads what is booted from a volume of the disk with the given name.
func (v *volume) boot(name string, volumes []volume) (*Boot, error) {
	e, err := v.entry()
	if err != nil {
		return nil, v.explain(name, err)
	}
	if e.root() == "" {
		root, err := v.rootOf(volumes, e.initrd != "")
		if err != nil {
			return nil, v.explain(name, err)
		}
		e.args = strings.TrimSpace(root + " ro " + e.args)
	}
	b := &Boot{Args: e.args}
	if b.Kernel, err = v.file(name, e.kernel, maxKernel); err != nil {
		return nil, err
	}
	if e.initrd != "" {
		b.Initrd, err = v.file(name, e.initrd, maxInitrd)
	}
	return b, err
}

// rootOf is the root= argument of a system whose configuration has none.
func (v *volume) rootOf(volumes []volume, initrd bool) (string, error) {
	for _, r := range append([]volume{*v}, volumes...) {
		switch {
		case !r.fs.Exists("/etc"):
			continue
		case r.uuid != "":
			return "root=PARTUUID=" + r.uuid, nil
		case initrd:
			return "root=UUID=" + r.fs.UUID(), nil
		default:
			return "root=/dev/vda", nil
		}
	}
	return "", errors.New("has a kernel, but no file system of this disk has /etc")
}

func (v *volume) file(name, path string, limit int64) (f File, err error) {
	if f.Data, err = v.fs.ReadFile(path, limit); err != nil {
		return f, v.explain(name, err)
	}
	f.Name = v.at(name) + ": " + path
	return f, nil
}

// at says where the volume is.
func (v *volume) at(name string) string {
	if v.name == "" {
		return name
	}
	return name + ": " + v.name
}

// explain makes err one about this volume.
func (v *volume) explain(name string, err error) error {
	if errors.Is(err, errNoKernel) {
		return err
	}
	if p, ok := errors.AsType[*fs.PathError](err); ok {
		err = fmt.Errorf("%s: %w", p.Path, p.Err)
	}
	return &Error{fmt.Sprintf("%s: %v", v.at(name), err)}
}

// reader reads an image until ctx ends or too much was read. Its first error stays.
type reader struct {
	ctx  context.Context
	img  disk.Image
	left int64 // bytes
	err  error
}

// ReadAt implements io.ReaderAt.
func (r *reader) ReadAt(p []byte, off int64) (int, error) {
	n := int64(len(p))
	if off < 0 || off > r.img.Size()-n {
		return 0, io.ErrUnexpectedEOF
	}
	if r.err == nil {
		r.err = r.ctx.Err()
	}
	if r.left -= n; r.left < 0 && r.err == nil {
		r.err = &Error{"the kernel is not found in the first 4 GiB that were read"}
	}
	if r.err == nil {
		r.err = r.img.ReadAt([][]byte{p}, off)
	}
	if r.err != nil {
		return 0, r.err
	}
	return len(p), nil
}
