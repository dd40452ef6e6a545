package kernelstore

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"
	"time"
)

// lock takes the store's lock, waiting for other processes until ctx ends.
// If it has to wait it says so on progress.
func (s *Store) lock(ctx context.Context, progress io.Writer) (unlock func(), err error) {
	if err := os.MkdirAll(s.dir, 0o755); err != nil {
		return nil, err
	}
	f, err := os.OpenFile(filepath.Join(s.dir, "lock"), os.O_RDWR|os.O_CREATE, 0o644)
	if err != nil {
		return nil, err
	}
	for told := false; ; {
		err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB)
		if err == nil {
			return func() { f.Close() }, nil
		}
		if !errors.Is(err, syscall.EWOULDBLOCK) && !errors.Is(err, syscall.EINTR) {
			f.Close()
			return nil, fmt.Errorf("lock %s: %w", f.Name(), err)
		}
		if !told {
			say(progress, "waiting for another ring3 that changes %s", s.dir)
			told = true
		}
		select {
		case <-ctx.Done():
			f.Close()
			return nil, ctx.Err()
		case <-time.After(50 * time.Millisecond):
		}
	}
}

// tempDir makes a directory for work in progress, which the caller removes,
// with an empty directory "new" in it. It removes what earlier, killed
// processes left: the lock is held, so nobody else works there.
func (s *Store) tempDir() (work, fresh string, err error) {
	work = filepath.Join(s.dir, "tmp")
	if err := os.RemoveAll(work); err != nil {
		return "", "", err
	}
	fresh = filepath.Join(work, "new")
	return work, fresh, os.MkdirAll(fresh, 0o755)
}

// replace renames the directory from to to, out of the way of which anything
// old goes first. The lock is held; from is below tmp/.
func (s *Store) replace(from, to string) error {
	if err := os.MkdirAll(filepath.Dir(to), 0o755); err != nil {
		return err
	}
	if err := os.Chmod(from, 0o755); err != nil {
		return err
	}
	old := from + ".old"
	err := os.Rename(to, old)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	had := err == nil
	if err := os.Rename(from, to); err != nil {
		if had {
			os.Rename(old, to)
		}
		return err
	}
	return os.RemoveAll(old)
}

// copyFile writes size bytes of r to a new file.
func copyFile(ctx context.Context, path string, r io.ReaderAt, size int64) (err error) {
	w, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o644)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, w.Close()) }()
	_, err = io.Copy(w, &ctxReader{ctx, io.NewSectionReader(r, 0, size)})
	return err
}

// ctxReader fails once ctx has ended.
type ctxReader struct {
	ctx context.Context
	r   io.Reader
}

func (c *ctxReader) Read(p []byte) (int, error) {
	if err := c.ctx.Err(); err != nil {
		return 0, err
	}
	return c.r.Read(p)
}

// say writes a line of progress.
func say(w io.Writer, format string, args ...any) {
	if w != nil {
		fmt.Fprintf(w, format+"\n", args...)
	}
}
