package disk

import (
	"errors"
	"os"
	"sync"
)

// blockSize is the unit in which a snapshot copies, in bytes.
const blockSize = 4096

// snapshot is an image over another, which it never changes: what is written
// goes to a file without a name, in the directory for temporary files, that
// vanishes with the process.
type snapshot struct {
	base Image
	over *raw

	mu    sync.RWMutex // writers change which blocks are over the base
	dirty bitmap
}

func newSnapshot(base Image) (*snapshot, error) {
	f, err := os.CreateTemp("", "ring3-snapshot-")
	if err != nil {
		return nil, err
	}
	if err := errors.Join(os.Remove(f.Name()), f.Truncate(base.Size())); err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return &snapshot{base: base, over: &raw{f: f, size: base.Size()}, dirty: bitmap{}}, nil
}

// Size implements Image.
func (s *snapshot) Size() int64 { return s.base.Size() }

// Close implements Image.
func (s *snapshot) Close() error { return errors.Join(s.over.Close(), s.base.Close()) }

// Flush implements Image. What is thrown away needs no stable storage.
func (s *snapshot) Flush() error { return nil }

// ReadAt implements Image.
func (s *snapshot) ReadAt(bufs [][]byte, off int64) error {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return s.read(Image.ReadAt, bufs, off)
}

// ReadCached implements Image.
func (s *snapshot) ReadCached(bufs [][]byte, off int64) bool {
	if !s.mu.TryRLock() {
		return false
	}
	defer s.mu.RUnlock()
	return s.read(readCached, bufs, off) == nil
}

// read reads each piece from the layer that has it.
func (s *snapshot) read(from reader, bufs [][]byte, off int64) error {
	return pieces(bufs, off, func(b []byte, off int64) (int64, error) {
		n, dirty := s.run(off, int64(len(b)))
		layer := s.base
		if dirty {
			layer = s.over
		}
		return n, from(layer, [][]byte{b[:n]}, off)
	})
}

// run is how many of n bytes at off are in the same layer, and whether that is
// the upper one.
func (s *snapshot) run(off, n int64) (same int64, dirty bool) {
	dirty = s.dirty.get(off / blockSize)
	same = blockSize - off%blockSize
	for same < n && s.dirty.get((off+same)/blockSize) == dirty {
		same += blockSize
	}
	return min(same, n), dirty
}

// WriteAt implements Image.
func (s *snapshot) WriteAt(bufs [][]byte, off int64) error {
	n := int64(0)
	for _, b := range bufs {
		n += int64(len(b))
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.copyEnds(off, n); err != nil {
		return err
	}
	if err := s.over.WriteAt(bufs, off); err != nil {
		return err
	}
	s.mark(off, n)
	return nil
}

// copyEnds takes over those blocks of a range that it covers in part.
func (s *snapshot) copyEnds(off, n int64) error {
	end := off + n
	for _, block := range []int64{off / blockSize, (end - 1) / blockSize} {
		from, to := block*blockSize, min((block+1)*blockSize, s.Size())
		if s.dirty.get(block) || off <= from && end >= to {
			continue
		}
		b := [][]byte{make([]byte, to-from)}
		if err := s.base.ReadAt(b, from); err != nil {
			return err
		}
		if err := s.over.WriteAt(b, from); err != nil {
			return err
		}
		s.dirty.set(block)
	}
	return nil
}

func (s *snapshot) mark(off, n int64) {
	for block := off / blockSize; block*blockSize < off+n; block++ {
		s.dirty.set(block)
	}
}

// Zero implements Image.
func (s *snapshot) Zero(off, n int64, _ bool) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.copyEnds(off, n); err != nil {
		return err
	}
	if err := s.over.Zero(off, n, true); err != nil {
		return err
	}
	s.mark(off, n)
	return nil
}

// Discard implements Image.
func (s *snapshot) Discard(off, n int64) error { return s.Zero(off, n, true) }

// bitmap is a set of block numbers, in pieces of which most are never needed.
type bitmap map[int64]*[512]uint64

const pieceBits = 512 * 64

func (m bitmap) get(n int64) bool {
	p := m[n/pieceBits]
	return p != nil && p[n%pieceBits/64]>>(n%64)&1 != 0
}

func (m bitmap) set(n int64) {
	p := m[n/pieceBits]
	if p == nil {
		p = new([512]uint64)
		m[n/pieceBits] = p
	}
	p[n%pieceBits/64] |= 1 << (n % 64)
}
