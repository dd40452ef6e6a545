package main

import (
	"github.com/spf13/cobra"

	"ring3/internal/hostcheck"
)

func newCheckCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "check",
		Short: "find out whether this host can run virtual machines",
		Long: `check tries what virtual machines need of the host and prints a line for each:
ok, info (not needed), warn (works, with a limitation) or FAIL, with the mend.
It exits with 0 if virtual machines can run here, else with 123.`,
		Args: noArguments,
		RunE: func(c *cobra.Command, _ []string) error {
			results := hostcheck.Run()
			if err := hostcheck.Print(c.OutOrStdout(), results); err != nil {
				return err
			}
			if !hostcheck.Usable(results) {
				return withStatus(statusHost, "this host cannot run virtual machines, see FAIL above")
			}
			return nil
		},
	}
}
