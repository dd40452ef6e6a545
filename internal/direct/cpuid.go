package direct

import (
	"bytes"
	"encoding/binary"
	"errors"
	"math/bits"
	"slices"
	"sync/atomic"

	"golang.org/x/sys/unix"

	"ring3/internal/direct/stub"
	"ring3/internal/x86"
)

// A CPUID that was patched traps, but it need not come to the monitor: the
// stub's signal handler looks up the answer (stub.Answers) if it knows that a
// CPUID stands there (stub.CPUIDs). A short jump to padding, as for system
// calls, reaches few of them: they are in long functions without any.

// state that the answers depend on, beside the machine.
type cpuidState struct {
	xcr0    uint64
	osxsave bool
}

func (e *Engine) cpuidState() cpuidState {
	return cpuidState{e.state.XCR0, e.state.CR4&x86.CR4OSXSAVE != 0}
}

// answersStale reports whether stubs would give answers that are not those of
// the virtual CPU any more.
func (e *Engine) answersStale() bool {
	return e.cfg.CPUID != nil && e.answered != e.cpuidState()
}

// answer writes the answers that stubs give if they have changed.
func (e *Engine) answer() error {
	if !e.answersStale() {
		return nil
	}
	var a stub.Answers
	for _, r := range e.cfg.CPUID() {
		if a.N == stub.MaxAnswers {
			break
		}
		c := stub.Answer{Leaf: r.Leaf, Sub: r.Sub, Mask: ^uint32(0), A: r.A, B: r.B, C: r.C, D: r.D}
		if r.AnySub {
			c.Sub, c.Mask = 0, 0
		}
		a.List[a.N] = c
		a.N++
	}
	b, err := binary.Append(nil, binary.LittleEndian, &a)
	if err != nil {
		panic("BUG: " + err.Error())
	}
	if n, err := unix.Pwrite(e.code.fd, b, int64(e.code.answers)); err != nil || n != len(b) {
		return errors.Join(errors.New("writing the answers of CPUID"), err)
	}
	e.answered = e.cpuidState()
	return nil
}

var insnCPUID = []byte{0x0f, 0xa2}

// listCPUIDs tells the stub of s which CPUIDs are in the page at gva, that is
// mapped as ent now. Those with prefixes and those beyond the room for them
// are the monitor's.
func (e *Engine) listCPUIDs(s *space, gva uint64, ent entry) {
	n := len(s.cpuids)
	s.cpuids = slices.DeleteFunc(s.cpuids, func(a uint64) bool { return a&^(x86.PageSize-1) == gva })
	changed := len(s.cpuids) != n
	if ent&entPrivate != 0 {
		p, b := e.code.pages[ent.gpa()], e.page(ent.gpa())
		for i, word := range p.patches {
			for ; word != 0; word &= word - 1 {
				at := 64*i + bits.TrailingZeros64(word)
				if bytes.HasPrefix(b[at:], insnCPUID) && len(s.cpuids) < stub.MaxCPUIDs {
					s.cpuids = append(s.cpuids, gva+uint64(at))
					changed = true
				}
			}
		}
	}
	if changed {
		c := cpuids(s.p.slot)
		copy(c.Addr[:], s.cpuids)
		c.N = uint8(len(s.cpuids))
	}
}

// relistCPUIDs is for a page whose private copy has changed.
func (e *Engine) relistCPUIDs(gpa uint64) {
	off, _ := e.mem.Offset(gpa)
	for i := e.rmap.head[off/x86.PageSize]; i != 0; i = e.rmap.nodes[i].next {
		n := &e.rmap.nodes[i]
		s := e.byID[n.space]
		e.listCPUIDs(s, n.gva, s.get(n.gva))
	}
}

// countCPUIDs takes the number that a stub has served.
func (p *proc) countCPUIDs() {
	p.e.stats.CPUIDs += uint64(atomic.SwapUint32(&cpuids(p.slot).Served, 0))
}
