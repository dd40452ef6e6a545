package direct

import (
	"errors"
	"fmt"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"ring3/internal/bt"
	"ring3/internal/direct/stub"
	"ring3/internal/host"
	"ring3/internal/x86"
)

// proc is one stub process as the monitor sees it.
type proc struct {
	e     *Engine
	z     *zygote // that it was forked from, or is
	pid   int
	base  uint64 // of the stub area
	index int    // of the slot
	slot  []byte
	ctl   *stub.Control
	dead  bool
	cpu   int // 1 + the processor that it is bound to, 0 if it is not

	reason   uint32 // of the last stop of guest code
	waits    bool   // it listens to its bell; see pair
	slept    bool   // the stub had to be woken for the last command
	unproven uint64 // stops since the eventfd was last read

	calls []stub.Call // staged; executed before the stub next runs
	// Where the extended state that it resumes with lies, and the RSP below
	// the signal frame that holds it. Both were checked when they were read.
	fpuAddr, sp uint64
	// What is in the stub's segment registers (DS, ES, FS, GS) and GDT.
	sel [4]uint16
	tls [3]uint64
}

// errDied is wrapped by all errors after which a stub is gone.
var errDied = errors.New("stub process died")

// hangLimit is how long a stub may take for what it does on its own (calls,
// stopping when kicked) before it counts as dead. It is long, since the host
// may be suspended or swapping.
const hangLimit = 10 * time.Second

// maxSwallowed is how many naps in a row a stub may let pass, kicked in each
// of them, with the kick noticed by stub code but not obeyed. An honest stub
// obeys within a microsecond of its own time; one into whose waiting loop the guest has jumped
// never does.
const maxSwallowed = 25

// nap bounds the time for which the death of a stub goes unnoticed.
var nap = 20 * time.Millisecond // a variable for tests

// command gives the stub a command; its effects are complete when wait
// returns. All of Control is written by then.
func (p *proc) command(cmd uint32) error {
	c := p.ctl
	if p.waits { // the kernel stub, which looks at Cmd whenever it is rung
		p.waits = false
		atomic.StoreUint32(&c.Ready, 0)
		atomic.StoreUint32(&c.State, stub.Running)
		atomic.SwapUint32(&c.Cmd, cmd)
		p.ring()
		return nil
	}
	if err := p.ready(); err != nil {
		return err
	}
	atomic.StoreUint32(&c.Ready, 0)
	atomic.StoreUint32(&c.State, stub.Running)
	atomic.SwapUint32(&c.Cmd, cmd)
	p.slept = atomic.LoadUint32(&c.StubSleeps) != 0
	if p.slept {
		host.FutexWake(&c.Cmd)
	}
	return nil
}

// ready waits until the stub takes commands, which is a few hundred
// nanoseconds after it has said Stopped.
func (p *proc) ready() error {
	c := p.ctl
	if host.SpinUntil(&c.Ready, 1, p.spinFor(p.e.readySpin)) {
		return nil
	}
	for start := time.Now(); ; {
		host.FutexWait(&c.Ready, 0, time.Millisecond)
		if atomic.LoadUint32(&c.Ready) == 1 {
			return nil
		}
		if err := p.reap(); err != nil {
			return err
		}
		if time.Since(start) > hangLimit/10 {
			return fmt.Errorf("%w: it stopped but takes no commands", errDied)
		}
	}
}

// prove checks that the stub is stopped indeed (package stub, "Proof"), and
// was at all stops since the last proof.
func (p *proc) prove() error {
	if p.unproven == 0 {
		return nil
	}
	if err := p.ready(); err != nil {
		return err
	}
	if n := p.e.slots.proof(p.index); n != p.unproven {
		return fmt.Errorf("%w: %d of %d stops were true", errDied, n, p.unproven)
	}
	p.unproven = 0
	p.e.stats.Proofs++
	return nil
}

// reap notices the death of the process.
func (p *proc) reap() error {
	ended, st := p.e.kick.reap(p.pid)
	if !ended {
		return nil
	}
	p.dead = true
	return fmt.Errorf("%w: %s", errDied, statusText(st))
}

// wait waits until the stub has stopped. running is set when guest code is
// running, which may take as long as it likes unless somebody kicks.
func (p *proc) wait(running bool) error {
	c, e := p.ctl, p.e
	found := false
	if running {
		start := host.TSC()
		if e.stoppedAt != 0 {
			e.spinServe.answered(start-e.stoppedAt, !p.slept)
		}
		defer func() {
			e.stoppedAt = host.TSC()
			e.spinRun.answered(e.stoppedAt-start, found)
		}()
	}
	spin := e.spinRun.budget(e.microsecond)
	if !running && e.spinRun.skip == 0 {
		spin = e.spinRun.max // calls are short
	}
	if spin = p.spinFor(spin); spin != 0 {
		if host.SpinUntil(&c.State, stub.Stopped, spin) {
			e.stats.SpinHits++
			p.unproven++
			found = true
			return nil
		}
		e.stats.SpinMisses++
	}
	var since time.Time   // when the stub was first asked to come back
	var ran time.Duration // see hadTime
	swallowed := 0
	for {
		atomic.SwapUint32(&c.MonSleeps, 1)
		if atomic.LoadUint32(&c.State) == stub.Stopped {
			break
		}
		host.FutexWait(&c.State, stub.Running, nap)
		if atomic.LoadUint32(&c.State) == stub.Stopped {
			break
		}
		if err := p.reap(); err != nil {
			return err
		}
		if running && !e.kick.pending.Load() {
			since = time.Time{}
			continue
		}
		if since.IsZero() {
			since = time.Now()
		} else if time.Since(since) > hangLimit || swallowed > maxSwallowed {
			return fmt.Errorf("%w: it does not stop", errDied)
		}
		if atomic.LoadUint32(&c.Kicked) == 0 {
			swallowed = 0
		} else if p.hadTime(&ran) {
			swallowed++
		}
		if running {
			e.kick.send(true) // a hostile guest may have swallowed the last one
		}
	}
	atomic.StoreUint32(&c.MonSleeps, 0)
	p.unproven++
	return nil
}

// hadTime reports whether a stub has had time to obey a kick since it was asked
// last: it has run, or it sleeps. On a busy host it may wait for a processor, and
// somebody may have stopped it. ran is for the next time.
func (p *proc) hadTime(ran *time.Duration) bool {
	state, err := host.State(p.pid)
	if err != nil {
		return true
	}
	now, _, err := host.SchedStat(p.pid)
	before := *ran
	*ran = now
	return err != nil || state == 'S' || state == 'R' && before != 0 && now-before > 100*time.Microsecond
}

func statusText(st unix.WaitStatus) string {
	if st.Signaled() {
		return "killed by " + st.Signal().String()
	}
	return fmt.Sprintf("exit status %d", st.ExitStatus())
}

// kill ends the process and gives its slot back.
func (p *proc) kill() {
	p.e.kick.aim(0)
	if !p.dead {
		host.Kill(p.pid)
		p.dead = true
	}
	if p.slot != nil {
		p.e.slots.give(p.index)
		p.slot, p.ctl = nil, nil
	}
}

// The calls. They are staged and executed in order, together.

func (p *proc) mmap(gva, size uint64, prot, fd int, off uint64) error {
	s := &p.z.secrets
	p.e.stats.Maps++
	return p.stage(unix.SYS_MMAP, gva, size, uint64(prot)|uint64(s.Mmap[0])<<32,
		unix.MAP_SHARED|unix.MAP_FIXED|uint64(s.Mmap[1])<<32, uint64(fd)|uint64(s.Mmap[2])<<32, off)
}

func (p *proc) munmap(gva, size uint64) error {
	p.e.stats.Unmaps++
	return p.stage(unix.SYS_MUNMAP, gva, size, 0, 0)
}

func (p *proc) mprotect(gva, size uint64, prot int) error {
	p.e.stats.Unmaps++
	return p.stage(unix.SYS_MPROTECT, gva, size, uint64(prot), 0)
}

// stage adds a call; the fifth and sixth argument are the secrets unless
// given.
func (p *proc) stage(nr uint64, args ...uint64) error {
	c := stub.Call{Nr: nr}
	copy(c.Args[:], args)
	if len(args) == 4 {
		c.Args[4], c.Args[5] = p.z.secrets.Args[0], p.z.secrets.Args[1]
	}
	p.calls = append(p.calls, c)
	if len(p.calls) == stub.MaxCalls {
		return p.execute()
	}
	return nil
}

// post writes the staged calls, secrets and all, to the call list.
func (p *proc) post() error {
	if err := p.prove(); err != nil {
		return err
	}
	list := callList(p.slot)
	copy(list[:], p.calls)
	p.ctl.NCalls = uint32(len(p.calls))
	return nil
}

// execute has the stub make the staged calls, all of which must succeed.
func (p *proc) execute() error {
	if len(p.calls) == 0 {
		return nil
	}
	if err := p.park(); err != nil { // a stub that listens takes none
		return err
	}
	if err := p.post(); err != nil {
		return err
	}
	if err := p.command(stub.CmdCalls); err != nil {
		return err
	}
	if err := p.wait(false); err != nil {
		return err
	}
	return p.callResults()
}

// callResults checks the results of the call list and forgets it. The stub has
// erased numbers and arguments as it went; the monitor does it again, since it
// may have been lied to. A kick that arrived meanwhile left a signal frame with
// the secrets in its registers, which the handler erased. The stub's stack is
// left alone: the handler of a late kick may be using it.
func (p *proc) callResults() error {
	var err error
	list := callList(p.slot)
	for i, c := range p.calls {
		if r := int64(list[i].Result); r < 0 && r >= -4095 {
			err = fmt.Errorf("%w: system call %d%#x in the stub: %w", errDied, c.Nr, c.Args[:3], unix.Errno(-r))
		}
	}
	clear(list[:len(p.calls)])
	p.calls = p.calls[:0]
	return err
}

// inStack reports whether n bytes at address a lie in the signal stack, and
// returns them.
func (p *proc) inStack(a uint64, n int) ([]byte, bool) {
	off := a - (p.base + stub.StackOff)
	if off >= stub.StackSize || uint64(n) > stub.StackSize-off {
		return nil, false
	}
	return p.slot[stub.SlotStack+off:][:n], true
}

// fpuImage is the extended state that the stub would resume with.
func (p *proc) fpuImage(n int) []byte {
	if p.fpuAddr == p.base+stub.XSaveOff {
		return p.slot[stub.SlotXSave:][:n]
	}
	b, ok := p.inStack(p.fpuAddr, n)
	if !ok {
		panic("BUG: address of an FPU image was not checked")
	}
	return b
}

// takeFPU checks and remembers where the stub's signal frame keeps the
// extended state.
func (p *proc) takeFPU(frame uint64) error {
	a := atomic.LoadUint64(&p.ctl.FPU)
	if a == p.base+stub.XSaveOff {
		p.fpuAddr, p.sp = a, p.base+stub.AreaSize-64
		return nil
	}
	if _, ok := p.inStack(a, p.e.xsize); !ok || a%64 != 0 {
		return fmt.Errorf("%w: FPU image at %#x", errDied, a)
	}
	if _, ok := p.inStack(frame-8, stub.UCSize); !ok || frame%16 != 0 {
		return fmt.Errorf("%w: signal frame at %#x", errDied, frame)
	}
	p.fpuAddr, p.sp = a, frame-16
	return nil
}

// outside reports whether a page is outside the stub area and in the part of
// the address space that a process can map.
func (p *proc) outside(gva uint64) bool {
	if p.e.cfg.kernel && gva < bt.Low {
		return false
	}
	if p.e.sites.within(gva) {
		return false
	}
	return gva-p.base >= stub.Extent && gva < userTop && gva >= minMap
}

const (
	// userTop is the end of what a process can map: the last page of the
	// lower half is kept free by Linux (TASK_SIZE_MAX).
	userTop = 1<<47 - x86.PageSize
	// minMap is the default of vm.mmap_min_addr: an ordinary process cannot
	// map below. Guest code that uses such pages is interpreted.
	minMap = 64 << 10
)
