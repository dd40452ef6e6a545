// Package vcpu runs the virtual CPUs of a machine, which take turns on one
// locked OS thread (group.go). The loop decides which engine of the CPU runs
// next, hands over interrupts and exceptions, and sleeps in HLT:
//
//  1. An interrupt that is pending and not masked is delivered.
//  2. At CPL 3 in long mode the guest's code runs directly on the processor,
//     in a stub process (package direct); everything else is interpreted
//     (package interp).
//  3. What direct execution could not do comes back as an exit: a system call
//     or a sensitive instruction is executed by the interpreter, an exception
//     is delivered through the guest's IDT.
//
// Kick, End and Do of a Group may be called from any goroutine.
package vcpu

import (
	"errors"
	"fmt"
	"log/slog"
	"time"

	"ring3/internal/direct"
	"ring3/internal/interp"
	"ring3/internal/irqchip"
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

// LocalAPIC is the interrupt controller of a CPU as the CPU sees it. All but
// Pending may take locks.
type LocalAPIC interface {
	// Pending returns what the CPU has to look at; it must be cheap.
	Pending() irqchip.Events
	// Acknowledge takes the vector of the pending interrupt with the highest
	// priority (the INTA cycle).
	Acknowledge() (vector uint8, ok bool)
	// TimerVector is the vector that the local timer interrupts with.
	TimerVector() uint8
	// TakeNMI, TakeINIT and TakeSIPI take what is pending; see package irqchip.
	TakeNMI() bool
	TakeINIT() bool
	TakeSIPI() (page uint8, ok bool)
}

// budget is the number of interpreted instructions after which the loop looks
// up even without a kick.
const budget = 1 << 20

// nmiBudget is the same for what runs until NMIs are no longer blocked.
const nmiBudget = 200

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
	apic     LocalAPIC
	timed    bool
	log      *slog.Logger
	waiting  bool // for a start-up IPI
	failures int  // to start a stub, in a row

	c counters
	t turn
}

// New makes a virtual CPU from its engines. With timed, exits are timed.
func New(c *interp.CPU, user *direct.Engine, apic LocalAPIC, timed bool, log *slog.Logger) *VCPU {
	c.StopAtUser = true
	return &VCPU{cpu: c, user: user, apic: apic, timed: timed, log: log,
		c: counters{steps: map[insn.Op]*cost{}, kernelSteps: map[insn.Op]uint64{}}}
}

// Translate has kernel code run by k where it can; before the Group runs.
func (v *VCPU) Translate(k *direct.Kernel) { v.kernel = k }

// AwaitStartUp has the CPU wait for a start-up IPI, as all but the boot
// processor do after RESET#; before the Group runs.
func (v *VCPU) AwaitStartUp() { v.waiting = true }

// kick makes the engines return soon; from any goroutine.
func (v *VCPU) kick() {
	v.cpu.Kick()
	v.user.Kick()
	if v.kernel != nil {
		v.kernel.Kick()
	}
	if v.verify != nil {
		v.verify.k.Kick()
	}
}

// rest stops all that runs for this CPU, before another one has its turn.
func (v *VCPU) rest() {
	v.c.serve = nil // what follows is not its time
	v.user.Rest()
	if v.kernel != nil {
		v.kernel.Rest()
	}
}

// runnable reports whether there is something to do: the CPU is not halted, or
// something is pending that ends that.
func (v *VCPU) runnable() bool {
	if !v.waiting && !v.cpu.Halted {
		return true
	}
	e := v.apic.Pending()
	switch {
	case e == 0:
		return false
	case e&irqchip.EventINIT != 0:
		return true
	case v.waiting:
		return e&irqchip.EventSIPI != 0
	}
	return e&irqchip.EventSIPI != 0 || e&irqchip.EventNMI != 0 && !v.cpu.NMIBlocked ||
		e&irqchip.EventInterrupt != 0 && v.cpu.RFLAGS&x86.FlagIF != 0
}

// round delivers an event, or runs guest code until something must be looked
// at. end is not Running when the guest has ended the machine by it.
func (v *VCPU) round() (end End, err error) {
	c := v.cpu
	pending := false
	if e := v.apic.Pending(); e != 0 {
		if e != irqchip.EventInterrupt && v.signal(e, &end) {
			return end, nil
		}
		pending = e&irqchip.EventInterrupt != 0
		if pending && c.RFLAGS&x86.FlagIF != 0 && !c.InterruptShadow {
			if vec, ok := v.apic.Acknowledge(); ok {
				if vec == v.apic.TimerVector() {
					v.c.timer++
				} else {
					v.c.interrupts[vec]++
				}
				c.Interrupt(vec)
				return v.ended(), nil
			}
			pending = false
		}
	}
	if v.waiting || c.Halted {
		return Running, nil
	}
	c.WantWindow = pending
	if c.CPL == 3 && c.LongMode() && c.RFLAGS&x86.FlagVM == 0 {
		err = v.runUser()
	} else {
		err = v.runKernel()
	}
	return v.ended(), err
}

func (v *VCPU) ended() End {
	if v.cpu.Shutdown() {
		return TripleFault
	}
	return Running
}

// signal takes an event that is no maskable interrupt, if the CPU takes it now
// (SDM vol. 3A, section 9.4: INIT, then a start-up IPI).
func (v *VCPU) signal(e irqchip.Events, end *End) (taken bool) {
	switch {
	case e&irqchip.EventINIT != 0:
		if v.t.n == 0 {
			// The boot processor would start firmware anew.
			*end = Reset
			return true
		}
		v.apic.TakeINIT()
		v.cpu.INIT()
		v.waiting = true
	case e&irqchip.EventSIPI != 0:
		page, ok := v.apic.TakeSIPI()
		if ok && v.waiting {
			v.waiting = false
			v.cpu.StartUp(page)
		}
	case v.waiting || e&irqchip.EventNMI == 0 || v.cpu.NMIBlocked || v.cpu.InterruptShadow:
		return false
	case v.apic.TakeNMI():
		v.cpu.NMI()
		*end = v.ended()
	}
	return true
}

// runKernel interprets until the guest returns to user mode or something
// must be looked at.
func (v *VCPU) runKernel() error {
	if v.timed {
		start := time.Now()
		defer func() { v.c.kernelTime += time.Since(start) }()
	}
	// A translated IRET may not come here, and would leave NMIs blocked.
	if v.kernel != nil && v.cpu.LongMode() && !v.cpu.NMIBlocked {
		return v.runTranslated()
	}
	n := budget
	if v.cpu.NMIBlocked {
		n = nmiBudget
	}
	return interpreted(v.cpu.Run(n))
}

// interpreted looks at how interpretation ended.
func interpreted(e interp.Exit) error {
	switch e {
	case interp.ExitUser, interp.ExitHalt, interp.ExitKick, interp.ExitBudget, interp.ExitShutdown:
		return nil
	}
	return fmt.Errorf("BUG: unknown interpreter exit %d", e)
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
		v.cpu.Step()
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
