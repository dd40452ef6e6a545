package disk

import (
	"errors"
	"fmt"
	"path/filepath"
	"sync"
)

// qcow2 is an image in QEMU's format. What its header and tables say is input:
// it is checked, and nothing is allocated by it that is larger than a cluster or
// a first table.
//
// Source: QEMU, docs/interop/qcow2.txt; all numbers are big-endian.
//
//	guest offset:	| first table index | second table index | offset in cluster |
//	first table (L1):  offset of a second table, or 0
//	second table (L2): where a cluster is: nowhere, zeros, plain, compressed
type qcow2 struct {
	file    *raw
	size    int64
	bits    uint     // of the size of a cluster
	l1      []uint64 // first table
	inflate inflater
	backing Image // nil: none
	version uint32

	mu sync.RWMutex // for writing: when something changes where clusters are
	w  *qcow2Writer // nil: read only

	unpack   sync.Mutex
	lastAt   uint64 // descriptor of the compressed cluster that was unpacked last
	lastData []byte // what was in it; nil: none
}

// Header fields.
const (
	qcowMagic         = "QFI\xfb"
	qcowVersion       = 4  // u32: 2 or 3
	qcowBackingOffset = 8  // u64
	qcowBackingSize   = 16 // u32
	qcowClusterBits   = 20 // u32
	qcowSize          = 24 // u64, bytes
	qcowCrypt         = 32 // u32
	qcowL1Size        = 36 // u32, entries
	qcowL1Offset      = 40 // u64
	qcowRefOffset     = 48 // u64
	qcowRefClusters   = 56 // u32
	qcowSnapshots     = 60 // u32
	qcowIncompatible  = 72 // u64, from version 3 on
	qcowAutoclear     = 88 // u64
	qcowRefOrder      = 96 // u32: reference counts have 2^n bits
	qcowHeaderLength  = 100
	qcowCompression   = 104 // u8, if the header is so long
	qcowHeaderMax     = 112
	qcowHeaderV2      = 72

	qcowBackingMax = 1023 // bytes of a name

	extensionEnd           = 0
	extensionBackingFormat = 0xe2792aca
)

// Incompatible features.
const (
	qcowDirty        = 1 << 0 // reference counts are wrong; reading needs none
	qcowCorrupt      = 1 << 1
	qcowExternal     = 1 << 2
	qcowCompressed   = 1 << 3 // the compression is not deflate
	qcowExtendedL2   = 1 << 4
	qcowCanBeIgnored = qcowDirty | qcowCompressed
)

// Bounds. QEMU has the same for clusters and the first table.
const (
	minClusterBits = 9
	maxClusterBits = 21
	maxL1          = 4 << 20 // entries
	maxBacking     = 8       // images below each other
)

// openQcow2 opens the qcow2 image in file, and those below it. depth is how many
// are above it.
func openQcow2(file *raw, writable bool, depth int) (_ *qcow2, err error) {
	name := file.f.Name()
	bad := func(format string, args ...any) error {
		return &Error{name, "is a qcow2 image, and " + fmt.Sprintf(format, args...), ""}
	}
	convert := func(what string) error {
		return &Error{name, "is a qcow2 image with " + what + ", which ring3 cannot read", "qemu-img convert -O raw " + name + " NEW"}
	}
	h := make([]byte, min(qcowHeaderMax, file.size))
	if _, err := file.f.ReadAt(h, 0); err != nil {
		return nil, err
	}
	if len(h) < qcowHeaderMax {
		return nil, bad("too short")
	}
	q := &qcow2{file: file, bits: uint(be.Uint32(h[qcowClusterBits:])), size: int64(be.Uint64(h[qcowSize:]))}
	headerEnd, compression := int64(qcowHeaderV2), byte(0)
	version := be.Uint32(h[qcowVersion:])
	q.version = version
	switch {
	case version != 2 && version != 3:
		return nil, bad("of version %d, not 2 or 3", version)
	case q.bits < minClusterBits || q.bits > maxClusterBits:
		return nil, bad("has clusters of 2^%d bytes", q.bits)
	case q.size <= 0 || q.size%SectorSize != 0:
		return nil, bad("has a size of %d bytes, not a multiple of %d", uint64(q.size), SectorSize)
	case be.Uint32(h[qcowCrypt:]) != 0:
		return nil, convert("encryption")
	}
	if version == 3 {
		headerEnd = int64(be.Uint32(h[qcowHeaderLength:]))
		if headerEnd > qcowCompression {
			compression = h[qcowCompression]
		}
		switch f := be.Uint64(h[qcowIncompatible:]); {
		case f&qcowCorrupt != 0:
			return nil, &Error{name, "is a qcow2 image that is marked as damaged", "qemu-img check -r all " + name}
		case f&qcowExternal != 0:
			return nil, convert("an external data file")
		case f&qcowExtendedL2 != 0:
			return nil, convert("subclusters")
		case f&^uint64(qcowCanBeIgnored) != 0:
			return nil, convert(fmt.Sprintf("features %#x", f))
		}
	}
	if q.inflate = inflaters[compression]; q.inflate == nil {
		return nil, convert(fmt.Sprintf("compression %d", compression))
	}
	if err := q.readL1(int64(be.Uint64(h[qcowL1Offset:])), be.Uint32(h[qcowL1Size:])); err != nil {
		return nil, bad("%v", err)
	}
	if writable {
		if q.w, err = newQcow2Writer(q, h); err != nil {
			return nil, err
		}
	}
	if at := int64(be.Uint64(h[qcowBackingOffset:])); at != 0 {
		n := be.Uint32(h[qcowBackingSize:])
		if n == 0 || n > qcowBackingMax {
			return nil, bad("names the image below it with %d bytes", n)
		}
		b := make([]byte, n)
		if _, err := file.f.ReadAt(b, at); err != nil {
			return nil, bad("the name of the image below it: %v", err)
		}
		if q.backing, err = q.openBacking(string(b), q.backingFormat(headerEnd), depth); err != nil {
			return nil, fmt.Errorf("%s: the image below it: %w", name, err)
		}
	}
	return q, nil
}

// readL1 reads the first table, as much of it as the image's size needs.
func (q *qcow2) readL1(off int64, have uint32) error {
	span := int64(1) << (q.bits + q.bits - 3) // bytes that an entry covers
	need := (q.size-1)/span + 1
	if need > maxL1 || need > int64(have) {
		return fmt.Errorf("its first table has %d entries, needs %d, can have %d", have, need, maxL1)
	}
	b := make([]byte, need*8)
	if _, err := q.file.f.ReadAt(b, off); err != nil {
		return fmt.Errorf("its first table: %w", err)
	}
	q.l1 = make([]uint64, need)
	for i := range q.l1 {
		q.l1[i] = be.Uint64(b[8*i:])
	}
	return nil
}

// backingFormat looks through the header's extensions, which begin at off, for
// the format of the image below; "" if they do not tell. They are in the first
// cluster, and early there.
func (q *qcow2) backingFormat(off int64) string {
	b := make([]byte, min(1<<q.bits, 4096, q.file.size))
	if _, err := q.file.f.ReadAt(b, 0); err != nil {
		return ""
	}
	for off >= 0 && off+8 <= int64(len(b)) {
		kind, n := be.Uint32(b[off:]), int64(be.Uint32(b[off+4:]))
		off += 8
		switch {
		case kind == extensionEnd:
			return ""
		case kind == extensionBackingFormat && off+n <= int64(len(b)):
			return string(b[off : off+n])
		}
		off += (n + 7) &^ 7
	}
	return ""
}

// openBacking opens the image below. Its name is relative to the directory of
// this one.
func (q *qcow2) openBacking(name, format string, depth int) (Image, error) {
	if !filepath.IsAbs(name) {
		name = filepath.Join(filepath.Dir(q.file.f.Name()), name)
	}
	if depth++; depth > maxBacking {
		return nil, &Error{name, fmt.Sprintf("there are more than %d images below each other", maxBacking), ""}
	}
	switch format {
	case "", Raw, Qcow2:
	default:
		return nil, &Error{name, fmt.Sprintf("has the format %q, not raw or qcow2", format), ""}
	}
	return openFile(Options{Path: name, ReadOnly: true, Format: format}, depth)
}

// Size implements Image.
func (q *qcow2) Size() int64 { return q.size }

// Close implements Image.
func (q *qcow2) Close() error {
	var err error
	if q.w != nil {
		err = errors.Join(q.Flush(), q.file.f.Truncate(q.w.next))
	}
	err = errors.Join(err, q.file.Close())
	if q.backing != nil {
		err = errors.Join(err, q.backing.Close())
	}
	return err
}

// ReadAt implements Image.
func (q *qcow2) ReadAt(bufs [][]byte, off int64) error {
	q.mu.RLock()
	defer q.mu.RUnlock()
	return q.read(Image.ReadAt, bufs, off)
}

// ReadCached implements Image.
func (q *qcow2) ReadCached(bufs [][]byte, off int64) bool {
	if !q.mu.TryRLock() {
		return false
	}
	defer q.mu.RUnlock()
	return q.read(readCached, bufs, off) == nil
}
