package main

import (
	"context"
	"fmt"
	"os"
	"runtime/debug"
	"strings"

	"github.com/spf13/cobra"
)

// Main runs the command line args and returns the exit status.
func Main(ctx context.Context, args []string) int {
	// A machine's books live as long as it does and fill slowly: garbage as large
	// again, Go's default, would double the memory of each for nothing.
	debug.SetGCPercent(50)
	root := newRoot()
	root.SetArgs(args)
	err := root.ExecuteContext(ctx)
	return report(os.Stderr, err)
}

func newRoot() *cobra.Command {
	root := &cobra.Command{
		Use:   "ring3",
		Short: "run virtual machines without hardware virtualization",
		Long: `ring3 runs x86-64 virtual machines with unmodified Linux kernels. It needs no
VT-x or SVM, no /dev/kvm, no kernel module and no root.`,
		Example: `  ring3 run                     a shell in a virtual machine
  ring3 run -- uname -a         run one command there
  ring3 run -d --name web       leave one in the background
  ring3 exec web -- uptime      run a command there
  ring3 stop web                switch it off
  ring3 check                   can this host run virtual machines?`,
		SilenceErrors: true, // report prints them
		SilenceUsage:  true,
		Args: func(_ *cobra.Command, args []string) error {
			if len(args) > 0 {
				return usageError("unknown command %q (ring3 --help lists them)", args[0])
			}
			return nil
		},
		RunE: func(c *cobra.Command, _ []string) error { return c.Help() },
	}
	root.CompletionOptions.HiddenDefaultCmd = true
	root.SetFlagErrorFunc(func(c *cobra.Command, err error) error {
		return usageError("%s (%s --help lists the flags)", flagMessage(err), c.CommandPath())
	})
	root.AddCommand(newRunCommand(), newKernelCommand(), newCheckCommand(), newVersionCommand())
	root.AddCommand(lifeCommands()...)
	return root
}

// flagMessage shortens what pflag says about a bad value.
func flagMessage(err error) string {
	m := err.Error()
	if rest, found := strings.CutPrefix(m, "invalid argument "); found {
		if _, value, found := strings.Cut(rest, " flag: "); found {
			if _, flag, found := strings.Cut(rest, "for \""); found {
				flag, _, _ = strings.Cut(flag, "\"")
				return flag + ": " + strings.Replace(value, "strconv.ParseInt: parsing ", "", 1)
			}
		}
	}
	return m
}

// noArguments rejects arguments, in one line as everything else.
func noArguments(c *cobra.Command, args []string) error {
	if len(args) > 0 {
		return usageError("unexpected argument %q (%s --help)", args[0], c.CommandPath())
	}
	return nil
}

// stderrf prints one line of ring3's own on standard error.
func stderrf(format string, args ...any) {
	fmt.Fprintf(os.Stderr, "ring3: "+format+"\n", args...)
}
