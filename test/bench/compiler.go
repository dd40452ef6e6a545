package main

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"ring3/internal/initramfs"
)

// sqlite is a Go module that holds SQLite 3.50.4 as one C file. It is source
// code to compile here and no dependency of anything.
const (
	sqlite     = "github.com/mattn/go-sqlite3@v1.14.32"
	sqliteFile = "sqlite3-binding.c"
)

// withCompiler returns the place with the host's C compiler, the libraries it
// needs, and a large file to compile; and with the memory that takes.
func (p *place) withCompiler(ctx context.Context) (*place, error) {
	cc1, err := output(ctx, "gcc", "-print-prog-name=cc1")
	if err != nil {
		return nil, err
	}
	source, err := sqliteSource(ctx)
	if err != nil {
		return nil, err
	}
	// Preprocessed, it needs no headers in the guest.
	text, err := exec.CommandContext(ctx, "gcc", "-E", "-P", source).Output()
	if err != nil {
		return nil, fmt.Errorf("gcc -E: %w", err)
	}
	files := []initramfs.File{{Path: "bench/sqlite3.i", Mode: 0o644, Data: text}}
	libs, err := output(ctx, "ldd", cc1)
	if err != nil {
		return nil, err
	}
	from := map[string]string{"bench/cc1": cc1}
	for _, word := range strings.Fields(libs) {
		if strings.HasPrefix(word, "/") {
			from[strings.TrimPrefix(word, "/")] = word
		}
	}
	for path, file := range from {
		data, err := os.ReadFile(file)
		if err != nil {
			return nil, err
		}
		files = append(files, initramfs.File{Path: path, Mode: 0o755, Data: data})
	}
	q := *p
	q.memory, q.initrd = largeMemory, p.initrd+"-compiler"
	q.files = append(files, p.files...)
	if err := q.add(files); err != nil {
		return nil, err
	}
	return &q, q.pack(ctx)
}

// sqliteSource downloads the module, or finds it in Go's cache.
func sqliteSource(ctx context.Context) (string, error) {
	out, err := output(ctx, "go", "mod", "download", "-json", sqlite)
	var m struct{ Dir, Error string }
	if jerr := json.Unmarshal([]byte(out), &m); jerr == nil && m.Error != "" {
		err = fmt.Errorf("%s: %s", sqlite, m.Error)
	}
	return filepath.Join(m.Dir, sqliteFile), err
}

func output(ctx context.Context, program string, args ...string) (string, error) {
	out, err := exec.CommandContext(ctx, program, args...).Output()
	if err != nil {
		err = fmt.Errorf("%s: %w", program, err)
	}
	return strings.TrimSpace(string(out)), err
}
