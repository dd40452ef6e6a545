package machine

import (
	"errors"

	"ring3/internal/direct"
	"ring3/internal/interp"
	"ring3/internal/vcpu"
	"ring3/internal/x86/cpuid"
)

// processor is one virtual CPU with its engines.
type processor struct {
	env     *env
	cpu     *interp.CPU
	user    *direct.Engine
	kernel  *direct.Kernel // nil when kernel code is interpreted
	checked *direct.Kernel // nil unless Config.Verify
	vcpu    *vcpu.VCPU
}

// Stubs of user code that all CPUs of a machine have together, and that each
// may have at least.
const (
	allStubs   = 64
	leastStubs = 16
)

// addProcessors builds the virtual CPUs. All but the first wait to be started.
func (m *Machine) addProcessors(cfg Config) error {
	table := cpuid.New(cpuid.ReadHost(), cpuid.Options{CPUs: cfg.CPUs, TSCkHz: uint32(m.clock.Hz() / 1000)})
	var vcpus []*vcpu.VCPU
	for n := range cfg.CPUs {
		p := &processor{}
		m.cpus = append(m.cpus, p) // for Close
		if err := m.build(p, n, table, cfg); err != nil {
			return err
		}
		if n > 0 {
			p.vcpu.AwaitStartUp()
		}
		vcpus = append(vcpus, p.vcpu)
	}
	m.vcpus = vcpu.NewGroup(m.clock, vcpus...)
	m.chip.Notify = m.vcpus.Notify
	return nil
}

// build makes virtual CPU n.
func (m *Machine) build(p *processor, n int, table *cpuid.Table, cfg Config) (err error) {
	p.env = &env{m: m, n: n, p: p, cpuid: table, msrs: cpuid.NewFile(table.MSRs())}
	p.cpu = interp.New(m.mem, &m.pio, &m.mmio, p.env)
	p.cpu.Timed = cfg.Timed
	engine := direct.Config{Mem: m.mem, State: &p.cpu.State, CPU: n, Beside: m.cpus[0].user}
	user := engine
	user.Invalidated = p.cpu.Invalidate
	user.CPUID, user.MaxStubs = p.env.answers, max(allStubs/cfg.CPUs, leastStubs)
	if p.user, err = direct.New(user); err != nil {
		return err
	}
	p.vcpu = vcpu.New(p.cpu, p.user, m.chip.CPU(n), cfg.Timed, m.log)
	if cfg.engine() == EngineTranslate {
		if p.kernel, err = direct.NewKernel(engine); err != nil {
			return err
		}
		if cfg.Verify == 0 {
			if err := direct.Pair(p.user, p.kernel); err != nil {
				return err
			}
		}
		p.vcpu.Translate(p.kernel)
	}
	if cfg.Verify > 0 {
		if p.checked, err = direct.NewKernel(engine); err != nil {
			return err
		}
		p.vcpu.Verify(p.checked, m.mem, cfg.Verify)
	}
	for _, k := range []*direct.Kernel{p.kernel, p.checked} {
		if k != nil && cfg.Trace != nil {
			k.Translated = cfg.Trace.Add
		}
	}
	return nil
}

func (p *processor) close() error {
	var errs []error
	if p.user != nil {
		errs = append(errs, p.user.Close())
	}
	for _, k := range []*direct.Kernel{p.kernel, p.checked} {
		if k != nil {
			errs = append(errs, k.Close())
		}
	}
	return errors.Join(errs...)
}

// localAPICs is the register page of the local APICs: each CPU sees its own
// there.
type localAPICs struct{ m *Machine }

// Read implements bus.Device.
func (d localAPICs) Read(off uint64, p []byte) { d.m.chip.CPU(d.m.vcpus.Turn()).Read(off, p) }

// Write implements bus.Device.
func (d localAPICs) Write(off uint64, p []byte) { d.m.chip.CPU(d.m.vcpus.Turn()).Write(off, p) }
