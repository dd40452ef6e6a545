package main

import (
	"fmt"
	"math"
	"slices"
	"strings"
	"text/tabwriter"
	"time"
)

// column is a system in the table.
type column struct {
	name, title, version string
}

// results are all rounds and what to know about them.
type results struct {
	host      host
	date      time.Time
	kernel    string // the guests'
	rows      []string
	systems   []column
	rounds    []map[string]run // by system
	missing   []string
	notes     []string
	loadAfter string
}

// note adds a remark, once.
func (r *results) note(format string, args ...any) {
	s := strings.ReplaceAll(fmt.Sprintf(format, args...), "\n", "; ")
	if !slices.Contains(r.notes, s) {
		r.notes = append(r.notes, s)
	}
}

func (r *results) hostAfter() { r.loadAfter = loadAverage() }

// times returns what the system showed for a row, round by round.
func (r *results) times(system, row string) (v []float64) {
	for _, round := range r.rounds {
		if t, ok := round[system][row]; ok {
			v = append(v, t)
		}
	}
	return v
}

// ratios returns the row's time over that of the base, round by round.
func (r *results) ratios(system, base, row string) (v []float64) {
	for _, round := range r.rounds {
		t, ok1 := round[system][row]
		b, ok2 := round[base][row]
		if ok1 && ok2 && b > 0 {
			v = append(v, t/b)
		}
	}
	return v
}

// median returns the middle of v, or NaN if there is nothing.
func median(v []float64) float64 {
	n := len(v)
	if n == 0 {
		return math.NaN()
	}
	v = slices.Sorted(slices.Values(v))
	return (v[(n-1)/2] + v[n/2]) / 2
}

// duration prints nanoseconds with three digits.
func duration(ns float64) string {
	for _, u := range []struct {
		name string
		ns   float64
	}{{"s", 1e9}, {"ms", 1e6}, {"µs", 1e3}, {"ns", 1}} {
		if ns >= u.ns*0.9995 || u.ns == 1 {
			return digits(ns/u.ns) + " " + u.name
		}
	}
	panic("unreachable")
}

// digits prints v with three significant digits, or all before the point.
func digits(v float64) string {
	switch {
	case math.IsNaN(v):
		return "-"
	case v < 9.995:
		return fmt.Sprintf("%.2f", v)
	case v < 99.95:
		return fmt.Sprintf("%.1f", v)
	default:
		return fmt.Sprintf("%.0f", v)
	}
}

// cell returns a system's median time, and its median ratio unless it is what
// others are compared with.
func (r *results) cell(system string, row row) (time, ratio string) {
	t := r.times(system, row.name)
	if len(t) == 0 {
		return "-", ""
	}
	time = duration(median(t))
	if system != row.base && system != "native" {
		if q := r.ratios(system, row.base, row.name); len(q) > 0 {
			ratio = digits(median(q))
		}
	}
	return time, ratio
}

// vs returns the median ratio of ring3's time to TCG's.
func (r *results) vs(row row) string { return digits(median(r.ratios("ring3", "tcg", row.name))) }

// text is the aligned table for a terminal.
func (r *results) text() string {
	var b strings.Builder
	w := tabwriter.NewWriter(&b, 0, 0, 2, ' ', tabwriter.AlignRight)
	head := ""
	for _, s := range r.systems {
		head += "\t" + s.title + "\tratio"
	}
	fmt.Fprintf(w, "%s\tring3/TCG\t\n", head)
	for _, name := range r.rows {
		row := rowByName(name)
		fmt.Fprint(w, name)
		for _, s := range r.systems {
			t, q := r.cell(s.name, row)
			fmt.Fprintf(w, "\t%s\t%s", t, q)
		}
		fmt.Fprintf(w, "\t%s\t\n", r.vs(row))
	}
	w.Flush()
	fmt.Fprintf(&b, "\nmedians of %d rounds; ratios to native, of the boot rows to QEMU TCG\n", len(r.rounds))
	for _, n := range append(slices.Clone(r.missing), r.notes...) {
		fmt.Fprintln(&b, "note:", n)
	}
	return b.String()
}

// markdown is the table for the repository.
func (r *results) markdown() string {
	var b strings.Builder
	fmt.Fprintf(&b, "# Benchmark\n\nMade by `make bench` on %s UTC; [README.md](README.md) says what the rows are.\n\n",
		r.date.Format("2006-01-02 15:04"))
	fmt.Fprintf(&b, "Medians of %d interleaved rounds. In parentheses the median ratio to native within a round; of the two boot\n"+
		"rows, which a native program has no counterpart for, to QEMU TCG. The last column is ring3's time over QEMU TCG's.\n\n", len(r.rounds))
	line, rule := "| |", "|---|"
	for _, s := range r.systems {
		line += " " + s.title + " |"
		rule += "---|"
	}
	fmt.Fprintf(&b, "%s ring3 / TCG |\n%s---|\n", line, rule)
	for _, name := range r.rows {
		row := rowByName(name)
		fmt.Fprintf(&b, "| %s |", row.title)
		for _, s := range r.systems {
			t, q := r.cell(s.name, row)
			if q != "" {
				t += " (" + q + ")"
			}
			fmt.Fprintf(&b, " %s |", t)
		}
		fmt.Fprintf(&b, " %s |\n", r.vs(row))
	}
	fmt.Fprintf(&b, "\n![time relative to native](results.svg)\n\n## Machine\n\n| | |\n|---|---|\n")
	fmt.Fprintf(&b, "| processor | %s |\n| memory | %.0f GiB |\n| kernel | %s |\n| run by | %s |\n| load averages | %s before, %s after |\n",
		r.host.cpu, float64(r.host.memory)/(1<<30), r.host.kernel, r.host.user, r.host.load, r.loadAfter)
	fmt.Fprintf(&b, "| guests | 1 CPU, %s (compile: %s), %s (User-mode Linux: its own kernel; gVisor: none) |\n", memory, largeMemory, r.kernel)
	for _, s := range r.systems {
		if s.version != "" {
			fmt.Fprintf(&b, "| %s | %s |\n", s.title, s.version)
		}
	}
	if len(r.missing)+len(r.notes) > 0 {
		b.WriteString("\n## Notes\n\n")
		for _, n := range append(slices.Clone(r.missing), r.notes...) {
			fmt.Fprintf(&b, "- %s\n", n)
		}
	}
	return b.String()
}
