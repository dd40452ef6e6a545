package machine

import (
	"ring3/internal/cpu"
	"ring3/internal/direct"
	"ring3/internal/interp"
	"ring3/internal/x86"
	"ring3/internal/x86/cpuid"
)

// env is what the interpreter of one virtual CPU asks of this machine. It is used
// on the vCPU thread only.
type env struct {
	m     *Machine
	n     int // of the CPU
	p     *processor
	cpuid *cpuid.Table
	msrs  *cpuid.File
}

var _ interp.Env = (*env)(nil)

func (e *env) TSC() uint64 { return e.m.clock.TSC() }

func (e *env) CPUID(leaf, sub uint32) (a, b, c, d uint32) {
	r := e.cpuid.Lookup(leaf, sub, e.context())
	return r.A, r.B, r.C, r.D
}

// answers are those of CPUID for user code, which runs without this package.
func (e *env) answers() []cpuid.Answer { return e.cpuid.Answers(e.context()) }

func (e *env) context() cpuid.Context {
	s := &e.p.cpu.State
	return cpuid.Context{XCR0: s.XCR0, OSXSAVE: s.CR4&x86.CR4OSXSAVE != 0, APICID: uint32(e.n)}
}

func (e *env) SyncFPU() *cpu.FPU { return e.p.user.FPU() }

func (e *env) SetCR8(v uint64) { e.m.chip.CPU(e.n).SetCR8(v) }

// Flushed passes an invalidation on to the stubs, which are a TLB too.
func (e *env) Flushed(f interp.Flush) {
	d := direct.Flush{Kind: direct.FlushKind(f.Kind), PCID: f.PCID, Addr: f.Addr}
	e.p.user.Flush(d)
	for _, k := range []*direct.Kernel{e.p.kernel, e.p.checked} {
		if k != nil {
			k.Flush(d)
		}
	}
}

func (e *env) ReadMSR(msr uint32) (uint64, bool) {
	if v, ok := e.m.chip.CPU(e.n).ReadMSR(msr); ok {
		return v, true
	}
	if v, ok := e.m.dev.clock.ReadMSR(e.n, msr); ok {
		return v, true
	}
	return e.msrs.Read(msr)
}

func (e *env) WriteMSR(msr uint32, v uint64) bool {
	return e.m.chip.CPU(e.n).WriteMSR(msr, v) || e.m.dev.clock.WriteMSR(e.n, msr, v) || e.msrs.Write(msr, v)
}
