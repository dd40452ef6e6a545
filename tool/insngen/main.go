// Command insngen turns the instruction table of internal/x86/insn, which is
// written in the notation of the manuals, into Go.
//
//  1. parse.go reads one line into one or more encodings: brace lists expand
//     in parallel, +cc into the 16 conditions, +r into 8 opcodes.
//  2. operand.go translates the operand notation.
//  3. emit.go orders the encodings by opcode map and opcode, the most specific
//     first, and writes static arrays: the decoder then needs no set-up at all.
//
// Usage: insngen [-in table.txt] [-out zz_generated_table.go]
package main

import (
	"bytes"
	"flag"
	"fmt"
	"os"
)

func main() {
	in := flag.String("in", "table.txt", "instruction table")
	out := flag.String("out", "zz_generated_table.go", "generated Go file")
	flag.Parse()
	if err := run(*in, *out); err != nil {
		fmt.Fprintln(os.Stderr, "insngen:", err)
		os.Exit(1)
	}
}

func run(in, out string) error {
	src, err := generate(in)
	if err != nil {
		return err
	}
	if old, err := os.ReadFile(out); err == nil && bytes.Equal(old, src) {
		return nil
	}
	return os.WriteFile(out, src, 0o644)
}

// generate returns the Go source for the table in the named file.
func generate(in string) ([]byte, error) {
	text, err := os.ReadFile(in)
	if err != nil {
		return nil, err
	}
	t, err := parseTable(in, string(text))
	if err != nil {
		return nil, err
	}
	return t.emit()
}
