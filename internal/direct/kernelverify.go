package direct

import (
	"ring3/internal/bt"
	"ring3/internal/x86"
	"ring3/internal/x86/insn"
)

// Running one block at a time, so that somebody can compare what it did. A
// Kernel that is used this way chains no blocks and keeps its jump table
// empty: each block ends in an exit.

// Unit is a block as it is compared. What an instruction does that two
// processors may do differently is in Insts.
type Unit struct {
	RIP   uint64
	Guest []byte // the code
	Insts []UnitInst
	b     *cached
	emit  []byte
}

// UnitInst is an instruction of a Unit.
type UnitInst struct {
	RIP            uint64
	Written, Undef uint64 // flags: defined, and left undefined
	Repeated       bool   // may stop half-way
}

// Host is the emitted code, where it lies, and the guest addresses that it
// belongs to.
func (u *Unit) Host() (code []byte, at uint64, marks []bt.Mark) { return u.emit, u.b.host, u.b.Marks }

// UnitStop says how RunUnit ended.
type UnitStop uint8

// Ways to end.
const (
	UnitDone  UnitStop = iota // all instructions were executed
	UnitStep                  // the instruction at RIP must be interpreted
	UnitAgain                 // a page was mapped, or Kick called, at RIP: to be started over
)

// NextUnit is the block at RIP, State fitting. Without one the exit says why.
// Run must not be called before or after.
func (k *Kernel) NextUnit() (*Unit, KernelExit, error) {
	k.alone = true
	e := k.e
	if err := k.ready(); err != nil {
		x, err := k.fail(err)
		return nil, x, err
	}
	if e.kick.take() {
		k.stats.Kicks++
		return nil, KernelKick, nil
	}
	for {
		b := k.block(e.state.RIP, e.state.RFLAGS&x86.FlagAC != 0)
		if b == nil || b.N == 0 {
			k.stats.Steps++
			if b != nil && b.Exits[0].Kind == bt.ExitVector {
				return nil, KernelVector, nil
			}
			return nil, KernelStep, nil
		}
		if b.unit == nil {
			if odd := k.describe(b); odd != 0 {
				k.learn(b, odd)
				continue
			}
		}
		return b.unit, 0, nil
	}
}

// describe makes the Unit of a block, unless it holds an instruction that
// cannot be compared: odd is then where.
func (k *Kernel) describe(b *cached) (odd uint64) {
	c := &k.c
	u := &Unit{RIP: b.RIP, b: b}
	first := min(b.Len, x86.PageSize-b.gpa%x86.PageSize)
	u.Guest = make([]byte, b.Len)
	if k.e.mem.ReadAt(u.Guest[:first], b.gpa) != nil || k.e.mem.ReadAt(u.Guest[first:], b.gpa2) != nil {
		return b.RIP
	}
	off := b.host - c.base
	u.emit = c.mem[off : off+uint64(b.size)]
	var in insn.Inst
	for pc, code := b.RIP, u.Guest; len(u.Insts) < b.N; pc, code = pc+uint64(in.Len), code[in.Len:] {
		if insn.Decode(code, insn.Mode64, &in) != nil {
			return pc
		}
		i := UnitInst{RIP: pc, Written: uint64(in.Enc.FlagsWritten), Undef: uint64(in.Enc.FlagsUndef)}
		switch in.Op {
		case insn.OpRDTSC, insn.OpRDTSCP, insn.OpRDRAND, insn.OpRDSEED:
			return pc // another time, another result
		case insn.OpADD, insn.OpSUB, insn.OpAND:
			// SF is that of the folded address (package bt).
			if a := in.Args[0]; a.Kind == insn.ArgGPR && a.Reg == x86.RSP && !a.High && a.Size == 64 {
				i.Undef |= x86.FlagSF
			}
		case insn.OpMOVS, insn.OpSTOS:
			i.Repeated = in.Rep || in.Repne
		}
		u.Insts = append(u.Insts, i)
	}
	if k.Spoil != nil {
		k.Spoil(b.RIP, u.emit)
	}
	b.unit = u
	return 0
}

// RunUnit executes the block at RIP, which NextUnit returned, from State.
func (k *Kernel) RunUnit(u *Unit) (UnitStop, error) {
	if err := k.e.unmapGone(k.s); err != nil {
		_, err = k.fail(err)
		return 0, err
	}
	k.whole = false
	x, err := k.enter(u.b, nil)
	switch {
	case err != nil:
		_, err = k.fail(err)
		return 0, err
	case x == enteredStep:
		k.stats.Steps++
		return UnitStep, nil
	case k.whole:
		return UnitDone, nil
	}
	return UnitAgain, nil
}
