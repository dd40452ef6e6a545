package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"

	"ring3/internal/boot"
	"ring3/internal/cli"
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
	PowerButton()
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
	if o.life.detach && parentOf(ctx) == nil {
		return startDetached()
	}
	p, err := claim(ctx, o)
	if err != nil {
		return err
	}
	err = p.run(ctx)
	if cerr := p.close(err); cerr != nil {
		stderrf("directory of the machine: %v", cerr)
	}
	return err
}

// run builds the machine and runs it.
func (p *place) run(ctx context.Context) error {
	s := newSession(p)
	if err := s.prepare(ctx); err != nil {
		return errors.Join(err, s.closeDisks())
	}
	m, err := newMachine(s.cfg)
	if err != nil {
		return errors.Join(err, s.closeDisks())
	}
	s.cfg.KernelData, s.cfg.InitrdData = nil, nil // the machine has its own copy
	return s.run(ctx, m)
}

// newMachine builds a machine, or closes its network.
func newMachine(cfg machine.Config) (guest, error) {
	m, err := newGuest(cfg)
	if err != nil {
		closeNet(cfg)
		return nil, inputError(err)
	}
	return m, nil
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
	network, err := o.net.open(s.isJob())
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			closeNet(s.cfg)
		}
	}()
	s.cfg = machine.Config{
		CmdLine: o.cmdline(""),
		Memory:  uint64(o.memory),
		CPUs:    o.cpus,
		Initrd:  o.initrd,
		Disks:   o.disks,
		Shares:  o.devices(),
		Images:  s.disks,
		Net:     network,
		Cache:   store.Cache(),
		Serial:  s.serial(),
		Engine:  machine.Engine(o.engine),
		Verify:  o.verify,
		Timed:   o.stats,
	}
	if s.cfg.Vsock, err = s.place.vsock(); err != nil {
		return err
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
	state := &s.place.state
	if s.system != nil {
		state.Kernel, state.NoAgent = s.system.Kernel.Name, "it is a system of its own, booted from its disk"
		s.bootSystem(&s.cfg)
		return nil
	}
	kernel, err := findKernel(ctx, store, s.o.kernel)
	if err != nil {
		return err
	}
	s.cfg.Kernel, state.Kernel = kernel.Image, kernel.Name
	if !s.builtIn() {
		state.NoAgent = "its userland is not ring3's own (--initrd)"
		return nil
	}
	s.cfg.Initrd = "the built-in userland"
	s.cfg.InitrdData, err = s.userland(ctx, store, kernel)
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
	if err := s.place.addAgent(&opt, k); err != nil {
		return nil, err
	}
	if s.o.net.mode(s.isJob()) != cli.NetNone {
		if err := opt.AddNetwork(k.Modules); err != nil {
			return nil, fmt.Errorf("--net: kernel %s: %w", k.Name, err)
		}
	}
	return initramfs.Build(ctx, opt)
}
