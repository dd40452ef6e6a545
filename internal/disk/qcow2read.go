package disk

import (
	"bytes"
	"compress/flate"
	"encoding/binary"
	"errors"
	"fmt"
	"io"

	"github.com/klauspost/compress/zstd"
)

var be = binary.BigEndian

// Entries of the tables.
const (
	tableOffset     = 1<<56 - 1<<9 // bits 9-55: of a second table, or of a cluster
	entryZeros      = 1 << 0
	entryCompressed = 1 << 62
	entryDescriptor = 1<<62 - 1
	entryCopied     = 1 << 63 // the reference count is 1: it may be written to
)

// read fills bufs from off on.
func (q *qcow2) read(from reader, bufs [][]byte, off int64) error {
	return pieces(bufs, off, func(b []byte, off int64) (int64, error) {
		in := off & (1<<q.bits - 1) // offset in the cluster
		b = b[:min(int64(len(b)), 1<<q.bits-in)]
		entry, err := q.entry(from, off)
		if err != nil {
			return 0, err
		}
		switch at := int64(entry & tableOffset); {
		case entry&entryCompressed != 0:
			err = q.readCompressed(from, b, in, entry&entryDescriptor)
		case entry&entryZeros != 0:
			clear(b)
		case at != 0:
			err = q.readHost(from, b, at+in)
		case q.backing != nil:
			err = q.readBacking(from, b, off)
		default:
			clear(b)
		}
		return int64(len(b)), err
	})
}

// entry is that of the second table for a guest offset, 0 if there is none. q.mu
// is held.
func (q *qcow2) entry(from reader, off int64) (uint64, error) {
	if q.w != nil {
		if e, ok := q.w.pending[off>>q.bits]; ok {
			return e, nil
		}
	}
	table := int64(q.l1[off>>(2*q.bits-3)] & tableOffset)
	if table == 0 {
		return 0, nil
	}
	var b [8]byte
	err := q.readHost(from, b[:], table+8*q.l2Index(off>>q.bits))
	return be.Uint64(b[:]), err
}

// l2Index is the place of a cluster in its second table.
func (q *qcow2) l2Index(cluster int64) int64 { return cluster & (1<<(q.bits-3) - 1) }

// readHost reads the file at off. Behind its end are zeros: an image may end
// within its last cluster.
func (q *qcow2) readHost(from reader, b []byte, off int64) error {
	n := min(max(q.file.size-off, 0), int64(len(b)))
	clear(b[n:])
	if n == 0 {
		return nil
	}
	return from(q.file, [][]byte{b[:n]}, off)
}

// readBacking reads from the image below, which may be smaller.
func (q *qcow2) readBacking(from reader, b []byte, off int64) error {
	n := min(max(q.backing.Size()-off, 0), int64(len(b)))
	clear(b[n:])
	if n == 0 {
		return nil
	}
	return from(q.backing, [][]byte{b[:n]}, off)
}

// readCompressed reads from offset in of a compressed cluster. The one that was
// last unpacked is kept: the next read is probably of the same.
func (q *qcow2) readCompressed(from reader, b []byte, in int64, descriptor uint64) error {
	q.unpack.Lock()
	defer q.unpack.Unlock()
	if q.lastAt != descriptor || q.lastData == nil {
		off, n := q.packed(descriptor)
		packed := make([]byte, n)
		if err := q.readHost(from, packed, off); err != nil {
			return err
		}
		data := make([]byte, 1<<q.bits)
		if err := q.inflate(data, packed); err != nil {
			return fmt.Errorf("compressed cluster at %#x: %w", off, err)
		}
		q.lastAt, q.lastData = descriptor, data
	}
	copy(b, q.lastData[in:])
	return nil
}

// packed is where a compressed cluster is in the file. Bits 0 to x-1 of its
// descriptor are an offset, the rest is the number of sectors behind the one that
// has that.
func (q *qcow2) packed(descriptor uint64) (off, n int64) {
	x := 62 - (q.bits - 8)
	off = int64(descriptor & (1<<x - 1))
	return off, int64(descriptor>>x+1)*SectorSize - off%SectorSize
}

// inflater unpacks to all of dst.
type inflater func(dst, packed []byte) error

// inflaters by compression type.
var inflaters = map[byte]inflater{
	0: func(dst, packed []byte) error {
		r := flate.NewReader(bytes.NewReader(packed))
		_, err := io.ReadFull(r, dst)
		return err
	},
	1: func(dst, packed []byte) error {
		r, err := zstd.NewReader(bytes.NewReader(packed), zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxWindow(1<<maxClusterBits*4))
		if err != nil {
			return err
		}
		defer r.Close()
		_, err = io.ReadFull(r, dst)
		return err
	},
}

// reader is how to read an image: ReadAt, or ReadCached with an error if it says
// no.
type reader func(from Image, bufs [][]byte, off int64) error

func readCached(from Image, bufs [][]byte, off int64) error {
	if !from.ReadCached(bufs, off) {
		return errNotCached
	}
	return nil
}

var errNotCached = errors.New("not in the host's cache")

// pieces goes through bufs, which begin at off, with read: it fills the start of
// b and says how much.
func pieces(bufs [][]byte, off int64, read func(b []byte, off int64) (int64, error)) error {
	for _, b := range bufs {
		for len(b) > 0 {
			n, err := read(b, off)
			if err != nil {
				return err
			}
			b, off = b[n:], off+n
		}
	}
	return nil
}
