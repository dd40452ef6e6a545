package vmdir

import (
	"errors"
	"io"
	"io/fs"
	"os"
	"sync"
	"time"
)

// LogSize bounds a log: when a file has as many bytes it becomes FILE.1, in
// place of the one before, and a new one begins.
const LogSize = 1 << 20

// logDelay is how long what is written may wait for more.
const logDelay = 100 * time.Millisecond

// Log is a writer to a file of bounded size. A guest writes its console byte by
// byte, so writes are gathered. An error of the file is kept for Close: a full
// disk must not stop a machine.
type Log struct {
	path string

	mu     sync.Mutex
	f      *os.File
	size   int
	buf    []byte
	timer  *time.Timer // nil while buf is empty
	err    error
	closed bool
}

// CreateLog begins a log.
func CreateLog(path string) (*Log, error) {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return nil, err
	}
	return &Log{path: path, f: f}, nil
}

// Write implements io.Writer and never fails.
func (l *Log) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed {
		return len(p), nil
	}
	for rest := p; len(rest) > 0; {
		n := min(len(rest), LogSize-l.size-len(l.buf))
		l.buf = append(l.buf, rest[:n]...)
		rest = rest[n:]
		if l.size+len(l.buf) == LogSize {
			l.flush()
			l.rotate()
		} else if len(l.buf) >= 32<<10 {
			l.flush()
		}
	}
	if len(l.buf) > 0 && l.timer == nil {
		l.timer = time.AfterFunc(logDelay, func() {
			l.mu.Lock()
			defer l.mu.Unlock()
			l.flush()
		})
	}
	return len(p), nil
}

// flush writes what was gathered. l.mu is held.
func (l *Log) flush() {
	if l.timer != nil {
		l.timer.Stop()
		l.timer = nil
	}
	if len(l.buf) > 0 && !l.closed {
		_, err := l.f.Write(l.buf)
		l.keep(err)
		l.size += len(l.buf)
		l.buf = l.buf[:0]
	}
}

// rotate begins a new file. l.mu is held.
func (l *Log) rotate() {
	l.size = 0
	if err := os.Rename(l.path, l.path+".1"); err != nil {
		l.keep(err)
		l.keep(l.f.Truncate(0))
		return
	}
	f, err := os.OpenFile(l.path, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		l.keep(err)
		l.keep(l.f.Truncate(0)) // the old file, under its new name
		return
	}
	l.keep(l.f.Close())
	l.f = f
}

func (l *Log) keep(err error) {
	if l.err == nil {
		l.err = err
	}
}

// Close writes the rest and returns the first error of all.
func (l *Log) Close() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed {
		return nil
	}
	l.flush()
	l.closed = true
	l.keep(l.f.Close())
	return l.err
}

// CopyLog copies the log at path to w. With more it goes on with what is added,
// until more returns false and all is copied.
func CopyLog(w io.Writer, path string, more func() bool) error {
	if err := copyFile(w, path+".1"); err != nil {
		return err
	}
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer func() { f.Close() }()
	for {
		last := more == nil || !more()
		if _, err := io.Copy(w, f); err != nil {
			return err
		}
		// What is renamed gets nothing more, and was read to its end.
		if next, err := os.Open(path); err == nil {
			a, aerr := f.Stat()
			b, berr := next.Stat()
			if aerr == nil && berr == nil && !os.SameFile(a, b) {
				if _, err := io.Copy(w, f); err != nil {
					next.Close()
					return err
				}
				f.Close()
				f = next
				continue
			}
			next.Close()
		}
		if last {
			return nil
		}
		time.Sleep(logDelay)
	}
}

// copyFile copies a file that need not exist.
func copyFile(w io.Writer, path string) error {
	f, err := os.Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	defer f.Close()
	_, err = io.Copy(w, f)
	return err
}
