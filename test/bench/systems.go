package main

import (
	"context"
	"embed"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"

	"ring3/internal/initramfs"
	"ring3/internal/kernelstore"
)

//go:embed guest
var guestFiles embed.FS

// cmdline is what ring3 run begins with by itself, for the others too.
const cmdline = "console=ttyS0 panic=-1 mitigations=off cryptomgr.notests"

// What a machine has; the larger one has a compiler in its initial RAM disk.
const memory, largeMemory = "512M", "1G"

// place is where the systems find what they run.
type place struct {
	root       string           // directory with bin/busybox, bench/micro, bench/workloads.sh
	initrd     string           // the same and more as a cpio archive; bench/micro is /init
	files      []initramfs.File // what is in both, BusyBox apart
	busybox    string
	memory     string // of a machine
	kernel     string // image of the stock kernel
	kernelName string
	ring3      string
	runsc      string
}

// newPlace builds it in dir.
func newPlace(ctx context.Context, o *options, dir string) (*place, error) {
	p := &place{root: filepath.Join(dir, "root"), initrd: filepath.Join(dir, "initrd"), memory: memory, runsc: o.runsc}
	store, err := kernelstore.Open("")
	if err != nil {
		return nil, err
	}
	k, err := store.Ensure(ctx, kernelstore.Cloud, os.Stderr)
	if err != nil {
		return nil, err
	}
	p.kernel, p.kernelName = k.Image, strings.TrimSpace("Linux "+k.Release+" "+k.Version)
	if p.ring3, err = filepath.Abs(o.ring3); err != nil {
		return nil, err
	}
	if p.busybox, err = store.FetchBusyBox(ctx, os.Stderr); err != nil {
		return nil, err
	}
	micro, err := compile(ctx, dir)
	if err != nil {
		return nil, err
	}
	script, err := guestFiles.ReadFile("guest/workloads.sh")
	if err != nil {
		return nil, err
	}
	shell, err := os.ReadFile(p.busybox)
	if err != nil {
		return nil, err
	}
	if err := p.add([]initramfs.File{{Path: "bin/busybox", Mode: 0o755, Data: shell}}); err != nil {
		return nil, err
	}
	p.files = []initramfs.File{
		{Path: "bench/micro", Mode: 0o755, Data: micro},
		{Path: "bench/workloads.sh", Mode: 0o644, Data: script},
		{Path: "init", Mode: 0o755, Data: micro},
	}
	return p, errors.Join(p.add(p.files), p.pack(ctx))
}

// add puts files into the directory p.root.
func (p *place) add(files []initramfs.File) error {
	for _, f := range files {
		path := filepath.Join(p.root, f.Path)
		if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o755), os.WriteFile(path, f.Data, f.Mode)); err != nil {
			return err
		}
	}
	return nil
}

// pack writes the archive p.initrd.
func (p *place) pack(ctx context.Context) error {
	cpio, err := initramfs.Build(ctx, initramfs.Options{BusyBox: p.busybox, Files: p.files})
	if err != nil {
		return err
	}
	return os.WriteFile(p.initrd, cpio, 0o644)
}

// compile returns guest/micro.c as a static program.
func compile(ctx context.Context, dir string) ([]byte, error) {
	src, err := guestFiles.Open("guest/micro.c")
	if err != nil {
		return nil, err
	}
	defer src.Close()
	out := filepath.Join(dir, "micro")
	gcc := exec.CommandContext(ctx, "gcc", "-O2", "-static", "-x", "c", "-o", out, "-")
	gcc.Stdin = src
	if msg, err := gcc.CombinedOutput(); err != nil {
		return nil, fmt.Errorf("gcc: %w\n%s", err, msg)
	}
	return os.ReadFile(out)
}

// system is one that programs can run in.
type system struct {
	name  string
	title string
	// find returns the version, or an error that says why it cannot be run.
	find func(*place) (string, error)
	// command runs the program with these arguments.
	command func(p *place, args []string) *exec.Cmd
	boots   bool // a kernel starts, whose clock starts with it
}

var systems = []*system{
	{
		name: "native", title: "native",
		find: func(*place) (string, error) { return "", nil },
		command: func(p *place, args []string) *exec.Cmd {
			cmd := exec.Command(filepath.Join(p.root, "bench/micro"), args...)
			cmd.Env = append(os.Environ(), "BENCH_ROOT="+p.root)
			return cmd
		},
	},
	{
		name: "interp", title: "ring3 interpreted", boots: true,
		find:    findRing3,
		command: func(p *place, args []string) *exec.Cmd { return ring3(p, "interp", args) },
	},
	{
		name: "ring3", title: "ring3", boots: true,
		find:    findRing3,
		command: func(p *place, args []string) *exec.Cmd { return ring3(p, "translate", args) },
	},
	{
		name: "tcg", title: "QEMU TCG", boots: true,
		find: func(*place) (string, error) { return version("qemu-system-x86_64", "--version") },
		command: func(p *place, args []string) *exec.Cmd {
			return exec.Command("qemu-system-x86_64", "-accel", "tcg", "-smp", "1", "-m", p.memory, "-nodefaults",
				"-no-reboot", "-display", "none", "-monitor", "none", "-serial", "stdio",
				"-kernel", p.kernel, "-initrd", p.initrd, "-append", cmdline+machineArgs(args))
		},
	},
	{
		name: "gvisor", title: "gVisor", boots: true,
		find: func(p *place) (string, error) {
			if p.runsc == "" {
				p.runsc = findRunsc()
			}
			v, err := version(p.runsc, "--version")
			// One built from a module does not know its version.
			if _, pinned, ok := strings.Cut(filepath.Base(p.runsc), "runsc-"); ok {
				v = "runsc " + pinned
			}
			return v + ", platform systrap", err
		},
		command: func(p *place, args []string) *exec.Cmd {
			flags := []string{"--network=none", "--ignore-cgroups", "--platform=systrap"}
			if os.Geteuid() != 0 {
				flags = append(flags, "--rootless")
			}
			flags = append(flags, "do", "--root", p.root, "/bench/micro")
			return exec.Command(p.runsc, append(flags, args...)...)
		},
	},
	{
		name: "uml", title: "User-mode Linux", boots: true,
		find: func(*place) (string, error) {
			v, err := version("linux.uml", "--version")
			return "Linux " + v, err
		},
		command: func(p *place, args []string) *exec.Cmd {
			return exec.Command("linux.uml", append([]string{"mem=" + p.memory, "initrd=" + p.initrd, "rdinit=/init",
				"con0=null,fd:1", "con=null", "--"}, args...)...)
		},
	},
}

func findRing3(p *place) (string, error) {
	v, err := version(p.ring3, "version")
	if c := commit(); c != "" {
		v += ", " + c
	}
	return v, err
}

func ring3(p *place, engine string, args []string) *exec.Cmd {
	return exec.Command(p.ring3, "run", "--engine", engine, "--memory", p.memory, "--kernel", p.kernel,
		"--initrd", p.initrd, "--no-default-append", "--append", cmdline+machineArgs(args))
}

// machineArgs is the end of a kernel's command line.
func machineArgs(args []string) string { return " rdinit=/init -- " + strings.Join(args, " ") }

func systemNames() (names []string) {
	for _, s := range systems {
		names = append(names, s.name)
	}
	return names
}

func systemByName(name string) *system {
	return systems[slices.IndexFunc(systems, func(s *system) bool { return s.name == name })]
}

// version returns the first line that a program says about itself.
func version(program, arg string) (string, error) {
	out, err := exec.Command(program, arg).Output()
	if errors.Is(err, exec.ErrNotFound) || errors.Is(err, fs.ErrNotExist) {
		return "", errors.New("not installed")
	}
	if err != nil {
		return "", fmt.Errorf("%s %s: %w", program, arg, err)
	}
	line, _, _ := strings.Cut(strings.TrimSpace(string(out)), "\n")
	return line, nil
}

// findRunsc returns the runsc that the Makefile built, or the installed one.
func findRunsc() string {
	if built, _ := filepath.Glob("bin/runsc-*"); len(built) > 0 {
		if p, err := filepath.Abs(slices.Max(built)); err == nil {
			return p
		}
	}
	return "runsc"
}
