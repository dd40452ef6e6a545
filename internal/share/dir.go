package share

import (
	"bytes"
	"encoding/binary"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"
)

// OpenDir implements fuse.RawFileSystem. The guest may keep the entries while
// the directory's time of change is the same.
func (t *Tree) OpenDir(_ <-chan struct{}, in *fuse.OpenIn, out *fuse.OpenOut) fuse.Status {
	return t.with(in.NodeId, func(n *node) error {
		if !n.dir() {
			return unix.ENOTDIR
		}
		fd, err := unix.Open(procPath(n.fd), unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
		if err != nil {
			return err
		}
		out.OpenFlags = fuse.FOPEN_KEEP_CACHE | fuse.FOPEN_CACHE_DIR
		out.Fh, err = t.newFile(fd)
		return err
	})
}

// ReleaseDir implements fuse.RawFileSystem.
func (t *Tree) ReleaseDir(in *fuse.ReleaseIn) { t.Release(nil, in) }

// ReadDir implements fuse.RawFileSystem.
func (t *Tree) ReadDir(_ <-chan struct{}, in *fuse.ReadIn, out *fuse.DirEntryList) fuse.Status {
	return t.readDir(in, func(e fuse.DirEntry) bool { return out.AddDirEntry(e) })
}

// ReadDirPlus implements fuse.RawFileSystem: entries that are looked up as well.
// One that cannot be is told without.
func (t *Tree) ReadDirPlus(_ <-chan struct{}, in *fuse.ReadIn, out *fuse.DirEntryList) fuse.Status {
	return t.with(in.NodeId, func(dir *node) error {
		return statusError(t.readDir(in, func(e fuse.DirEntry) bool {
			to := out.AddDirLookupEntry(e)
			if to == nil {
				return false
			}
			var found fuse.EntryOut
			if e.Name != "." && e.Name != ".." && t.look(dir, e.Name, &found) == nil {
				*to = found
			}
			return true
		}))
	})
}

// direntSize is how much of a linux_dirent64 is before its name: inode and
// offset (u64), size (u16), type (u8).
const direntSize = 19

// readDir calls add for the entries from an offset on, until it says that there
// is no room.
func (t *Tree) readDir(in *fuse.ReadIn, add func(fuse.DirEntry) bool) fuse.Status {
	return t.withFile(in.Fh, func(f *file) error {
		f.mu.Lock()
		defer f.mu.Unlock()
		if in.Offset != f.at || f.entries == nil {
			if _, err := unix.Seek(f.fd, int64(in.Offset), unix.SEEK_SET); err != nil {
				return err
			}
			f.entries, f.at = nil, in.Offset
		}
		for {
			for len(f.entries) > 0 {
				e, rest := parseDirent(f.entries)
				if !add(e) {
					return nil
				}
				f.entries, f.at = rest, e.Off
			}
			if f.buf == nil {
				f.buf = make([]byte, 32<<10)
			}
			n, err := unix.Getdents(f.fd, f.buf)
			if err != nil || n == 0 {
				return err
			}
			f.entries = f.buf[:n]
		}
	})
}

// parseDirent reads the first of the host's directory entries.
func parseDirent(b []byte) (e fuse.DirEntry, rest []byte) {
	le := binary.LittleEndian
	size := le.Uint16(b[16:])
	name, _, _ := bytes.Cut(b[direntSize:size], []byte{0})
	return fuse.DirEntry{Ino: le.Uint64(b), Off: le.Uint64(b[8:]), Mode: uint32(b[18]) << 12, Name: string(name)}, b[size:]
}
