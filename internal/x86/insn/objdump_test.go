package insn

import (
	"bufio"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
)

// objLine is an instruction as objdump shows it.
type objLine struct {
	addr uint64
	code []byte
	text string
}

// objdump disassembles and calls f for every instruction; code is valid during
// the call only.
func objdump(t testing.TB, f func(objLine), args ...string) {
	t.Helper()
	path, err := exec.LookPath("objdump")
	if err != nil {
		t.Skip("no objdump")
	}
	cmd := exec.Command(path, append([]string{"-w", "--insn-width=16", "-M", "intel,intel64"}, args...)...)
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	sc := bufio.NewScanner(out)
	sc.Buffer(make([]byte, 1<<16), 1<<20)
	buf := make([]byte, 0, 32)
	for sc.Scan() {
		l, ok := parseObjLine(sc.Text(), buf)
		if ok {
			f(l)
		}
	}
	if err := cmd.Wait(); err != nil {
		t.Fatal(err)
	}
}

// parseObjLine reads "  addr:\tbytes\ttext".
func parseObjLine(line string, buf []byte) (objLine, bool) {
	addr, rest, ok := strings.Cut(line, ":\t")
	if !ok {
		return objLine{}, false
	}
	a, err := strconv.ParseUint(strings.TrimSpace(addr), 16, 64)
	if err != nil {
		return objLine{}, false
	}
	bytes, text, _ := strings.Cut(rest, "\t")
	for i := 0; i+1 < len(bytes) && bytes[i] != ' '; i += 3 {
		buf = append(buf, unhex(bytes[i])<<4|unhex(bytes[i+1]))
	}
	return objLine{a, buf, text}, true
}

func unhex(c byte) byte {
	if c >= 'a' {
		return c - 'a' + 10
	}
	return c - '0'
}

// slotLen separates test cases in a binary file: whatever 15 bytes decode to,
// the NOPs behind them bring objdump back in step before the next slot.
const slotLen = 32

// objdumpSlots disassembles each code separately and reports objdump's first
// instruction of each.
func objdumpSlots(t testing.TB, mode Mode, codes [][]byte) []objLine {
	t.Helper()
	file := filepath.Join(t.TempDir(), "code.bin")
	bin := make([]byte, len(codes)*slotLen)
	for i := range bin {
		bin[i] = 0x90
	}
	for i, c := range codes {
		copy(bin[i*slotLen:], c[:min(len(c), MaxLen)])
	}
	if err := os.WriteFile(file, bin, 0o600); err != nil {
		t.Fatal(err)
	}
	lines := make([]objLine, len(codes))
	machine := map[Mode]string{Mode16: "i8086", Mode32: "i386", Mode64: "i386:x86-64"}[mode]
	objdump(t, func(l objLine) {
		if l.addr%slotLen == 0 {
			l.code = append([]byte(nil), l.code...)
			lines[l.addr/slotLen] = l
		}
	}, "-D", "-b", "binary", "-m", machine, file)
	return lines
}

// disagreement compares objdump's view of code with ours and describes the
// difference, or returns "".
func disagreement(l objLine, code []byte, mode Mode) string {
	var in Inst
	err := Decode(code, mode, &in)
	mnem, rest := objMnemonic(l.text)
	bad := strings.Contains(l.text, "(bad)") || strings.Contains(l.text, "{ba") || mnem == ""
	switch {
	case err != nil && bad, allowed(l, mnem, &in, err):
		return ""
	case err != nil:
		return fmt.Sprintf("%v, objdump: %s", err, l.text)
	case bad:
		return fmt.Sprintf("%s (%s), objdump: %s", in.Op, in.Enc.Form, l.text)
	case int(in.Len) != len(l.code):
		return fmt.Sprintf("%s length %d, objdump: %d %s", in.Op, in.Len, len(l.code), l.text)
	}
	if want := manualName(mnem, rest, &in); want != in.Op.String() {
		return fmt.Sprintf("%s (%s), objdump: %s", in.Op, in.Enc.Form, l.text)
	}
	if d := operandsDisagree(&in, rest, l.addr); d != "" {
		return fmt.Sprintf("%s, %s, %s, objdump: %s", in.Enc.Form, Format(&in, l.addr), d, l.text)
	}
	return ""
}

// report collects disagreements by kind.
type report struct {
	t     *testing.T
	kinds map[string]int
	n     int
}

func (r *report) add(code []byte, what string) {
	if r.kinds == nil {
		r.kinds = map[string]int{}
	}
	key := what
	if ours, theirs, ok := strings.Cut(what, "objdump:"); ok {
		mnem, _ := objMnemonic(theirs)
		ours, _, _ = strings.Cut(ours, ", ")
		key = ours + mnem
	}
	r.kinds[key]++
	if r.kinds[key] == 1 && len(r.kinds) < 100 {
		r.t.Errorf("% x: %s", code, what)
	}
}

// compareFile checks the text of an ELF file and returns the number of
// instructions.
func compareFile(t *testing.T, file string) int {
	r := report{t: t}
	objdump(t, func(l objLine) {
		r.n++
		if d := disagreement(l, l.code, Mode64); d != "" {
			r.add(l.code, fmt.Sprintf("%#x: %s", l.addr, d))
		}
	}, "-d", file)
	t.Logf("%s: %d instructions", file, r.n)
	return r.n
}

// goTool is the path of the go command, or "".
func goTool() string {
	path, err := exec.LookPath("go")
	if err != nil {
		return ""
	}
	return path
}

func TestObjdumpFiles(t *testing.T) {
	if testing.Short() {
		t.Skip("long")
	}
	for _, f := range []string{
		"/lib/x86_64-linux-gnu/libc.so.6", "/lib/x86_64-linux-gnu/libcrypto.so.3",
		"/lib64/ld-linux-x86-64.so.2", "/bin/busybox", goTool(),
	} {
		if _, err := os.Stat(f); err != nil {
			continue
		}
		t.Run(filepath.Base(f), func(t *testing.T) {
			if compareFile(t, f) == 0 {
				t.Error("nothing disassembled")
			}
		})
	}
}
