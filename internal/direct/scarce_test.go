package direct

import (
	"runtime"
	"testing"
	"time"

	"ring3/internal/host"
)

// TestScarcity feeds the decision with what threads have run and waited.
func TestScarcity(t *testing.T) {
	const ms = time.Millisecond
	var s scarcity
	check := func(what string, ran, waited, want time.Duration) {
		t.Helper()
		if got := s.judge(ran, waited); got != want {
			t.Errorf("%s: stays %v, want %v", what, got, want)
		}
	}
	check("asleep", 1*ms, 5*ms, 0)
	check("quiet", 80*ms, 1*ms, 0)
	check("something small beside it", 70*ms, 20*ms, 0)
	check("two share what each wants", 40*ms, 40*ms, leastStay)
	check("a trial, asleep", 0, 0, 0)
	check("again", 40*ms, 40*ms, 2*leastStay)
	for range 20 {
		s.judge(0, 100*ms)
	}
	check("for long", 10*ms, 100*ms, mostStay)
	for range 10 {
		check("free again", 80*ms, 0, 0)
	}
	check("and scarce", 40*ms, 40*ms, leastStay)
}

// TestUsage compares samples of different threads.
func TestUsage(t *testing.T) {
	a := usage{pid: 7, ran: 5, waited: 2, valid: true}
	b := usage{pid: 7, ran: 8, waited: 6, valid: true}
	if d := b.since(a); !d.valid || d.ran != 3 || d.waited != 4 {
		t.Errorf("difference %+v", d)
	}
	a.pid = 8
	for _, old := range []usage{a, {}} {
		if d := b.since(old); d.valid || d.ran != 0 {
			t.Errorf("since %+v: %+v", old, d)
		}
	}
}

// TestLeave looks at the processors of the monitor's thread before, while and
// after it shares one with the stubs.
func TestLeave(t *testing.T) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	before, err := host.Affinity(0)
	if err != nil || before.Count() < 2 {
		t.Skip("one processor, or no sched_getaffinity: ", err)
	}
	shareOne = true
	defer func() { shareOne = false }()
	g := newPairGuest(t, callerCode(100, []byte{0xf4}))
	if x := g.run(); x.Kind != ExitNeedStep {
		t.Fatalf("exit %+v", x)
	}
	bound, _ := host.Affinity(0)
	u, _ := host.Affinity(g.u.cur.p.pid)
	k, _ := host.Affinity(g.k.s.p.pid)
	if bound.Count() != 1 || u != bound || k != bound {
		t.Errorf("monitor, user and kernel stub on %v, %v, %v", bound, u, k)
	}

	// Free again: the stubs follow when they next run.
	g.u.near.due = 0
	g.st.RIP, g.st.CPL = codeVA, 3
	if x := g.run(); x.Kind != ExitNeedStep {
		t.Fatalf("exit %+v", x)
	}
	if u, _ := host.Affinity(g.u.cur.p.pid); u != before {
		t.Errorf("user stub on %v, want %v", u, before)
	}
	g.u.Leave()
	if after, _ := host.Affinity(0); after != before {
		t.Errorf("%v after Leave, %v before", after, before)
	}
}

// shareOne has pairs of newPairGuest and the monitor share a processor.
var shareOne bool

// TestPairOnOne is the tests of hand-over on one processor.
func TestPairOnOne(t *testing.T) {
	shareOne = true
	defer func() { shareOne = false }()
	t.Run("Pair", TestPair)
	t.Run("Base", TestPairBase)
	t.Run("Flush", TestPairFlush)
	t.Run("Lie", TestPairLie)
}
