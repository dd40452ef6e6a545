// Package kernelstore keeps what ring3 needs from outside: guest kernels, the
// BusyBox of the built-in userland, and unpacked kernels that would take long
// to unpack again. It lives in the user's cache directory and needs no root.
//
//	kernels/NAME/    one kernel: vmlinuz, and where known config, System.map,
//	                 modules/ (the content of /lib/modules/RELEASE), meta.json
//	tools/NAME/      a program for the guest, meta.json
//	unpacked/        unpacked kernels by hash, bounded
//	apt/             private package lists, if the system has none
//	tmp/             work in progress; whatever is here without a running
//	                 ring3 is garbage
//	lock             held while kernels/, tools/, apt/ or tmp/ change
//
// Entries appear and vanish by rename, so that readers need no lock and an
// interrupted change leaves nothing half-written.
package kernelstore

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"time"

	"ring3/internal/boot"
)

// Store is a directory with guest kernels. It may be used by any number of
// goroutines and processes at once.
type Store struct{ dir string }

// Open returns the store in dir, or the user's store, $XDG_CACHE_HOME/ring3 or
// ~/.cache/ring3, if dir is empty. Nothing is created until it is needed.
func Open(dir string) (*Store, error) {
	if dir == "" {
		base, err := os.UserCacheDir()
		if err != nil {
			return nil, &Error{What: "no cache directory", Err: err, Mend: "set HOME or XDG_CACHE_HOME"}
		}
		dir = filepath.Join(base, "ring3")
	}
	return &Store{dir: dir}, nil
}

// Dir returns the store's directory.
func (s *Store) Dir() string { return s.dir }

// Kernel is a guest kernel in the store or, from Lookup, any kernel file.
type Kernel struct {
	Name    string    `json:"name"`              // "" for a file outside the store
	Flavour string    `json:"flavour,omitempty"` // as given to Fetch
	Package string    `json:"package,omitempty"` // distribution package it is from
	Version string    `json:"version,omitempty"` // of the package
	Release string    `json:"release,omitempty"` // as uname -r prints it
	Added   time.Time `json:"added"`
	Image   string    `json:"-"` // path of bzImage or vmlinux
	Modules string    `json:"-"` // directory with its modules, "" if there is none
}

const (
	metaFile  = "meta.json"
	imageFile = "vmlinuz"
	modsDir   = "modules"
)

// Error is a failure of the store that the user can do something about.
type Error struct {
	What string // one line
	Err  error  // cause, may be nil
	Mend string // what to do, one line, may be empty
}

// Error implements error.
func (e *Error) Error() string {
	s := e.What
	if e.Err != nil {
		s += ": " + e.Err.Error()
	}
	if e.Mend != "" {
		s += " (" + e.Mend + ")"
	}
	return s
}

// Unwrap returns the cause.
func (e *Error) Unwrap() error { return e.Err }

// ErrNotFound is what Lookup and Default fail with when there is no such
// kernel.
var ErrNotFound = errors.New("no such kernel in the store")

// List returns the kernels of the store, the latest first.
func (s *Store) List() ([]Kernel, error) {
	ents, err := os.ReadDir(filepath.Join(s.dir, "kernels"))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	var ks []Kernel
	for _, e := range ents {
		if k, err := s.load(e.Name()); err == nil {
			ks = append(ks, k)
		}
	}
	slices.SortStableFunc(ks, func(a, b Kernel) int { return b.Added.Compare(a.Added) })
	return ks, nil
}

// load reads the kernel called name.
func (s *Store) load(name string) (Kernel, error) {
	var k Kernel
	if !validName.MatchString(name) {
		return k, ErrNotFound
	}
	dir := filepath.Join(s.dir, "kernels", name)
	b, err := os.ReadFile(filepath.Join(dir, metaFile))
	if errors.Is(err, fs.ErrNotExist) {
		return k, ErrNotFound
	}
	if err != nil {
		return k, err
	}
	if err := json.Unmarshal(b, &k); err != nil {
		return k, fmt.Errorf("%s: %w", filepath.Join(dir, metaFile), err)
	}
	k.Name = name
	k.Image = filepath.Join(dir, imageFile)
	if st, err := os.Stat(filepath.Join(dir, modsDir)); err == nil && st.IsDir() {
		k.Modules = filepath.Join(dir, modsDir)
	}
	return k, nil
}

// Default returns the kernel to boot when none is named: the latest cloud
// kernel, or else the latest of any kind.
func (s *Store) Default() (Kernel, error) {
	k, err := s.byFlavour(Cloud)
	if !errors.Is(err, ErrNotFound) {
		return k, err
	}
	ks, err := s.List()
	if err != nil {
		return Kernel{}, err
	}
	if len(ks) == 0 {
		return Kernel{}, &Error{What: "there is no guest kernel", Err: ErrNotFound, Mend: "ring3 kernel fetch"}
	}
	return ks[0], nil
}

func (s *Store) byFlavour(flavour string) (Kernel, error) {
	ks, err := s.List()
	if err != nil {
		return Kernel{}, err
	}
	for _, k := range ks {
		if k.Flavour == flavour {
			return k, nil
		}
	}
	return Kernel{}, ErrNotFound
}

// Lookup finds a kernel by name, by flavour (the latest of it), or by the path
// of a file, in this order unless what holds a slash.
func (s *Store) Lookup(what string) (Kernel, error) {
	if !strings.Contains(what, "/") {
		k, err := s.load(what)
		if errors.Is(err, ErrNotFound) {
			k, err = s.byFlavour(what)
		}
		if !errors.Is(err, ErrNotFound) {
			return k, err
		}
	}
	if _, err := os.Stat(what); err == nil {
		return Kernel{Image: what}, nil
	} else if strings.Contains(what, "/") {
		return Kernel{}, &Error{What: what, Err: errors.Unwrap(err)}
	}
	return Kernel{}, &Error{What: what, Err: ErrNotFound, Mend: "ring3 kernel list"}
}

var validName = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._+-]{0,99}$`)

// Add copies the kernel in file into the store. An empty name stands for the
// release that the kernel tells. A kernel of the same name is replaced.
func (s *Store) Add(ctx context.Context, file, name string) (Kernel, error) {
	f, closer, err := boot.OpenFile(file)
	if err != nil {
		return Kernel{}, err
	}
	defer closer.Close()
	info, err := boot.Identify(f)
	if err != nil {
		return Kernel{}, err
	}
	if name == "" {
		if name = info.Release(); !validName.MatchString(name) {
			name = filepath.Base(file)
		}
	}
	if !validName.MatchString(name) {
		return Kernel{}, &Error{What: fmt.Sprintf("%q cannot be the name of a kernel", name),
			Mend: "use letters, digits and ._+-"}
	}
	unlock, err := s.lock(ctx, nil)
	if err != nil {
		return Kernel{}, err
	}
	defer unlock()
	work, tmp, err := s.tempDir()
	if err != nil {
		return Kernel{}, err
	}
	defer os.RemoveAll(work)
	if err := copyFile(ctx, filepath.Join(tmp, imageFile), f.Data, f.Size); err != nil {
		return Kernel{}, err
	}
	return s.commit(tmp, Kernel{Name: name, Release: info.Release(), Added: time.Now()})
}

// commit moves the kernel built in tmp to its place. The lock is held.
func (s *Store) commit(tmp string, k Kernel) (Kernel, error) {
	if err := writeMeta(tmp, k); err != nil {
		return k, err
	}
	if err := s.replace(tmp, filepath.Join(s.dir, "kernels", k.Name)); err != nil {
		return k, err
	}
	return s.load(k.Name)
}

func writeMeta(dir string, v any) error {
	b, err := json.MarshalIndent(v, "", "  ")
	if err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(dir, metaFile), append(b, '\n'), 0o644)
}
