package main

import "slices"

// A row is one thing that is measured. Its name is also guest/micro.c's or
// guest/workloads.sh's.
type row struct {
	name  string
	title string
	base  string // the system that ratios refer to
}

// Rows that are not the guest program's.
const (
	rowBoot  = "boot"  // host's clock: process start to the first line
	rowClock = "clock" // guest kernel's clock at the first line
)

var rows = []row{
	{rowBoot, "boot: process start to the first program's first line", "tcg"},
	{rowClock, "boot: kernel's own clock at that line (no firmware, no unpacking)", "tcg"},
	{"loop", "shell loop, 200,000 rounds", "native"},
	{"spawn", "200 fork+exec by a shell", "native"},
	{"md5", "md5 of 64 MiB through a pipe", "native"},
	{"tiny", "400,000 tiny system calls", "native"},
	{"user", "user loop, 1,000 rounds", "native"},
	{"null", "null system call (getppid)", "native"},
	{"fault", "page fault, fresh anonymous page", "native"},
	{"prot", "protection fault to a signal handler and back", "native"},
	{"signal", "signal to itself, handler and back", "native"},
	{"switch", "switch to another process over a pipe", "native"},
	{"fork", "fork, exit, wait", "native"},
	{"exec", "fork, exec of a static program, wait", "native"},
	{"mmap", "mmap and munmap of 64 KiB, untouched", "native"},
	{"kallsyms", "read of /proc/kallsyms, 1 KiB", "native"},
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
