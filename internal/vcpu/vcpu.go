// Package vcpu is the run loop of one virtual CPU. It decides which engine
// runs next, hands over interrupts and exceptions, and sleeps in HLT:
//
//  1. An interrupt that is pending and not masked is delivered.
//  2. At CPL 3 in long mode the guest's code runs directly on the processor,
//     in a stub process (package direct); everything else is interpreted
//     (package interp).
//  3. What direct execution could not do comes back as an exit: a system call
//     or a sensitive instruction is executed by the interpreter, an exception
//     is delivered through the guest's IDT.
//
// The loop runs on one locked OS thread. Kick, End and Do may be called
// from any goroutine.
package vcpu

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"runtime"
	"sync/atomic"
	"time"

	"ring3/internal/cpu"
	"ring3/internal/direct"
	"ring3/internal/interp"
	"ring3/internal/x86"
	"ring3/internal/x86/insn"
)

// End says why a virtual CPU stopped for good.
type End uint32

// Ends of a run.
const (
	Running     End = iota
	PowerOff        // the guest switched the machine off
	Reset           // the guest asked for a reset
	TripleFault     // shutdown state (SDM vol. 3A, section 6.15, double fault)
	Stopped         // the host asked for it
)

func (e End) String() string {
	return [...]string{"running", "power-off", "reset", "triple fault", "stopped"}[e]
}

// InterruptSource is the interrupt controller as the CPU sees it.
type InterruptSource interface {
	// PendingInterrupt reports whether Acknowledge would return a vector. It
	// must be cheap.
	PendingInterrupt() bool
	// Acknowledge takes the vector of the pending interrupt with the highest
	// priority (the INTA cycle).
	Acknowledge() (vector uint8, ok bool)
	// TimerVector is the vector that the local timer interrupts with.
	TimerVector() uint8
}

// budget is the number of interpreted instructions after which the loop looks
// up even without a kick.
const budget = 1 << 20

// How often in a row the start of a stub may fail before the machine is given
// up, and how long the loop waits before it tries again. Stubs that die are
// not counted: a guest program can kill its own as often as it likes.
const (
	maxFailures  = 50
	failurePause = 20 * time.Millisecond
)

// VCPU is one virtual CPU.
type VCPU struct {
	cpu      *interp.CPU
	user     *direct.Engine
	kernel   *direct.Kernel // nil: kernel code is interpreted
	verify   *verifier      // nil: translated code is not compared
	intr     InterruptSource
	timed    bool
	log      *slog.Logger
	end      atomic.Uint32
	wake     chan struct{}
	calls    chan func()   // to be made on the vCPU thread
	done     chan struct{} // closed when Run has returned
	failures int           // to start a stub, in a row

	c counters
}

// New makes a virtual CPU from its engines. With timed, exits are timed.
func New(c *interp.CPU, user *direct.Engine, intr InterruptSource, timed bool, log *slog.Logger) *VCPU {
	return &VCPU{cpu: c, user: user, intr: intr, timed: timed, log: log,
		wake: make(chan struct{}, 1), calls: make(chan func(), 1), done: make(chan struct{}),
		c: counters{steps: map[insn.Op]*cost{}, kernelSteps: map[insn.Op]uint64{}}}
}

// Translate has kernel code run by k where it can; before Run.
func (v *VCPU) Translate(k *direct.Kernel) { v.kernel = k }

// Kick makes the loop look at its events soon, wherever it is.
func (v *VCPU) Kick() {
	v.cpu.Kick()
	v.user.Kick()
	if v.kernel != nil {
		v.kernel.Kick()
	}
	if v.verify != nil {
		v.verify.k.Kick()
	}
	select {
	case v.wake <- struct{}{}:
	default:
	}
}

// End asks the loop to stop with the given reason; the first reason wins.
func (v *VCPU) End(e End) {
	v.end.CompareAndSwap(uint32(Running), uint32(e))
	v.Kick()
}

// Do calls fn on the vCPU thread, at the next exit, or at once when Run has
// returned. It returns when fn has.
func (v *VCPU) Do(fn func()) {
	called := make(chan struct{})
	select {
	case <-v.done:
		fn()
		return
	case v.calls <- func() { fn(); close(called) }:
	}
	v.Kick()
	select {
	case <-called:
	case <-v.done:
		// Run may have ended without taking the call.
		select {
		case f := <-v.calls:
			f()
		case <-called:
		}
	}
}

// Run runs the guest until it ends or ctx is cancelled.
func (v *VCPU) Run(ctx context.Context) (End, error) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	defer v.user.Leave()
	defer close(v.done)
	stop := context.AfterFunc(ctx, func() { v.End(Stopped) })
	defer stop()
	c := v.cpu
	c.StopAtUser = true
	v.c.start = time.Now()
	for {
		if e := End(v.end.Load()); e != Running {
			return e, nil
		}
		select {
		case f := <-v.calls:
			f()
		default:
		}
		pending := v.intr.PendingInterrupt()
		if pending && c.RFLAGS&x86.FlagIF != 0 && !c.InterruptShadow {
			if vec, ok := v.intr.Acknowledge(); ok {
				if vec == v.intr.TimerVector() {
					v.c.timer++
				} else {
					v.c.interrupts[vec]++
				}
				c.Halted = false
				c.Interrupt(vec)
				continue
			}
			pending = false
		}
		if c.Halted {
			v.sleep()
			continue
		}
		c.WantWindow = pending
		var err error
		if c.CPL == 3 && c.LongMode() && c.RFLAGS&x86.FlagVM == 0 {
			err = v.runUser()
		} else {
			err = v.runKernel()
		}
		if err != nil {
			return Stopped, err
		}
	}
}

// sleep waits in HLT for something to happen.
func (v *VCPU) sleep() {
	start := time.Now()
	<-v.wake
	v.c.halts++
	v.c.haltTime += time.Since(start)
}

// runKernel interprets until the guest returns to user mode or something
// must be looked at.
func (v *VCPU) runKernel() error {
	if v.timed {
		start := time.Now()
		defer func() { v.c.kernelTime += time.Since(start) }()
	}
	if v.kernel != nil && v.cpu.LongMode() {
		return v.runTranslated()
	}
	return v.interpreted(v.cpu.Run(budget))
}

// interpreted looks at how interpretation ended.
func (v *VCPU) interpreted(e interp.Exit) error {
	switch e {
	case interp.ExitUser, interp.ExitHalt, interp.ExitKick, interp.ExitBudget:
	case interp.ExitShutdown:
		v.end.CompareAndSwap(uint32(Running), uint32(TripleFault))
	default:
		return fmt.Errorf("BUG: unknown interpreter exit %d", e)
	}
	return nil
}

// step interprets one instruction at CPL 3.
func (v *VCPU) step() {
	if v.cpu.Step() == interp.ExitShutdown {
		v.end.CompareAndSwap(uint32(Running), uint32(TripleFault))
	}
}

// runUser runs guest user code directly until it leaves.
func (v *VCPU) runUser() error {
	v.resumed()
	e := v.user.Run()
	v.left(e)
	return v.userLeft(e)
}

// userLeft serves an exit of user code.
func (v *VCPU) userLeft(e direct.Exit) error {
	switch e.Kind {
	case direct.ExitKick:
	case direct.ExitKernel:
		v.failures = 0
	case direct.ExitSyscall, direct.ExitNeedStep:
		v.failures = 0
		v.step()
	case direct.ExitException:
		v.failures = 0
		v.inject(e)
	case direct.ExitDied:
		v.log.Warn("a stub process died", "rip", fmt.Sprintf("%#x", v.cpu.RIP), "cr3", fmt.Sprintf("%#x", v.cpu.CR3), "err", e.Err)
		if errors.Is(e.Err, direct.ErrStart) {
			// Nothing is lost: the guest's state is what it was. The host may
			// be short of processes or memory only for a moment.
			if v.failures++; v.failures > maxFailures {
				return e.Err
			}
			time.Sleep(failurePause)
			return nil
		}
		v.failures = 0
		// The process that the guest ran there is beyond repair; a general
		// protection fault makes its kernel end it.
		v.inject(direct.Exit{Vector: x86.VecGP, HasErr: true})
	default:
		return fmt.Errorf("BUG: unknown direct exit %d", e.Kind)
	}
	return nil
}

func (v *VCPU) inject(e direct.Exit) {
	v.cpu.Inject(e.Vector, e.HasErr, e.ErrCode, e.CR2)
	if e.Vector == x86.VecPF {
		v.user.MapHint(e.CR2, e.ErrCode)
	}
}

// State is the architectural state; read it only while Run is not running.
func (v *VCPU) State() *cpu.State { return &v.cpu.State }
