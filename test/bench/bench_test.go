package main

import (
	"encoding/xml"
	"errors"
	"io"
	"math"
	"os"
	"os/exec"
	"slices"
	"strings"
	"testing"
	"time"
)

// ticks is a clock that advances by a second with each look.
func ticks() func() time.Duration {
	var t time.Duration
	return func() time.Duration { t += time.Second; return t }
}

func TestRead(t *testing.T) {
	const console = "[    0.1] booting\r\n" +
		"[    0.2] half a line bench: up 1500000000\r\n" +
		"bench: row null 203.461\r\nnoise\r\nbench: row loop 364961707\r\n" +
		"bench: fail kallsyms: open: No such file or directory\r\n" +
		"bench: end 4000000000\r\nreboot: System halted\r\n"
	tr, err := read(strings.NewReader(console), ticks())
	if err != nil {
		t.Fatal(err)
	}
	v := tr.values(true)
	for name, want := range map[string]float64{"null": 203.461, "loop": 364961707, rowBoot: 1e9, rowClock: 1.5e9} {
		if v[name] != want {
			t.Errorf("%s: %v, want %v", name, v[name], want)
		}
	}
	if len(v) != 4 {
		t.Errorf("rows %v", v)
	}
	if err := tr.check(); err == nil || err.Error() != "kallsyms: open: No such file or directory" {
		t.Errorf("check: %v", err)
	}
}

func TestReadErrors(t *testing.T) {
	for in, want := range map[string]string{
		"bench: up 1\nbench: row null 1\n":                       "it ended early",
		"bench: up x\n":                                          "invalid syntax",
		"bench: row null\n":                                      "unknown",
		"bench: up 1\nbench: end 500000000\n":                    "", // too short to tell
		"bench: up 1\n\nbench: row a 1\nbench: end 1000000000\n": "its clock is -50 % off the host's",
	} {
		tr, err := read(strings.NewReader(in), ticks())
		if err = errors.Join(err, tr.check()); want == "" && err != nil || want != "" && (err == nil || !strings.Contains(err.Error(), want)) {
			t.Errorf("%q: %v, want %q", in, err, want)
		}
	}
}

func TestMedian(t *testing.T) {
	for _, c := range []struct {
		v    []float64
		want float64
	}{{[]float64{3}, 3}, {[]float64{9, 1, 2}, 2}, {[]float64{4, 1, 2, 9}, 3}} {
		if got := median(c.v); got != c.want {
			t.Errorf("%v: %v", c.v, got)
		}
	}
	if !math.IsNaN(median(nil)) {
		t.Error("a median of nothing")
	}
}

func TestDuration(t *testing.T) {
	for ns, want := range map[float64]string{
		0.123: "0.12 ns", 203.46: "203 ns", 999.4: "999 ns", 999.9: "1.00 µs", 9.996e3: "10.0 µs", 1234: "1.23 µs", 99.96e3: "100 µs",
		45.67e6: "45.7 ms", 1.5e9: "1.50 s", 1500e9: "1500 s",
	} {
		if got := duration(ns); got != want {
			t.Errorf("%v: %q, want %q", ns, got, want)
		}
	}
}

func TestChoose(t *testing.T) {
	all := []string{"a", "b", "c"}
	if got, err := choose("row", "c,a", all); err != nil || !slices.Equal(got, []string{"a", "c"}) {
		t.Errorf("%v, %v", got, err)
	}
	if _, err := choose("row", "a,x", all); err == nil || !strings.Contains(err.Error(), `no row "x"`) {
		t.Error(err)
	}
}

// sample has two systems with gaps: ring3 failed in the second round, gVisor
// has no kallsyms.
func sample() *results {
	return &results{
		rows:    []string{rowBoot, "null", "kallsyms"},
		systems: []column{{"native", "native", ""}, {"ring3", "ring3", "ring3 1"}, {"tcg", "QEMU TCG", "<7>"}, {"gvisor", "gVisor", "runsc"}},
		rounds: []map[string]run{
			{"native": {"null": 100, "kallsyms": 1000}, "ring3": {rowBoot: 2e9, "null": 1000, "kallsyms": 500}, "tcg": {rowBoot: 1e9, "null": 500}, "gvisor": {"null": 2000}},
			{"native": {"null": 200, "kallsyms": 1000}, "ring3": nil, "tcg": {rowBoot: 3e9, "null": 500}, "gvisor": {"null": 2000}},
			{"native": {"null": 100, "kallsyms": 1000}, "ring3": {rowBoot: 2e9, "null": 3000, "kallsyms": 500}, "tcg": {rowBoot: 1e9, "null": 500}, "gvisor": {"null": 2000}},
		},
	}
}

func TestTables(t *testing.T) {
	r := sample()
	r.note("one\ntwo")
	md := r.markdown()
	for _, want := range []string{
		"| | native | ring3 | QEMU TCG | gVisor | ring3 / TCG |\n|---|---|---|---|---|---|\n",
		"| " + rowByName(rowBoot).title + " | - | 2.00 s (2.00) | 1.00 s | - | 2.00 |\n",
		"| 100 ns | 2.00 µs (20.0) | 500 ns (5.00) | 2.00 µs (20.0) | 4.00 |\n",
		"| 1.00 µs | 500 ns (0.50) | - | - | - |\n",
		"- one; two\n",
	} {
		if !strings.Contains(md, want) {
			t.Errorf("no %q in\n%s", want, md)
		}
	}
	lines := strings.Split(r.text(), "\n")
	for _, l := range lines[1 : 1+len(r.rows)] {
		if len([]rune(l)) != len([]rune(lines[0])) {
			t.Errorf("not aligned:\n%s\n%s", lines[0], l)
		}
	}
}

// TestPlot reads the plot as XML and looks at its bars.
func TestPlot(t *testing.T) {
	svg := sample().plot()
	d := xml.NewDecoder(strings.NewReader(svg))
	bars := 0
	for {
		tok, err := d.Token()
		if err == io.EOF {
			break
		}
		if err != nil {
			t.Fatalf("%v\n%s", err, svg)
		}
		e, ok := tok.(xml.StartElement)
		if !ok {
			continue
		}
		for _, a := range e.Attr {
			if strings.Contains(a.Value, "NaN") || strings.Contains(a.Value, "Inf") {
				t.Errorf("%s %s=%q", e.Name.Local, a.Name.Local, a.Value)
			}
			if a.Name.Local == "height" && a.Value == "10" {
				bars++
			}
		}
	}
	if bars != 5 { // boot: ring3; null: ring3, TCG, gVisor; kallsyms: ring3
		t.Errorf("%d bars", bars)
	}
	if one := (&results{rows: []string{"null"}}).plot(); !strings.HasSuffix(one, "</svg>\n") {
		t.Error("no plot without results")
	}
}

// TestDescendants finds a grandchild.
func TestDescendants(t *testing.T) {
	cmd := exec.Command("sh", "-c", "sleep 60 & echo; wait")
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	if _, err := out.Read(make([]byte, 1)); err != nil {
		t.Error(err)
	}
	if n := len(descendants(os.Getpid())); n != 2 {
		t.Errorf("%d processes", n)
	}
	adopt()
	killDescendants()
	_ = cmd.Wait()
	reap()
	if left := descendants(os.Getpid()); len(left) > 0 {
		t.Errorf("left: %v", left)
	}
}
