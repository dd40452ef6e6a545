package direct

import (
	"errors"
	"fmt"
	"sync/atomic"

	"ring3/internal/bt"
	"ring3/internal/direct/stub"
	"ring3/internal/host"
	"ring3/internal/x86"
)

// Kernel executes translated guest kernel code (package bt) in one stub
// process, whose address space holds the upper half of the guest's, folded.
// It is an Engine on the inside: the same stubs, books and flushes, with host
// addresses (bt.Fold) in place of guest addresses. Extended state is no
// business of it: kernel code that uses any is interpreted.
type Kernel struct {
	e *Engine
	s *space
	c codeCache

	// Waits is set before Run when an interrupt waits for RFLAGS.IF: Run then
	// stops at the STI that would open the window.
	Waits bool

	pair *pair // nil: system calls come from the monitor
	// A stop in kernel code that began in Engine.Run is served by the next Run.
	left     bool
	leftStep bool

	user     Exit // of KernelUser
	userLeft bool // user is one; else user code can go on at once

	ran bool // the stub has run, so that its GS base is set

	// Spoil, when not nil, may change the code of new blocks: a test of the
	// comparison with the interpreter.
	Spoil func(rip uint64, code []byte)

	// Translated, when not nil, is told of each new block.
	Translated func(*Translation)

	cr3    uint64 // that mappings and translations were last compared with
	salts  salts
	vector bool   // the last exit was a bt.ExitVector
	whole  bool   // the last exit was the end of a block
	alone  bool   // blocks are not chained: see kernelverify.go
	mode   uint64 // see userMode
	missed userMiss
	stats  KernelStats
}

// KernelStats counts what a Kernel did.
type KernelStats struct {
	Runs, Steps, Kicks uint64
	Exits, Faults      uint64 // stops without and with a signal
	Translated         uint64 // blocks
	Dropped, Flushes   uint64
	Chained, Misses    uint64
	Learned            uint64 // instructions found to access user memory
	UserMisses         uint64 // of the user TLB
	UserFills          uint64 // those that the stub served itself
	KernelCounts
}

// Stats returns the counters; on the vCPU thread.
func (k *Kernel) Stats() KernelStats { return k.stats }

// KernelExit says why Kernel.Run returned.
type KernelExit uint8

// Exits of a Kernel. State is complete and at an instruction boundary.
const (
	KernelKick   KernelExit = iota
	KernelStep              // the instruction at RIP must be interpreted
	KernelVector            // the same, and more that uses extended state will follow
	KernelUser              // user code ran meanwhile and left: see UserExit
	KernelDied
)

// CanTranslate says what the processor lacks that translated code uses: PEXT,
// which BMI2 brought (SDM vol. 2A, CPUID, leaf 7).
func CanTranslate() error {
	if _, b, _, _ := host.CPUID(7, 0); b>>8&1 == 0 {
		return errors.New("the processor lacks BMI2, which translated code uses")
	}
	return nil
}

// NewKernel makes an engine for kernel code.
func NewKernel(cfg Config) (*Kernel, error) {
	if err := CanTranslate(); err != nil {
		return nil, err
	}
	cfg.kernel, cfg.MaxStubs = true, 1
	e, err := New(cfg)
	if err != nil {
		return nil, err
	}
	k := &Kernel{e: e}
	k.salts.init(e.mem, k.c.clearUser)
	mem, err := host.MapShared(e.code.fd, cacheSize)
	if err != nil {
		return nil, errors.Join(err, e.Close())
	}
	k.c.init(mem)
	e.mem.AddCodeUser(k)
	return k, nil
}

// Close ends the stub.
func (k *Kernel) Close() error { return errors.Join(k.c.close(), k.e.Close()) }

// Kick makes Run return soon; from any goroutine.
func (k *Kernel) Kick() { k.e.Kick() }

// Rest tells that Run will not be called for a while.
func (k *Kernel) Rest() {
	if k.s != nil {
		k.s.p.quiet()
	}
}

// Fits reports whether Run can execute from State.
func (k *Kernel) Fits() bool {
	st := k.e.state
	return st.CPL == 0 && st.RIP >= bt.Lowest && foldable(st.Seg[x86.GS].Base) && st.Code64() && k.modeFits() &&
		st.RFLAGS&(x86.FlagTF|x86.FlagNT|x86.FlagIOPL) == 0 &&
		!st.InterruptShadow && !st.Halted
}

// foldable reports whether the processor takes the folded address as a base.
func foldable(base uint64) bool { return x86.Canonical(bt.Fold(base)) }

// modeFits is the part of Fits that user code does not change.
func (k *Kernel) modeFits() bool {
	const cr0 = x86.CR0PE | x86.CR0PG | x86.CR0WP
	return k.e.state.CR0&cr0 == cr0 && k.e.state.DR[7]&0xff == 0
}

// UserExit is how user code left, after KernelUser; none when it can go on at
// once.
func (k *Kernel) UserExit() (x Exit, left bool) { return k.user, k.userLeft }

// start makes the stub and maps the translation cache in it.
func (k *Kernel) start() error {
	p, err := k.e.fork()
	if err != nil {
		return err
	}
	k.s = &space{p: p, leaves: map[uint64]*leaf{}}
	k.e.byID, k.e.cur = []*space{k.s}, k.s
	k.e.spaces[0] = k.s
	if k.pair != nil {
		k.pair.syscalls, k.pair.sysrets, k.pair.faults = 0, 0, 0
		k.pair.forget()
	}
	k.c.place(p.base, p.z.prog, p.slot)
	k.c.h.UserTLB = k.e.mem.Size() <= windowMax
	k.mode = 0
	sanitizeFPU(&k.e.fpu.Area, k.e.xmask, k.e.mxcsr)
	copy(p.slot[stub.SlotXSave:], k.e.fpu.Area[:k.e.xsize])
	if err := p.mmap(k.c.base, cacheSize, protRead|protExec, stub.FDCode, 0); err != nil {
		return err
	}
	if k.c.h.UserTLB {
		if err := p.mmap(window, k.e.mem.Size(), protRead|protWrite, stub.FDRAM, 0); err != nil {
			return err
		}
		off, size := k.e.mem.FlagsAt()
		if err := p.mmap(flagsAt, size, protRead, stub.FDRAM, off); err != nil {
			return err
		}
	}
	return p.execute()
}

// fail gives the stub up; the next Run makes a new one.
func (k *Kernel) fail(err error) (KernelExit, error) {
	if k.s != nil {
		k.e.forgetSpace(k.s)
		k.s.p.kill()
		k.s, k.c.user = nil, nil
	}
	k.c.flush()
	return KernelDied, err
}

// ready makes sure of a stub whose mappings are those of the guest.
func (k *Kernel) ready() error {
	if k.pair != nil && k.pair.failed != nil {
		err := k.pair.failed
		k.pair.failed = nil
		return err
	}
	if k.e.lied {
		k.e.lied = false
		return k.e.lie.Err
	}
	if k.s == nil {
		if err := k.start(); err != nil {
			return err
		}
	}
	if k.needsFreshen() {
		if err := k.s.p.park(); err != nil {
			return err
		}
		k.bringUpToDate()
	}
	return nil
}

// Run executes kernel code from State, which must fit, until something else
// must be done.
func (k *Kernel) Run() (KernelExit, error) {
	k.stats.Runs++
	e := k.e
	if err := k.ready(); err != nil {
		return k.fail(err)
	}
	if k.left {
		k.left = false
		if k.leftStep {
			return k.step()
		}
	}
	for {
		if e.kick.take() {
			k.stats.Kicks++
			return KernelKick, nil
		}
		k.vector = false
		user := k.pair.prepare()
		b := k.block(e.state.RIP, e.state.RFLAGS&x86.FlagAC != 0)
		if b == nil || b.N == 0 {
			k.vector = b != nil && b.Exits[0].Kind == bt.ExitVector
			return k.step()
		}
		if err := e.unmapGone(k.s); err != nil {
			return k.fail(err)
		}
		x, err := k.enter(b, user)
		switch {
		case err != nil:
			return k.fail(err)
		case x == enteredUser:
			return KernelUser, nil
		case x == enteredStep:
			return k.step()
		case !k.Fits():
			return KernelStep, nil
		}
	}
}

// step reports that the instruction at RIP must be interpreted.
func (k *Kernel) step() (KernelExit, error) {
	k.stats.Steps++
	if k.vector {
		return KernelVector, nil
	}
	return KernelStep, nil
}

// needsFreshen reports whether the guest has invalidated translations.
func (k *Kernel) needsFreshen() bool {
	return k.e.state.CR3 != k.cr3 || k.modeBits() != k.mode || k.c.stale || k.c.staleLocal || k.s.stale || len(k.s.stalePages) != 0
}

// bringUpToDate compares with the page tables what needs it. The stub must
// be stopped.
func (k *Kernel) bringUpToDate() {
	k.setMode()
	if cr3 := k.e.state.CR3; cr3 != k.cr3 {
		k.settle()
		k.salts.of(cr3)
		if !k.salts.sameClass(cr3, k.cr3) {
			k.c.staleLocal = true
			k.pair.forget()
		}
		k.cr3 = cr3
	}
	k.freshen()
}

// entered says how enter ended.
type entered uint8

const (
	enteredOn   entered = iota // State has what comes next
	enteredStep                // the instruction at RIP must be interpreted
	enteredUser                // user code ran and left
)

// setWords writes what translated code reads of State.
func (k *Kernel) setWords() {
	c, st := k.s.p.ctl, k.e.state
	c.GFS, c.GGS, c.GKernel = st.Seg[x86.FS].Base, st.Seg[x86.GS].Base, st.KernelGSBase
	c.CR = [5]uint64{0: st.CR0, 2: st.CR2, 3: st.CR3, 4: st.CR4}
	c.UserSalt, c.UserCR3 = k.salts.of(st.CR3), st.CR3
	c.Spaces = k.salts.from(st.CR3)
	if st.CR4&x86.CR4PCIDE == 0 || k.alone {
		for i := range c.Spaces {
			c.Spaces[i].CR3 = noCR3
		}
	}
	c.RAMLow, c.RAMHigh, c.Window, c.FlagsAt = k.e.mem.Low(), k.e.mem.Size()-k.e.mem.Low(), window, flagsAt
	c.UserFill, c.MissAt = 0, 0
	if k.c.h.UserTLB && st.EFER&x86.EFERNX != 0 && st.CR4&(x86.CR4LA57|x86.CR4PKE) == 0 {
		c.UserFill = 1
		k.c.userUsed = true
	}
	for i := range c.GSel {
		c.GSel[i] = uint32(st.Seg[i].Sel)
	}
	c.PopMask, c.IFMask, c.Upper = bt.PopMask, x86.FlagIF, 1<<63
	c.UserIndex, c.UserPage, c.DFMask = bt.UserIndex, bt.UserPage, x86.FlagDF
	c.Room = bt.Room
	c.IF, c.Mask = 0, bt.IndexMasks
	c.TSCAux = uint64(uint32(st.TSCAux))
	if st.RFLAGS&x86.FlagIF == 0 {
		c.IF = 1<<64 - x86.FlagIF
	}
}

// getWords moves what translated code has made of them to State.
func (k *Kernel) getWords() error {
	c, st := k.s.p.ctl, k.e.state
	fs, gs, kernel := atomic.LoadUint64(&c.GFS), atomic.LoadUint64(&c.GGS), atomic.LoadUint64(&c.GKernel)
	if !x86.Canonical(fs) || !x86.Canonical(gs) || !x86.Canonical(kernel) {
		return fmt.Errorf("%w: segment bases %#x, %#x, %#x", errDied, fs, gs, kernel)
	}
	st.Seg[x86.FS].Base, st.Seg[x86.GS].Base, st.KernelGSBase = fs, gs, kernel
	if cr3 := atomic.LoadUint64(&c.CR[3]); cr3 != st.CR3 {
		if !k.salts.sameClass(cr3, st.CR3) {
			return fmt.Errorf("%w: CR3 is %#x", errDied, cr3)
		}
		st.CR3, k.cr3 = cr3, cr3
	}
	st.RFLAGS |= x86.FlagIF
	if atomic.LoadUint64(&c.IF) != 0 {
		st.RFLAGS &^= x86.FlagIF
	}
	return nil
}

// enter runs from block b on until a stub stops, and brings State up to date.
// user is the address space that system calls return to without the monitor.
func (k *Kernel) enter(b *cached, user *space) (entered, error) {
	e, p, st := k.e, k.s.p, k.e.state
	if len(p.calls) != 0 {
		if err := p.park(); err != nil {
			return 0, err
		}
	}
	c := p.ctl
	c.GPR = st.GPR
	rsp := bt.Fold(st.GPR[x86.RSP])
	c.IRET = [5]uint64{b.host, selCS64, hostFlags(st.RFLAGS) &^ (x86.FlagRF | x86.FlagAC), rsp, selData}
	c.FSBase, c.GSBase = bt.Fold(st.Seg[x86.GS].Base), bt.Delta
	c.LoadSel = 0
	c.Want = 0
	if k.Waits {
		c.Want = 1
	}
	k.setWords()
	p.fpuAddr, p.sp = p.base+stub.XSaveOff, p.base+stub.AreaSize-64
	c.FPU, c.SP = p.fpuAddr, p.sp
	c.Owner, c.Paired = 1, 0
	if user != nil {
		k.pair.silence()
		c.Paired = 1
		k.pair.place(user.p)
		k.pair.setMaps(user)
	} else {
		e.near.kernel(p)
	}
	c.Spin = uint32(p.spinFor(e.spinServe.budget(e.microsecond)) * e.pauses / 1024)
	cmd := uint32(stub.CmdRun)
	if len(p.calls) != 0 {
		if err := p.post(); err != nil {
			return 0, err
		}
		cmd = stub.CmdCallsRun
	}
	k.ran = true
	e.kick.aim(p.pid)
	if user != nil {
		e.kick.aimBoth(user.p, p)
	}
	if e.kick.pending.Load() {
		e.kick.aim(0)
		return enteredOn, p.execute()
	}
	err := p.command(cmd)
	stopped := p
	if err == nil && user != nil {
		stopped, err = k.pair.wait(user, p)
	} else if err == nil {
		err = p.wait(true)
	}
	e.kick.aim(0)
	if stopped != p {
		if cmd == stub.CmdCallsRun {
			err = errors.Join(err, p.callResults())
		}
		return k.pair.userLeft(user, err)
	}
	if err != nil {
		return 0, err
	}
	if cmd == stub.CmdCallsRun {
		if err := p.callResults(); err != nil {
			return 0, err
		}
	}
	return k.stopped()
}
