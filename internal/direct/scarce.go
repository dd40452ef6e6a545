package direct

import (
	"time"

	"ring3/internal/host"
)

// scarcity decides whether processors are scarce, from how long threads were
// ready to run and had to wait. While stubs share a processor they wait for
// each other, which says nothing; so after a while they are given two again,
// and looked at. If processors are scarce still, the next such trial is later.
type scarcity struct{ stay time.Duration }

const (
	// lookFor is how long threads are looked at. The scheduler counts what they
	// have run in ticks of up to 10 ms, and lets one wait for 3 ms or so.
	lookFor = 40 * time.Millisecond
	// leastStay and mostStay bound the time between trials. The window is 3 %
	// of the latter.
	leastStay = 50 * time.Millisecond
	mostStay  = 1600 * time.Millisecond
)

// judge returns how long to share a processor, 0 for not at all, after threads
// have run and waited in a window.
func (s *scarcity) judge(ran, waited time.Duration) (stay time.Duration) {
	switch demand := ran + waited; {
	case demand < lookFor/2: // mostly asleep: that tells nothing
	case waited > demand/4:
		s.stay = min(max(2*s.stay, leastStay), mostStay)
		return s.stay
	default:
		s.stay /= 2
	}
	return 0
}

// usage is what a thread has run and waited since it began.
type usage struct {
	pid         int // 0: the monitor's thread
	ran, waited time.Duration
	valid       bool
}

func usageOf(pid int) usage {
	ran, waited, err := host.SchedStat(pid)
	return usage{pid, ran, waited, err == nil}
}

// since is what came after an earlier usage; nothing if that is another thread's.
func (u usage) since(old usage) usage {
	if !u.valid || !old.valid || u.pid != old.pid {
		return usage{}
	}
	return usage{u.pid, u.ran - old.ran, u.waited - old.waited, true}
}

// look finds out, now and then, whether processors are scarce. Either stub may
// be nil.
func (n *near) look(user, kernel *proc) {
	now := host.TSC()
	if now < n.due || n.tick == 0 {
		return
	}
	parties := [3]usage{usageOf(0)}
	if kernel != nil {
		parties[1] = usageOf(kernel.pid)
	}
	if user != nil {
		parties[2] = usageOf(user.pid)
	}
	next := lookFor
	if n.scarce {
		n.end()
		n.loosen()
		n.alone = maxAlone
	} else {
		var d [3]usage
		for i := range d {
			d[i] = parties[i].since(n.parties[i])
		}
		others := beyond(d[0].waited, d[1].ran) + beyond(d[1].waited, d[0].ran)
		if stay := n.scarcity.judge(d[0].ran+d[1].ran+d[2].ran, others+d[2].waited); stay != 0 {
			n.begin(user, d[2].valid && d[2].waited < others)
			next = stay
		}
	}
	n.parties = parties
	n.due = now + uint64(next/time.Microsecond)*n.tick
}

// beyond is by how much one of two threads that share a processor has waited
// longer than the other one ran: it waited for somebody else.
func beyond(waited, otherRan time.Duration) time.Duration { return max(waited-otherRan, 0) }

// begin has all share a processor: the one that the monitor is on, or the user
// stub's if that is less in demand.
func (n *near) begin(user *proc, usersIsFree bool) {
	n.scarce, n.since = true, time.Now()
	n.switches++
	n.bind()
	if usersIsFree && n.cpu != 0 {
		if cpu, err := host.LastCPU(user.pid); err == nil {
			n.bindTo(cpu)
		}
	}
}

func (n *near) end() {
	if n.scarce {
		n.scarce = false
		n.scarceTime += time.Since(n.since)
	}
}
