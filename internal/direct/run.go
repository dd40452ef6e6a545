package direct

import (
	"errors"
	"fmt"
	"sync/atomic"

	"ring3/internal/direct/stub"
	"ring3/internal/x86"
)

// ErrStart is wrapped by Exit.Err when there was no stub to run in and none
// could be started: the host's fault, not the guest's.
var ErrStart = errors.New("no stub could be started")

// Run executes guest code at CPL 3 from State until something must be done
// that only the guest kernel or the monitor can do. Call it with long mode
// and CPL 3.
func (e *Engine) Run() Exit {
	x := e.run()
	e.stats.Exits[x.Kind]++
	if x.Kind == ExitException {
		e.stats.Exceptions[x.Vector&31]++
	}
	return x
}

func (e *Engine) run() Exit {
	if e.kick.take() {
		return Exit{Kind: ExitKick}
	}
	if rip := e.state.RIP; rip >= userTop {
		// The processor would fault on the fetch; a process cannot even jump
		// there.
		return e.fetchOutside(rip)
	}
	if !e.mirrors() {
		e.stats.Unmirrored++
		return Exit{Kind: ExitNeedStep}
	}
	if e.lied && e.lieKey == e.pml4() {
		e.lied = false
		return e.lie
	}
	s, err := e.space()
	if err != nil {
		return Exit{Kind: ExitDied, Err: fmt.Errorf("%w: %w", ErrStart, err)}
	}
	if s.stale && e.collides(s.p) {
		if s, err = e.relocate(s); err != nil {
			return Exit{Kind: ExitDied, Err: err}
		}
	}
	if e.sites.near && !e.sites.off || s.stale && e.sitesCollide() {
		if err := e.dropSites(); err != nil {
			return e.died(s, err)
		}
	}
	if err := e.prepare(s); err != nil {
		return e.died(s, err)
	}
	if e.state.RFLAGS&x86.FlagTF != 0 && e.jumps(s, e.state.RIP) {
		return Exit{Kind: ExitNeedStep}
	}
	for {
		kicked, inKernel, err := e.enter(s)
		if err != nil {
			return e.died(s, err)
		}
		if inKernel {
			return e.pair.kernelLeft()
		}
		if kicked {
			// Guest code did not run; State is what it was.
			if e.kick.take() {
				return Exit{Kind: ExitKick}
			}
			e.stats.Spurious++
			continue
		}
		x, resume := e.stopped(s)
		if resume {
			continue
		}
		if x.Kind == ExitDied {
			return e.died(s, x.Err)
		}
		return x
	}
}

// fetchOutside is Run with RIP where no process can map memory.
func (e *Engine) fetchOutside(rip uint64) Exit {
	if !x86.Canonical(rip) {
		return Exit{Kind: ExitNeedStep} // #GP
	}
	_, code, ok := e.walk.Walk(e.state, rip, userFetch)
	if ok {
		return Exit{Kind: ExitNeedStep}
	}
	return Exit{Kind: ExitException, Vector: x86.VecPF, HasErr: true, ErrCode: code, CR2: rip}
}

// space is the address space of the current CR3, with a stub.
func (e *Engine) space() (*space, error) {
	e.clock++
	key := e.pml4()
	s := e.cur
	if s == nil || s.key != key {
		e.stats.Switches++
		e.settle()
		if e.cur != nil {
			e.cur.p.quiet()
		}
		if s = e.spaces[key]; s == nil {
			var err error
			if s, err = e.newSpace(key); err != nil {
				return nil, err
			}
		}
		e.cur = s
	}
	s.used = e.clock
	return s, nil
}

// newSpace gives an address space a stub: a new process while there may be
// more, else that of the address space that has not run for longest.
func (e *Engine) newSpace(key uint64) (*space, error) {
	var p *proc
	if len(e.spaces) >= e.cfg.MaxStubs {
		var lru *space
		for _, s := range e.spaces {
			if lru == nil || s.used < lru.used {
				lru = s
			}
		}
		var err error
		if p, err = e.recycle(lru); err != nil && !errors.Is(err, errDied) {
			return nil, err
		}
	}
	if p == nil {
		var err error
		if p, err = e.fork(); err != nil {
			return nil, err
		}
	}
	s := &space{key: key, p: p, pcid: e.pcid(), leaves: map[uint64]*leaf{}}
	s.id = e.newID(s)
	e.spaces[key] = s
	return s, nil
}

func (e *Engine) newID(s *space) uint32 {
	for i, o := range e.byID {
		if o == nil {
			e.byID[i] = s
			return uint32(i)
		}
	}
	e.byID = append(e.byID, s)
	return uint32(len(e.byID) - 1)
}

// forgetSpace takes an address space out of all books. Its stub is kept.
func (e *Engine) forgetSpace(s *space) {
	s.p.countCPUIDs()
	if e.fpuHome == s {
		e.FPU() // reads shared memory only, also when the process is gone
	}
	for _, l := range s.leaves {
		for i := range l.entries {
			if l.entries[i] != 0 {
				e.set(s, l.base+uint64(i)*x86.PageSize, 0)
			}
		}
	}
	delete(e.spaces, s.key)
	e.byID[s.id] = nil
	if e.cur == s {
		e.cur = nil
	}
}

// recycle empties the stub of an address space for another one.
func (e *Engine) recycle(s *space) (*proc, error) {
	p := s.p
	e.forgetSpace(s)
	e.stats.Recycled++
	p.calls = p.calls[:0]
	top := p.base + stub.Extent
	err := errors.Join(p.munmap(0, p.base), p.munmap(top, userTop-top))
	for i := range p.tls {
		if p.tls[i] != 0 && err == nil {
			err = p.setTLS(i, 0, minMap)
		}
	}
	if err == nil {
		err = p.mapSites()
	}
	if err == nil {
		err = p.execute()
	}
	if err != nil {
		p.kill()
		return nil, err
	}
	cpuids(p.slot).N = 0 // also if the last program has written to it
	p.fpuAddr, p.sp = p.base+stub.XSaveOff, p.base+stub.AreaSize-64
	return p, nil
}

// died gets rid of the stub of s. The address space gets a new one when it
// runs again: everything in a stub can be rebuilt.
func (e *Engine) died(s *space, err error) Exit {
	e.stats.Deaths++
	s.p.waits = false
	e.forgetSpace(s)
	s.p.kill()
	return Exit{Kind: ExitDied, Err: fmt.Errorf("address space %#x: %w", s.key, err)}
}

// collides reports whether the guest has memory of its own where the stub
// area is.
//
// A guest access there does not fault, so this is noticed only when the guest
// kernel has made a page present there for another reason, and at a flush.
// The area is at a random place in 24 TiB that are otherwise unused.
func (e *Engine) collides(p *proc) bool {
	t, ok := e.table(p.base)
	if !ok {
		return false
	}
	for i := range stub.Extent / x86.PageSize {
		if t.pte(index(p.base)+i) != 0 {
			return true
		}
	}
	return false
}

// relocate gives an address space a stub with another base: everything in a
// stub can be rebuilt. Stubs of the old base stay where they do not collide.
func (e *Engine) relocate(s *space) (*space, error) {
	e.stats.Relocations++
	e.forgetSpace(s)
	s.p.kill()
	if e.zygote != nil && e.zygote.prog.Base == s.p.base {
		e.zygote.p.kill()
		e.zygote = nil
	}
	n, err := e.newSpace(s.key)
	e.cur = n
	return n, err
}

// prepare brings the stub's mappings, descriptors and extended state up to
// date with the guest. Nothing of it is needed again while Run stays in its
// loop: the guest kernel does not run meanwhile.
func (e *Engine) prepare(s *space) error {
	e.freshen(s)
	if err := e.unmapGone(s); err != nil {
		return err
	}
	if err := e.followHint(s); err != nil {
		return err
	}
	if err := e.answer(); err != nil {
		return err
	}
	if err := e.mirrorTLS(s); err != nil {
		return err
	}
	e.placeFPU(s)
	return nil
}

// enter lets guest code run until a stub stops. kicked is set when the stub was
// kicked before guest code ran, and inKernel when it is the kernel stub.
func (e *Engine) enter(s *space) (kicked, inKernel bool, err error) {
	p, c, st := s.p, s.p.ctl, e.state
	if err := p.park(); err != nil {
		return false, false, err
	}
	paired := false
	if e.pair != nil {
		if err := p.prove(); err != nil {
			return false, false, err
		}
		e.pair.silence()
		if paired, err = e.pair.offer(s); err != nil {
			e.pair.failed = err
			return false, true, nil
		}
	} else {
		// A program may have written that system calls go to a kernel stub.
		atomic.StoreUint32(&e.handoff().Fast, 0)
	}
	if !paired {
		e.near.user(p)
	}
	c.GPR = st.GPR
	c.IRET = [5]uint64{st.RIP, uint64(st.Seg[x86.CS].Sel), hostFlags(st.RFLAGS), st.GPR[x86.RSP], uint64(st.Seg[x86.SS].Sel)}
	c.FSBase, c.GSBase = st.Seg[x86.FS].Base, st.Seg[x86.GS].Base
	sel := [4]uint16{st.Seg[x86.DS].Sel, st.Seg[x86.ES].Sel, st.Seg[x86.FS].Sel, st.Seg[x86.GS].Sel}
	c.Sel, c.LoadSel = sel, 0
	if sel != p.sel {
		c.LoadSel = 1
	}
	c.FPU, c.SP = p.fpuAddr, p.sp
	c.Spin = uint32(p.spinFor(e.spinServe.budget(e.microsecond)) * e.pauses / 1024)
	c.Door, c.FaultGive = 0, 0
	if paired {
		c.FaultGive = e.pair.k.s.p.ctl.FaultTake
		c.Spin = c.BellSpin
		if e.near.cpu != 0 && !e.near.scarce {
			c.Door = 1
		}
	}
	cmd := uint32(stub.CmdRun)
	if len(p.calls) != 0 {
		if err := p.post(); err != nil {
			return false, false, err
		}
		cmd = stub.CmdCallsRun
	}
	e.stats.Runs++

	// Order: the targets first, then the look at pending; see kicker.
	e.kick.aim(p.pid)
	if paired {
		e.kick.aimBoth(p, e.pair.k.s.p)
	}
	if e.kick.pending.Load() {
		e.kick.aim(0)
		return true, false, p.execute()
	}
	p.sel = sel // not earlier: a stub that was kicked above has loaded nothing
	if err = p.command(cmd); err == nil {
		if paired {
			var stopped *proc
			k := e.pair.k
			if err = e.pair.attend(); err != nil {
				stopped = k.s.p
			} else {
				stopped, err = e.pair.wait(s, k.s.p)
			}
			if stopped != p {
				inKernel, e.pair.failed = true, err
				err = nil
			}
		} else {
			err = p.wait(true)
		}
	}
	e.kick.aim(0)
	if err != nil {
		return false, false, err
	}
	reason := atomic.LoadUint32(&c.Reason)
	if cmd == stub.CmdCallsRun && !p.dead {
		if err := p.callResults(); err != nil {
			return false, false, err
		}
	}
	if inKernel {
		if !p.dead {
			e.fpuHome = s // in the registers of a stub that listens
		}
		return false, true, nil
	}
	if paired {
		e.pair.handed(true)
	}
	switch reason {
	case stub.ReasonSignal, stub.ReasonSyscall:
		p.reason = reason
		return false, false, nil
	case stub.ReasonKick:
		if err := e.kickedBefore(s); err != nil {
			return false, false, err
		}
		return true, false, nil
	}
	return false, false, fmt.Errorf("%w: stopped in stub code for reason %d", errDied, reason)
}
