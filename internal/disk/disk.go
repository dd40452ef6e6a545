// Package disk is what is behind a virtual disk: an image in a file, or a
// throw-away layer over one.
//
// An image is locked while it is open (flock(2)), for reading by any number and
// for writing by one, so that two machines never write to the same. The lock is
// advisory: other programs than ring3 need not know it.
package disk

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// SectorSize is the unit of a disk, in bytes.
const SectorSize = 512

// Image is the content of a disk. Ranges lie within it: callers check. All
// methods may be called from any goroutine; accesses to the same bytes at the
// same time have no order.
type Image interface {
	Size() int64 // bytes, a multiple of SectorSize
	// ReadAt fills the buffers, one after the other, from off on.
	ReadAt(bufs [][]byte, off int64) error
	// WriteAt is its counterpart. An image that was opened read-only must not be
	// changed.
	WriteAt(bufs [][]byte, off int64) error
	// ReadCached does what ReadAt does if that takes no waiting for the host's
	// disk. Otherwise it returns false, and the buffers hold anything.
	ReadCached(bufs [][]byte, off int64) bool
	// Zero makes n bytes at off read as zeros. With unmap it may give the
	// host's storage for them back.
	Zero(off, n int64, unmap bool) error
	// Discard says that nobody needs n bytes at off any more.
	Discard(off, n int64) error
	// Flush returns when all that was written before is on stable storage.
	Flush() error
	Close() error
}

// Options say which image, and how to use it.
type Options struct {
	Path     string
	ReadOnly bool
	Snapshot bool   // writes are kept apart and lost in the end
	Format   string // Raw, Qcow2, or "": qcow2 if the name ends so and the content begins so, else raw
}

// Formats. The first bytes of an image do not tell on their own: the guest of a
// raw one can write there, and a qcow2 header can name any file of the host.
const (
	Raw   = "raw"
	Qcow2 = "qcow2"
)

// String is how the options are written.
func (o Options) String() string {
	s := o.Path
	if o.Format != "" {
		s += "," + o.Format
	}
	switch {
	case o.ReadOnly:
		s += ",ro"
	case o.Snapshot:
		s += ",snapshot"
	}
	return s
}

// Error is an image that cannot be used, and what to do about it.
type Error struct {
	Path string
	Why  string
	Mend string // may be empty
}

// Error implements error.
func (e *Error) Error() string {
	s := e.Path + ": " + e.Why
	if e.Mend != "" {
		s += " (" + e.Mend + ")"
	}
	return s
}

// Open opens and locks an image.
// Mistakes of the user are an *Error.
func Open(o Options) (Image, error) {
	img, err := openFile(o, 0)
	if err != nil || !o.Snapshot {
		return img, err
	}
	s, err := newSnapshot(img)
	if err != nil {
		return nil, errors.Join(err, img.Close())
	}
	return s, nil
}

// openFile opens an image, without a snapshot over it. depth is how many images
// are above it.
func openFile(o Options, depth int) (Image, error) {
	writable := !o.ReadOnly && !o.Snapshot
	flags := os.O_RDONLY
	if writable {
		flags = os.O_RDWR
	}
	// O_NONBLOCK: opening a pipe must not wait for somebody at its other end.
	f, err := os.OpenFile(o.Path, flags|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, openError(o.Path, err, writable, depth)
	}
	img, err := open(f, writable, o.Format, depth)
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return img, nil
}

func openError(path string, err error, writable bool, depth int) error {
	switch {
	case errors.Is(err, fs.ErrNotExist) && depth == 0:
		return &Error{path, "no such file", "make an empty disk: truncate -s 8G " + path}
	case errors.Is(err, fs.ErrNotExist):
		return &Error{path, "no such file", ""}
	case errors.Is(err, fs.ErrPermission) && writable:
		return &Error{path, "no permission to write to it", "open it with ,ro or ,snapshot"}
	case errors.Is(err, unix.EISDIR):
		return &Error{path, "is a directory, not a disk image", ""}
	case errors.Is(err, unix.EROFS):
		return &Error{path, "is on a read-only file system", "open it with ,ro or ,snapshot"}
	}
	return &Error{path, errors.Unwrap(err).Error(), ""}
}

// open locks f and looks at what it is.
func open(f *os.File, writable bool, format string, depth int) (Image, error) {
	st, err := f.Stat()
	if err != nil {
		return nil, err
	}
	if t := st.Mode().Type(); t != 0 && t != fs.ModeDevice {
		what := map[bool]string{true: "is a directory, not a disk image", false: "is neither a file nor a block device"}[st.IsDir()]
		return nil, &Error{f.Name(), what, ""}
	}
	how := unix.LOCK_SH
	if writable {
		how = unix.LOCK_EX
	}
	if err := unix.Flock(int(f.Fd()), how|unix.LOCK_NB); errors.Is(err, unix.EWOULDBLOCK) {
		return nil, &Error{f.Name(), "is in use by another virtual disk", "stop that machine, or give both ,ro or ,snapshot"}
	} else if err != nil {
		return nil, fmt.Errorf("lock %s: %w", f.Name(), err)
	}
	size, err := f.Seek(0, io.SeekEnd) // a block device has no size in its status
	if err != nil {
		return nil, err
	}
	head := make([]byte, min(size, int64(len(qcowMagic))))
	if _, err := f.ReadAt(head, 0); err != nil {
		return nil, err
	}
	r := &raw{f: f, size: size}
	switch isQcow2 := string(head) == qcowMagic; {
	case size == 0:
		return nil, &Error{f.Name(), "is empty, a disk has at least one sector", "truncate -s 8G " + f.Name()}
	case format == Qcow2 && !isQcow2:
		return nil, &Error{f.Name(), "is no qcow2 image", ""}
	case isQcow2 && format == "" && filepath.Ext(f.Name()) != ".qcow2":
		return nil, &Error{f.Name(), "looks like a qcow2 image and its name does not say so: a guest may have written that",
			"name it .qcow2, or give ,qcow2 or ,raw"}
	case isQcow2 && format != Raw:
		return openQcow2(r, writable, depth)
	case size%SectorSize != 0 && depth == 0:
		return nil, &Error{f.Name(), fmt.Sprintf("is %d bytes long, not a multiple of %d: no raw disk image", size, SectorSize),
			fmt.Sprintf("if it is one, truncate -s %%%d %s", SectorSize, f.Name())}
	}
	return r, nil
}
