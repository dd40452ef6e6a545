// Package stats collects what a virtual CPU's exits cost and prints it as a
// table. Everything is counted on the vCPU thread; a report may be asked for
// from another goroutine and is taken at the next exit.
package stats

import (
	"fmt"
	"io"
	"slices"
	"sort"
	"text/tabwriter"
	"time"
)

// Row is one kind of exit.
type Row struct {
	Kind  string // group: "exception", "syscall", "privileged", "patched", "map", "port", "mmio", "timer", ...
	Name  string // what exactly: a vector, a mnemonic, a device
	Count uint64
	Time  time.Duration // zero where it is not timed
}

// Table is a set of rows and the wall time they are a share of.
type Table struct {
	Wall time.Duration
	Rows []Row
}

// Add appends a row, or adds to the one with that name, unless nothing was
// counted.
func (t *Table) Add(kind, name string, count uint64, d time.Duration) {
	if count == 0 {
		return
	}
	i := slices.IndexFunc(t.Rows, func(r Row) bool { return r.Kind == kind && r.Name == name })
	if i >= 0 {
		t.Rows[i].Count += count
		t.Rows[i].Time += d
	} else {
		t.Rows = append(t.Rows, Row{kind, name, count, d})
	}
}

// Write prints the table, the dearest rows first within each kind.
func (t *Table) Write(w io.Writer) error {
	rows := append([]Row(nil), t.Rows...)
	cost := map[string]time.Duration{}
	for _, r := range rows {
		cost[r.Kind] += r.Time
	}
	sort.SliceStable(rows, func(i, j int) bool {
		a, b := rows[i], rows[j]
		switch {
		case a.Kind != b.Kind && cost[a.Kind] != cost[b.Kind]:
			return cost[a.Kind] > cost[b.Kind]
		case a.Kind != b.Kind:
			return a.Kind < b.Kind
		case a.Time != b.Time:
			return a.Time > b.Time
		}
		return a.Count > b.Count
	})
	tw := tabwriter.NewWriter(w, 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintf(tw, "kind\tname\tcount\ttotal\tmean\tshare\t\n")
	for _, r := range rows {
		total, mean, share := "-", "-", "-"
		if r.Time > 0 {
			total = r.Time.Round(time.Microsecond).String()
			mean = (r.Time / time.Duration(r.Count)).String()
			if t.Wall > 0 {
				share = fmt.Sprintf("%.1f %%", 100*float64(r.Time)/float64(t.Wall))
			}
		}
		fmt.Fprintf(tw, "%s\t%s\t%d\t%s\t%s\t%s\t\n", r.Kind, r.Name, r.Count, total, mean, share)
	}
	fmt.Fprintf(tw, "run\twall time\t1\t%s\t\t100 %%\t\n", t.Wall.Round(time.Millisecond))
	return tw.Flush()
}
