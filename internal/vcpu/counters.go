package vcpu

import (
	"fmt"
	"time"

	"ring3/internal/bt"
	"ring3/internal/direct"
	"ring3/internal/stats"
	"ring3/internal/x86"
	"ring3/internal/x86/insn"
)

// cost is a count with a time.
type cost struct {
	n uint64
	t time.Duration
}

// counters say how often a virtual CPU left user code, why, and how long it
// took until user code ran again.
type counters struct {
	timer      uint64 // interrupts of the local APIC timer
	interrupts [256]uint64

	userTime   time.Duration
	userRuns   uint64
	kernelTime time.Duration
	exits      [directKinds]cost
	exceptions [32]cost
	steps      map[insn.Op]*cost // exits to execute one instruction

	kernelSteps map[insn.Op]uint64 // what the translator left to the interpreter; only when timed

	// The exit being served: since when, and where its time goes.
	leftAt time.Time
	serve  *cost
}

const directKinds = 8

// resumed is called when user code is about to run: the exit that was being
// served is over.
func (v *VCPU) resumed() {
	if !v.timed {
		return
	}
	now := time.Now()
	if v.c.serve != nil {
		v.c.serve.t += now.Sub(v.c.leftAt)
		v.c.serve = nil
	}
	v.c.leftAt = now
}

// left is called when user code has left with exit e.
func (v *VCPU) left(e direct.Exit) {
	k := &v.c.exits[int(e.Kind)%directKinds]
	switch e.Kind {
	case direct.ExitException:
		k = &v.c.exceptions[e.Vector&31]
	case direct.ExitNeedStep:
		op := v.cpu.OpAt()
		if k = v.c.steps[op]; k == nil {
			k = &cost{}
			v.c.steps[op] = k
		}
	}
	k.n++
	if !v.timed {
		return
	}
	now := time.Now()
	v.c.userRuns++
	v.c.userTime += now.Sub(v.c.leftAt)
	v.c.leftAt, v.c.serve = now, k
}

var vectorNames = map[uint8]string{
	x86.VecDE: "#DE", x86.VecDB: "#DB", x86.VecBP: "#BP", x86.VecOF: "#OF", x86.VecBR: "#BR",
	x86.VecUD: "#UD", x86.VecNM: "#NM", x86.VecDF: "#DF", x86.VecTS: "#TS", x86.VecNP: "#NP",
	x86.VecSS: "#SS", x86.VecGP: "#GP", x86.VecPF: "#PF", x86.VecMF: "#MF", x86.VecAC: "#AC",
	x86.VecMC: "#MC", x86.VecXM: "#XM",
}

// addStats adds what the virtual CPU and its engines counted to a table.
func (v *VCPU) addStats(t *stats.Table) {
	c := &v.c
	t.Add("user", "code in stubs, with hand-over", c.userRuns, c.userTime)
	t.Add("syscall", "SYSCALL", c.exits[direct.ExitSyscall].n, c.exits[direct.ExitSyscall].t)
	t.Add("kick", "user code stopped for an event", c.exits[direct.ExitKick].n, c.exits[direct.ExitKick].t)
	t.Add("died", "stub process", c.exits[direct.ExitDied].n, c.exits[direct.ExitDied].t)
	for vec, e := range c.exceptions {
		name := vectorNames[uint8(vec)]
		if name == "" {
			name = fmt.Sprintf("vector %d", vec)
		}
		t.Add("exception", name, e.n, e.t)
	}
	for op, e := range c.steps {
		t.Add("user instruction", op.String(), e.n, e.t)
	}
	t.Add("timer", "local APIC timer", c.timer, 0)
	for vec, n := range c.interrupts {
		t.Add("interrupt", fmt.Sprintf("vector %#x", vec), n, 0)
	}
	v.addInterp(t)
	v.addDirect(t)
	v.addKernel(t)
}

// exitNames are rows for exits of translated code without a signal.
var exitNames = [bt.ExitKinds]string{
	bt.ExitChain:     "first use of a branch",
	bt.ExitStep:      "instruction to be interpreted",
	bt.ExitVector:    "instruction with extended state to be interpreted",
	bt.ExitUser:      "user TLB miss, read",
	bt.ExitUserWrite: "user TLB miss, write",
	bt.ExitWindow:    "STI while an interrupt waits",
}

// addKernel adds the rows of translated kernel code.
func (v *VCPU) addKernel(t *stats.Table) {
	if v.kernel == nil {
		return
	}
	if f := v.verify; f != nil {
		t.Add("verify", "blocks compared", f.c.blocks, 0)
		t.Add("verify", "instructions compared", f.c.insts, 0)
		t.Add("verify", "blocks left alone, a long string instruction", f.c.long, 0)
		t.Add("verify", "blocks left alone, stopped in a string instruction", f.c.halfway, 0)
		t.Add("verify", "blocks left alone, stopped too often", f.c.refused, 0)
	}
	n := v.kernel.Stats()
	t.Add("translator", "runs", n.Runs, 0)
	t.Add("translator", "kicks before code ran", n.Kicks, 0)
	t.Add("translator", "blocks translated", n.Translated, 0)
	t.Add("translator", "instructions in them", n.Insts, 0)
	t.Add("translator", "bytes of guest code in them", n.GuestBytes, 0)
	t.Add("translator", "bytes emitted", n.EmittedBytes, 0)
	t.Add("translator", "exits chained", n.Chained, 0)
	t.Add("translator", "instructions found to access user memory", n.Learned, 0)
	t.Add("translator", "user TLB misses served by the stub", n.UserFills, 0)
	t.Add("translator, exit", "without a signal", n.Exits, 0)
	t.Add("translator, exit", "jump table miss", n.Misses, 0)
	for kind, name := range exitNames {
		t.Add("translator, exit", name, n.Left[kind], 0)
	}
	t.Add("translator, signal", "all", n.Faults, 0)
	t.Add("translator, signal", "page mapped", n.Mapped, 0)
	t.Add("translator, signal", "kick", n.KickSignals, 0)
	t.Add("translator, signal", "address in the lower half", n.LowerHalf, 0)
	t.Add("translator, signal", "other page fault: code written, a device, the guest's", n.Refused, 0)
	t.Add("translator, signal", "other exception", n.Trapped, 0)
	t.Add("translator, dropped", "blocks whose code was written", n.Written, 0)
	t.Add("translator, dropped", "blocks whose page moved", n.Moved, 0)
	t.Add("translator, dropped", "whole cache, full", n.Flushes, 0)
	t.Add("translator, dropped", "whole cache, CR4 changed", n.ModeFlushes, 0)
	for op, count := range v.c.kernelSteps {
		t.Add("translator, interpreted", insn.Op(op).String(), count, 0)
	}
}

// addInterp adds the interpreter's rows.
func (v *VCPU) addInterp(t *stats.Table) {
	n := v.cpu.Counters()
	t.Add("interpreter", "instructions", n.Instructions, v.c.kernelTime)
	t.Add("interpreter", "blocks decoded", n.Decoded, 0)
	t.Add("interpreter", "blocks dropped, code written", n.Invalidated, 0)
	t.Add("interpreter", "TLB misses", n.SlowLoads+n.SlowStores, 0)
	t.Add("interpreter", "TLB flushes", n.Flushes, 0)
	for op, e := range n.Privileged {
		t.Add("privileged", insn.Op(op).String(), e.Count, e.Time)
	}
}

// addDirect adds the rows of direct execution.
func (v *VCPU) addDirect(t *stats.Table) {
	n := v.user.Stats()
	t.Add("page map", "faults served by mapping", n.HostFaults, 0)
	t.Add("page map", "pages mapped", n.PagesMapped, 0)
	t.Add("page map", "mmap calls", n.Maps, 0)
	t.Add("page map", "munmap and mprotect calls", n.Unmaps, 0)
	t.Add("page map", "address spaces revalidated", n.Revalidations, 0)
	t.Add("patched", "pages scanned", n.Scans, 0)
	t.Add("patched", "instructions patched", n.Patches, 0)
	t.Add("patched", "system calls patched", n.Sites, 0)
	t.Add("patched", "system calls to the monitor without a signal", n.FastSyscalls, 0)
	t.Add("patched", "system calls to the kernel stub", n.Handed, 0)
	t.Add("stub", "page faults to the kernel stub", n.HandedFaults, 0)
	t.Add("stub", "pages mapped and unmapped by the stubs", n.Changes, 0)
	t.Add("stub", "stopped while waiting for another stub", n.Parks, 0)
	t.Add("patched", "traps of patched instructions", n.PatchedTraps, 0)
	t.Add("patched", "CPUID answered in the stub", n.CPUIDs, 0)
	t.Add("stub", "processes forked", n.Forks, 0)
	t.Add("stub", "processes recycled", n.Recycled, 0)
	t.Add("stub", "extended state moved", n.FPUMoves, 0)
	t.Add("processors", "scarce: monitor and stubs share one", n.Scarce, n.ScarceTime)
	t.Add("stub", "answers while spinning", n.SpinHits, 0)
	t.Add("stub", "answers while asleep", n.SpinMisses, 0)
}
