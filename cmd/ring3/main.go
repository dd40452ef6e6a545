// Command ring3 runs virtual machines with unmodified Linux kernels on hosts
// that offer no hardware virtualization, and needs no privileges for it.
package main

import (
	"fmt"
	"os"

	"ring3/internal/console"
	"ring3/internal/hostcheck"
)

func main() {
	// ring3 starts itself for two small tasks that need a process of their own.
	if len(os.Args) == 2 {
		switch os.Args[1] {
		case console.GuardCommand:
			part(console.Guard)
		case hostcheck.ProbeCommand:
			part(hostcheck.Probe)
		}
	}
	os.Exit(Main(os.Args[1:]))
}

// part runs one of those tasks and exits.
func part(task func() error) {
	if err := task(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(statusInternal)
	}
	os.Exit(0)
}
