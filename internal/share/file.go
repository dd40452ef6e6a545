package share

import (
	"sync"
	"syscall"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"
)

// file is a file or directory that the guest has open.
type file struct {
	fd       int
	users    int  // requests; guarded by Tree.mu
	released bool // likewise

	mu      sync.Mutex // guards what follows, of a directory
	entries []byte     // that were read and not told yet, as getdents64(2) has them
	at      uint64     // offset of the first of them
	buf     []byte
}

// newFile takes over fd.
func (t *Tree) newFile(fd int) (id uint64, err error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if len(t.files) >= t.maxFiles {
		unix.Close(fd)
		return 0, unix.ENFILE
	}
	id = t.nextID
	t.nextID++
	t.files[id] = &file{fd: fd}
	return id, nil
}

// useFile finds an open file and keeps it open until doneFile.
func (t *Tree) useFile(id uint64) (*file, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	f := t.files[id]
	if f == nil {
		return nil, unix.EBADF
	}
	f.users++
	return f, nil
}

func (t *Tree) doneFile(f *file) {
	t.mu.Lock()
	defer t.mu.Unlock()
	f.users--
	f.closeUnused()
}

// release closes a file as soon as no request uses it. t.mu is held.
func (t *Tree) release(id uint64) {
	if f := t.files[id]; f != nil {
		delete(t.files, id)
		f.released = true
		f.closeUnused()
	}
}

// closeUnused closes a file that is released and not in use. Tree.mu is held.
func (f *file) closeUnused() {
	if f.released && f.users == 0 {
		unix.Close(f.fd)
	}
}

// withFile calls fn with an open file in use.
func (t *Tree) withFile(id uint64, fn func(f *file) error) fuse.Status {
	f, err := t.useFile(id)
	if err != nil {
		return fuse.ToStatus(err)
	}
	defer t.doneFile(f)
	return fuse.ToStatus(fn(f))
}

// openFlags are those of the guest's open(2) that the host gets. Not O_APPEND:
// the guest's kernel says where to write, also for pages of a mapping.
// O_NONBLOCK: nothing that is opened blocks.
func openFlags(flags uint32) int {
	return int(flags)&(unix.O_ACCMODE|unix.O_TRUNC|unix.O_SYNC) | unix.O_CLOEXEC | unix.O_NONBLOCK | unix.O_NOCTTY
}

// writes reports whether opening with these flags can change the file.
func writes(flags uint32) bool {
	return flags&unix.O_ACCMODE != unix.O_RDONLY || flags&unix.O_TRUNC != 0
}

// Open implements fuse.RawFileSystem.
func (t *Tree) Open(_ <-chan struct{}, in *fuse.OpenIn, out *fuse.OpenOut) fuse.Status {
	return t.with(in.NodeId, func(n *node) error {
		if writes(in.Flags) {
			if err := t.changes(); err != nil {
				return err
			}
		}
		if t.opt.ReadOnly {
			// Nothing can go wrong with reading that the host does not
			// tell then. The guest takes this for an answer for good: it
			// no longer tells when files are opened and closed, and reads
			// them by their nodes.
			return unix.ENOSYS
		}
		fd, err := n.openFile(openFlags(in.Flags))
		if err != nil {
			return err
		}
		// The guest's page cache stays good: it looks at the time of the
		// last change.
		out.OpenFlags = fuse.FOPEN_KEEP_CACHE
		out.Fh, err = t.newFile(fd)
		return err
	})
}

// openFile opens a regular file; what is none has an error.
func (n *node) openFile(flags int) (fd int, err error) {
	switch n.key.kind {
	case unix.S_IFREG:
		return unix.Open(procPath(n.fd), flags, 0)
	case unix.S_IFLNK:
		return -1, unix.ELOOP
	case unix.S_IFDIR:
		return -1, unix.EISDIR
	}
	return -1, unix.EPERM
}

// useReader finds the file that a request reads, as useFile does. Without an
// open file, 0, that is its node, of a share in which nothing is opened.
func (t *Tree) useReader(id, node uint64) (*file, error) {
	if id != 0 || !t.opt.ReadOnly {
		return t.useFile(id)
	}
	n, err := t.use(node)
	if err != nil {
		return nil, err
	}
	defer t.done(n)
	t.mu.Lock()
	defer t.mu.Unlock()
	if n.reader == nil {
		fd, err := n.openFile(openFlags(unix.O_RDONLY))
		if err != nil {
			return nil, err
		}
		n.reader = &file{fd: fd}
	}
	n.reader.users++
	return n.reader, nil
}

// Create implements fuse.RawFileSystem.
func (t *Tree) Create(_ <-chan struct{}, in *fuse.CreateIn, name string, out *fuse.CreateOut) fuse.Status {
	return t.with(in.NodeId, func(dir *node) error {
		if err := t.changes(); err != nil {
			return err
		}
		// Whether it is new decides about its mode.
		flags := openFlags(in.Flags)
		fresh := true
		fd, err := openat(dir.fd, name, flags|unix.O_CREAT|unix.O_EXCL, in.Mode&0o777)
		if err == unix.EEXIST && in.Flags&unix.O_EXCL == 0 {
			fresh = false
			fd, err = openat(dir.fd, name, flags&^unix.O_TRUNC, 0)
		}
		if err != nil {
			return err
		}
		path, st, err := t.created(fd, in, fresh)
		if err == nil {
			err = t.enter(dir, name, path, st, &out.EntryOut)
		}
		if err != nil {
			unix.Close(fd)
			return err
		}
		out.OpenFlags = fuse.FOPEN_KEEP_CACHE
		if out.Fh, err = t.newFile(fd); err != nil {
			t.Forget(out.NodeId, 1)
		}
		return err
	})
}

// created returns an O_PATH descriptor of a file that Create has opened.
func (t *Tree) created(fd int, in *fuse.CreateIn, fresh bool) (path int, st *syscall.Stat_t, err error) {
	st = new(syscall.Stat_t)
	if err := syscall.Fstat(fd, st); err != nil {
		return -1, nil, err
	}
	if st.Mode&unix.S_IFMT != unix.S_IFREG {
		return -1, nil, unix.EPERM
	}
	if path, err = unix.Open(procPath(fd), unix.O_PATH|unix.O_CLOEXEC, 0); err != nil {
		return -1, nil, err
	}
	if fresh {
		err = t.dress(path, st, &in.InHeader, in.Mode)
	} else if in.Flags&unix.O_TRUNC != 0 {
		if err = unix.Ftruncate(fd, 0); err == nil {
			err = syscall.Fstat(fd, st)
		}
	}
	if err != nil {
		unix.Close(path)
		return -1, nil, err
	}
	return path, st, nil
}

// Release implements fuse.RawFileSystem.
func (t *Tree) Release(_ <-chan struct{}, in *fuse.ReleaseIn) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.release(in.Fh)
}

// Flush implements fuse.RawFileSystem: what is written is in the host's cache
// at once, so the guest need not ask for it.
func (t *Tree) Flush(<-chan struct{}, *fuse.FlushIn) fuse.Status { return fuse.ENOSYS }

// Read implements fuse.RawFileSystem.
func (t *Tree) Read(_ <-chan struct{}, in *fuse.ReadIn, _ []byte) (fuse.ReadResult, fuse.Status) {
	f, err := t.useReader(in.Fh, in.NodeId)
	if err != nil {
		return nil, fuse.ToStatus(err)
	}
	return &reading{t: t, f: f, off: in.Offset, size: int(in.Size)}, fuse.OK
}

// reading is a fuse.ReadResult that reads into the guest's memory.
type reading struct {
	t      *Tree
	f      *file
	off    uint64
	size   int
	cached *bool // not nil: read only what the host has in memory; false if that is not all
}

// Size implements fuse.ReadResult.
func (r *reading) Size() int { return r.size }

// Done implements fuse.ReadResult.
func (r *reading) Done() { r.t.doneFile(r.f) }

// Bytes implements fuse.ReadResult.
func (r *reading) Bytes(buf []byte) ([]byte, fuse.Status) {
	n, status := r.Readv([][]byte{buf[:min(len(buf), r.size)]})
	return buf[:n], status
}

// maxVectors is how many buffers one call takes (IOV_MAX).
const maxVectors = 1024

// Readv reads until the buffers are full or the file is at its end.
func (r *reading) Readv(dst [][]byte) (n int, status fuse.Status) {
	flags := 0
	if r.cached != nil {
		flags = unix.RWF_NOWAIT
	}
	if r.off > 1<<63-1-uint64(r.size) {
		return 0, fuse.EINVAL
	}
	for len(dst) > 0 {
		got, err := unix.Preadv2(r.f.fd, dst[:min(len(dst), maxVectors)], int64(r.off)+int64(n), flags)
		switch {
		case err == unix.EINTR:
			continue
		case flags != 0 && (err == unix.EAGAIN || err == unix.EOPNOTSUPP):
			*r.cached = false
			return 0, fuse.EAGAIN
		case err != nil:
			return 0, fuse.ToStatus(err)
		case got == 0:
			return n, fuse.OK
		}
		n += got
		dst = advance(dst, got)
	}
	return n, fuse.OK
}

// advance is bufs without the first n bytes.
func advance(bufs [][]byte, n int) [][]byte {
	for len(bufs) > 0 && n >= len(bufs[0]) {
		n -= len(bufs[0])
		bufs = bufs[1:]
	}
	if n > 0 {
		bufs = append([][]byte{bufs[0][n:]}, bufs[1:]...)
	}
	return bufs
}

// Writev implements fuse.RawFileSystem.
func (t *Tree) Writev(_ <-chan struct{}, in *fuse.WriteIn, data [][]byte) (written uint32, status fuse.Status) {
	status = t.withFile(in.Fh, func(f *file) error {
		if err := t.changes(); err != nil {
			return err
		}
		left := uint64(in.Size)
		for i := range data {
			data[i] = data[i][:min(left, uint64(len(data[i])))]
			left -= uint64(len(data[i]))
		}
		if in.Offset > 1<<63-1-uint64(in.Size) {
			return unix.EFBIG
		}
		for data = advance(data, 0); len(data) > 0; {
			n, err := unix.Pwritev(f.fd, data[:min(len(data), maxVectors)], int64(in.Offset)+int64(written))
			if err == unix.EINTR {
				continue
			}
			if err != nil || n == 0 {
				if written > 0 {
					return nil
				}
				return err
			}
			written += uint32(n)
			data = advance(data, n)
		}
		return nil
	})
	return written, status
}

// Fsync implements fuse.RawFileSystem.
func (t *Tree) Fsync(_ <-chan struct{}, in *fuse.FsyncIn) fuse.Status {
	return t.withFile(in.Fh, func(f *file) error {
		if in.FsyncFlags&1 != 0 {
			return unix.Fdatasync(f.fd)
		}
		return unix.Fsync(f.fd)
	})
}

// FsyncDir implements fuse.RawFileSystem.
func (t *Tree) FsyncDir(cancel <-chan struct{}, in *fuse.FsyncIn) fuse.Status {
	return t.Fsync(cancel, in)
}

// Lseek implements fuse.RawFileSystem: where data or a hole begins.
func (t *Tree) Lseek(_ <-chan struct{}, in *fuse.LseekIn, out *fuse.LseekOut) fuse.Status {
	f, err := t.useReader(in.Fh, in.NodeId)
	if err != nil {
		return fuse.ToStatus(err)
	}
	defer t.doneFile(f)
	if in.Whence != unix.SEEK_DATA && in.Whence != unix.SEEK_HOLE {
		return fuse.EINVAL
	}
	off, err := unix.Seek(f.fd, int64(in.Offset), int(in.Whence))
	out.Offset = uint64(off)
	return fuse.ToStatus(err)
}

// Fallocate implements fuse.RawFileSystem.
func (t *Tree) Fallocate(_ <-chan struct{}, in *fuse.FallocateIn) fuse.Status {
	return t.withFile(in.Fh, func(f *file) error {
		if err := t.changes(); err != nil {
			return err
		}
		return unix.Fallocate(f.fd, in.Mode, int64(in.Offset), int64(in.Length))
	})
}

// maxCopy bounds one request to copy, in bytes, so that it ends soon.
const maxCopy = 16 << 20

// CopyFileRange implements fuse.RawFileSystem.
func (t *Tree) CopyFileRange(_ <-chan struct{}, in *fuse.CopyFileRangeIn) (written uint32, status fuse.Status) {
	status = t.withFile(in.FhIn, func(from *file) error {
		return statusError(t.withFile(in.FhOut, func(to *file) error {
			if err := t.changes(); err != nil {
				return err
			}
			if in.Flags != 0 {
				return unix.EINVAL
			}
			offIn, offOut := int64(in.OffIn), int64(in.OffOut)
			n, err := unix.CopyFileRange(from.fd, &offIn, to.fd, &offOut, int(min(in.Len, maxCopy)), 0)
			written = uint32(max(n, 0))
			return err
		}))
	})
	return written, status
}

// Cached is t for a caller that must not wait for a disk: a read of what the
// host has not in memory fails with EAGAIN and says so in Missed. One goroutine
// at a time may use it.
type Cached struct {
	*Tree
	all bool
}

// Cached returns such a view of t.
func (t *Tree) Cached() *Cached { return &Cached{Tree: t, all: true} }

// Missed reports whether a read failed since the last call.
func (c *Cached) Missed() bool {
	missed := !c.all
	c.all = true
	return missed
}

// Read implements fuse.RawFileSystem.
func (c *Cached) Read(cancel <-chan struct{}, in *fuse.ReadIn, buf []byte) (fuse.ReadResult, fuse.Status) {
	r, status := c.Tree.Read(cancel, in, buf)
	if status.Ok() {
		r.(*reading).cached = &c.all
	}
	return r, status
}
