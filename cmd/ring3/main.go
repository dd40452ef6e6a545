// Command ring3 runs virtual machines with unmodified Linux kernels on hosts
// that offer no hardware virtualization, and needs no privileges for it.
package main

import (
	"context"
	"fmt"
	"os"

	"ring3/internal/agent"
	"ring3/internal/console"
	"ring3/internal/hostcheck"
)

func main() {
	ctx := context.Background()
	// ring3 starts itself for what needs a process of its own.
	if len(os.Args) > 2 && os.Args[1] == detachedCommand {
		os.Args = append(os.Args[:1], os.Args[2:]...)
		ctx = asDetached(ctx)
	}
	if len(os.Args) == 2 {
		switch os.Args[1] {
		case console.GuardCommand:
			part(console.Guard)
		case hostcheck.ProbeCommand:
			part(hostcheck.Probe)
		case agent.GuestCommand:
			part(agent.Guest)
		}
	}
	os.Exit(Main(ctx, os.Args[1:]))
}

// part runs one of those tasks and exits.
func part(task func() error) {
	if err := task(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(statusInternal)
	}
	os.Exit(0)
}
