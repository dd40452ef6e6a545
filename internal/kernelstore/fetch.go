package kernelstore

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

// Flavours of the distribution's kernel that Fetch knows.
const (
	Cloud   = "cloud"   // drivers of virtual machines only
	Generic = "generic" // drivers of everything
)

// metaPackages name the distribution's packages that depend on the current
// kernel of a flavour.
var metaPackages = map[string]string{
	Cloud:   "linux-image-cloud-amd64",
	Generic: "linux-image-amd64",
}

// Flavours lists what Fetch can fetch.
func Flavours() []string { return []string{Cloud, Generic} }

// Fetch gets the distribution's current kernel of a flavour into the store,
// unless it is there. Progress goes line by line to progress, which may be
// nil. When ctx ends, so do the tools it runs, and nothing is left behind.
func (s *Store) Fetch(ctx context.Context, flavour string, progress io.Writer) (Kernel, error) {
	meta, ok := metaPackages[flavour]
	if !ok {
		return Kernel{}, &Error{What: fmt.Sprintf("unknown kernel flavour %q", flavour),
			Mend: "use one of " + strings.Join(Flavours(), ", ")}
	}
	unlock, err := s.lock(ctx, progress)
	if err != nil {
		return Kernel{}, err
	}
	defer unlock()
	work, tmp, err := s.tempDir()
	if err != nil {
		return Kernel{}, err
	}
	defer os.RemoveAll(work)
	a, err := newApt(s, work, progress)
	if err != nil {
		return Kernel{}, err
	}
	d, err := a.find(ctx, meta)
	if err != nil {
		return Kernel{}, err
	}
	i := slices.IndexFunc(d.depends, func(n string) bool { return strings.HasPrefix(n, "linux-image-") })
	if i < 0 {
		return Kernel{}, &Error{What: fmt.Sprintf("package %s %s names no kernel", meta, d.version)}
	}
	if d, err = a.find(ctx, d.depends[i]); err != nil {
		return Kernel{}, err
	}
	release := strings.TrimPrefix(d.name, "linux-image-")
	if k, err := s.load(release); err == nil && k.Package == d.name && k.Version == d.version {
		say(progress, "kernel %s (%s %s) is already here", k.Name, d.name, d.version)
		return k, nil
	}
	file, err := a.download(ctx, d, work)
	if err != nil {
		return Kernel{}, err
	}
	say(progress, "unpacking %s", filepath.Base(file))
	if err := unpackDeb(ctx, file, tmp, kernelFiles(release)); err != nil {
		return Kernel{}, err
	}
	if _, err := os.Stat(filepath.Join(tmp, imageFile)); err != nil {
		return Kernel{}, &Error{What: fmt.Sprintf("package %s %s holds no boot/vmlinuz-%s", d.name, d.version, release)}
	}
	k, err := s.commit(tmp, Kernel{Name: release, Flavour: flavour, Package: d.name, Version: d.version,
		Release: release, Added: time.Now()})
	if err == nil {
		say(progress, "kernel %s is ready", k.Name)
	}
	return k, err
}

// kernelFiles tells which files of a kernel package to keep, and under what
// names.
func kernelFiles(release string) func(string) string {
	names := map[string]string{
		"boot/vmlinuz-" + release:    imageFile,
		"boot/System.map-" + release: "System.map",
		"boot/config-" + release:     "config",
	}
	return func(p string) string {
		if n := names[p]; n != "" {
			return n
		}
		for _, root := range []string{"lib/modules/", "usr/lib/modules/"} {
			if rest, ok := strings.CutPrefix(p, root+release); ok {
				return modsDir + rest
			}
		}
		return ""
	}
}

// Ensure returns the latest kernel of a flavour, fetched if there is none.
func (s *Store) Ensure(ctx context.Context, flavour string, progress io.Writer) (Kernel, error) {
	k, err := s.byFlavour(flavour)
	if errors.Is(err, ErrNotFound) {
		return s.Fetch(ctx, flavour, progress)
	}
	return k, err
}
