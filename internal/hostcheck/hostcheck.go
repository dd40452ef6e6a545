// Package hostcheck finds out whether a host can run ring3's virtual machines,
// by trying what they need, and tells what to change where it cannot.
//
// A check that passes says what it saw; one that fails says the mend. Checks
// that only inform (AVX-512, the cost of an exception) never fail.
package hostcheck

import (
	"fmt"
	"io"
	"text/tabwriter"
)

// Level is the outcome of a check.
type Level int

const (
	OK   Level = iota
	Info       // of interest, and no requirement
	Warn       // VMs run, with a limitation
	Fail       // VMs cannot run
)

// String returns the word for the first column.
func (l Level) String() string {
	return [...]string{"ok", "info", "warn", "FAIL"}[l]
}

// Result is the line for one check.
type Result struct {
	Level Level
	Name  string
	Saw   string // what was found
	Mend  string // what to do about it, for Warn and Fail
}

// check looks at one thing. It must leave the process as it was: whatever
// cannot be undone is tried in a child.
type check struct {
	name string
	run  func() Result
}

func ok(format string, args ...any) Result {
	return Result{Level: OK, Saw: fmt.Sprintf(format, args...)}
}

func info(format string, args ...any) Result {
	return Result{Level: Info, Saw: fmt.Sprintf(format, args...)}
}

func warn(mend, format string, args ...any) Result {
	return Result{Level: Warn, Mend: mend, Saw: fmt.Sprintf(format, args...)}
}

func fail(mend, format string, args ...any) Result {
	return Result{Level: Fail, Mend: mend, Saw: fmt.Sprintf(format, args...)}
}

// Run makes every check, in the order of the report.
func Run() []Result {
	var all []Result
	for _, group := range [][]check{cpuChecks, kernelChecks, limitChecks, guestChecks} {
		for _, c := range group {
			r := c.run()
			r.Name = c.name
			all = append(all, r)
		}
	}
	return all
}

// Usable reports whether VMs can run.
func Usable(rs []Result) bool {
	for _, r := range rs {
		if r.Level == Fail {
			return false
		}
	}
	return true
}

// Print writes one line per result.
func Print(w io.Writer, rs []Result) error {
	t := tabwriter.NewWriter(w, 0, 8, 2, ' ', 0)
	for _, r := range rs {
		saw := r.Saw
		if r.Mend != "" {
			saw += "; mend: " + r.Mend
		}
		fmt.Fprintf(t, "%s\t%s\t%s\n", r.Level, r.Name, saw)
	}
	return t.Flush()
}
