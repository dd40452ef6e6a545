package share

import (
	"strconv"
	"strings"
	"syscall"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"
)

// resolve is how names are looked up.
const resolve = unix.RESOLVE_BENEATH | unix.RESOLVE_NO_SYMLINKS | unix.RESOLVE_NO_MAGICLINKS

// checkName refuses what is not the name of an entry of a directory.
func checkName(name string) error {
	switch {
	case name == "" || name == "." || name == ".." || strings.ContainsAny(name, "/\x00"):
		return unix.EINVAL
	case len(name) > unix.NAME_MAX:
		return unix.ENAMETOOLONG
	}
	return nil
}

// openat opens an entry of a directory, and nothing else.
func openat(dir int, name string, flags int, mode uint32) (fd int, err error) {
	if err := checkName(name); err != nil {
		return -1, err
	}
	how := &unix.OpenHow{Flags: uint64(flags | unix.O_NOFOLLOW | unix.O_CLOEXEC), Mode: uint64(mode), Resolve: resolve}
	for range 100 {
		// EAGAIN: something was renamed, so that the kernel cannot tell.
		if fd, err = unix.Openat2(dir, name, how); err != unix.EINTR && err != unix.EAGAIN {
			break
		}
	}
	return fd, err
}

// lookup returns an O_PATH descriptor of an entry, and what it is. Files that
// the host's kernel makes up do not exist. n's descriptor is open.
func (n *node) lookup(name string) (fd int, st *syscall.Stat_t, err error) {
	if fd, err = openat(n.fd, name, unix.O_PATH, 0); err != nil {
		return -1, nil, err
	}
	st = new(syscall.Stat_t)
	if err = syscall.Fstat(fd, st); err == nil && st.Dev != n.key.dev && pseudo(fd) {
		err = unix.ENOENT
	}
	if err != nil {
		unix.Close(fd)
		return -1, nil, err
	}
	return fd, st, nil
}

// pseudo reports whether the kernel makes up the files of fd's file system.
func pseudo(fd int) bool {
	var st unix.Statfs_t
	if unix.Fstatfs(fd, &st) != nil {
		return true
	}
	switch uint32(st.Type) {
	case unix.PROC_SUPER_MAGIC, unix.SYSFS_MAGIC, unix.DEBUGFS_MAGIC, unix.TRACEFS_MAGIC, unix.SECURITYFS_MAGIC,
		unix.CGROUP_SUPER_MAGIC, unix.CGROUP2_SUPER_MAGIC, unix.BPF_FS_MAGIC, unix.DEVPTS_SUPER_MAGIC,
		unix.EFIVARFS_MAGIC, unix.PSTOREFS_MAGIC, unix.BINFMTFS_MAGIC, unix.SELINUX_MAGIC, unix.SMACK_MAGIC,
		unix.NSFS_MAGIC, unix.AAFS_MAGIC,
		0x62656570, // configfs
		0x65735543, // fusectl
		0x19800202: // mqueue
		return true
	}
	return false
}

// procPath names an open file for system calls that take no O_PATH descriptor.
// What it stands for is fixed, whatever is renamed.
func procPath(fd int) string { return "/proc/self/fd/" + strconv.Itoa(fd) }

// enter finds or makes the node of an entry that was looked up, takes over fd,
// and counts a lookup.
func (t *Tree) enter(dir *node, name string, fd int, st *syscall.Stat_t, out *fuse.EntryOut) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	k := keyOf(st)
	n := t.byKey[k]
	switch {
	case n == nil && len(t.nodes) >= maxNodes:
		unix.Close(fd)
		return unix.ENFILE
	case n == nil:
		n = t.newNode(k, dir, name)
	case n.parent == nil || below(dir, n):
		// The root, or a directory that was moved to below itself
		// meanwhile: where it was seen first is as good.
	case n.parent != dir || n.name != name:
		if old := n.move(dir, name); old != dir {
			t.drop(old)
		}
	}
	if n.fd < 0 {
		n.fd = fd
	} else {
		unix.Close(fd)
	}
	n.lookups++
	t.paths.use(n)
	t.trim()
	out.NodeId = n.id
	out.SetEntryTimeout(timeout)
	out.SetAttrTimeout(timeout)
	t.attributes(&out.Attr, st)
	return nil
}

// below reports whether dir is n or below it, or too deep to tell.
func below(dir, n *node) bool {
	if !n.dir() {
		return false
	}
	for range maxDepth {
		if dir == nil {
			return false
		}
		if dir == n {
			return true
		}
		dir = dir.parent
	}
	return true
}

// look looks an entry up and enters it.
func (t *Tree) look(dir *node, name string, out *fuse.EntryOut) error {
	fd, st, err := dir.lookup(name)
	if err != nil {
		return err
	}
	return t.enter(dir, name, fd, st, out)
}

// Lookup implements fuse.RawFileSystem. That there is no such entry is an
// answer that the guest may remember.
func (t *Tree) Lookup(_ <-chan struct{}, h *fuse.InHeader, name string, out *fuse.EntryOut) fuse.Status {
	return t.with(h.NodeId, func(dir *node) error {
		err := t.look(dir, name, out)
		if err == unix.ENOENT {
			out.SetEntryTimeout(timeout)
			return nil
		}
		return err
	})
}

// Forget implements fuse.RawFileSystem.
func (t *Tree) Forget(id, lookups uint64) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if n := t.nodes[id]; n != nil {
		n.lookups -= min(n.lookups, lookups)
		t.drop(n)
	}
}
