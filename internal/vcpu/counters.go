package vcpu

import (
	"fmt"
	"time"

	"ring3/internal/direct"
	"ring3/internal/stats"
	"ring3/internal/x86"
)

// cost is a count with a time.
type cost struct {
	n uint64
	t time.Duration
}

// Counters say how often a virtual CPU left user code, why, and how long it
// took until user code ran again.
type Counters struct {
	start      time.Time
	Halts      uint64
	HaltTime   time.Duration
	Interrupts [256]uint64

	userTime   time.Duration
	userRuns   uint64
	exits      [directKinds]cost
	exceptions [32]cost

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
	if e.Kind == direct.ExitException {
		k = &v.c.exceptions[e.Vector&31]
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

// AddStats adds what the virtual CPU counted to a table. Call it through Do.
func (v *VCPU) AddStats(t *stats.Table) {
	c := &v.c
	t.Wall = time.Since(c.start)
	names := map[direct.ExitKind][2]string{
		direct.ExitSyscall:  {"syscall", "syscall"},
		direct.ExitNeedStep: {"step", "single instruction"},
		direct.ExitKick:     {"kick", "interrupt of user code"},
		direct.ExitDied:     {"died", "stub process"},
	}
	for k, n := range names {
		e := c.exits[k]
		t.Add(n[0], n[1], e.n, e.t)
	}
	for vec, e := range c.exceptions {
		name := vectorNames[uint8(vec)]
		if name == "" {
			name = fmt.Sprintf("vector %d", vec)
		}
		t.Add("exception", name, e.n, e.t)
	}
	for vec, n := range c.Interrupts {
		t.Add("interrupt", fmt.Sprintf("vector %#x", vec), n, 0)
	}
	t.Add("idle", "hlt", c.Halts, c.HaltTime)
	t.Add("user", "user code", c.userRuns, c.userTime)
}
