// Package trace lists translations of chosen guest code: the guest's
// instructions, and what is executed in their place.
package trace

import (
	"bytes"
	"fmt"
	"io"
	"sync"

	"ring3/internal/bt"
	"ring3/internal/direct"
	"ring3/internal/disasm"
	"ring3/internal/symbols"
	"ring3/internal/x86/insn"
)

// maxBytes bounds a trace.
const maxBytes = 16 << 20

// Trace collects listings. It may be read while it collects.
type Trace struct {
	ranges []Range
	syms   *symbols.Table // nil without

	mu      sync.Mutex
	text    bytes.Buffer
	blocks  int
	dropped int // blocks beyond maxBytes
}

// New makes a Trace of the code in some ranges. syms may be nil.
func New(ranges []Range, syms *symbols.Table) *Trace { return &Trace{ranges: ranges, syms: syms} }

// Add lists a block if it lies in one of the ranges.
func (t *Trace) Add(b *direct.Translation) {
	if !t.wants(b.RIP, b.RIP+b.Len) {
		return
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.text.Len() >= maxBytes {
		t.dropped++
		return
	}
	t.blocks++
	t.list(b)
}

func (t *Trace) wants(start, end uint64) bool {
	for _, r := range t.ranges {
		if start < r.End && end > r.Start {
			return true
		}
	}
	return false
}

// list writes one block.
func (t *Trace) list(b *direct.Translation) {
	w := &t.text
	p := func(format string, args ...any) { fmt.Fprintf(w, format+"\n", args...) }
	names := func(addr uint64) string {
		if addr>>63 != 0 {
			return t.name(addr)
		}
		return b.Names.Name(addr)
	}
	guest := b.Guest[:listed(b)]
	p("block %d: %s, %d instructions, %d bytes to %d%s", t.blocks, t.place(b.RIP), b.N, len(guest), len(b.Host), ac(b.AC))
	p("guest code:")
	disasm.Write(w, guest, b.RIP, nil, names)
	labels := map[uint64]string{}
	for _, m := range b.Marks {
		label := "RIP in a register"
		if m.RIP != 0 {
			label = t.place(m.RIP)
		}
		if s := m.Saved.String(); s != "" {
			label += " (" + s + ")"
		}
		labels[b.At+uint64(m.Off)] = label
	}
	for i, x := range b.Exits {
		if x.Stub != 0 {
			labels[b.At+uint64(x.Stub)] = fmt.Sprintf("exit %d", i)
		}
	}
	p("emitted code:")
	disasm.Write(w, b.Host, b.At, labels, names)
	for i, x := range b.Exits {
		p("exit %d: %v, %s%s", i, x.Kind, t.place(x.RIP), ac(x.AC))
	}
	p("")
}

func ac(set bool) string {
	if set {
		return ", AC set"
	}
	return ""
}

// listed is how many bytes of guest code to list: with the instruction that the
// block leaves to the interpreter.
func listed(b *direct.Translation) int {
	n := int(b.Len)
	if b.N == 0 {
		n = 0
	}
	var in insn.Inst
	for _, x := range b.Exits {
		step := x.Kind == bt.ExitStep || x.Kind == bt.ExitVector
		if step && x.RIP == b.RIP+uint64(n) && insn.Decode(b.Guest[n:], insn.Mode64, &in) == nil {
			return n + int(in.Len)
		}
	}
	return n
}

// place is an address with its symbol.
func (t *Trace) place(addr uint64) string {
	if n := t.name(addr); n != "" {
		return fmt.Sprintf("%x %s", addr, n)
	}
	return fmt.Sprintf("%x", addr)
}

func (t *Trace) name(addr uint64) string {
	if t.syms == nil {
		return ""
	}
	s, ok := t.syms.At(addr)
	switch {
	case !ok:
		return ""
	case s.Addr == addr:
		return s.Name
	}
	return fmt.Sprintf("%s+%#x", s.Name, addr-s.Addr)
}

// WriteTo implements io.WriterTo: what was collected, and a line that says how
// much that is.
func (t *Trace) WriteTo(w io.Writer) (int64, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	end := fmt.Sprintf("%d blocks", t.blocks)
	switch {
	case t.dropped > 0:
		end += fmt.Sprintf(", and %d more were left out: %d MiB are full", t.dropped, maxBytes>>20)
	case t.blocks == 0:
		end += ": this code was never translated"
	}
	n, err := w.Write(t.text.Bytes())
	if err != nil {
		return int64(n), err
	}
	m, err := fmt.Fprintln(w, end)
	return int64(n + m), err
}
