// Package kmod finds kernel modules and what they depend on, in the directory
// that a kernel package has them in. Such a package has no list of
// dependencies, which depmod(8) makes when it is installed, so the modules
// themselves are asked.
package kmod

import (
	"bufio"
	"bytes"
	"debug/elf"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strings"
)

// Module is a module's file.
type Module struct {
	Name string // with underscores
	Data []byte
}

// ErrNotFound says that a kernel has no such module, neither as a file nor
// built in.
var ErrNotFound = errors.New("the kernel has no such module")

// Find returns the named modules of the kernel whose modules are in dir, and
// all that they depend on, in the order to load them in. What is built into the
// kernel is left out. Names may be written with hyphens or underscores.
func Find(dir string, names ...string) ([]Module, error) {
	f := finder{files: map[string]string{}, seen: map[string]bool{}}
	err := filepath.WalkDir(dir, func(p string, d fs.DirEntry, err error) error {
		if name, ok := strings.CutSuffix(path.Base(p), ".ko"); ok {
			f.files[underscores(name)] = p
		}
		return err
	})
	if err != nil {
		return nil, err
	}
	builtin, err := os.ReadFile(filepath.Join(dir, "modules.builtin"))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	lines := bufio.NewScanner(bytes.NewReader(builtin))
	for lines.Scan() {
		f.seen[underscores(strings.TrimSuffix(path.Base(lines.Text()), ".ko"))] = true
	}
	for _, n := range names {
		if err := f.add(underscores(n)); err != nil {
			return nil, err
		}
	}
	return f.order, nil
}

// Join makes one list of several, each module at its first place.
func Join(lists ...[]Module) (all []Module) {
	seen := map[string]bool{}
	for _, list := range lists {
		for _, m := range list {
			if !seen[m.Name] {
				seen[m.Name] = true
				all = append(all, m)
			}
		}
	}
	return all
}

func underscores(name string) string { return strings.ReplaceAll(name, "-", "_") }

type finder struct {
	files map[string]string // by name
	seen  map[string]bool   // in order, or built in
	order []Module
}

// add appends a module behind those that it depends on.
func (f *finder) add(name string) error {
	if f.seen[name] {
		return nil
	}
	f.seen[name] = true
	file, ok := f.files[name]
	if !ok {
		return fmt.Errorf("%s: %w", name, ErrNotFound)
	}
	data, err := os.ReadFile(file)
	if err != nil {
		return err
	}
	needs, wants, err := dependencies(data)
	if err != nil {
		return fmt.Errorf("%s: %w", file, err)
	}
	for _, n := range wants {
		// What is wanted may be the name of a service, or not exist.
		if f.files[n] != "" {
			needs = append(needs, n)
		}
	}
	for _, n := range needs {
		if err := f.add(n); err != nil {
			return fmt.Errorf("needed by %s: %w", name, err)
		}
	}
	f.order = append(f.order, Module{name, data})
	return nil
}

// dependencies reads what a module says of itself: the modules whose symbols it
// uses ("depends"), and those it wants to be there ("softdep").
func dependencies(module []byte) (needs, wants []string, err error) {
	f, err := elf.NewFile(bytes.NewReader(module))
	if err != nil {
		return nil, nil, err
	}
	s := f.Section(".modinfo")
	if s == nil {
		return nil, nil, errors.New("not a kernel module: no .modinfo")
	}
	info, err := s.Data()
	if err != nil {
		return nil, nil, err
	}
	for field := range strings.SplitSeq(string(info), "\x00") {
		key, val, _ := strings.Cut(field, "=")
		switch key {
		case "depends":
			for n := range strings.SplitSeq(val, ",") {
				if n != "" {
					needs = append(needs, underscores(n))
				}
			}
		case "softdep":
			for _, n := range strings.Fields(val) {
				wants = append(wants, underscores(n))
			}
		}
	}
	return needs, wants, nil
}
