// Package machine assembles a PC from its parts and runs it: RAM, virtual
// CPUs with their engines, interrupt controllers, timers, the devices that a
// stock kernel looks for, ACPI tables, and the kernel itself.
package machine

import (
	"bytes"
	"cmp"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"slices"
	"sync"
	"sync/atomic"

	"ring3/internal/acpi"
	"ring3/internal/boot"
	"ring3/internal/bus"
	"ring3/internal/direct"
	"ring3/internal/disk"
	"ring3/internal/guestmem"
	"ring3/internal/irqchip"
	"ring3/internal/stats"
	"ring3/internal/timer"
	"ring3/internal/trace"
	"ring3/internal/vcpu"
	vnet "ring3/internal/virtio/net"
	"ring3/internal/virtio/vsock"
	"ring3/internal/x86"
)

// Limits of a machine.
const (
	MinMemory = 16 << 20 // bytes; a stock kernel needs far more
	MaxMemory = 64 << 30
	MaxCPUs   = guestmem.Annexes
	MaxDisks  = 26 // vda to vdz
	MaxShares = 16
)

// Config describes a machine.
type Config struct {
	Kernel     string // path of a bzImage or ELF vmlinux
	KernelData []byte // the kernel itself; Kernel is only its name then, for messages
	Initrd     string // path, empty for none
	InitrdData []byte // the initrd itself; Initrd is only its name then
	CmdLine    string
	Memory     uint64 // bytes of RAM, a multiple of 4096
	CPUs       int
	Cache      boot.Cache     // of unpacked kernels; may be nil
	Serial     [4]io.Writer   // what the guest writes to ttyS0 to ttyS3; nil discards
	Disks      []disk.Options // vda, vdb, ...; at most MaxDisks
	Shares     []Share        // at most MaxShares
	Vsock      *vsock.Config  // a socket device; nil for none
	Net        *vnet.Config   // nil for no network; the machine closes its port, once New has succeeded
	Images     []disk.Image   // those disks, opened already; the caller closes them when the machine is closed. nil: the machine opens and closes them
	Engine     Engine         // how kernel code is executed; "" is EngineAuto
	Verify     int            // compare kernel code with the interpreter: 0 none, 1 all, or in bursts after so many exits; implies EngineTranslate
	Trace      *trace.Trace   // lists translations; nil for none; implies EngineTranslate
	Timed      bool           // time the exits, for WriteStats
	Log        *slog.Logger   // may be nil
}

// InputError is a mistake in a Config: the message names what and why.
type InputError struct{ Reason string }

func (e *InputError) Error() string { return e.Reason }

// Engine says how kernel code is executed.
type Engine string

// Engines.
const (
	EngineAuto      Engine = "auto"      // EngineTranslate if the processor has what that needs, else EngineInterp
	EngineInterp    Engine = "interp"    // interpreted
	EngineTranslate Engine = "translate" // translated, what is rare interpreted
)

// engine is the engine that a machine gets.
func (cfg *Config) engine() Engine {
	switch {
	case cfg.Verify > 0 || cfg.Trace != nil:
		return EngineTranslate
	case cfg.Engine != "" && cfg.Engine != EngineAuto:
		return cfg.Engine
	case direct.CanTranslate() == nil:
		return EngineTranslate
	}
	return EngineInterp
}

func (cfg *Config) check() error {
	switch {
	case !slices.Contains([]Engine{"", EngineAuto, EngineInterp, EngineTranslate}, cfg.Engine):
		return &InputError{fmt.Sprintf("engine: there is no %q, only auto, interp and translate", cfg.Engine)}
	case cfg.Verify < 0:
		return &InputError{fmt.Sprintf("verify: %d is negative", cfg.Verify)}
	case cfg.Memory < MinMemory:
		return &InputError{fmt.Sprintf("memory: %d bytes are too few, a kernel needs at least %d MiB", cfg.Memory, MinMemory>>20)}
	case cfg.Memory > MaxMemory:
		return &InputError{fmt.Sprintf("memory: %d bytes are too many, at most %d GiB", cfg.Memory, MaxMemory>>30)}
	case cfg.Memory%x86.PageSize != 0:
		return &InputError{fmt.Sprintf("memory: %d bytes are not a multiple of 4096", cfg.Memory)}
	case cfg.CPUs < 1 || cfg.CPUs > MaxCPUs:
		return &InputError{fmt.Sprintf("cpus: %d is not between 1 and %d", cfg.CPUs, MaxCPUs)}
	case cfg.Images != nil && len(cfg.Images) != len(cfg.Disks):
		return &InputError{fmt.Sprintf("disks: %d, and %d images", len(cfg.Disks), len(cfg.Images))}
	case len(cfg.Disks) > MaxDisks:
		return &InputError{fmt.Sprintf("disks: %d are too many, at most %d", len(cfg.Disks), MaxDisks)}
	case len(cfg.Shares) > MaxShares:
		return &InputError{fmt.Sprintf("shares: %d are too many, at most %d", len(cfg.Shares), MaxShares)}
	}
	return nil
}

// End says how a run ended.
type End = vcpu.End

// Ends of a run; see package vcpu.
const (
	PowerOff    = vcpu.PowerOff
	Reset       = vcpu.Reset
	TripleFault = vcpu.TripleFault
	Stopped     = vcpu.Stopped
)

// Result is the outcome of a run.
type Result struct {
	End End
	// RIP and CR3 are where the CPU was; for reports of a triple fault.
	RIP, CR3 uint64
}

// Machine is one virtual machine. It is built by New, run once by Run, and
// must be closed.
type Machine struct {
	mem     *guestmem.Memory
	clock   *timer.Host
	chip    *irqchip.Chip
	pio     bus.Bus
	mmio    bus.Bus
	cpus    []*processor
	vcpus   *vcpu.Group
	dev     devices
	dma     sync.Mutex // see stopped
	log     *slog.Logger
	running atomic.Bool
}

// New builds a machine and loads its kernel. Mistakes in cfg are reported as
// *InputError, *boot.InputError, *disk.Error or *vsock.Error.
func New(cfg Config) (m *Machine, err error) {
	if cfg.CPUs == 0 {
		cfg.CPUs = 1
	}
	if err := cfg.check(); err != nil {
		return nil, err
	}
	m = &Machine{log: cfg.Log}
	if m.log == nil {
		m.log = slog.New(slog.DiscardHandler)
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, m.Close())
			m = nil
		}
	}()
	if m.mem, err = guestmem.New(cfg.Memory); err != nil {
		return m, err
	}
	// Load first: mistakes in the input show before any process is started.
	entry, err := m.load(cfg)
	if err != nil {
		return m, err
	}
	if m.clock, err = timer.NewHost(); err != nil {
		return m, err
	}
	m.chip = irqchip.New(irqchip.Config{CPUs: cfg.CPUs, Clock: m.clock})
	m.pio.Timed, m.mmio.Timed = cfg.Timed, cfg.Timed
	if err = m.attachDevices(cfg); err != nil {
		return m, err
	}
	if err = m.addProcessors(cfg); err != nil {
		return m, err
	}
	entry.Apply(&m.cpus[0].cpu.State)
	return m, nil
}

// load puts the kernel and all that it is told into RAM.
func (m *Machine) load(cfg Config) (boot.Entry, error) {
	tables, rsdp, err := acpi.Build(acpi.Config{CPUs: cfg.CPUs, UARTs: len(cfg.Serial)})
	if err != nil {
		return boot.Entry{}, err
	}
	if err := m.mem.WriteAt(tables, acpi.Base); err != nil {
		return boot.Entry{}, err
	}
	kernel, closeKernel, err := cfg.OpenKernel()
	if err != nil {
		return boot.Entry{}, err
	}
	defer closeKernel()
	bc := boot.Config{Kernel: kernel, Cmdline: cfg.CmdLine, RSDP: rsdp, Cache: cfg.Cache, Seed: make([]byte, 64)}
	rand.Read(bc.Seed)
	switch {
	case cfg.InitrdData != nil:
		bc.Initrd = inMemory(cmp.Or(cfg.Initrd, "initrd"), cfg.InitrdData)
	case cfg.Initrd != "":
		f, c, err := boot.OpenFile(cfg.Initrd)
		if err != nil {
			return boot.Entry{}, err
		}
		defer c.Close()
		bc.Initrd = f
	}
	return boot.Load(m.mem, bc)
}

// OpenKernel opens the kernel. Errors are *boot.InputError.
func (cfg *Config) OpenKernel() (f boot.File, closeFile func() error, err error) {
	if cfg.KernelData != nil {
		return inMemory(cfg.Kernel, cfg.KernelData), func() error { return nil }, nil
	}
	f, c, err := boot.OpenFile(cfg.Kernel)
	if err != nil {
		return f, nil, err
	}
	return f, c.Close, nil
}

func inMemory(name string, b []byte) boot.File {
	return boot.File{Name: name, Data: bytes.NewReader(b), Size: int64(len(b))}
}

// Run runs the machine until the guest ends it or ctx is cancelled. It can be
// called once.
func (m *Machine) Run(ctx context.Context) (Result, error) {
	if !m.running.CompareAndSwap(false, true) {
		return Result{}, errors.New("BUG: machine run twice")
	}
	end, err := m.vcpus.Run(ctx)
	s := m.vcpus.State()
	return Result{End: end, RIP: s.RIP, CR3: s.CR3}, err
}

// Stop ends the machine at once.
func (m *Machine) Stop() { m.vcpus.End(vcpu.Stopped) }

// Close gives back all that the machine holds: memory, processes, threads.
// The machine must not be running.
func (m *Machine) Close() error {
	var errs []error
	errs = append(errs, m.dev.close())
	for _, p := range m.cpus {
		errs = append(errs, p.close())
	}
	if m.clock != nil {
		errs = append(errs, m.clock.Close())
	}
	if m.mem != nil {
		errs = append(errs, m.mem.Close())
	}
	return errors.Join(errs...)
}

// WriteStats prints the table of exits. It may be called while the machine
// runs and after it has ended.
func (m *Machine) WriteStats(w io.Writer) error {
	var t stats.Table
	m.vcpus.Do(func() {
		m.vcpus.AddStats(&t)
		for _, r := range m.pio.Ranges() {
			t.Add("port", r.Name, r.Count, r.Time)
		}
		for _, r := range m.mmio.Ranges() {
			t.Add("mmio", r.Name, r.Count, r.Time)
		}
	})
	return t.Write(w)
}
