package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"ring3/internal/boot"
	"ring3/internal/machine"
	"ring3/internal/symbols"
	"ring3/internal/trace"
)

// newTrace is the trace that --trace asks for, of a machine's kernel.
func (o *runOptions) newTrace(cfg *machine.Config) (*trace.Trace, error) {
	if err := checkTraceFile(o.traceFile); err != nil {
		return nil, err
	}
	table, terr := o.kernelSymbols(cfg)
	if terr != nil && o.symbols != "" {
		return nil, terr
	}
	ranges, err := trace.Ranges(o.trace, func() (*symbols.Table, error) { return table, terr })
	if bad, ok := errors.AsType[*trace.Error](err); ok {
		err = usageError("--trace: %w", bad)
	}
	return trace.New(ranges, table), err
}

// kernelSymbols reads the symbols of a kernel: those that the user names, a
// System.map beside the kernel, or the kernel's own.
func (o *runOptions) kernelSymbols(cfg *machine.Config) (*symbols.Table, error) {
	if o.symbols != "" {
		t, err := readSymbols(o.symbols)
		if err != nil {
			return nil, usageError("--symbols: %w", err)
		}
		return t, nil
	}
	dir, base := filepath.Split(cfg.Kernel)
	names := []string{"System.map"}
	if _, release, ok := strings.Cut(base, "-"); ok {
		names = []string{"System.map-" + release, "System.map"}
	}
	for _, name := range names {
		// Debian's says only which package has the real one.
		if t, err := readSymbols(filepath.Join(dir, name)); err == nil {
			return t, nil
		}
	}
	f, closeFile, err := cfg.OpenKernel()
	if err != nil {
		return nil, err
	}
	defer closeFile()
	image, err := boot.Image(f, cfg.Cache)
	if err != nil {
		return nil, err
	}
	t, err := symbols.FromKernel(image)
	if err != nil {
		return nil, usageError("--trace: %s: %w (use START-END, or --symbols with a System.map or a saved /proc/kallsyms)", cfg.Kernel, err)
	}
	return t, nil
}

func readSymbols(path string) (*symbols.Table, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	t, err := symbols.Parse(f)
	if err != nil {
		err = fmt.Errorf("%s: %w", path, err)
	}
	return t, err
}

// checkTraceFile finds out whether the trace can be written in the end.
func checkTraceFile(path string) error {
	if path == "" {
		return nil
	}
	st, err := os.Stat(path)
	switch {
	case err == nil && st.IsDir():
		return usageError("--trace-file: %s is a directory", path)
	case err == nil && !st.Mode().IsRegular():
		return nil
	}
	if err := unix.Access(filepath.Dir(path), unix.W_OK|unix.X_OK); err != nil {
		return usageError("--trace-file: no file can be made in %s: %w", filepath.Dir(path), err)
	}
	return nil
}

// writeTrace writes the trace: to a file as a whole or not at all.
func writeTrace(path string, t io.WriterTo) error {
	if path == "" {
		_, err := t.WriteTo(os.Stderr)
		return err
	}
	if st, err := os.Stat(path); err == nil && !st.Mode().IsRegular() {
		f, err := os.OpenFile(path, os.O_WRONLY, 0)
		if err != nil {
			return err
		}
		_, err = t.WriteTo(f)
		return errors.Join(err, f.Close())
	}
	f, err := os.CreateTemp(filepath.Dir(path), filepath.Base(path)+".*")
	if err != nil {
		return err
	}
	_, err = t.WriteTo(f)
	if err = errors.Join(err, f.Chmod(0o644), f.Close()); err == nil {
		err = os.Rename(f.Name(), path)
	}
	if err != nil {
		os.Remove(f.Name())
	}
	return err
}
