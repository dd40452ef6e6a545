// Package share gives a directory of the host to a guest, as the file system
// behind a FUSE protocol server (package virtio/fs speaks to the guest).
//
// The guest is hostile. It names a file by a node that it has looked up and,
// for an entry of a directory, by one name. A name is a single component, never
// "." or "..", and is resolved below a directory that is open already, without
// following a symbolic link (openat2(2)). Whatever the guest asks for, and
// whoever renames directories meanwhile, nothing is reached but what is below
// the share's root. Symbolic links are text, which the guest resolves in its
// own tree.
//
//	node ──── id that the guest knows, (device, inode, type) of the host
//	  │
//	  ├─ fd   an O_PATH descriptor, at most maxPaths of them; a node that has
//	  │       none is opened again by its parent and name, and must be the
//	  │       same inode then
//	  └─ file descriptors that the guest has opened, at most maxFiles
//
// Only regular files and directories can be opened: a FIFO would block, a
// device node is for the guest's own kernel. Entries of /proc, /sys and their
// kind do not exist in a share: they lead to other processes, the monitor among
// them.
package share

import (
	"fmt"
	"path/filepath"
	"sync"
	"syscall"
	"time"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"
)

// Options describe a share.
type Options struct {
	Path     string // directory of the host
	ReadOnly bool   // for the guest
}

// String is Path and what is special.
func (o Options) String() string {
	if o.ReadOnly {
		return o.Path + ",ro"
	}
	return o.Path
}

// Error is a mistake in Options, or what the host has against it.
type Error struct {
	Path string
	Err  error
}

// Error implements error.
func (e *Error) Error() string { return e.Path + ": " + e.Err.Error() }

// Unwrap returns the cause.
func (e *Error) Unwrap() error { return e.Err }

// timeout is how long the guest may use attributes and entries without asking
// again. So long it may miss what others change on the host.
const timeout = time.Second

// maxNodes bounds what a guest can have the monitor remember.
const maxNodes = 1 << 20

// Tree is a share. It implements fuse.RawFileSystem and may be used by any
// number of goroutines at once.
type Tree struct {
	fuse.RawFileSystem // answers ENOSYS to the rest
	opt                Options
	ids                ids
	maxPaths, maxFiles int

	mu     sync.Mutex
	nodes  map[uint64]*node
	byKey  map[key]*node
	paths  list // nodes with an fd, the least recently used first
	files  map[uint64]*file
	nextID uint64
	pinned int               // nodes that are, besides the root
	devs   map[uint64]uint64 // see number
}

// Open opens a share, which must be closed. Errors are *Error.
func Open(o Options) (*Tree, error) {
	path, err := filepath.Abs(o.Path)
	if err != nil {
		return nil, &Error{o.Path, err}
	}
	fd, err := unix.Open(path, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, &Error{o.Path, err}
	}
	var st syscall.Stat_t
	if err := syscall.Fstat(fd, &st); err != nil {
		unix.Close(fd)
		return nil, &Error{o.Path, err}
	}
	if pseudo(fd) {
		unix.Close(fd)
		return nil, &Error{o.Path, fmt.Errorf("the host's kernel makes up these files; they cannot be shared")}
	}
	t := &Tree{RawFileSystem: fuse.NewDefaultRawFileSystem(), opt: o, ids: callerIDs(),
		nodes: map[uint64]*node{}, byKey: map[key]*node{}, files: map[uint64]*file{},
		nextID: fuse.FUSE_ROOT_ID, devs: map[uint64]uint64{st.Dev: 0}}
	t.maxPaths, t.maxFiles = limits()
	root := t.newNode(keyOf(&st), nil, "")
	root.fd, root.pinned = fd, true
	return t, nil
}

// limits shares out the descriptors that this process can have: some are left
// for the rest of it, and for other shares.
func limits() (paths, files int) {
	var r unix.Rlimit
	if unix.Getrlimit(unix.RLIMIT_NOFILE, &r) != nil {
		r.Cur = 1024
	}
	n := int(min(r.Cur, 1<<18))
	return n / 8, n / 8
}

// String implements fuse.RawFileSystem.
func (t *Tree) String() string { return "ring3" }

// ReadOnly reports whether the guest cannot write.
func (t *Tree) ReadOnly() bool { return t.opt.ReadOnly }

// Reset forgets all that the guest has looked up and opened: another driver
// begins. What requests still use goes with them.
func (t *Tree) Reset() {
	t.mu.Lock()
	defer t.mu.Unlock()
	for id := range t.files {
		t.release(id)
	}
	all := make([]*node, 0, len(t.nodes))
	for _, n := range t.nodes {
		n.lookups = 0
		all = append(all, n)
	}
	for _, n := range all {
		t.drop(n)
	}
}

// Close closes the share. No request may be under way.
func (t *Tree) Close() error {
	t.Reset()
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, n := range t.nodes {
		n.close(t)
	}
	clear(t.nodes)
	return nil
}

// changes is the status of a request that changes something, before it does.
func (t *Tree) changes() error {
	if t.opt.ReadOnly {
		return unix.EROFS
	}
	return nil
}

// StatFs implements fuse.RawFileSystem.
func (t *Tree) StatFs(_ <-chan struct{}, h *fuse.InHeader, out *fuse.StatfsOut) fuse.Status {
	return t.with(h.NodeId, func(n *node) error {
		var st syscall.Statfs_t
		if err := syscall.Fstatfs(n.fd, &st); err != nil {
			return err
		}
		out.FromStatfsT(&st)
		return nil
	})
}
