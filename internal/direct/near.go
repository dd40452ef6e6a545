package direct

import "ring3/internal/host"

// near decides where the monitor and the kernel stub run. While user and
// kernel stub hand over to each other, the two need a processor each, and the
// monitor sleeps on the kernel stub's: waking a thread that shares a processor
// with the one that goes to sleep takes 3 µs, waking one on another processor
// 9, and a monitor that spins there takes it from the user stub. While guest
// kernel code runs alone, monitor and kernel stub are apart and spin for each
// other.
type near struct {
	all      host.CPUSet // where the monitor's thread may run
	together bool
	pid      int // of the kernel stub
	alone    int // stops of the kernel stub in a row without user code
}

// maxAlone is how many times in a row kernel code stops, without user code in
// between, before the two part: moving costs as much as a few hand-overs.
const maxAlone = 32

// join puts monitor and kernel stub on the processor that the monitor is on.
// It does nothing when that is refused, or when there is one processor only.
func (n *near) join(pid int) {
	n.alone = 0
	if n.together && n.pid == pid {
		return
	}
	all, err := host.Affinity(0)
	if n.together {
		all, err = n.all, nil
	}
	if err != nil || all.Count() < 2 {
		return
	}
	cpu, err := host.CurrentCPU()
	if err != nil {
		return
	}
	var one host.CPUSet
	one.Set(cpu)
	if host.SetAffinity(0, &one) != nil {
		return
	}
	n.all, n.pid, n.together = all, pid, true
	if host.SetAffinity(pid, &one) != nil {
		n.part()
	}
}

// part lets both run anywhere.
func (n *near) part() {
	if !n.together {
		return
	}
	n.together = false
	// Neither can fail but for processors or a process that are gone.
	_ = host.SetAffinity(0, &n.all)
	_ = host.SetAffinity(n.pid, &n.all)
}

// ranAlone notes a stop of kernel code without a user stub that takes part.
func (n *near) ranAlone() {
	if n.alone++; n.alone > maxAlone {
		n.part()
	}
}
