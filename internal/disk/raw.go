package disk

import (
	"errors"
	"io"
	"os"

	"golang.org/x/sys/unix"
)

// raw is an image that is a file's bytes.
type raw struct {
	f    *os.File
	size int64
}

// Size implements Image.
func (r *raw) Size() int64 { return r.size }

// Close implements Image.
func (r *raw) Close() error { return r.f.Close() }

// Flush implements Image.
func (r *raw) Flush() error { return again(func() error { return unix.Fdatasync(int(r.f.Fd())) }) }

// ReadAt implements Image.
func (r *raw) ReadAt(bufs [][]byte, off int64) error { return r.move(unix.Preadv, bufs, off) }

// ReadCached implements Image.
func (r *raw) ReadCached(bufs [][]byte, off int64) bool {
	if len(bufs) > maxVectors {
		return false
	}
	want := 0
	for _, b := range bufs {
		want += len(b)
	}
	n, err := unix.Preadv2(int(r.f.Fd()), bufs, off, unix.RWF_NOWAIT)
	return err == nil && n == want
}

// WriteAt implements Image.
func (r *raw) WriteAt(bufs [][]byte, off int64) error { return r.move(unix.Pwritev, bufs, off) }

// maxVectors is how many buffers one call takes (IOV_MAX).
const maxVectors = 1024

// move reads or writes all of bufs.
func (r *raw) move(call func(fd int, bufs [][]byte, off int64) (int, error), bufs [][]byte, off int64) error {
	for len(bufs) > 0 {
		n, err := call(int(r.f.Fd()), bufs[:min(len(bufs), maxVectors)], off)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			return err
		}
		if n == 0 {
			return io.ErrUnexpectedEOF // somebody has cut the file
		}
		off += int64(n)
		bufs = advance(bufs, n)
	}
	return nil
}

// advance is bufs without the first n bytes.
func advance(bufs [][]byte, n int) [][]byte {
	for len(bufs) > 0 && n >= len(bufs[0]) {
		n -= len(bufs[0])
		bufs = bufs[1:]
	}
	if n > 0 {
		bufs = append([][]byte{bufs[0][n:]}, bufs[1:]...)
	}
	return bufs
}

// again repeats a system call that a signal interrupts.
func again(call func() error) error {
	for {
		if err := call(); !errors.Is(err, unix.EINTR) {
			return err
		}
	}
}

func (r *raw) fallocate(mode uint32, off, n int64) error {
	return again(func() error { return unix.Fallocate(int(r.f.Fd()), mode|unix.FALLOC_FL_KEEP_SIZE, off, n) })
}

// Zero implements Image.
func (r *raw) Zero(off, n int64, unmap bool) error {
	mode := uint32(unix.FALLOC_FL_ZERO_RANGE)
	if unmap {
		mode = unix.FALLOC_FL_PUNCH_HOLE
	}
	if err := r.fallocate(mode, off, n); !unsupported(err) {
		return err
	}
	zeros := make([]byte, min(n, 1<<20))
	for n > 0 {
		part := zeros[:min(n, int64(len(zeros)))]
		if err := r.WriteAt([][]byte{part}, off); err != nil {
			return err
		}
		off, n = off+int64(len(part)), n-int64(len(part))
	}
	return nil
}

// Discard implements Image.
func (r *raw) Discard(off, n int64) error {
	if err := r.fallocate(unix.FALLOC_FL_PUNCH_HOLE, off, n); !unsupported(err) {
		return err
	}
	return nil
}

// unsupported reports whether a file system cannot do what was asked.
func unsupported(err error) bool {
	return errors.Is(err, unix.EOPNOTSUPP) || errors.Is(err, unix.ENOSYS) || errors.Is(err, unix.ENODEV)
}
