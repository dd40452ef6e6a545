package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"

	"ring3/internal/boot"
	"ring3/internal/console"
	"ring3/internal/initramfs"
	"ring3/internal/kernelstore"
	"ring3/internal/machine"
)

// guest is a virtual machine as far as a session uses it; tests put a fake in
// its place.
type guest interface {
	Run(context.Context) (machine.Result, error)
	SerialWriter(port int) io.Writer // to the guest; blocks while it does not read
	WriteStats(io.Writer) error
	Close() error
}

// newGuest builds a machine. Tests replace it.
var newGuest = func(cfg machine.Config) (guest, error) { return machine.New(cfg) }

// run boots the machine that o describes and stays until it has ended.
func run(ctx context.Context, o *runOptions) error {
	if o.tty && !console.IsTerminal(os.Stdin) {
		return usageError("--tty: standard input is no terminal")
	}
	s := newSession(o)
	if err := s.prepare(ctx); err != nil {
		return errors.Join(err, s.closeDisks())
	}
	m, err := newGuest(s.cfg)
	if err != nil {
		return errors.Join(inputError(err), s.closeDisks())
	}
	s.cfg.KernelData, s.cfg.InitrdData = nil, nil // the machine has its own copy
	return s.run(ctx, m)
}

// inputError makes an error of newGuest about something that the user gave one of
// input.
func inputError(err error) error {
	if input, ok := errors.AsType[*machine.InputError](err); ok {
		return &statusError{statusUsage, input}
	}
	return asInput(err)
}

// prepare finds, or fetches, all that the machine is made of.
func (s *session) prepare(ctx context.Context) (err error) {
	ctx, stop := untilSignal(ctx)
	defer stop()
	defer func() { err = signalled(ctx, err) }()
	store, err := kernelstore.Open("")
	if err != nil {
		return err
	}
	o := s.o
	if err := o.checkFiles(store); err != nil {
		return err
	}
	if err := s.openDisks(); err != nil {
		return err
	}
	if err := s.findSystem(ctx); err != nil {
		return err
	}
	s.cfg = machine.Config{
		CmdLine: o.cmdline(""),
		Memory:  uint64(o.memory),
		CPUs:    o.cpus,
		Initrd:  o.initrd,
		Disks:   o.disks,
		Shares:  o.devices(),
		Images:  s.disks,
		Cache:   store.Cache(),
		Serial:  s.serial(),
		Engine:  machine.Engine(o.engine),
		Verify:  o.verify,
		Timed:   o.stats,
	}
	if err := s.chooseKernel(ctx, store); err != nil {
		return err
	}
	if o.trace != "" {
		if s.trace, err = o.newTrace(&s.cfg); err != nil {
			return err
		}
		s.cfg.Trace = s.trace
	}
	return nil
}

// chooseKernel adds kernel and initial RAM disk to the machine.
func (s *session) chooseKernel(ctx context.Context, store *kernelstore.Store) error {
	if s.system != nil {
		s.bootSystem(&s.cfg)
		return nil
	}
	kernel, err := findKernel(ctx, store, s.o.kernel)
	if err != nil {
		return err
	}
	s.cfg.Kernel = kernel.Image
	if s.builtIn() {
		s.cfg.Initrd = "the built-in userland"
		s.cfg.InitrdData, err = s.userland(ctx, store, kernel)
	}
	return err
}

// checkFiles looks at the files that the user named, before anything is fetched.
func (o *runOptions) checkFiles(store *kernelstore.Store) error {
	if o.kernel != "" {
		k, err := store.Lookup(o.kernel)
		if err != nil {
			return asInput(err)
		}
		f, closer, err := boot.OpenFile(k.Image)
		if err != nil {
			return err
		}
		defer closer.Close()
		if _, err := boot.Identify(f); err != nil {
			return asInput(err)
		}
	}
	if o.initrd != "" {
		_, closer, err := boot.OpenFile(o.initrd)
		if err != nil {
			return err
		}
		closer.Close()
	}
	return nil
}

// findKernel returns the kernel that the user named, or else of the
// default one, which it fetches if the store is empty.
func findKernel(ctx context.Context, store *kernelstore.Store, name string) (kernelstore.Kernel, error) {
	if name != "" {
		k, err := store.Lookup(name)
		return k, asInput(err)
	}
	k, err := store.Default()
	if errors.Is(err, kernelstore.ErrNotFound) {
		k, err = store.Fetch(ctx, kernelstore.Cloud, progress())
	}
	return k, err
}

// userland builds the initial RAM disk for the shell or the command, with the
// modules that the machine's devices need.
func (s *session) userland(ctx context.Context, store *kernelstore.Store, k kernelstore.Kernel) ([]byte, error) {
	busybox, err := store.FetchBusyBox(ctx, progress())
	if err != nil {
		return nil, err
	}
	opt := initramfs.Options{BusyBox: busybox, Term: os.Getenv("TERM")}
	if s.terminal() {
		opt.Cols, opt.Rows, _ = console.Size(os.Stdin)
	}
	if len(s.o.command) > 0 {
		opt.Job = &initramfs.Job{Args: s.o.command, TTY: s.o.tty}
	}
	if len(s.o.disks) > 0 && k.Modules != "" {
		if opt.Modules, err = initramfs.DiskModules(k.Modules); err != nil {
			return nil, fmt.Errorf("--disk: kernel %s: %w", k.Name, err)
		}
	}
	if err := s.o.mount(&opt, k); err != nil {
		return nil, err
	}
	return initramfs.Build(ctx, opt)
}
