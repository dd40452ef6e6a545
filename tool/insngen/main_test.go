package main

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

const insnDir = "../../internal/x86/insn"

// TestUpToDate fails when table.txt was changed without go generate.
func TestUpToDate(t *testing.T) {
	want, err := generate(filepath.Join(insnDir, "table.txt"))
	if err != nil {
		t.Fatal(err)
	}
	got, err := os.ReadFile(filepath.Join(insnDir, "zz_generated_table.go"))
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got, want) {
		t.Error("zz_generated_table.go is out of date: run go generate ./internal/x86/insn")
	}
}

func TestParseErrors(t *testing.T) {
	for _, c := range []struct{ line, want string }{
		{"ADD r/m8, r8 | 00 /r | M", "2 operands"},
		{"ADD r/m8, q8 | 00 /r | MR", "no such register operand"},
		{"ADD r/m8, r8 | 00 /r | MX", "no such Op/En letter"},
		{"ADD r/m8, r8 | /r | MR", "no opcode"},
		{"{ADD,OR} r/m8, r8 | {00,08,10} /r | MR", "brace lists"},
		{"ADD r/m8, r8 | 00 /r | MR | sometimes", "unknown attribute"},
		{"ADD r/m8, r8 | 00 /r | MR\nOR r/m8, r8 | 00 /r | MR", "same encoding"},
		{"ADD r/m8, r8 | 00 /r | MR\nCLC | NP 00", "ModRM unlike"},
		{"%color=red", "unknown setting"},
	} {
		_, err := parseTable("t", c.line)
		if err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%q: got %v, want %q", c.line, err, c.want)
		}
	}
}

func TestExpansion(t *testing.T) {
	tab, err := parseTable("t", "Jcc rel8 | 70+cc cb | D\n{ADD,SUB} rv, r/mv | {03,2B} /r | RM\nV vmm, vmm/mvl | VEX.{128,256}.66.0F 10 /r | RM")
	if err != nil {
		t.Fatal(err)
	}
	if n := len(tab.encs); n != 19 {
		t.Fatalf("%d encodings, want 19", n)
	}
	if e := tab.encs[15]; e.op != "JG" || e.opcode != 0x7f || e.read != flagBits['z']|flagBits['s']|flagBits['o'] {
		t.Errorf("last condition: %+v", e)
	}
	if e := tab.encs[17]; e.op != "SUB" || e.opcode != 0x2b {
		t.Errorf("second of the list: %+v", e)
	}
	if e := tab.encs[18]; e.match[0]&matchL != matchL128|matchL256 {
		t.Errorf("vector lengths: %#x", e.match)
	}
}
