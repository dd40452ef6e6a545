package main

import "slices"

// A row is one thing that is measured. Its name is also guest/micro.c's or
// guest/workloads.sh's.
type row struct {
	name  string
	title string
	base  string // the system that ratios refer to
	slow  bool   // takes minutes: measured once, behind the rounds, in a larger machine
}

// rowCompile needs a compiler in the guest.
const rowCompile = "compile"

// Rows that are not the guest program's.
const (
	rowBoot  = "boot"  // host's clock: process start to the first line
	rowClock = "clock" // guest kernel's clock at the first line
)

var rows = []row{
	{name: rowBoot, title: "boot: process start to the first program's first line", base: "tcg"},
	{name: rowClock, title: "boot: kernel's own clock at that line (no firmware, no unpacking)", base: "tcg"},
	{name: "loop", title: "shell loop, 200,000 rounds", base: "native"},
	{name: "spawn", title: "200 fork+exec by a shell", base: "native"},
	{name: "md5", title: "md5 of 64 MiB through a pipe", base: "native"},
	{name: "tiny", title: "400,000 tiny system calls", base: "native"},
	{name: "user", title: "user loop, 1,000 rounds", base: "native"},
	{name: "null", title: "null system call (getppid)", base: "native"},
	{name: "fault", title: "page fault, fresh anonymous page", base: "native"},
	{name: "prot", title: "protection fault to a signal handler and back", base: "native"},
	{name: "signal", title: "signal to itself, handler and back", base: "native"},
	{name: "switch", title: "switch to another process over a pipe", base: "native"},
	{name: "fork", title: "fork, exit, wait", base: "native"},
	{name: "exec", title: "fork, exec of a static program, wait", base: "native"},
	{name: "mmap", title: "mmap and munmap of 64 KiB, untouched", base: "native"},
	{name: "kallsyms", title: "read of /proc/kallsyms, 1 KiB", base: "native"},
	{name: rowCompile, title: "C compiler: gcc -O1 -c of sqlite3.c, preprocessed", base: "native", slow: true},
}

// split returns the rows of the rounds and those that are measured once.
func split(names []string) (quick, slow []string) {
	for _, n := range names {
		if rowByName(n).slow {
			slow = append(slow, n)
		} else {
			quick = append(quick, n)
		}
	}
	return quick, slow
}

func rowNames() (names []string) {
	for _, r := range rows {
		names = append(names, r.name)
	}
	return names
}

func rowByName(name string) row {
	return rows[slices.IndexFunc(rows, func(r row) bool { return r.name == name })]
}

// guestRows returns the rows that the guest program is to measure.
func guestRows(names []string) []string {
	return slices.DeleteFunc(slices.Clone(names), func(n string) bool { return n == rowBoot || n == rowClock })
}
