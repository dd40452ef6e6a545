package initramfs

import (
	"fmt"
	"io"
	"path"
	"strings"
)

// Mode bits of a cpio entry (cpio(5)); the lower nine are permissions.
const (
	modeDir  = 0o040000
	modeReg  = 0o100000
	modeLink = 0o120000
	modeChar = 0o020000
)

// entry is one file of an archive.
type entry struct {
	path         string // without leading slash
	mode         uint32 // type and permissions
	major, minor uint32 // of a device node
	data         []byte // content, or target of a symbolic link
}

// writer writes a cpio archive in "newc" format as the kernel unpacks it
// (Documentation/driver-api/early-userspace/buffer-format.rst). Everything
// belongs to root. Directories above an entry are made as needed.
type writer struct {
	w    io.Writer
	n    int64 // bytes written
	ino  uint32
	seen map[string]bool
	err  error
}

func newWriter(w io.Writer) *writer { return &writer{w: w, seen: map[string]bool{"": true, ".": true}} }

// add writes e. A path that was written before is left as it is.
func (w *writer) add(e entry) {
	e.path = strings.TrimPrefix(path.Clean("/"+e.path), "/")
	if w.seen[e.path] {
		return
	}
	w.dir(path.Dir(e.path))
	w.seen[e.path] = true
	w.put(e)
}

// dir writes the directory p and those above it.
func (w *writer) dir(p string) {
	if !w.seen[p] {
		w.add(entry{path: p, mode: modeDir | 0o755})
	}
}

// put writes e as it is. Numbers are eight hexadecimal digits; name and data
// are padded to four bytes each.
func (w *writer) put(e entry) {
	w.ino++
	links := 1
	if e.mode&modeDir != 0 && e.mode&modeReg == 0 {
		links = 2
	}
	w.write([]byte(fmt.Sprintf("070701%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%s\x00",
		w.ino, e.mode, 0, 0, links, 0, len(e.data), 0, 0, e.major, e.minor, len(e.path)+1, 0, e.path)))
	w.pad()
	w.write(e.data)
	w.pad()
}

func (w *writer) pad() { w.write(make([]byte, -w.n&3)) }

func (w *writer) write(p []byte) {
	if w.err != nil {
		return
	}
	n, err := w.w.Write(p)
	w.n += int64(n)
	w.err = err
}

// close ends the archive and returns the first error of all.
func (w *writer) close() error {
	w.put(entry{path: "TRAILER!!!"})
	return w.err
}
