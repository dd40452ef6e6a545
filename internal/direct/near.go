package direct

import (
	"time"

	"ring3/internal/host"
)

// near decides where the monitor, the kernel stub and the user stub of a
// virtual CPU run.
//
// While user and kernel stub hand over to each other, the two need a processor
// each, and the monitor sleeps on the kernel stub's: waking a thread that
// shares a processor with the one that goes to sleep takes 3 µs, waking one on
// another processor 9, and a monitor that spins there takes it from the user
// stub. While guest kernel code runs alone, monitor and kernel stub are apart
// and spin for each other.
//
// While processors are scarce, all three share one and nobody spins: whoever
// is rung runs as soon as the one that has rung goes to sleep.
type near struct {
	tick  uint64      // TSC ticks in a microsecond; 0: processors are never scarce
	all   host.CPUSet // where they may run
	cpu   int         // 1 + the processor that the monitor is bound to, 0 if it is not
	fixed bool        // it cannot be bound, or there is one processor only
	alone int         // stops of the kernel stub in a row without user code

	scarce   bool
	scarcity scarcity
	due      uint64    // TSC when to look again
	parties  [3]usage  // monitor, kernel stub, user stub: when the window began
	since    time.Time // of scarce

	scarceTime time.Duration
	switches   uint64 // to one processor
}

// maxAlone is how many times in a row kernel code stops, without user code in
// between, before monitor and kernel stub part: moving costs as much as a few
// hand-overs.
const maxAlone = 32

// pair places all that take part when stubs hand over to each other.
func (n *near) pair(user, kernel *proc) {
	n.look(user, kernel)
	n.alone = 0
	n.bind()
	n.place(kernel, n.cpu)
	n.placeUser(user)
}

// user places a user stub and the monitor, which it exchanges commands with.
func (n *near) user(p *proc) {
	n.look(p, nil)
	if n.scarce {
		n.bind()
	}
	n.placeUser(p)
}

// kernel places the kernel stub and the monitor when no user stub takes part.
func (n *near) kernel(p *proc) {
	n.look(nil, p)
	n.alone++
	switch {
	case n.scarce:
		n.bind()
		n.place(p, n.cpu)
	case n.alone > maxAlone:
		n.loosen()
		n.place(p, 0)
	}
}

// bind puts the monitor on the processor that it is on. It does nothing when
// that is refused, or when there is one processor only.
func (n *near) bind() {
	if n.cpu != 0 || n.fixed {
		return
	}
	all, err := host.Affinity(0)
	if err == nil && all.Count() > 1 {
		if cpu, err := host.CurrentCPU(); err == nil {
			n.all = all
			n.bindTo(cpu)
		}
	}
	n.fixed = n.cpu == 0
}

func (n *near) bindTo(cpu int) {
	if one := single(cpu); host.SetAffinity(0, &one) == nil {
		n.cpu = cpu + 1
	}
}

func single(cpu int) (set host.CPUSet) {
	set.Set(cpu)
	return set
}

// loosen lets the monitor run anywhere. Stubs follow when they next run.
func (n *near) loosen() {
	if n.cpu != 0 {
		n.cpu = 0
		_ = host.SetAffinity(0, &n.all) // fails only if these processors are gone
	}
}

func (n *near) placeUser(p *proc) {
	cpu := 0
	if n.scarce {
		cpu = n.cpu
	}
	n.place(p, cpu)
}

// place binds a stub to the processor cpu-1, or lets it run anywhere.
func (n *near) place(p *proc, cpu int) {
	if p.cpu == cpu {
		return
	}
	set := n.all
	if cpu != 0 {
		set = single(cpu - 1)
	}
	p.cpu = cpu
	_ = host.SetAffinity(p.pid, &set) // if refused, it runs where the scheduler likes
}

// leave ends the binding of the calling thread, the monitor's.
func (n *near) leave() {
	n.end()
	n.loosen()
}
