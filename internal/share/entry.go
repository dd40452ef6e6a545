package share

import (
	"syscall"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"
)

// add makes an entry with make and looks it up. It gets the mode that the guest
// wants, not what this process's umask leaves of it, and the guest's owner if
// the host lets.
func (t *Tree) add(h *fuse.InHeader, name string, mode uint32, out *fuse.EntryOut, make func(dir int) error) fuse.Status {
	return t.with(h.NodeId, func(dir *node) error {
		if err := t.changes(); err != nil {
			return err
		}
		if err := checkName(name); err != nil {
			return err
		}
		if err := make(dir.fd); err != nil {
			return err
		}
		fd, st, err := dir.lookup(name)
		if err != nil {
			return err
		}
		if err := t.dress(fd, st, h, mode); err != nil {
			unix.Close(fd)
			return err
		}
		return t.enter(dir, name, fd, st, out)
	})
}

// dress gives a new file its owner and mode, and st what is then.
func (t *Tree) dress(fd int, st *syscall.Stat_t, h *fuse.InHeader, mode uint32) error {
	kind := st.Mode & unix.S_IFMT
	if t.ids.root() && h.Uid != 0 {
		if err := unix.Fchownat(fd, "", int(h.Uid), int(h.Gid), unix.AT_EMPTY_PATH); err != nil {
			return err
		}
	}
	// S_ISGID of a directory comes from the one above it.
	if want := permissions(mode, kind) | st.Mode&unix.S_ISGID; kind != unix.S_IFLNK && st.Mode&0o7777 != want {
		if err := unix.Chmod(procPath(fd), want); err != nil {
			return err
		}
	}
	return syscall.Fstat(fd, st)
}

// Mkdir implements fuse.RawFileSystem.
func (t *Tree) Mkdir(_ <-chan struct{}, in *fuse.MkdirIn, name string, out *fuse.EntryOut) fuse.Status {
	return t.add(&in.InHeader, name, in.Mode, out, func(dir int) error { return unix.Mkdirat(dir, name, in.Mode&0o777) })
}

// Mknod implements fuse.RawFileSystem. Device nodes are not made: on the host
// they would be the host's devices.
func (t *Tree) Mknod(_ <-chan struct{}, in *fuse.MknodIn, name string, out *fuse.EntryOut) fuse.Status {
	kind := in.Mode & unix.S_IFMT
	if kind != unix.S_IFREG && kind != unix.S_IFIFO && kind != unix.S_IFSOCK {
		return fuse.EPERM
	}
	return t.add(&in.InHeader, name, in.Mode, out, func(dir int) error {
		return unix.Mknodat(dir, name, kind|in.Mode&0o777, 0)
	})
}

// Symlink implements fuse.RawFileSystem.
func (t *Tree) Symlink(_ <-chan struct{}, h *fuse.InHeader, target, name string, out *fuse.EntryOut) fuse.Status {
	return t.add(h, name, 0, out, func(dir int) error { return unix.Symlinkat(target, dir, name) })
}

// Readlink implements fuse.RawFileSystem.
func (t *Tree) Readlink(_ <-chan struct{}, h *fuse.InHeader) (target []byte, status fuse.Status) {
	status = t.with(h.NodeId, func(n *node) error {
		if n.key.kind != unix.S_IFLNK {
			return unix.EINVAL
		}
		target = make([]byte, unix.PathMax)
		size, err := unix.Readlinkat(n.fd, "", target)
		target = target[:max(size, 0)]
		return err
	})
	return target, status
}

// Link implements fuse.RawFileSystem.
func (t *Tree) Link(_ <-chan struct{}, in *fuse.LinkIn, name string, out *fuse.EntryOut) fuse.Status {
	return t.with(in.Oldnodeid, func(n *node) error {
		if n.dir() {
			return unix.EPERM
		}
		var fd int
		var st *syscall.Stat_t
		return statusError(t.with(in.NodeId, func(dir *node) (err error) {
			if err := t.changes(); err != nil {
				return err
			}
			if err := checkName(name); err != nil {
				return err
			}
			if err := unix.Linkat(unix.AT_FDCWD, procPath(n.fd), dir.fd, name, unix.AT_SYMLINK_FOLLOW); err != nil {
				return err
			}
			if fd, st, err = dir.lookup(name); err != nil {
				return err
			}
			return t.enter(dir, name, fd, st, out)
		}))
	})
}

func statusError(s fuse.Status) error {
	if s.Ok() {
		return nil
	}
	return syscall.Errno(s)
}

// Unlink implements fuse.RawFileSystem.
func (t *Tree) Unlink(_ <-chan struct{}, h *fuse.InHeader, name string) fuse.Status {
	return t.remove(h, name, 0)
}

// Rmdir implements fuse.RawFileSystem.
func (t *Tree) Rmdir(_ <-chan struct{}, h *fuse.InHeader, name string) fuse.Status {
	return t.remove(h, name, unix.AT_REMOVEDIR)
}

func (t *Tree) remove(h *fuse.InHeader, name string, flags int) fuse.Status {
	return t.with(h.NodeId, func(dir *node) error {
		if err := t.changes(); err != nil {
			return err
		}
		if err := checkName(name); err != nil {
			return err
		}
		t.pin(dir, name)
		return unix.Unlinkat(dir.fd, name, flags)
	})
}

// pin keeps a descriptor of an entry that is about to lose its name, if the
// guest knows it: it may have it open, or know it by another name.
func (t *Tree) pin(dir *node, name string) {
	fd, st, err := dir.lookup(name)
	if err != nil {
		return
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	n := t.byKey[keyOf(st)]
	if n == nil || n.fd >= 0 && n.pinned || t.pinned >= t.maxPaths/2 {
		unix.Close(fd)
		return
	}
	if n.fd >= 0 {
		unix.Close(fd)
	} else {
		n.fd = fd
		t.paths.use(n)
	}
	n.pinned = true
	t.pinned++
}

// Rename implements fuse.RawFileSystem. Flags are those of renameat2(2).
func (t *Tree) Rename(_ <-chan struct{}, in *fuse.RenameIn, oldName, newName string) fuse.Status {
	return t.with(in.NodeId, func(from *node) error {
		return statusError(t.with(in.Newdir, func(to *node) error {
			if err := t.changes(); err != nil {
				return err
			}
			if in.Flags&^(unix.RENAME_NOREPLACE|unix.RENAME_EXCHANGE) != 0 {
				return unix.EINVAL
			}
			if err := checkName(oldName); err != nil {
				return err
			}
			if err := checkName(newName); err != nil {
				return err
			}
			if in.Flags == 0 {
				t.pin(to, newName)
			}
			if err := unix.Renameat2(from.fd, oldName, to.fd, newName, uint(in.Flags)); err != nil {
				return err
			}
			t.seen(to, newName)
			if in.Flags&unix.RENAME_EXCHANGE != 0 {
				t.seen(from, oldName)
			}
			return nil
		}))
	})
}

// seen records where an entry is now, if the guest knows it.
func (t *Tree) seen(dir *node, name string) {
	fd, st, err := dir.lookup(name)
	if err != nil {
		return
	}
	unix.Close(fd)
	t.mu.Lock()
	defer t.mu.Unlock()
	if n := t.byKey[keyOf(st)]; n != nil && n.parent != nil && !below(dir, n) {
		t.drop(n.move(dir, name))
	}
}
