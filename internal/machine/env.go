package machine

import (
	"ring3/internal/cpu"
	"ring3/internal/interp"
	"ring3/internal/x86"
	"ring3/internal/x86/cpuid"
)

// env is what the interpreter asks of this machine. It is used on the vCPU
// thread only.
type env struct {
	m     *Machine
	cpuid *cpuid.Table
	msr   map[uint32]uint64 // plain registers that keep what is written
}

var _ interp.Env = (*env)(nil)

func (e *env) TSC() uint64 { return e.m.clock.TSC() }

func (e *env) CPUID(leaf, sub uint32) (a, b, c, d uint32) {
	s := &e.m.cpu.State
	r := e.cpuid.Lookup(leaf, sub, cpuid.Context{XCR0: s.XCR0, OSXSAVE: s.CR4&x86.CR4OSXSAVE != 0})
	return r.EAX, r.EBX, r.ECX, r.EDX
}

func (e *env) SyncFPU() *cpu.FPU { return e.m.user.FPU() }

func (e *env) SetCR8(v uint64) { e.m.chip.CPU(0).SetCR8(v) }

// Flushed passes an invalidation on to the stubs, which are a TLB too.
func (e *env) Flushed(f interp.Flush) { e.m.user.Flush(f) }

// storable are MSRs that keep their value and do nothing else here.
func storable(msr uint32) bool {
	switch {
	case msr >= x86.MSRMTRRPhysBase0 && msr < x86.MSRMTRRPhysBase0+16,
		msr == x86.MSRMTRRFix64K, msr == x86.MSRMTRRFix16K0, msr == x86.MSRMTRRFix16K1,
		msr >= x86.MSRMTRRFix4K0 && msr < x86.MSRMTRRFix4K0+8,
		msr == x86.MSRMTRRDefType:
		return true
	}
	return false
}

func (e *env) ReadMSR(msr uint32) (uint64, bool) {
	if v, ok := e.m.chip.CPU(0).ReadMSR(msr); ok {
		return v, true
	}
	if v, ok := e.m.dev.pvclock.ReadMSR(msr); ok {
		return v, true
	}
	if v, ok := e.msr[msr]; ok {
		return v, true
	}
	if d, ok := cpuid.MSRs()[msr]; ok {
		return d.Value, true
	}
	return 0, storable(msr)
}

func (e *env) WriteMSR(msr uint32, v uint64) bool {
	if e.m.chip.CPU(0).WriteMSR(msr, v) || e.m.dev.pvclock.WriteMSR(msr, v) {
		return true
	}
	if d, ok := cpuid.MSRs()[msr]; ok {
		if !d.Writable {
			return false
		}
		e.msr[msr] = v
		return true
	}
	if storable(msr) {
		e.msr[msr] = v
		return true
	}
	return false
}
