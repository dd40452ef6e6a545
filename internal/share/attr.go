package share

import (
	"os"
	"syscall"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"
)

// ids are those of this process. What it owns belongs to root in the guest, and
// what root owns does, too: in the guest, root has the rights that the caller
// has on the host. All others are shown as they are.
type ids struct{ uid, gid uint32 }

func callerIDs() ids { return ids{uint32(os.Geteuid()), uint32(os.Getegid())} }

// root reports whether this process may give files away.
func (c ids) root() bool { return c.uid == 0 }

// shown is what the guest sees of an owner.
func (c ids) shown(uid, gid uint32) fuse.Owner {
	if uid == c.uid {
		uid = 0
	}
	if gid == c.gid {
		gid = 0
	}
	return fuse.Owner{Uid: uid, Gid: gid}
}

// attributes fills a from st. t.mu is held.
func (t *Tree) attributes(a *fuse.Attr, st *syscall.Stat_t) {
	a.FromStat(st)
	a.Owner = t.ids.shown(st.Uid, st.Gid)
	a.Ino = t.number(st)
}

// maxDevs bounds how many file systems of the host are told apart.
const maxDevs = 1 << 12

// number is the inode number in the guest, for which the share is one file
// system: below mount points of the host, the upper bits tell them apart. t.mu
// is held.
func (t *Tree) number(st *syscall.Stat_t) uint64 {
	d, ok := t.devs[st.Dev]
	if !ok && len(t.devs) < maxDevs {
		d = uint64(len(t.devs))
		t.devs[st.Dev] = d
	}
	return st.Ino ^ d<<48
}

// GetAttr implements fuse.RawFileSystem.
func (t *Tree) GetAttr(_ <-chan struct{}, in *fuse.GetAttrIn, out *fuse.AttrOut) fuse.Status {
	return t.with(in.NodeId, func(n *node) error { return t.answer(n, out) })
}

// answer tells the attributes of a node.
func (t *Tree) answer(n *node, out *fuse.AttrOut) error {
	var st syscall.Stat_t
	if err := syscall.Fstat(n.fd, &st); err != nil {
		return err
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	out.SetTimeout(timeout)
	t.attributes(&out.Attr, &st)
	return nil
}

// SetAttr implements fuse.RawFileSystem.
func (t *Tree) SetAttr(_ <-chan struct{}, in *fuse.SetAttrIn, out *fuse.AttrOut) fuse.Status {
	return t.with(in.NodeId, func(n *node) error {
		if err := t.changes(); err != nil {
			return err
		}
		if mode, ok := in.GetMode(); ok {
			if err := n.chmod(mode); err != nil {
				return err
			}
		}
		if err := t.chown(n, in); err != nil {
			return err
		}
		if size, ok := in.GetSize(); ok {
			if err := t.truncate(n, in, size); err != nil {
				return err
			}
		}
		if err := utimes(n, in); err != nil {
			return err
		}
		return t.answer(n, out)
	})
}

// permissions are the mode bits that a guest can set on a file of the host.
// Programs that run as the caller, whoever starts them on the host, are not a
// guest's to make.
func permissions(mode uint32, kind uint32) uint32 {
	if kind == unix.S_IFDIR {
		return mode & (0o777 | unix.S_ISVTX | unix.S_ISGID)
	}
	return mode & (0o777 | unix.S_ISVTX)
}

func (n *node) chmod(mode uint32) error {
	if n.key.kind == unix.S_IFLNK {
		return unix.EOPNOTSUPP
	}
	return unix.Chmod(procPath(n.fd), permissions(mode, n.key.kind))
}

// chown changes the owner if it is another one than the guest sees.
func (t *Tree) chown(n *node, in *fuse.SetAttrIn) error {
	uid, hasUID := in.GetUID()
	gid, hasGID := in.GetGID()
	if !hasUID && !hasGID {
		return nil
	}
	var st unix.Stat_t
	if err := unix.Fstat(n.fd, &st); err != nil {
		return err
	}
	is := t.ids.shown(st.Uid, st.Gid)
	to := [2]int{-1, -1}
	if hasUID && uid != is.Uid {
		to[0] = int(uid)
	}
	if hasGID && gid != is.Gid {
		to[1] = int(gid)
	}
	if to == [2]int{-1, -1} {
		return nil
	}
	if !t.ids.root() {
		return unix.EPERM
	}
	return unix.Fchownat(n.fd, "", to[0], to[1], unix.AT_EMPTY_PATH)
}

// truncate sets the size, through the guest's own descriptor if there is one.
func (t *Tree) truncate(n *node, in *fuse.SetAttrIn, size uint64) error {
	if n.key.kind != unix.S_IFREG {
		return unix.EINVAL
	}
	if size > 1<<63-1 {
		return unix.EFBIG
	}
	if id, ok := in.GetFh(); ok {
		f, err := t.useFile(id)
		if err != nil {
			return err
		}
		defer t.doneFile(f)
		return unix.Ftruncate(f.fd, int64(size))
	}
	fd, err := unix.Open(procPath(n.fd), unix.O_WRONLY|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	return unix.Ftruncate(fd, int64(size))
}

// utimes sets the times that the request has.
func utimes(n *node, in *fuse.SetAttrIn) error {
	if in.Valid&(fuse.FATTR_ATIME|fuse.FATTR_MTIME) == 0 {
		return nil
	}
	set := func(is, now uint32, sec uint64, nsec uint32) unix.Timespec {
		switch {
		case in.Valid&is == 0:
			return unix.Timespec{Nsec: unix.UTIME_OMIT}
		case in.Valid&now != 0:
			return unix.Timespec{Nsec: unix.UTIME_NOW}
		}
		return unix.Timespec{Sec: int64(sec), Nsec: int64(nsec)}
	}
	times := []unix.Timespec{
		set(fuse.FATTR_ATIME, fuse.FATTR_ATIME_NOW, in.Atime, in.Atimensec),
		set(fuse.FATTR_MTIME, fuse.FATTR_MTIME_NOW, in.Mtime, in.Mtimensec),
	}
	return unix.UtimesNanoAt(n.fd, "", times, unix.AT_EMPTY_PATH)
}

// Access implements fuse.RawFileSystem. The guest's kernel checks permissions
// itself, by what it sees; the host checks whatever is done.
func (t *Tree) Access(_ <-chan struct{}, in *fuse.AccessIn) fuse.Status { return fuse.ENOSYS }
