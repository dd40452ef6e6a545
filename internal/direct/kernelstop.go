package direct

import (
	"fmt"
	"sync/atomic"

	"ring3/internal/bt"
	"ring3/internal/direct/stub"
	"ring3/internal/x86"
)

// stopped brings State up to date after kernel code has stopped.
func (k *Kernel) stopped() (entered, error) {
	p, st := k.s.p, k.e.state
	c := p.ctl
	if err := k.getWords(); err != nil {
		return 0, err
	}
	k.pair.handed(false)
	k.stats.UserFills += atomic.SwapUint64(&c.UserFills, 0)
	var step bool
	var err error
	switch reason := atomic.LoadUint32(&c.Reason); reason {
	case stub.ReasonExit:
		k.stats.Exits++
		for i := range st.GPR {
			st.GPR[i] = atomic.LoadUint64(&c.GPR[i])
		}
		st.GPR[x86.RSP] = bt.Unfold(st.GPR[x86.RSP])
		st.RFLAGS = guestFlags(atomic.LoadUint64(&c.IRET[2]), st.RFLAGS) &^ (x86.FlagRF | x86.FlagAC)
		step, err = k.leave(atomic.LoadUint32(&c.ExitID), atomic.LoadUint64(&c.Scratch[2]))
	case stub.ReasonKick:
		// It was about to enter translated code, at the start of a block or
		// behind a jump to a routine of the stub.
		at := atomic.LoadUint64(&c.IRET[0])
		b, m, ok := k.c.find(at)
		if !ok {
			return 0, fmt.Errorf("%w: kicked on the way to %#x", errDied, at)
		}
		for i := range st.GPR {
			st.GPR[i] = atomic.LoadUint64(&c.GPR[i])
		}
		st.GPR[x86.RSP] = bt.Unfold(atomic.LoadUint64(&c.IRET[3]))
		st.RFLAGS = guestFlags(atomic.LoadUint64(&c.IRET[2]), st.RFLAGS)
		k.setAC(b.AC)
		err = k.undo(m)
	case stub.ReasonSignal:
		step, err = k.signalled()
	default:
		err = fmt.Errorf("%w: stopped in stub code for reason %d, signal %d", errDied, reason, atomic.LoadUint32(&c.Signo))
	}
	if step {
		return enteredStep, err
	}
	return enteredOn, err
}

// signalled serves a stop by a signal.
func (k *Kernel) signalled() (step bool, err error) {
	k.stats.Faults++
	e, p, st := k.e, k.s.p, k.e.state
	segs := st.Seg
	f, err := e.readFrame(p)
	if err != nil {
		return false, err
	}
	st.Seg = segs
	st.RFLAGS &^= x86.FlagRF
	st.GPR[x86.RSP] = bt.Unfold(st.GPR[x86.RSP])
	at := st.RIP
	b, m, ok := k.c.find(at)
	if !ok {
		return false, fmt.Errorf("%w: stopped at %#x, outside translations (signal %d, trap %d, cr2 %#x)", errDied, at, atomic.LoadUint32(&p.ctl.Signo), f.trap, f.cr2)
	}
	k.setAC(b.AC)
	if err := k.undo(m); err != nil {
		return false, err
	}
	signo := atomic.LoadUint32(&p.ctl.Signo)
	if signo == stub.KickSignal {
		k.stats.KickSignals++
		return false, nil
	}
	if signo != sigSEGV || f.trap != x86.VecPF {
		k.stats.Trapped++
		if signo == sigSEGV && f.trap == x86.VecGP {
			k.learn(b, st.RIP) // a non-canonical address after folding
		}
		return true, nil
	}
	mapped, err := k.pageFault(f.cr2, uint32(f.err))
	switch {
	case mapped:
		k.stats.Mapped++
	case bt.Unfold(f.cr2) >= 1<<63:
		k.stats.Refused++
	case err == nil:
		k.stats.LowerHalf++
		k.learn(b, st.RIP)
	}
	return !mapped, err
}

const maxSlow = 1 << 17

// learn makes the instruction at rip leave without a fault from now on when it
// accesses the lower half.
func (k *Kernel) learn(b *cached, rip uint64) {
	if b == nil || k.c.slow[rip] {
		return
	}
	if len(k.c.slow) >= maxSlow {
		clear(k.c.slow) // a kernel has a few thousand
	}
	k.stats.Learned++
	k.c.slow[rip] = true
	k.c.drop(b)
}

// undo makes the guest's registers and RIP of those at a mark.
func (k *Kernel) undo(m bt.Mark) error {
	st := k.e.state
	scratch := func(i int) uint64 { return atomic.LoadUint64(&k.s.p.ctl.Scratch[i]) }
	st.RIP = m.RIP
	switch m.Saved {
	case bt.RCX:
		st.GPR[x86.RCX] = scratch(0)
	case bt.RDX:
		st.GPR[x86.RDX] = scratch(0)
	case bt.RDXFold, bt.RDXBoth:
		st.GPR[x86.RDX] = scratch(0)
		st.GPR[x86.RDI] = bt.Unfold(st.GPR[x86.RDI])
		if m.Saved == bt.RDXBoth {
			st.GPR[x86.RSI] = bt.Unfold(st.GPR[x86.RSI])
		}
	case bt.Two, bt.TwoPush, bt.TwoRSP, bt.TwoIF, bt.TwoGS:
		rcx := st.GPR[x86.RCX]
		switch m.Saved {
		case bt.TwoPush:
			st.GPR[x86.RSP] += 8
		case bt.TwoRSP:
			st.GPR[x86.RSP] = rcx
		case bt.TwoIF:
			st.RFLAGS = st.RFLAGS&^x86.FlagIF | (rcx+x86.FlagIF)&x86.FlagIF
		case bt.TwoGS:
			if !x86.Canonical(bt.Fold(rcx)) {
				return fmt.Errorf("%w: GS is %#x", errDied, rcx)
			}
			st.Seg[x86.GS].Base = rcx
		}
		st.GPR[x86.RCX], st.GPR[x86.RDX] = scratch(0), scratch(1)
	case bt.Words, bt.WordsCX, bt.WordsDI, bt.WordsBoth:
		if m.Saved != bt.Words {
			st.GPR[x86.RCX] += scratch(4)
		}
		if m.Saved == bt.WordsDI || m.Saved == bt.WordsBoth {
			st.GPR[x86.RDI] -= scratch(5)
		}
		if m.Saved == bt.WordsBoth {
			st.GPR[x86.RSI] -= scratch(6)
		}
		for i, r := range m.In {
			if r != 0 {
				if st.GPR[r-1] = scratch(i); r-1 == x86.RSP {
					st.GPR[x86.RSP] = bt.Unfold(st.GPR[x86.RSP])
				}
			}
		}
	case bt.Target:
		st.RIP = st.GPR[x86.RCX]
		st.GPR[x86.RCX] = scratch(0)
	case bt.TargetIn:
		st.RIP = scratch(2)
		st.GPR[x86.RCX], st.GPR[x86.RDX] = scratch(0), scratch(1)
	}
	return nil
}
