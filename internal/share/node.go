package share

import (
	"strings"
	"syscall"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"
)

// key tells one file of the host from all others.
type key struct {
	dev, ino uint64
	kind     uint32 // S_IFMT bits: a number may be used again for something else
}

func keyOf(st *syscall.Stat_t) key { return key{st.Dev, st.Ino, st.Mode & unix.S_IFMT} }

// node is a file that the guest has looked up. Fields are guarded by Tree.mu,
// fd beside it by being in use.
type node struct {
	id       uint64
	key      key
	parent   *node // where it was seen last, nil for the root
	name     string
	lookups  uint64 // that the guest has not forgotten
	children int    // nodes that have this one as their parent
	users    int    // requests that are using fd
	fd       int    // O_PATH, -1 for none
	pinned   bool   // fd stays: the node cannot be found by name
	reader   *file  // nil unless it was read without being opened; goes with fd

	prev, next *node // in Tree.paths
	listed     bool
}

func (n *node) dir() bool { return n.key.kind == unix.S_IFDIR }

// newNode adds a node. t.mu is held, unless nobody knows t yet.
func (t *Tree) newNode(k key, parent *node, name string) *node {
	n := &node{id: t.nextID, key: k, fd: -1}
	t.nextID++
	t.nodes[n.id], t.byKey[k] = n, n
	n.move(parent, name)
	return n
}

// move records where n was seen. The parent that it had may become free:
// callers drop it. t.mu is held.
func (n *node) move(parent *node, name string) (old *node) {
	old = n.parent
	if parent != nil {
		parent.children++
	}
	if old != nil {
		old.children--
	}
	n.parent, n.name = parent, strings.Clone(name)
	return old
}

// drop forgets n, and then its ancestors, if nobody needs them. t.mu is held.
func (t *Tree) drop(n *node) {
	for n != nil && n.parent != nil && n.lookups == 0 && n.children == 0 && n.users == 0 {
		if t.nodes[n.id] != n {
			return
		}
		delete(t.nodes, n.id)
		if t.byKey[n.key] == n {
			delete(t.byKey, n.key)
		}
		n.close(t)
		if n.pinned {
			t.pinned--
		}
		parent := n.parent
		n.parent = nil
		parent.children--
		n = parent
	}
}

// close closes the node's descriptor. t.mu is held.
func (n *node) close(t *Tree) {
	if n.fd >= 0 {
		unix.Close(n.fd)
		n.fd = -1
	}
	if n.reader != nil {
		n.reader.released = true
		n.reader.closeUnused()
		n.reader = nil
	}
	t.paths.remove(n)
}

// maxDepth bounds the ancestors that are opened to open a node.
const maxDepth = 1024

// open gives n a descriptor, for which its ancestors may need one. t.mu is held.
func (t *Tree) open(n *node) error {
	var chain []*node
	for at := n; at.fd < 0; at = at.parent {
		if chain = append(chain, at); len(chain) > maxDepth {
			return unix.ESTALE
		}
	}
	for i := len(chain) - 1; i >= 0; i-- {
		at := chain[i]
		fd, st, err := at.parent.lookup(at.name)
		if err != nil {
			return unix.ESTALE
		}
		if keyOf(st) != at.key {
			unix.Close(fd)
			return unix.ESTALE
		}
		at.fd = fd
		t.paths.use(at)
	}
	return nil
}

// use finds a node and keeps its descriptor open until done.
func (t *Tree) use(id uint64) (*node, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	n := t.nodes[id]
	if n == nil {
		return nil, unix.ESTALE
	}
	if n.fd < 0 {
		if err := t.open(n); err != nil {
			return nil, err
		}
	}
	n.users++
	t.paths.use(n)
	return n, nil
}

// done ends a use, and closes descriptors that are too many.
func (t *Tree) done(n *node) {
	t.mu.Lock()
	defer t.mu.Unlock()
	n.users--
	t.drop(n)
	t.trim()
}

// trim closes the descriptors that were not used for the longest time. t.mu is
// held.
func (t *Tree) trim() {
	for n := t.paths.first; n != nil && t.paths.len > t.maxPaths; {
		next := n.next
		if n.users == 0 && !n.pinned {
			n.close(t)
		}
		n = next
	}
}

// with calls fn with a node in use.
func (t *Tree) with(id uint64, fn func(n *node) error) fuse.Status {
	n, err := t.use(id)
	if err != nil {
		return fuse.ToStatus(err)
	}
	defer t.done(n)
	return fuse.ToStatus(fn(n))
}

// list is a list of nodes with a descriptor.
type list struct {
	first, last *node
	len         int
}

// use makes n the last.
func (l *list) use(n *node) {
	if n.listed && l.last == n {
		return
	}
	l.remove(n)
	n.prev, n.next, n.listed = l.last, nil, true
	if l.last != nil {
		l.last.next = n
	} else {
		l.first = n
	}
	l.last = n
	l.len++
}

func (l *list) remove(n *node) {
	if !n.listed {
		return
	}
	if n.prev != nil {
		n.prev.next = n.next
	} else {
		l.first = n.next
	}
	if n.next != nil {
		n.next.prev = n.prev
	} else {
		l.last = n.prev
	}
	n.prev, n.next, n.listed = nil, nil, false
	l.len--
}
