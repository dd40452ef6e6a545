package direct

import (
	"encoding/binary"
	"errors"
	"fmt"
	"sync/atomic"

	"ring3/internal/cpu"
	"ring3/internal/direct/stub"
	"ring3/internal/mmu"
	"ring3/internal/x86"
)

const userFetch = mmu.User | mmu.Fetch

// Signals that a stub stops with, by their numbers on Linux x86-64.
const (
	sigILL  = 4
	sigTRAP = 5
	sigBUS  = 7
	sigFPE  = 8
	sigSEGV = 11
	sigSYS  = 31
)

// frame is what the monitor takes from a signal frame, each value read once.
type frame struct {
	trap, err, cr2 uint64
	// Of SIGSYS: address behind the system-call instruction (or of the
	// vsyscall), and the ABI.
	callAddr uint64
	arch     uint32
}

// readFrame moves the guest's registers from the stub's signal frame to State.
func (e *Engine) readFrame(p *proc) (f frame, err error) {
	addr := atomic.LoadUint64(&p.ctl.Frame)
	uc, ok := p.inStack(addr, stub.UCSize+128)
	if !ok {
		return f, fmt.Errorf("%w: signal frame at %#x", errDied, addr)
	}
	if err := p.takeFPU(addr); err != nil {
		return f, err
	}
	q := func(off int) uint64 { return binary.LittleEndian.Uint64(uc[off:]) }
	st := e.state
	for i := range 8 {
		st.GPR[x86.R8+i] = q(stub.UCR8 + 8*i)
	}
	st.GPR[x86.RDI], st.GPR[x86.RSI] = q(stub.UCRDI), q(stub.UCRSI)
	st.GPR[x86.RBP], st.GPR[x86.RBX] = q(stub.UCRBP), q(stub.UCRBX)
	st.GPR[x86.RDX], st.GPR[x86.RAX] = q(stub.UCRDX), q(stub.UCRAX)
	st.GPR[x86.RCX], st.GPR[x86.RSP] = q(stub.UCRCX), q(stub.UCRSP)
	st.RIP = q(stub.UCRIP)
	st.RFLAGS = guestFlags(q(stub.UCFlags), st.RFLAGS)
	cs := binary.LittleEndian.Uint16(uc[stub.UCCS:])
	ss := binary.LittleEndian.Uint16(uc[stub.UCSS:])
	if err := errors.Join(e.readBases(p.ctl), e.readSelectors(p, cs, ss, p.ctl.Sel)); err != nil {
		return f, err
	}
	info := uc[stub.UCSize:]
	return frame{
		trap: q(stub.UCTrapNo), err: q(stub.UCErr), cr2: q(stub.UCCR2),
		callAddr: binary.LittleEndian.Uint64(info[16:]), arch: binary.LittleEndian.Uint32(info[28:]),
	}, nil
}

// stopped serves a stop of guest code: resume is true when it can go on at
// once, otherwise x is the exit.
func (e *Engine) stopped(s *space) (x Exit, resume bool) {
	if s.p.reason == stub.ReasonSyscall {
		return e.fastSyscall(s), false
	}
	f, err := e.readFrame(s.p)
	if err != nil {
		return Exit{Kind: ExitDied, Err: err}, false
	}
	e.fpuHome = s
	e.lift(s)
	st := e.state
	signo := atomic.LoadUint32(&s.p.ctl.Signo)
	switch {
	case signo == stub.KickSignal:
		st.RIP = e.precise(s, st.RIP)
		if e.kick.take() {
			return Exit{Kind: ExitKick}, false
		}
		e.stats.Spurious++
		return Exit{}, true
	case signo == sigSYS:
		x := e.syscall(f)
		if x.Kind == ExitSyscall {
			if err := e.trapped(s, st.RIP); err != nil {
				return Exit{Kind: ExitDied, Err: err}, false
			}
		}
		return x, false
	case st.RIP >= userTop:
		// A jump out of the lower half. The details in the frame may be
		// stale: the host's vsyscall emulation raises SIGSEGV by hand.
		return e.fetchOutside(st.RIP), false
	case signo == sigSEGV && f.trap == x86.VecPF:
		return e.pageFault(s, f.cr2, uint32(f.err))
	case signo == sigTRAP && f.trap == x86.VecDB:
		if st.RFLAGS&x86.FlagTF == 0 {
			st.RIP-- // INT1: the interpreter knows what it does
			return Exit{Kind: ExitNeedStep}, false
		}
		st.DR[6] |= dr6BS
		st.RIP = e.precise(s, st.RIP) // guest code set TF itself
		return exception(x86.VecDB), false
	case signo == sigTRAP && f.trap == x86.VecBP:
		return exception(x86.VecBP), false
	case signo == sigSEGV && (f.trap == x86.VecOF || f.trap == x86.VecBR):
		return exception(uint8(f.trap)), false
	case signo == sigILL:
		return exception(x86.VecUD), false
	case signo == sigFPE && (f.trap == x86.VecDE || f.trap == x86.VecMF || f.trap == x86.VecXM):
		return exception(uint8(f.trap)), false
	case signo == sigBUS && f.trap == x86.VecAC &&
		st.RFLAGS&x86.FlagAC != 0 && st.CR0&x86.CR0AM != 0:
		return Exit{Kind: ExitException, Vector: x86.VecAC, HasErr: true}, false
	case signo == sigBUS && f.trap == x86.VecPF:
		return Exit{Kind: ExitDied, Err: fmt.Errorf("%w: the host has no memory for guest RAM", errDied)}, false
	case signo == sigSEGV || signo == sigBUS:
		// #GP above all: privileged instructions, I/O, segment loads, INT n,
		// non-canonical addresses, patched instructions.
		if s.get(st.RIP)&entPrivate != 0 {
			e.stats.PatchedTraps++
		}
		return Exit{Kind: ExitNeedStep}, false
	}
	return Exit{Kind: ExitDied, Err: fmt.Errorf("%w: stopped by signal %d, trap %d", errDied, signo, f.trap)}, false
}

func exception(v uint8) Exit { return Exit{Kind: ExitException, Vector: v} }

const dr6BS = 1 << 14 // SDM vol. 3B, section 18.2.3

// ABIs of seccomp_data.arch.
const (
	auditI386  = 0x40000003
	auditX8664 = 0xc000003e
)

// syscall serves a SIGSYS. The host kernel has rolled RAX back; RCX and R11
// are as the SYSCALL instruction leaves them. RIP is behind the instruction,
// which is two bytes long in every case: SYSCALL, SYSENTER, INT 80h.
func (e *Engine) syscall(f frame) Exit {
	st := e.state
	if f.callAddr >= userTop {
		// The host emulates the vsyscall page: it popped the return address.
		// The guest kernel has its own opinion on that page.
		st.GPR[x86.RSP] -= 8
		st.RIP = f.callAddr
		return e.fetchOutside(st.RIP)
	}
	st.RIP = f.callAddr - 2
	if f.arch == auditX8664 {
		return Exit{Kind: ExitSyscall}
	}
	return Exit{Kind: ExitNeedStep}
}

// fastSyscall serves a system call that came by a patched instruction. The
// registers in the control page are as good as those of a signal frame: guest
// code can have written them, and could have had them.
func (e *Engine) fastSyscall(s *space) Exit {
	e.stats.FastSyscalls++
	st, c, p := e.state, s.p.ctl, s.p
	for i := range st.GPR {
		st.GPR[i] = atomic.LoadUint64(&c.GPR[i])
	}
	st.RIP = st.GPR[x86.RCX] - 2
	st.RFLAGS = guestFlags(st.GPR[x86.R11], st.RFLAGS) &^ x86.FlagRF
	p.fpuAddr, p.sp = p.base+stub.XSaveOff, p.base+stub.AreaSize-64
	e.fpuHome = s
	if err := errors.Join(e.readBases(c), e.readSelectors(p, st.Seg[x86.CS].Sel, st.Seg[x86.SS].Sel, c.Sel)); err != nil {
		return Exit{Kind: ExitDied, Err: err}
	}
	if st.RIP >= userTop {
		return e.fetchOutside(st.RIP)
	}
	return Exit{Kind: ExitSyscall}
}

// hostFlags and guestFlags: what of RFLAGS user mode can change lives in the
// processor, the rest (IF, IOPL, VIF, VIP) in State.
const userFlags = x86.FlagsArith | x86.FlagTF | x86.FlagDF | x86.FlagNT | x86.FlagRF | x86.FlagAC | x86.FlagID

func hostFlags(f uint64) uint64 { return f&userFlags | x86.FlagFixed | x86.FlagIF }

func guestFlags(host, old uint64) uint64 { return host&userFlags | old&^userFlags | x86.FlagFixed }

// Selectors of the host's GDT that a guest's must equal; they are Linux's.
const (
	selCS32 = 0x23
	selData = 0x2b
	selCS64 = 0x33
	selTLS  = 0x63 // and the next two
)

// readBases takes over the bases of FS and GS. A processor holds canonical ones
// only; the guest's kernel would fault when it loads another.
func (e *Engine) readBases(c *stub.Control) error {
	fs, gs := atomic.LoadUint64(&c.FSBase), atomic.LoadUint64(&c.GSBase)
	if !x86.Canonical(fs) || !x86.Canonical(gs) {
		return fmt.Errorf("%w: segment bases %#x, %#x", errDied, fs, gs)
	}
	e.state.Seg[x86.FS].Base, e.state.Seg[x86.GS].Base = fs, gs
	return nil
}

// readSelectors takes over segment registers that the guest loaded natively.
// It can have loaded only what the host's GDT has and what mirrors accepts.
func (e *Engine) readSelectors(p *proc, cs, ss uint16, sel [4]uint16) error {
	st := e.state
	if cs != st.Seg[x86.CS].Sel {
		// A far transfer between 64-bit and compatibility mode.
		if cs != selCS32 && cs != selCS64 {
			return fmt.Errorf("%w: CS is %#x", errDied, cs)
		}
		e.loadSegment(x86.CS, cs)
	}
	if ss != st.Seg[x86.SS].Sel {
		e.loadSegment(x86.SS, ss)
	}
	for i, r := range [4]int{x86.DS, x86.ES, x86.FS, x86.GS} {
		if sel[i] != st.Seg[r].Sel {
			e.loadSegment(r, sel[i])
		}
	}
	p.sel = sel
	return nil
}

// loadSegment sets selector and hidden part of a segment register from the
// guest's GDT, as the load that the host has executed would have. The bases
// of FS and GS are already the processor's.
func (e *Engine) loadSegment(r int, sel uint16) {
	seg := &e.state.Seg[r]
	seg.Sel = sel
	if sel&^3 == 0 {
		*seg = cpu.Segment{Sel: sel, Base: seg.Base, Unusable: true}
		return
	}
	d, ok := e.descriptor(sel >> 3)
	if !ok {
		return // the host has it, the guest not: keep the old hidden part
	}
	base := d>>16&0xffffff | d>>56<<24
	limit := uint32(d&0xffff | d>>32&0xf0000)
	seg.Attr = uint16(d>>40) & 0xf0ff
	if seg.Attr&cpu.AttrG != 0 {
		limit = limit<<12 | 0xfff
	}
	seg.Limit, seg.Unusable = limit, false
	seg.Attr |= cpu.AttrAccessed
	if r != x86.FS && r != x86.GS {
		seg.Base = base
	}
}

// descriptor reads an entry of the guest's GDT.
func (e *Engine) descriptor(i uint16) (d uint64, ok bool) {
	st := e.state
	if uint32(i)*8+7 > uint32(st.GDTR.Limit) {
		return 0, false
	}
	t, _, ok := e.walk.Walk(st, st.GDTR.Base+uint64(i)*8, mmu.Implicit)
	if !ok {
		return 0, false
	}
	var b [8]byte
	if t.GPA&7 != 0 && t.GPA&0xfff > 0xff8 {
		return 0, false // crosses a page: no kernel does that
	}
	if e.mem.ReadAt(b[:], t.GPA) != nil {
		return 0, false
	}
	return binary.LittleEndian.Uint64(b[:]), true
}
