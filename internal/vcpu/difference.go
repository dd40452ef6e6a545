package vcpu

import (
	"fmt"
	"strings"

	"ring3/internal/cpu"
	"ring3/internal/direct"
	"ring3/internal/disasm"
	"ring3/internal/x86"
)

// Difference is what a comparison of the translator with the interpreter
// found.
type Difference struct {
	Unit      *direct.Unit
	N         int // instructions that the translation executed
	Ran       int // and the interpreter
	Before    cpu.State
	Got, Want cpu.State // translated, interpreted
	Memory    []MemoryDifference
	Undefined uint64 // flags that do not count
	host      []byte
}

// MemoryDifference is a quadword of RAM.
type MemoryDifference struct{ GPA, Got, Want uint64 }

func (f *verifier) difference(u *direct.Unit, got *cpu.State, n int, mem []MemoryDifference) *Difference {
	code, _, _ := u.Host()
	return &Difference{Unit: u, N: n, Ran: f.ran, Before: f.before, Got: *got, Want: f.want, Memory: mem,
		Undefined: ^flagsDefined(u, min(n, len(u.Insts))), host: append([]byte(nil), code...)}
}

var registerNames = [16]string{"rax", "rcx", "rdx", "rbx", "rsp", "rbp", "rsi", "rdi",
	"r8", "r9", "r10", "r11", "r12", "r13", "r14", "r15"}

// maxMemoryLines bounds the memory that Report lists.
const maxMemoryLines = 32

func (d *Difference) Error() string {
	return fmt.Sprintf("the translator differs from the interpreter in the block at %#x, after %d of %d instructions (interpreted: %d)",
		d.Unit.RIP, d.N, len(d.Unit.Insts), d.Ran)
}

// Report is everything that is known about the difference, in lines.
func (d *Difference) Report() string {
	var b strings.Builder
	p := func(format string, args ...any) { fmt.Fprintf(&b, format+"\n", args...) }
	p("  %-8s %-18s %-18s %-18s", "", "before", "translated", "interpreted")
	row := func(name string, before, got, want uint64) {
		mark := ""
		if got != want {
			mark = "  <--"
		}
		p("  %-8s %-18s %-18s %-18s%s", name, fmt.Sprintf("%#x", before), fmt.Sprintf("%#x", got), fmt.Sprintf("%#x", want), mark)
	}
	for i, name := range registerNames {
		row(name, d.Before.GPR[i], d.Got.GPR[i], d.Want.GPR[i])
	}
	row("rip", d.Before.RIP, d.Got.RIP, d.Want.RIP)
	row("rflags", d.Before.RFLAGS, d.Got.RFLAGS, d.Want.RFLAGS)
	if u := d.Undefined & x86.FlagsArith; u != 0 {
		p("  %-8s %#x does not count", "", u)
	}
	row("fs base", d.Before.Seg[x86.FS].Base, d.Got.Seg[x86.FS].Base, d.Want.Seg[x86.FS].Base)
	row("gs base", d.Before.Seg[x86.GS].Base, d.Got.Seg[x86.GS].Base, d.Want.Seg[x86.GS].Base)
	g, w := d.Got, d.Want
	g.GPR, g.RIP, g.RFLAGS, g.InterruptShadow = w.GPR, w.RIP, w.RFLAGS, w.InterruptShadow
	if g != w {
		p("  other state:\n  translated  %+v\n  interpreted %+v", g, w)
	}
	for i, m := range d.Memory {
		if i == maxMemoryLines {
			p("  and %d more quadwords", len(d.Memory)-i)
			break
		}
		p("  memory at %#x: translated %#x, interpreted %#x", m.GPA, m.Got, m.Want)
	}
	p("guest code:")
	disasm.Write(&b, d.Unit.Guest, d.Unit.RIP, nil, nil)
	p("emitted code:")
	_, at, marks := d.Unit.Host()
	labels := map[uint64]string{}
	for _, m := range marks {
		labels[at+uint64(m.Off)] = fmt.Sprintf("%#x", m.RIP)
	}
	disasm.Write(&b, d.host, at, labels, nil)
	return b.String()
}
