// Package disasm lists machine code for people.
package disasm

import (
	"fmt"
	"io"
	"strings"

	"golang.org/x/arch/x86/x86asm"

	"ring3/internal/x86/insn"
)

// Names gives addresses names; "" where it knows none.
type Names func(addr uint64) string

// Write lists 64-bit code that lies at pc. A line that has a label comes below
// it. Addresses in operands that names knows are explained. The lengths are
// those of our own decoder.
func Write(w io.Writer, code []byte, pc uint64, labels map[uint64]string, names Names) {
	for len(code) > 0 {
		var in insn.Inst
		n, text := 1, "?"
		if insn.Decode(code, insn.Mode64, &in) == nil {
			n, text = int(in.Len), in.Op.String()
		}
		if x, err := x86asm.Decode(code[:n], 64); err == nil {
			text = x86asm.GNUSyntax(x, pc, nil)
			if c := explain(&x, pc, names); c != "" {
				text += "  # " + c
			}
		}
		if l := labels[pc]; l != "" {
			fmt.Fprintf(w, "  %s:\n", l)
		}
		fmt.Fprintf(w, "  %12x  %-30x  %s\n", pc, code[:n], text)
		code, pc = code[n:], pc+uint64(n)
	}
}

// explain names the addresses that an instruction's operands hold.
func explain(x *x86asm.Inst, pc uint64, names Names) string {
	if names == nil {
		return ""
	}
	var found []string
	for _, a := range x.Args {
		var addr uint64
		switch a := a.(type) {
		case x86asm.Rel:
			addr = pc + uint64(x.Len) + uint64(a)
		case x86asm.Imm:
			addr = uint64(a)
		case x86asm.Mem:
			if addr = uint64(a.Disp); a.Base == x86asm.RIP {
				addr += pc + uint64(x.Len)
			}
		default:
			continue
		}
		if n := names(addr); n != "" {
			found = append(found, n)
		}
	}
	return strings.Join(found, ", ")
}
