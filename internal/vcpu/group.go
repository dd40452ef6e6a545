package vcpu

import (
	"context"
	"runtime"
	"slices"
	"sync/atomic"
	"time"

	"ring3/internal/cpu"
	"ring3/internal/stats"
	"ring3/internal/timer"
)

// Group is the virtual CPUs of a machine. They take turns: one runs, the stubs
// of all others are stopped, so that nothing that they share needs a lock.
//
// A CPU has its turn until it halts, or its slice is over and another one could
// run, or something comes for a CPU that was halted, or it has sent an
// interrupt to another CPU: it may well wait for what that does. Who is called
// so has a short slice, and then the turn goes back.
type Group struct {
	cpus  []*VCPU
	order []*VCPU // whose turn it is, and who follows
	now   atomic.Pointer[VCPU]
	slice timer.Timer
	over  atomic.Bool // the slice is over
	look  atomic.Bool // somebody was called

	end   atomic.Uint32
	wake  chan struct{}
	calls chan func()   // to be made on the vCPU thread
	done  chan struct{} // closed when Run has returned

	clock    timer.Clock
	start    time.Time
	switches uint64 // turns that went to another CPU
	idles    uint64
	idleTime time.Duration
}

// turn is what a Group keeps about one of its CPUs.
type turn struct {
	n      int
	called atomic.Bool   // something came for it while it was halted, or from another CPU
	idle   atomic.Bool   // it was not runnable when it was looked at last
	left   time.Duration // of its slice
	since  int64         // until when it was charged for that, by the clock
}

// How long a CPU runs while others could: a few times what a switch costs,
// which is up to 0.1 ms with the stubs' caches, and short beside the ticks of
// the guest's scheduler (4 ms at 250 Hz). A CPU that waits for a lock of
// another spins for this long.
const (
	slice = 3 * time.Millisecond
	// called is for a CPU that another one has interrupted: time for a few
	// interrupts.
	called = 300 * time.Microsecond
)

// NewGroup makes a group of CPUs; the first is the boot processor.
func NewGroup(clock timer.Clock, cpus ...*VCPU) *Group {
	g := &Group{cpus: cpus, order: slices.Clone(cpus), clock: clock,
		wake: make(chan struct{}, 1), calls: make(chan func(), 1), done: make(chan struct{})}
	for i, v := range cpus {
		v.t.n, v.t.left = i, slice
	}
	g.now.Store(cpus[0])
	if len(cpus) > 1 {
		g.slice = clock.NewTimer(func() {
			g.over.Store(true)
			g.now.Load().kick()
		})
	}
	return g
}

// Turn is the number of the CPU whose turn it is; on the vCPU thread.
func (g *Group) Turn() int { return g.now.Load().t.n }

// Kick makes the loop look at its events soon, wherever it is.
func (g *Group) Kick() {
	g.now.Load().kick()
	select {
	case g.wake <- struct{}{}:
	default:
	}
}

// Notify tells that CPU n should look at its local APIC; with ipi, another CPU
// sent it something. It may be called from any goroutine.
func (g *Group) Notify(n int, ipi bool) {
	if v := g.cpus[n]; len(g.cpus) > 1 && (ipi || v.t.idle.Load()) {
		v.t.called.Store(true)
		g.look.Store(true)
	} else if g.now.Load() != v {
		return // when it has its turn
	}
	g.Kick()
}

// End asks the loop to stop with the given reason; the first reason wins.
func (g *Group) End(e End) {
	g.end.CompareAndSwap(uint32(Running), uint32(e))
	g.Kick()
}

// Do calls fn on the vCPU thread, at the next exit, or at once when Run has
// returned. It returns when fn has.
func (g *Group) Do(fn func()) {
	called := make(chan struct{})
	select {
	case <-g.done:
		fn()
		return
	case g.calls <- func() { fn(); close(called) }:
	}
	g.Kick()
	select {
	case <-called:
	case <-g.done:
		// Run may have ended without taking the call.
		select {
		case f := <-g.calls:
			f()
		case <-called:
		}
	}
}

// Run runs the guest until it ends or ctx is cancelled.
func (g *Group) Run(ctx context.Context) (End, error) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	defer g.cpus[0].user.Leave()
	defer close(g.done)
	stop := context.AfterFunc(ctx, func() { g.End(Stopped) })
	defer stop()
	g.start = time.Now()
	for {
		v := g.next()
		if e := End(g.end.Load()); e != Running {
			return e, nil
		}
		select {
		case f := <-g.calls:
			f()
			continue // it may have made a CPU runnable
		default:
		}
		if v == nil {
			g.sleep()
			continue
		}
		end, err := v.round()
		if err != nil {
			return Stopped, err
		}
		if end != Running {
			g.end.CompareAndSwap(uint32(Running), uint32(end))
		}
	}
}

// next is the CPU whose turn it is, nil when all are halted.
func (g *Group) next() *VCPU {
	v := g.now.Load()
	if len(g.cpus) == 1 {
		if v.runnable() {
			return v
		}
		return nil
	}
	if v.runnable() && !g.look.Load() && !g.over.Load() {
		return v
	}
	for {
		// What comes from here on for another CPU is seen after now is stored.
		g.look.Store(false)
		if v = g.choose(v); v == nil {
			return nil
		}
		if !g.look.Load() {
			return v
		}
	}
}

// choose charges v, which had the turn, for what it took of its slice, and gives
// the turn to the CPU that is due.
func (g *Group) choose(v *VCPU) *VCPU {
	now := g.clock.Nanos()
	v.t.left -= time.Duration(now - v.t.since)
	v.t.since = now
	g.over.Store(false)
	if v.t.left <= 0 {
		v.t.left = slice
		g.move(v, len(g.order)-1)
	}
	for _, o := range g.cpus {
		if o.t.called.Swap(false) && o != v && o.runnable() {
			o.t.left = called
			g.move(o, 0)
		}
	}
	var first *VCPU
	others := false
	for _, o := range g.order {
		o.t.idle.Store(true) // before the look: what comes after it calls
		if !o.runnable() {
			continue
		}
		o.t.idle.Store(false)
		if first == nil {
			first = o
		} else {
			others = true
		}
	}
	if first == nil {
		g.slice.Stop()
		return nil
	}
	if first != v {
		v.rest()
		g.switches++
		first.t.since = now
		g.now.Store(first)
	}
	if others {
		g.slice.Set(now + int64(first.t.left))
	} else {
		g.slice.Stop()
	}
	return first
}

// move puts a CPU at another place of the order.
func (g *Group) move(v *VCPU, to int) {
	i := slices.Index(g.order, v)
	g.order = slices.Insert(slices.Delete(g.order, i, i+1), to, v)
}

// sleep waits for something to happen while all CPUs are halted.
func (g *Group) sleep() {
	start := time.Now()
	<-g.wake
	g.idles++
	g.idleTime += time.Since(start)
}

// AddStats adds what the virtual CPUs and their engines counted to a table. Call
// it through Do.
func (g *Group) AddStats(t *stats.Table) {
	t.Wall = time.Since(g.start)
	t.Add("idle", "hlt", g.idles, g.idleTime)
	t.Add("turns", "to another virtual CPU", g.switches, 0)
	for _, v := range g.cpus {
		v.addStats(t)
	}
}

// State is the architectural state of the CPU that ran last; read it only while
// Run is not running.
func (g *Group) State() *cpu.State { return &g.now.Load().cpu.State }
