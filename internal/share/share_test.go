package share

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"
)

// world is a share with a secret beside it.
type world struct {
	t      testing.TB
	tree   *Tree
	dir    string // the share
	secret string // a file outside
}

func open(t testing.TB, ro bool) *world {
	t.Helper()
	top := t.TempDir()
	w := &world{t: t, dir: filepath.Join(top, "share"), secret: filepath.Join(top, "secret")}
	for _, err := range []error{
		os.WriteFile(w.secret, []byte("secret"), 0o600),
		os.MkdirAll(filepath.Join(w.dir, "d/e"), 0o755),
		os.WriteFile(filepath.Join(w.dir, "f"), []byte("content"), 0o644),
		os.Symlink("../secret", filepath.Join(w.dir, "link")),
		os.Symlink("..", filepath.Join(w.dir, "up")),
		unix.Mkfifo(filepath.Join(w.dir, "fifo"), 0o644),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	var err error
	if w.tree, err = Open(Options{Path: w.dir, ReadOnly: ro}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { w.tree.Close() })
	return w
}

func header(node uint64) fuse.InHeader { return fuse.InHeader{NodeId: node} }

// look looks up a path of several names; status is that of the last.
func (w *world) look(from uint64, names ...string) (node uint64, status fuse.Status) {
	for _, name := range names {
		var out fuse.EntryOut
		h := header(from)
		if status = w.tree.Lookup(nil, &h, name, &out); !status.Ok() {
			return 0, status
		}
		from = out.NodeId
	}
	return from, status
}

// must is look for what is there.
func (w *world) must(names ...string) uint64 {
	w.t.Helper()
	n, status := w.look(fuse.FUSE_ROOT_ID, names...)
	if !status.Ok() || n == 0 {
		w.t.Fatalf("%v: node %d, %v", names, n, status)
	}
	return n
}

func (w *world) read(fh uint64) string {
	w.t.Helper()
	r, status := w.tree.Read(nil, &fuse.ReadIn{Fh: fh, Size: 100}, nil)
	if !status.Ok() {
		w.t.Fatal(status)
	}
	defer r.Done()
	b, status := r.Bytes(make([]byte, 100))
	if !status.Ok() {
		w.t.Fatal(status)
	}
	return string(b)
}

func (w *world) opened(node uint64, flags uint32) uint64 {
	w.t.Helper()
	var out fuse.OpenOut
	if status := w.tree.Open(nil, &fuse.OpenIn{InHeader: header(node), Flags: flags}, &out); !status.Ok() {
		w.t.Fatal(status)
	}
	return out.Fh
}

// badNames would lead somewhere else if they were paths.
var badNames = []string{"", ".", "..", "/", "d/e", "../secret", "d/../f", "/etc/passwd", "f/", "./f"}

// TestNames gives all operations names that are none.
func TestNames(t *testing.T) {
	w := open(t, false)
	root, f := header(fuse.FUSE_ROOT_ID), w.must("f")
	for _, name := range badNames {
		var e fuse.EntryOut
		var c fuse.CreateOut
		for op, status := range map[string]fuse.Status{
			"lookup":    w.tree.Lookup(nil, &root, name, &e),
			"mkdir":     w.tree.Mkdir(nil, &fuse.MkdirIn{InHeader: root, Mode: 0o755}, name, &e),
			"mknod":     w.tree.Mknod(nil, &fuse.MknodIn{InHeader: root, Mode: unix.S_IFREG | 0o644}, name, &e),
			"symlink":   w.tree.Symlink(nil, &root, "x", name, &e),
			"link":      w.tree.Link(nil, &fuse.LinkIn{InHeader: root, Oldnodeid: f}, name, &e),
			"unlink":    w.tree.Unlink(nil, &root, name),
			"rmdir":     w.tree.Rmdir(nil, &root, name),
			"create":    w.tree.Create(nil, &fuse.CreateIn{InHeader: root, Mode: 0o644}, name, &c),
			"rename":    w.tree.Rename(nil, &fuse.RenameIn{InHeader: root, Newdir: fuse.FUSE_ROOT_ID}, "f", name),
			"rename of": w.tree.Rename(nil, &fuse.RenameIn{InHeader: root, Newdir: fuse.FUSE_ROOT_ID}, name, "g"),
		} {
			if status.Ok() || e.NodeId != 0 || c.NodeId != 0 {
				t.Errorf("%s %q: %v", op, name, status)
			}
		}
	}
	if b, err := os.ReadFile(w.secret); err != nil || string(b) != "secret" {
		t.Errorf("%q, %v", b, err)
	}
	if _, err := os.Stat(filepath.Join(w.dir, "f")); err != nil {
		t.Error(err)
	}
}

// TestSymlinkParent uses symbolic links as directories, and as files.
func TestSymlinkParent(t *testing.T) {
	w := open(t, false)
	for _, name := range []string{"link", "up"} {
		n := w.must(name)
		h := header(n)
		var e fuse.EntryOut
		var c fuse.CreateOut
		var o fuse.OpenOut
		var a fuse.AttrOut
		size := fuse.SetAttrIn{SetAttrInCommon: fuse.SetAttrInCommon{InHeader: h, Valid: fuse.FATTR_SIZE}}
		mode := fuse.SetAttrIn{SetAttrInCommon: fuse.SetAttrInCommon{InHeader: h, Valid: fuse.FATTR_MODE, Mode: 0o777}}
		for op, status := range map[string]fuse.Status{
			"lookup":   w.tree.Lookup(nil, &h, "secret", &e),
			"mkdir":    w.tree.Mkdir(nil, &fuse.MkdirIn{InHeader: h, Mode: 0o755}, "x", &e),
			"symlink":  w.tree.Symlink(nil, &h, "y", "x", &e),
			"unlink":   w.tree.Unlink(nil, &h, "secret"),
			"create":   w.tree.Create(nil, &fuse.CreateIn{InHeader: h, Mode: 0o644}, "x", &c),
			"open":     w.tree.Open(nil, &fuse.OpenIn{InHeader: h}, &o),
			"opendir":  w.tree.OpenDir(nil, &fuse.OpenIn{InHeader: h}, &o),
			"truncate": w.tree.SetAttr(nil, &size, &a),
			"chmod":    w.tree.SetAttr(nil, &mode, &a),
			"rename":   w.tree.Rename(nil, &fuse.RenameIn{InHeader: h, Newdir: fuse.FUSE_ROOT_ID}, "secret", "x"),
		} {
			if status.Ok() {
				t.Errorf("%s below %s succeeds", op, name)
			}
		}
	}
	h := header(w.must("link"))
	if to, status := w.tree.Readlink(nil, &h); string(to) != "../secret" || !status.Ok() {
		t.Errorf("%q, %v", to, status)
	}
	if st, err := os.Stat(w.secret); err != nil || st.Size() != 6 || st.Mode() != 0o600 {
		t.Errorf("%v, %v", st, err)
	}
	// A file that becomes a link to the outside is not followed by create.
	if err := os.Symlink("../new", filepath.Join(w.dir, "dangling")); err != nil {
		t.Fatal(err)
	}
	var c fuse.CreateOut
	status := w.tree.Create(nil, &fuse.CreateIn{InHeader: header(fuse.FUSE_ROOT_ID), Mode: 0o644, Flags: unix.O_WRONLY}, "dangling", &c)
	if _, err := os.Lstat(filepath.Join(w.dir, "../new")); status.Ok() || !errors.Is(err, os.ErrNotExist) {
		t.Errorf("create through a link: %v, %v", status, err)
	}
}

// TestSwapped has the host replace a directory by a link to the outside, after
// the guest has looked it up, with its descriptor open and closed.
func TestSwapped(t *testing.T) {
	for _, paths := range []int{1000, 0} {
		w := open(t, false)
		w.tree.maxPaths = paths
		d := w.must("d")
		w.must("f") // the last one that was used keeps its descriptor
		if err := os.Rename(filepath.Join(w.dir, "d"), filepath.Join(w.dir, "moved")); err != nil {
			t.Fatal(err)
		}
		if err := os.Symlink("..", filepath.Join(w.dir, "d")); err != nil {
			t.Fatal(err)
		}
		if n, status := w.look(d, "secret"); n != 0 {
			t.Errorf("paths %d: node %d, %v", paths, n, status)
		}
		var e fuse.EntryOut
		h := header(d)
		w.tree.Mkdir(nil, &fuse.MkdirIn{InHeader: h, Mode: 0o755}, "x", &e)
		if _, err := os.Stat(filepath.Join(w.dir, "../x")); err == nil {
			t.Error("made a directory outside")
		}
	}
}

// TestReopen: nodes whose descriptors were closed are found again, also below
// directories that the guest has renamed.
func TestReopen(t *testing.T) {
	w := open(t, false)
	w.tree.maxPaths = 0
	if err := os.WriteFile(filepath.Join(w.dir, "d/e/g"), []byte("deep"), 0o644); err != nil {
		t.Fatal(err)
	}
	g := w.must("d", "e", "g")
	status := w.tree.Rename(nil, &fuse.RenameIn{InHeader: header(fuse.FUSE_ROOT_ID), Newdir: fuse.FUSE_ROOT_ID}, "d", "n")
	if !status.Ok() {
		t.Fatal(status)
	}
	if w.tree.paths.len > 3 {
		t.Errorf("%d descriptors", w.tree.paths.len)
	}
	if s := w.read(w.opened(g, unix.O_RDONLY)); s != "deep" {
		t.Errorf("%q", s)
	}
	// One that has lost its name is still there while it is known.
	w.tree.maxPaths = 2
	e := header(w.must("n", "e"))
	if status := w.tree.Unlink(nil, &e, "g"); !status.Ok() {
		t.Fatal(status)
	}
	var a fuse.AttrOut
	if status := w.tree.GetAttr(nil, &fuse.GetAttrIn{InHeader: header(g)}, &a); !status.Ok() || a.Nlink != 0 {
		t.Errorf("%v, %d links", status, a.Nlink)
	}
	w.tree.Forget(g, 1)
	if n := len(w.tree.nodes); w.tree.pinned != 0 || w.tree.nodes[g] != nil {
		t.Errorf("%d nodes, %d pinned", n, w.tree.pinned)
	}
}

// TestForget: nothing stays of what the guest has forgotten, however it counts.
func TestForget(t *testing.T) {
	w := open(t, false)
	before := descriptors(t)
	e, f := w.must("d", "e"), w.must("f")
	d := w.must("d") // twice
	w.tree.Forget(d, 2)
	if w.tree.nodes[d] == nil {
		t.Error("a directory is gone whose entry is known")
	}
	w.tree.Forget(e, 1<<63)
	w.tree.Forget(f, 5)
	w.tree.Forget(12345, 1)
	w.tree.Forget(fuse.FUSE_ROOT_ID, 1<<63)
	if len(w.tree.nodes) != 1 || len(w.tree.byKey) != 1 {
		t.Errorf("%d nodes, %d keys", len(w.tree.nodes), len(w.tree.byKey))
	}
	w.opened(w.must("f"), unix.O_RDWR)
	w.must("d", "e")
	w.tree.Reset()
	if len(w.tree.nodes) != 1 || len(w.tree.files) != 0 {
		t.Errorf("%d nodes, %d files after a reset", len(w.tree.nodes), len(w.tree.files))
	}
	if n := descriptors(t); n != before {
		t.Errorf("%d descriptors, %d before", n, before)
	}
}

func descriptors(t testing.TB) int {
	t.Helper()
	list, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(list)
}

// TestReader: in a read-only share nothing is opened, and files are read by
// their nodes.
func TestReader(t *testing.T) {
	w := open(t, true)
	read := func(node uint64) (string, fuse.Status) {
		r, status := w.tree.Read(nil, &fuse.ReadIn{InHeader: header(node), Size: 100}, nil)
		if !status.Ok() {
			return "", status
		}
		defer r.Done()
		b, status := r.Bytes(make([]byte, 100))
		return string(b), status
	}
	before := descriptors(t)
	f := w.must("f")
	for _, paths := range []int{1000, 0} {
		w.tree.maxPaths = paths
		w.must("d")
		var o fuse.OpenOut
		if status := w.tree.Open(nil, &fuse.OpenIn{InHeader: header(f)}, &o); status != fuse.ENOSYS {
			t.Error("open: ", status)
		}
		if s, status := read(f); s != "content" || !status.Ok() {
			t.Errorf("%q, %v", s, status)
		}
	}
	for _, name := range []string{"d", "fifo", "link"} {
		if _, status := read(w.must(name)); status.Ok() {
			t.Errorf("read of %s succeeds", name)
		}
	}
	if _, status := read(999); status.Ok() {
		t.Error("read of a node that is none succeeds")
	}
	w.tree.Reset()
	if n := descriptors(t); n != before {
		t.Errorf("%d descriptors, %d before", n, before)
	}
}

// TestReadOnly: a read-only share refuses what changes it.
func TestReadOnly(t *testing.T) {
	w := open(t, true)
	root, f, d := header(fuse.FUSE_ROOT_ID), w.must("f"), w.must("d")
	const fh = 0
	var e fuse.EntryOut
	var c fuse.CreateOut
	var o fuse.OpenOut
	var a fuse.AttrOut
	written, write := w.tree.Writev(nil, &fuse.WriteIn{InHeader: header(f), Fh: fh, Size: 1}, [][]byte{{1}})
	_, copied := w.tree.CopyFileRange(nil, &fuse.CopyFileRangeIn{FhIn: fh, FhOut: fh, Len: 1})
	for op, status := range map[string]fuse.Status{
		"mkdir":     w.tree.Mkdir(nil, &fuse.MkdirIn{InHeader: root, Mode: 0o755}, "x", &e),
		"mknod":     w.tree.Mknod(nil, &fuse.MknodIn{InHeader: root, Mode: unix.S_IFREG | 0o644}, "x", &e),
		"symlink":   w.tree.Symlink(nil, &root, "x", "x", &e),
		"link":      w.tree.Link(nil, &fuse.LinkIn{InHeader: root, Oldnodeid: f}, "x", &e),
		"unlink":    w.tree.Unlink(nil, &root, "f"),
		"rmdir":     w.tree.Rmdir(nil, &fuse.InHeader{NodeId: d}, "e"),
		"create":    w.tree.Create(nil, &fuse.CreateIn{InHeader: root, Mode: 0o644}, "x", &c),
		"rename":    w.tree.Rename(nil, &fuse.RenameIn{InHeader: root, Newdir: fuse.FUSE_ROOT_ID}, "f", "x"),
		"open":      w.tree.Open(nil, &fuse.OpenIn{InHeader: header(f), Flags: unix.O_RDWR}, &o),
		"truncate":  w.tree.Open(nil, &fuse.OpenIn{InHeader: header(f), Flags: unix.O_TRUNC}, &o),
		"setattr":   w.tree.SetAttr(nil, &fuse.SetAttrIn{SetAttrInCommon: fuse.SetAttrInCommon{InHeader: header(f)}}, &a),
		"write":     write,
		"copy":      copied,
		"fallocate": w.tree.Fallocate(nil, &fuse.FallocateIn{Fh: fh, Length: 9}),
	} {
		if status != fuse.EROFS && status != fuse.EBADF {
			t.Errorf("%s: %v", op, status)
		}
	}
	if written != 0 {
		t.Error("something is written")
	}
	if b, _ := os.ReadFile(filepath.Join(w.dir, "f")); string(b) != "content" {
		t.Errorf("the file is %q", b)
	}
}

// TestKinds: what is no regular file is not opened, and device nodes are not
// made.
func TestKinds(t *testing.T) {
	w := open(t, false)
	var o fuse.OpenOut
	var e fuse.EntryOut
	var c fuse.CreateOut
	root := header(fuse.FUSE_ROOT_ID)
	for op, status := range map[string]fuse.Status{
		"open of a FIFO":       w.tree.Open(nil, &fuse.OpenIn{InHeader: header(w.must("fifo"))}, &o),
		"open of a directory":  w.tree.Open(nil, &fuse.OpenIn{InHeader: header(w.must("d"))}, &o),
		"opendir of a file":    w.tree.OpenDir(nil, &fuse.OpenIn{InHeader: header(w.must("f"))}, &o),
		"create on a FIFO":     w.tree.Create(nil, &fuse.CreateIn{InHeader: root, Flags: unix.O_RDWR}, "fifo", &c),
		"a device node":        w.tree.Mknod(nil, &fuse.MknodIn{InHeader: root, Mode: unix.S_IFCHR | 0o666, Rdev: 0x103}, "null", &e),
		"a block device node":  w.tree.Mknod(nil, &fuse.MknodIn{InHeader: root, Mode: unix.S_IFBLK | 0o666, Rdev: 0x800}, "sda", &e),
		"a node that is none":  w.tree.Open(nil, &fuse.OpenIn{InHeader: header(999)}, &o),
		"a file that is none":  w.tree.Fsync(nil, &fuse.FsyncIn{Fh: 999}),
		"a link to a director": w.tree.Link(nil, &fuse.LinkIn{InHeader: root, Oldnodeid: w.must("d")}, "x", &e),
	} {
		if status.Ok() {
			t.Errorf("%s succeeds", op)
		}
	}
	// A guest does not make programs that run as the caller.
	if status := w.tree.Create(nil, &fuse.CreateIn{InHeader: root, Mode: 0o6777, Flags: unix.O_RDWR}, "suid", &c); !status.Ok() {
		t.Fatal(status)
	}
	var a fuse.AttrOut
	mode := fuse.SetAttrIn{SetAttrInCommon: fuse.SetAttrInCommon{InHeader: header(c.NodeId), Valid: fuse.FATTR_MODE, Mode: 0o6755}}
	if status := w.tree.SetAttr(nil, &mode, &a); !status.Ok() || a.Mode != unix.S_IFREG|0o755 {
		t.Errorf("%v, mode %o", status, a.Mode)
	}
}

// TestPseudo: the kernel's own file systems are not there.
func TestPseudo(t *testing.T) {
	if _, err := Open(Options{Path: "/proc"}); err == nil {
		t.Error("/proc can be shared")
	}
	tree, err := Open(Options{Path: "/", ReadOnly: true})
	if err != nil {
		t.Fatal(err)
	}
	defer tree.Close()
	w := &world{t: t, tree: tree}
	for _, name := range []string{"proc", "sys"} {
		var st syscall.Statfs_t
		if syscall.Statfs("/"+name, &st) != nil || st.Type != unix.PROC_SUPER_MAGIC && st.Type != unix.SYSFS_MAGIC {
			t.Logf("/%s is not mounted on this host", name)
			continue
		}
		if n, status := w.look(fuse.FUSE_ROOT_ID, name); n != 0 {
			t.Errorf("/%s: node %d, %v", name, n, status)
		}
	}
}

// TestLimits: a guest cannot use up the monitor's descriptors.
func TestLimits(t *testing.T) {
	w := open(t, false)
	w.tree.maxFiles, w.tree.maxPaths = 5, 5
	f := w.must("f")
	var status fuse.Status
	for range 6 {
		var o fuse.OpenOut
		status = w.tree.Open(nil, &fuse.OpenIn{InHeader: header(f)}, &o)
	}
	if status != fuse.Status(unix.ENFILE) {
		t.Errorf("the sixth file: %v", status)
	}
	for i := range 50 {
		if err := os.WriteFile(filepath.Join(w.dir, strings.Repeat("x", i+1)), nil, 0o644); err != nil {
			t.Fatal(err)
		}
		w.must(strings.Repeat("x", i+1))
	}
	if w.tree.paths.len > 6 {
		t.Errorf("%d descriptors of nodes", w.tree.paths.len)
	}
}

func TestOpenErrors(t *testing.T) {
	for _, path := range []string{"/nonexistent/x", "/etc/passwd"} {
		var e *Error
		if _, err := Open(Options{Path: path}); !errors.As(err, &e) || !strings.HasPrefix(err.Error(), path+": ") {
			t.Errorf("%s: %v", path, err)
		}
	}
}

// TestConcurrent has several goroutines look up, rename, read and forget the
// same names, with few descriptors.
func TestConcurrent(t *testing.T) {
	w := open(t, false)
	w.tree.maxPaths = 3
	root := header(fuse.FUSE_ROOT_ID)
	var all sync.WaitGroup
	for i := range 4 {
		all.Go(func() {
			for range 300 {
				var e fuse.EntryOut
				var o fuse.OpenOut
				var a fuse.AttrOut
				names := []string{"d", "n"}
				w.tree.Rename(nil, &fuse.RenameIn{InHeader: root, Newdir: fuse.FUSE_ROOT_ID}, names[i%2], names[1-i%2])
				h := root
				if w.tree.Lookup(nil, &h, names[i%2], &e); e.NodeId == 0 {
					continue
				}
				var deep fuse.EntryOut
				h.NodeId = e.NodeId
				w.tree.Lookup(nil, &h, "e", &deep)
				w.tree.GetAttr(nil, &fuse.GetAttrIn{InHeader: header(deep.NodeId)}, &a)
				if w.tree.OpenDir(nil, &fuse.OpenIn{InHeader: header(e.NodeId)}, &o).Ok() {
					w.tree.ReadDirPlus(nil, &fuse.ReadIn{InHeader: header(e.NodeId), Fh: o.Fh}, fuse.NewDirEntryList(make([]byte, 150), 0))
					w.tree.ReleaseDir(&fuse.ReleaseIn{Fh: o.Fh})
				}
				w.tree.Forget(deep.NodeId, 9)
				w.tree.Forget(e.NodeId, 1)
			}
		})
	}
	all.Wait()
	w.tree.Reset()
	if len(w.tree.nodes) != 1 || len(w.tree.files) != 0 || w.tree.paths.len != 1 {
		t.Errorf("%d nodes, %d files, %d descriptors", len(w.tree.nodes), len(w.tree.files), w.tree.paths.len)
	}
}
