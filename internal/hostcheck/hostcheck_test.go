package hostcheck

import (
	"bytes"
	"debug/elf"
	"fmt"
	"os"
	"strings"
	"testing"
)

// TestMain lets the test binary play the child of a check.
func TestMain(m *testing.M) {
	if len(os.Args) == 2 && os.Args[1] == ProbeCommand {
		if err := Probe(); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		return
	}
	os.Exit(m.Run())
}

// Every check must say what it saw, and the mend when something is wrong.
func TestRun(t *testing.T) {
	t.Setenv("XDG_CACHE_HOME", t.TempDir())
	rs := Run()
	if len(rs) < 15 {
		t.Errorf("only %d checks", len(rs))
	}
	for _, r := range rs {
		if r.Saw == "" || strings.Contains(r.Saw+r.Mend, "\n") {
			t.Errorf("%s: saw %q, mend %q: want one line", r.Name, r.Saw, r.Mend)
		}
		if wrong := r.Level == Warn || r.Level == Fail; wrong != (r.Mend != "") {
			t.Errorf("%s: level %v with mend %q", r.Name, r.Level, r.Mend)
		}
		t.Logf("%-4v %s: %s", r.Level, r.Name, r.Saw)
	}
}

func TestPrint(t *testing.T) {
	var b bytes.Buffer
	rs := []Result{{OK, "memfd", "usable", ""}, {Fail, "FSGSBASE", "off", "turn it on"}}
	if err := Print(&b, rs); err != nil {
		t.Fatal(err)
	}
	want := "ok    memfd     usable\nFAIL  FSGSBASE  off; mend: turn it on\n"
	if b.String() != want {
		t.Errorf("got %q, want %q", b.String(), want)
	}
	if Usable(rs) || !Usable(rs[:1]) {
		t.Error("Usable does not follow the failures")
	}
}

func TestExitProgramIsELF(t *testing.T) {
	f, err := elf.NewFile(bytes.NewReader(exitProgram(7)))
	if err != nil {
		t.Fatal(err)
	}
	if p := f.Progs[0]; f.Entry < p.Vaddr || f.Entry >= p.Vaddr+p.Filesz || p.Flags != elf.PF_R|elf.PF_X {
		t.Errorf("entry %#x outside segment %+v", f.Entry, p.ProgHeader)
	}
}
