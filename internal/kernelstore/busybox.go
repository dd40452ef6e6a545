package kernelstore

import (
	"context"
	"debug/elf"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
)

const busyboxPackage = "busybox-static"

// FetchBusyBox returns the path of a static BusyBox: the store's; or else the
// distribution's package, which goes into the store; or else the one installed
// on this system.
func (s *Store) FetchBusyBox(ctx context.Context, progress io.Writer) (string, error) {
	path, err := s.fetchBusyBox(ctx, progress)
	if err == nil || ctx.Err() != nil {
		return path, err
	}
	if p, perr := exec.LookPath("busybox"); perr == nil && isStatic(p) {
		say(progress, "using %s, because: %v", p, err)
		return p, nil
	}
	return "", err
}

// isStatic reports whether path is a program that needs no dynamic linker.
func isStatic(path string) bool {
	f, err := elf.Open(path)
	if err != nil {
		return false
	}
	defer f.Close()
	return !slices.ContainsFunc(f.Progs, func(p *elf.Prog) bool { return p.Type == elf.PT_INTERP })
}

// fetchBusyBox returns the store's BusyBox, which it fetches if need be.
func (s *Store) fetchBusyBox(ctx context.Context, progress io.Writer) (string, error) {
	dir := filepath.Join(s.dir, "tools", "busybox")
	path := filepath.Join(dir, "busybox")
	if _, err := os.Stat(path); err == nil {
		return path, nil
	}
	unlock, err := s.lock(ctx, progress)
	if err != nil {
		return "", err
	}
	defer unlock()
	if _, err := os.Stat(path); err == nil { // somebody else was faster
		return path, nil
	}
	work, tmp, err := s.tempDir()
	if err != nil {
		return "", err
	}
	defer os.RemoveAll(work)
	a, err := newApt(s, work, progress)
	if err != nil {
		return "", err
	}
	d, err := a.find(ctx, busyboxPackage)
	if err != nil {
		return "", err
	}
	file, err := a.download(ctx, d, work)
	if err != nil {
		return "", err
	}
	keep := func(p string) string {
		switch p {
		case "bin/busybox", "usr/bin/busybox":
			return "busybox"
		}
		return ""
	}
	if err := unpackDeb(ctx, file, tmp, keep); err != nil {
		return "", err
	}
	if err := os.Chmod(filepath.Join(tmp, "busybox"), 0o755); err != nil {
		return "", &Error{What: "package " + d.name + " holds no busybox"}
	}
	if err := writeMeta(tmp, map[string]string{"package": d.name, "version": d.version}); err != nil {
		return "", err
	}
	return path, s.replace(tmp, dir)
}
