package kernelstore

import (
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

// DefaultCacheSize bounds the unpacked kernels of a store, in bytes: about
// eight stock kernels.
const DefaultCacheSize = 512 << 20

// Cache keeps unpacked kernels under their hash. It implements boot.Cache and
// forgets what was not used for longest when it is full. Failing to keep
// something is not an error.
type Cache struct {
	dir string
	max int64 // bytes
}

// Cache returns the store's cache of unpacked kernels.
func (s *Store) Cache() *Cache {
	return &Cache{dir: filepath.Join(s.dir, "unpacked"), max: DefaultCacheSize}
}

const partial = ".partial-"

func (c *Cache) path(key string) (string, error) {
	if !validName.MatchString(key) {
		return "", fs.ErrNotExist
	}
	return filepath.Join(c.dir, key), nil
}

// Get opens what is kept under key and marks it used.
func (c *Cache) Get(key string) (io.ReadCloser, error) {
	p, err := c.path(key)
	if err != nil {
		return nil, err
	}
	f, err := os.Open(p)
	if err != nil {
		return nil, err
	}
	now := time.Now()
	os.Chtimes(p, now, now)
	return f, nil
}

// Put keeps what fill writes. Its error is that of fill.
func (c *Cache) Put(key string, fill func(io.Writer) error) error {
	p, err := c.path(key)
	if err != nil || os.MkdirAll(c.dir, 0o755) != nil {
		return fill(io.Discard)
	}
	f, err := os.CreateTemp(c.dir, partial)
	if err != nil {
		return fill(io.Discard)
	}
	defer os.Remove(f.Name()) // fails once it is renamed
	w := &keeper{f: f}
	err = fill(w)
	keep := err == nil && w.err == nil && f.Sync() == nil
	if f.Close() == nil && keep && os.Rename(f.Name(), p) == nil {
		c.trim(p)
	}
	return err
}

// keeper writes to f until that fails once, and never tells.
type keeper struct {
	f   *os.File
	err error
}

func (k *keeper) Write(p []byte) (int, error) {
	if k.err == nil {
		_, k.err = k.f.Write(p)
	}
	return len(p), nil
}

// trim removes the files used least recently, all but latest, until the cache
// is small enough, and what killed processes left.
func (c *Cache) trim(latest string) {
	ents, err := os.ReadDir(c.dir)
	if err != nil {
		return
	}
	type file struct {
		path string
		used time.Time
		size int64
	}
	var files []file
	var sum int64
	for _, e := range ents {
		i, err := e.Info()
		if err != nil {
			continue
		}
		f := file{filepath.Join(c.dir, e.Name()), i.ModTime(), i.Size()}
		if strings.HasPrefix(e.Name(), partial) {
			if time.Since(f.used) > time.Hour {
				os.Remove(f.path)
			}
			continue
		}
		sum += f.size
		files = append(files, f)
	}
	slices.SortFunc(files, func(a, b file) int { return a.used.Compare(b.used) })
	for _, f := range files {
		if sum <= c.max {
			return
		}
		if f.path == latest {
			continue
		}
		if err := os.Remove(f.path); err == nil || errors.Is(err, fs.ErrNotExist) {
			sum -= f.size
		}
	}
}
