package vcpu

import (
	"bytes"
	"encoding/binary"

	"ring3/internal/cpu"
	"ring3/internal/direct"
	"ring3/internal/guestmem"
	"ring3/internal/interp"
	"ring3/internal/x86"
)

// burst is how many blocks are compared in a row when not all are.
const burst = 1000

// verifier runs translated blocks beside the interpreter and compares what
// they did: from the same state the interpreter goes first, its writes are
// undone, and then the stub executes the block. It has a stub of its own.
type verifier struct {
	cpu   *interp.CPU
	mem   *guestmem.Memory
	k     *direct.Kernel
	every int // exits between two bursts; 1: all blocks are compared
	exits int // until the next burst
	left  int // blocks of this burst

	// The block at hand: where it began, what the interpreter made of it, and
	// where it was after each instruction.
	watch  interp.Watch
	before cpu.State
	want   cpu.State
	ran    int // instructions that led to want
	rips   []uint64
	pages  [][x86.PageSize]byte // of watch.Pages, as want has them
	got    [][x86.PageSize]byte // and as the stub left them

	c verifyCounters
}

type verifyCounters struct {
	blocks, insts          uint64 // compared
	long, halfway, refused uint64 // blocks left to the interpreter
}

// Verify has translated code compared with the interpreter, by means of a
// kernel engine for that alone: every block when every is 1, else 1,000 blocks
// after each so many exits of translated code. Before Run, behind Translate.
func (v *VCPU) Verify(k *direct.Kernel, mem *guestmem.Memory, every int) {
	v.verify = &verifier{cpu: v.cpu, mem: mem, k: k, every: every, exits: every}
}

// due reports whether the code that follows is to be compared.
func (f *verifier) due() bool {
	if f.every == 1 || f.left > 0 {
		return true
	}
	if f.exits--; f.exits > 0 {
		return false
	}
	f.exits, f.left = f.every, burst
	return true
}

// run compares blocks from State, which must fit, until something else must
// be done.
func (f *verifier) run() (direct.KernelExit, error) {
	for {
		x, more, err := f.block()
		if err != nil || !more {
			return x, err
		}
		f.left--
		if f.every != 1 && f.left <= 0 || !f.k.Fits() {
			return direct.KernelStep, nil
		}
	}
}

// maxStarts is how often a block is started that is stopped by page faults and
// kicks before the interpreter has it.
const maxStarts = 200

// block compares one block.
func (f *verifier) block() (x direct.KernelExit, more bool, err error) {
	f.k.Waits = f.cpu.WantWindow
	f.ran = -1
	for range maxStarts {
		u, x, err := f.k.NextUnit()
		if u == nil {
			return x, false, err
		}
		if f.ran < 0 {
			f.before = f.cpu.State
			f.watch.Reset()
			f.rips = append(f.rips[:0], u.RIP)
			f.interpret(len(u.Insts))
		}
		if f.watch.Long {
			f.c.long++
			return direct.KernelStep, false, nil
		}
		stop, err := f.k.RunUnit(u)
		if err != nil {
			return direct.KernelDied, false, err
		}
		state, done, d := f.compare(u, stop)
		if d != nil {
			return direct.KernelDied, false, d
		}
		switch {
		case stop != direct.UnitAgain && done < 0:
			f.c.halfway++
			f.undo()
			return direct.KernelStep, false, nil
		case stop != direct.UnitAgain:
			f.cpu.State = state
			f.c.blocks++
			f.c.insts += uint64(done)
			return direct.KernelStep, stop == direct.UnitDone, nil
		}
		f.undo()
	}
	f.c.refused++
	return direct.KernelStep, false, nil
}

// interpret executes n instructions of the block, or as many as can be undone,
// and goes back to before.
func (f *verifier) interpret(n int) {
	c := f.cpu
	c.State = f.before
	f.ran = 0
	c.RunWatched(n, &f.watch, func(done int) {
		f.ran = done
		if len(f.rips) == done {
			f.rips = append(f.rips, c.RIP)
		}
	})
	f.want = c.State
	f.save(&f.pages)
	f.undo()
}

// save copies the pages that were accessed.
func (f *verifier) save(to *[][x86.PageSize]byte) {
	if n := len(f.watch.Pages); cap(*to) < n {
		*to = make([][x86.PageSize]byte, n)
	} else {
		*to = (*to)[:n]
	}
	for i, p := range f.watch.Pages {
		copy((*to)[i][:], f.page(p.GPA))
	}
}

// undo goes back to before.
func (f *verifier) undo() {
	f.cpu.State = f.before
	for _, p := range f.watch.Pages {
		copy(f.page(p.GPA), p.Old[:])
	}
}

func (f *verifier) page(gpa uint64) []byte {
	s, err := f.mem.Slice(gpa, x86.PageSize)
	if err != nil {
		panic("BUG: page outside RAM was accessed")
	}
	return s
}

// compare looks for the instruction that the stub has come to and compares
// State and memory with what the interpreter had there. done is the number of
// instructions before it, -1 when it is in the middle of one.
func (f *verifier) compare(u *direct.Unit, stop direct.UnitStop) (got cpu.State, done int, d *Difference) {
	got = f.cpu.State
	n := len(u.Insts)
	if stop == direct.UnitDone {
		return got, n, f.at(u, &got, n)
	}
	for i := range min(n, len(f.rips)) {
		if f.rips[i] != got.RIP {
			continue
		}
		d := f.at(u, &got, i)
		if d == nil {
			return got, i, nil
		}
		if u.Insts[i].Repeated && got.GPR[x86.RCX] != d.Want.GPR[x86.RCX] {
			return got, -1, nil
		}
		if len(f.rips) <= n || f.rips[n] != got.RIP {
			return got, i, d
		}
	}
	// Behind the block, stopped on the way out.
	return got, n, f.at(u, &got, n)
}

// at compares with the interpreter's state after n instructions.
func (f *verifier) at(u *direct.Unit, got *cpu.State, n int) *Difference {
	if n != f.ran {
		f.save(&f.got)
		f.undo()
		f.interpret(n)
		for i := range f.got {
			copy(f.page(f.watch.Pages[i].GPA), f.got[i][:])
		}
		f.cpu.State = *got
	}
	var mem []MemoryDifference
	for i, p := range f.watch.Pages {
		mem = f.comparePage(mem, p.GPA, f.page(p.GPA), f.pages[i][:])
	}
	if f.ran == n && len(mem) == 0 && same(u, got, &f.want, n) {
		return nil
	}
	return f.difference(u, got, n, mem)
}

// comparePage compares a page quadword by quadword. The interpreter's walks of
// the page tables set accessed and dirty bits, and the block may have written
// to the table itself: those bits alone are no difference, and put in.
func (f *verifier) comparePage(mem []MemoryDifference, gpa uint64, got, want []byte) []MemoryDifference {
	if bytes.Equal(got, want) {
		return mem
	}
	const ad = x86.PTEAccessed | x86.PTEDirty
	for i := 0; i < x86.PageSize; i += 8 {
		g, w := binary.LittleEndian.Uint64(got[i:]), binary.LittleEndian.Uint64(want[i:])
		switch {
		case g == w:
		case g|ad == w|ad && g&^w == 0 && g&x86.PTEPresent != 0:
			binary.LittleEndian.PutUint64(got[i:], w)
		default:
			mem = append(mem, MemoryDifference{gpa + uint64(i), g, w})
		}
	}
	return mem
}

// flagsDefined are the flags that the manuals define after n instructions.
func flagsDefined(u *direct.Unit, n int) uint64 {
	undef := uint64(0)
	for _, i := range u.Insts[:n] {
		undef = undef&^i.Written | i.Undef
	}
	return ^undef
}

// same compares all but memory. The shadow of STI is not the translator's.
func same(u *direct.Unit, got, want *cpu.State, n int) bool {
	g, w := *got, *want
	defined := flagsDefined(u, n) &^ x86.FlagRF
	g.RFLAGS, w.RFLAGS = g.RFLAGS&defined, w.RFLAGS&defined
	g.InterruptShadow, w.InterruptShadow = false, false
	return g == w
}
