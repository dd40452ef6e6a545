package direct

import (
	"errors"
	"fmt"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
	"unsafe"

	"ring3/internal/bt"
	"ring3/internal/direct/stub"
	"ring3/internal/host"
	"ring3/internal/x86"
)

// pair is the direct way between a user stub and the kernel stub (package
// stub, Handoff): at most one of the two runs guest code, the other listens to
// its bell, and the monitor sleeps until one of them stops. Who that is, and
// how many system calls there were meanwhile, tells what the guest's state is.
//
// A user stub that lies about waiting is found out when it stops by a signal
// although it has handed over, and when the guest kernel takes something away
// that it has mapped: then it must prove to be stopped (park).
type pair struct {
	u    *Engine
	k    *Kernel
	h    *stub.Handoff
	spin spinner

	failed error // why the kernel stub is beyond use

	sysrets, syscalls, faults uint64 // counted by the kernel stub, as of its last stop

	entry faultEntry

	checked time.Time // see checkTables
}

// Pair lets two engines of the same virtual CPU hand over to each other, through
// the annex of guest memory that has its number. It comes before their first Run.
func Pair(u *Engine, k *Kernel) error {
	if err := unix.Dup3(u.listens, k.e.listens, unix.O_CLOEXEC); err != nil {
		return err
	}
	h := &pair{u: u, k: k, h: u.handoff()}
	h.spin.max = u.spinRun.max
	u.pair, k.pair, k.e.pair = h, h, h
	k.e.kick, k.e.near = u.kick, u.near
	return nil
}

// handoff is the hand-over page of the engine's stubs.
func (e *Engine) handoff() *stub.Handoff {
	return (*stub.Handoff)(unsafe.Pointer(&e.mem.Annex(e.cfg.CPU)[0]))
}

// bell is what a stub that waits listens to.
func (p *proc) bell() *uint32 {
	h := p.e.pair.h
	if p.e.cfg.kernel {
		return &h.KernelBell
	}
	return &h.UserBell
}

// ring has a stub that listens look at Control. A program can have written
// that nobody sleeps.
func (p *proc) ring() {
	bell := p.bell()
	atomic.SwapUint32(bell, stub.BellPark)
	host.FutexWake(bell)
}

// spinFor is how long to spin for an answer of the stub, up to ticks: not at
// all when it needs this processor to answer.
func (p *proc) spinFor(ticks uint64) uint64 {
	n := p.e.near
	if n.scarce || n.cpu != 0 && p.cpu == n.cpu {
		return 0
	}
	return ticks
}

// parkLimit is how long a user stub that listens may take to stop.
const parkLimit = time.Second

// park makes a stub that listens stop and take commands.
func (p *proc) park() error {
	if !p.waits {
		return nil
	}
	p.waits = false
	limit := parkLimit
	if p.e.cfg.kernel {
		limit = hangLimit // no program can keep it, and the guest ends with it
	}
	c := p.ctl
	atomic.StoreUint32(&c.Ready, 0)
	atomic.StoreUint32(&c.State, stub.Running)
	atomic.StoreUint32(&c.Park, 1)
	atomic.StoreUint32(&c.Door, 0)
	p.ring()
	p.e.stats.Parks++
	if !host.SpinUntil(&c.State, stub.Stopped, p.spinFor(p.e.spinRun.max)) {
		for start := time.Now(); ; {
			atomic.SwapUint32(&c.MonSleeps, 1)
			if atomic.LoadUint32(&c.State) == stub.Stopped {
				break
			}
			host.FutexWait(&c.State, stub.Running, nap)
			if err := p.reap(); err != nil {
				return err
			}
			if time.Since(start) > limit && atomic.LoadUint32(&c.State) != stub.Stopped {
				return fmt.Errorf("%w: it does not wait as it says", errDied)
			}
		}
		atomic.StoreUint32(&c.MonSleeps, 0)
	}
	p.unproven++
	if r := atomic.LoadUint32(&c.Reason); r != stub.ReasonReady {
		return fmt.Errorf("%w: it was to wait and stopped for reason %d", errDied, r)
	}
	return p.takeFPU(atomic.LoadUint64(&c.Frame))
}

// silence clears the bells before a stub runs, the other one not running: a
// program may have rung them to have the next one return where it likes. The
// next one may not see the registers of the last either.
func (h *pair) silence() {
	h.h.GPR, h.h.FSBase, h.h.GSBase, h.h.RIP, h.h.Flags, h.h.CR2 = [16]uint64{}, 0, 0, 0, 0, 0
	h.h.NCalls, h.h.Calls = 0, [stub.MaxHandCalls]stub.Call{}
	atomic.StoreUint32(&h.h.UserBell, 0)
	atomic.StoreUint32(&h.h.KernelBell, 0)
}

// offer prepares the kernel stub for system calls of the user stub that is
// about to run, after which attend makes it listen. It is false when they must
// come to the monitor.
func (h *pair) offer(s *space) (bool, error) {
	k := h.k
	atomic.StoreUint32(&h.h.Fast, 0)
	if k.s == nil || !k.ran {
		return false, nil
	}
	p := k.s.p
	if k.needsFreshen() {
		if err := p.park(); err != nil {
			return false, err
		}
		k.bringUpToDate()
		if err := k.e.unmapGone(k.s); err != nil {
			return false, err
		}
	}
	if len(p.calls) != 0 {
		if err := errors.Join(p.park(), p.execute()); err != nil {
			return false, err
		}
	}
	if !h.setTarget() {
		return false, nil
	}
	c := p.ctl
	c.Paired, c.Owner = 1, 0
	c.GSBase, c.Want = bt.Delta, 0
	k.setWords()
	h.place(s.p)
	h.setMaps(s)
	return true, nil
}

// place decides where the two stubs run, and whether they spin.
func (h *pair) place(user *proc) {
	h.u.near.pair(user, h.k.s.p)
	spins := h.spins()
	atomic.StoreUint32(&user.ctl.BellSpin, spins)
	atomic.StoreUint32(&h.k.s.p.ctl.BellSpin, spins)
}

// attend makes the kernel stub listen, after offer. The user stub runs
// already: it may share no processor with the kernel stub, but the monitor may.
func (h *pair) attend() error {
	p := h.k.s.p
	if !p.waits {
		if err := p.command(stub.CmdPair); err != nil {
			return err
		}
		p.waits = true
		return nil
	}
	if !h.u.near.scarce && atomic.LoadUint32(&h.h.KernelSleeps) != 0 && atomic.CompareAndSwapUint32(&h.h.KernelBell, 0, stub.BellSpin) {
		host.FutexWake(&h.h.KernelBell)
	}
	return nil
}

// spins is for how many PAUSEs a stub spins for its bell.
func (h *pair) spins() uint32 {
	if h.u.spinServe.max == 0 || h.u.near.scarce {
		return 0
	}
	return uint32(bellSpin / time.Microsecond * time.Duration(h.u.microsecond*h.u.pauses/1024))
}

// bellSpin is longer than most system calls, and than most of what programs do
// between two of them.
const bellSpin = 30 * time.Microsecond

// attached is the user stub that the kernel stub may hand over to with SYSRET:
// it waits for that, in the current address space, and nothing about it has
// changed. It is nil when the monitor must see SYSRET.
func (h *pair) attached() *space {
	u, st := h.u, h.u.state
	s := u.cur
	if s == nil || !s.p.waits || s.key != u.pml4() || s.pcid != u.pcid() || s.stale ||
		len(s.stalePages)+len(s.gone)+len(s.weak)+len(s.p.calls) != 0 || u.hasHint || u.lied || u.answersStale() || u.fpuHome != s ||
		st.CR0&(x86.CR0TS|x86.CR0EM) != 0 || st.CR4&x86.CR4TSD != 0 || st.DR[7]&0xff != 0 ||
		st.STAR>>48|3 != selCS32 || uint64(st.Seg[x86.CS].Sel) != st.STAR>>32&0xfffc ||
		uint64(st.Seg[x86.SS].Sel) != st.STAR>>32&0xfffc+8 || s.p.tls != [3]uint64{} {
		return nil
	}
	for i, r := range [4]int{x86.DS, x86.ES, x86.FS, x86.GS} {
		if st.Seg[r].Sel != s.p.sel[i] {
			return nil
		}
	}
	return s
}

// wait waits until one of the stubs stops, like await, and brings the books up
// to date.
func (h *pair) wait(s *space, kernel *proc) (*proc, error) {
	stopped, err := h.await(s, kernel)
	h.takeChanges(s, kernel)
	if err != nil || s.p.dead {
		return stopped, err
	}
	if err = h.checkTables(s); err == nil || stopped == s.p {
		return stopped, err
	}
	// Guest kernel code goes on without it, as in kernelOnly.
	h.u.lie, h.u.lieKey, h.u.lied = h.u.died(s, err), s.key, true
	return stopped, nil
}

// await waits until the user stub or the kernel stub stops, and returns the one
// that did: guest code ran in that one. An error with the user stub means that
// it is beyond use and took the guest's registers with it.
func (h *pair) await(s *space, kernel *proc) (*proc, error) {
	hd, e, user := h.h, h.u, s.p
	start := host.TSC()
	found := host.SpinUntil(&hd.Event, 1, kernel.spinFor(h.spin.budget(e.microsecond)))
	var since time.Time
	var userRan, kernelRan time.Duration // see hadTime
	swallowed := 0
	for {
		atomic.SwapUint32(&hd.Event, 0)
		switch {
		case atomic.LoadUint32(&kernel.ctl.State) == stub.Stopped:
			h.spin.answered(host.TSC()-start, found)
			kernel.unproven++
			kernel.waits, user.waits = false, true
			return kernel, nil
		case atomic.LoadUint32(&user.ctl.State) == stub.Stopped:
			h.spin.answered(host.TSC()-start, found)
			user.unproven++
			user.waits = false
			atomic.StoreUint32(&user.ctl.Door, 0)
			// Only a stub that is stopped indeed does not ring any more.
			err := user.prove()
			if h.kernelRuns() {
				return h.kernelOnly(s, kernel, fmt.Errorf("%w: it runs during its own system call", errDied))
			}
			kernel.waits = true
			return user, err
		}
		found = false
		atomic.SwapUint32(&hd.MonSleeps, 1)
		if atomic.LoadUint32(&hd.Event) == 0 {
			host.FutexWait(&hd.Event, 0, nap)
		}
		atomic.StoreUint32(&hd.MonSleeps, 0)
		if atomic.LoadUint32(&hd.Event) != 0 {
			continue
		}
		if err := kernel.reap(); err != nil {
			return kernel, err
		}
		if err := user.reap(); err != nil {
			if h.kernelRuns() {
				return h.kernelOnly(s, kernel, err)
			}
			kernel.waits = true
			return user, err
		}
		host.FutexWake(&hd.KernelBell) // as in ring
		if !e.kick.pending.Load() {
			since, swallowed = time.Time{}, 0
			continue
		}
		if atomic.LoadUint32(&user.ctl.Kicked) == 0 || atomic.LoadUint32(&kernel.ctl.Kicked) == 0 {
			swallowed = 0
		} else if user.hadTime(&userRan) && kernel.hadTime(&kernelRan) {
			swallowed++
		}
		if since.IsZero() {
			since = time.Now()
		} else if time.Since(since) > hangLimit || swallowed > maxSwallowed {
			// A program can have its stub listen without a system call.
			return h.kernelOnly(s, kernel, fmt.Errorf("%w: neither stub stops", errDied))
		}
		e.kick.send(true)
	}
}

// kernelRuns reports, with the user stub out of guest code, whether it has
// handed over. The bell first; see stub.kernelSide.
func (h *pair) kernelRuns() bool {
	bell := atomic.SwapUint32(&h.h.KernelBell, 0)
	return bell == stub.BellRun || bell == stub.BellFault || atomic.LoadUint32(&h.k.s.p.ctl.Owner) != 0
}

// kernelOnly gets the kernel stub to stop, which has taken a system call of a
// user stub that is beyond use, for the reason err. If guest kernel code is
// still running it goes on without the user stub, for which the next Run in
// its address space reports err.
func (h *pair) kernelOnly(s *space, kernel *proc, err error) (*proc, error) {
	c, kick := kernel.ctl, h.u.kick
	kernel.waits = false
	// A user stub can listen to the bell of the kernel stub, and take it away.
	if !s.p.dead {
		host.Kill(s.p.pid)
		s.p.dead = true
	}
	// It stops by the kick in guest code, and by the bell when it listens.
	atomic.StoreUint32(&c.Park, 1)
	atomic.SwapUint32(&h.h.KernelBell, stub.BellPark)
	host.FutexWake(&h.h.KernelBell)
	kick.pending.Store(true)
	kick.aim(kernel.pid)
	kick.send(true)
	if err := kernel.wait(true); err != nil {
		return kernel, err
	}
	kick.aim(0)
	atomic.StoreUint32(&c.Park, 0)
	if atomic.LoadUint32(&c.Reason) == stub.ReasonReady {
		return s.p, err // the system call was over
	}
	h.u.lie, h.u.lieKey, h.u.lied = h.u.died(s, err), s.key, true
	return kernel, nil
}

// prepare sets what the kernel stub needs for system calls, and returns the
// address space that it may hand over to, nil if none.
func (h *pair) prepare() *space {
	if h == nil {
		return nil
	}
	s := h.attached()
	if s == nil || !h.setTarget() {
		return nil
	}
	return s
}

// setTarget tells the kernel stub where system calls begin. It is false when
// they must come to the monitor.
func (h *pair) setTarget() bool {
	k, st := h.k, h.u.state
	const mask = x86.FlagTF | x86.FlagIF | x86.FlagNT | x86.FlagAC | x86.FlagDF
	if st.EFER&x86.EFERSCE == 0 || st.LSTAR < bt.Lowest || st.SFMASK&mask != mask || !k.modeFits() {
		return false
	}
	fault := h.setFault() // first: it may translate
	b := k.block(st.LSTAR, false)
	if b == nil || b.N == 0 || fault != 0 && h.entry.cache != k.c.lookup {
		return false
	}
	c := k.s.p.ctl
	c.Target = b.host
	c.FMask = userFlags &^ st.SFMASK
	sel := uint32(st.STAR>>32) &^ 3
	c.SysSel = [2]uint32{sel, sel + 8}
	c.FaultMapped = 0
	c.FaultTake = fault
	c.XMask, c.MXCSR = h.xstate(), uint64(h.u.mxcsr)
	atomic.StoreUint32(&h.h.Fast, 1)
	return true
}

// xstate is the components that XSAVE and XRSTOR move between the stubs, 0 when
// the monitor must: it wants all that stubs load, and both stubs awake.
func (h *pair) xstate() uint64 {
	u, st := h.u, h.u.state
	if st.CR4&x86.CR4OSXSAVE == 0 || st.XCR0 != u.xmask || u.xsize > stub.MaxXState || u.near.scarce {
		return 0
	}
	return st.XCR0
}

// userLeft brings State up to date after user code has stopped that the kernel
// stub returned to.
func (h *pair) userLeft(s *space, err error) (entered, error) {
	k, u := h.k, h.u
	h.handed(true)
	if err != nil {
		k.user, k.userLeft = u.died(s, err), true
		return enteredUser, nil
	}
	switch reason := atomic.LoadUint32(&s.p.ctl.Reason); reason {
	case stub.ReasonSignal, stub.ReasonSyscall:
		s.p.reason = reason
		x, resume := u.stopped(s)
		if x.Kind == ExitDied && !resume {
			x = u.died(s, x.Err)
		}
		k.user, k.userLeft = x, !resume
	case stub.ReasonKick:
		if err := u.kickedBefore(s); err != nil {
			k.user, k.userLeft = u.died(s, err), true
			break
		}
		k.userLeft = false
		if u.kick.take() {
			k.user, k.userLeft = Exit{Kind: ExitKick}, true
		}
	default:
		k.user, k.userLeft = u.died(s, fmt.Errorf("%w: stopped in stub code for reason %d", errDied, reason)), true
	}
	return enteredUser, nil
}

// kernelLeft brings State up to date after a system call of user code stopped
// in the kernel.
func (h *pair) kernelLeft() Exit {
	k := h.k
	x, err := enteredOn, h.failed
	if err == nil {
		x, err = k.stopped()
	}
	if h.failed = err; err != nil {
		return Exit{Kind: ExitKernel}
	}
	k.left, k.leftStep = true, x == enteredStep
	return Exit{Kind: ExitKernel}
}

// kickedBefore takes over the state of a stub that was kicked before it
// entered guest code: it is in the control page, where the monitor or the stub
// itself, on behalf of the kernel stub, has put it.
func (e *Engine) kickedBefore(s *space) error {
	p, c, st := s.p, s.p.ctl, e.state
	for i := range st.GPR {
		st.GPR[i] = atomic.LoadUint64(&c.GPR[i])
	}
	st.RIP, st.GPR[x86.RSP] = atomic.LoadUint64(&c.IRET[0]), atomic.LoadUint64(&c.IRET[3])
	st.RFLAGS = guestFlags(atomic.LoadUint64(&c.IRET[2]), st.RFLAGS)
	e.fpuHome = s
	if err := e.readBases(c); err != nil {
		return err
	}
	if err := p.takeFPU(atomic.LoadUint64(&c.Frame)); err != nil {
		return err
	}
	e.lift(s)
	return nil
}

// handed notes what system calls did to the state that the stubs do not
// report: the privilege level and the segments of CS and SS (SDM vol. 2B,
// SYSCALL and SYSRET).
func (h *pair) handed(user bool) {
	if h == nil {
		return
	}
	c, st := h.k.s.p.ctl, h.u.state
	calls, rets, faults := atomic.LoadUint64(&c.Syscalls), atomic.LoadUint64(&c.Sysrets), atomic.LoadUint64(&c.Faults)
	if calls == h.syscalls && rets == h.sysrets && faults == h.faults {
		return
	}
	h.u.stats.Handed += calls - h.syscalls
	if faults != h.faults {
		h.u.stats.HandedFaults += faults - h.faults
		h.faults = faults
		st.CR2 = atomic.LoadUint64(&c.CR[2])
		if atomic.LoadUint32(&c.FaultMapped) != 0 {
			h.u.MapHint(st.CR2, uint32(atomic.LoadUint64(&h.h.Err)))
		}
	}
	if user {
		if err := h.k.getWords(); err != nil {
			h.failed = err
		}
	}
	h.syscalls, h.sysrets = calls, rets
	if user {
		st.LeaveSyscall()
		st.RFLAGS = st.RFLAGS&userFlags | x86.FlagFixed | x86.FlagIF
	} else {
		if st.EnterSyscall(); atomic.LoadUint32(&c.GSel[x86.SS]) == 0 {
			st.EnterGate(uint16(h.entry.sel))
		}
		st.RFLAGS &= userFlags | x86.FlagFixed | x86.FlagIF
	}
}
