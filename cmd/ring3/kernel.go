package main

import (
	"fmt"
	"strings"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"ring3/internal/kernelstore"
)

func newKernelCommand() *cobra.Command {
	c := &cobra.Command{
		Use:   "kernel",
		Short: "manage the store of guest kernels",
		Long: `kernel manages the guest kernels in $XDG_CACHE_HOME/ring3 (~/.cache/ring3).
ring3 run --kernel NAME boots one of them.`,
		Args: func(c *cobra.Command, args []string) error {
			if len(args) > 0 {
				return usageError("unknown command %q (ring3 kernel --help lists them)", args[0])
			}
			return nil
		},
		RunE: func(c *cobra.Command, _ []string) error { return c.Help() },
	}
	c.AddCommand(newKernelFetch(), newKernelList(), newKernelAdd())
	return c
}

func newKernelFetch() *cobra.Command {
	var missing bool
	c := &cobra.Command{
		Use:   "fetch [" + strings.Join(kernelstore.Flavours(), "|") + "]...",
		Short: "get the distribution's stock kernel, without root",
		Long: `fetch gets the current stock kernel of a flavour from the distribution, through
apt, which verifies it, and unpacks it into the store. It needs no root and
installs nothing on the host. Without an argument it gets the default, cloud,
and BusyBox for the built-in userland.`,
		Example: `  ring3 kernel fetch
  ring3 kernel fetch cloud generic`,
		RunE: func(c *cobra.Command, flavours []string) error {
			store, err := kernelstore.Open("")
			if err != nil {
				return err
			}
			ctx, stop := untilSignal(c.Context())
			defer stop()
			if len(flavours) == 0 {
				flavours = []string{kernelstore.Cloud}
			}
			for _, f := range flavours {
				if !isFlavour(f) {
					return usageError("unknown kernel flavour %q (one of: %s)", f, strings.Join(kernelstore.Flavours(), ", "))
				}
			}
			for _, f := range flavours {
				get := store.Fetch
				if missing {
					get = store.Ensure
				}
				k, err := get(ctx, f, progress())
				if err != nil {
					return signalled(ctx, err)
				}
				fmt.Fprintln(c.OutOrStdout(), k.Name)
			}
			_, err = store.FetchBusyBox(ctx, progress())
			return signalled(ctx, err)
		},
	}
	c.Flags().BoolVar(&missing, "missing", false, "only what the store has none of: no network if it has all")
	return c
}

func isFlavour(s string) bool {
	for _, f := range kernelstore.Flavours() {
		if f == s {
			return true
		}
	}
	return false
}

func newKernelList() *cobra.Command {
	return &cobra.Command{
		Use:   "list",
		Short: "list the kernels in the store",
		Long:  "list prints the kernels in the store, the latest first. * marks the default.",
		Args:  noArguments,
		RunE: func(c *cobra.Command, _ []string) error {
			store, err := kernelstore.Open("")
			if err != nil {
				return err
			}
			kernels, err := store.List()
			if err != nil {
				return err
			}
			if len(kernels) == 0 {
				stderrf("the store is empty (ring3 kernel fetch fills it)")
				return nil
			}
			def, _ := store.Default()
			w := tabwriter.NewWriter(c.OutOrStdout(), 0, 8, 2, ' ', 0)
			fmt.Fprintln(w, "\tNAME\tFLAVOUR\tRELEASE\tPACKAGE\tADDED")
			for _, k := range kernels {
				mark := ""
				if k.Name == def.Name {
					mark = "*"
				}
				fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\t%s\n", mark, k.Name, orDash(k.Flavour), orDash(k.Release),
					orDash(strings.TrimSpace(k.Package+" "+k.Version)), k.Added.Format("2006-01-02 15:04"))
			}
			return w.Flush()
		},
	}
}

func orDash(s string) string {
	if s == "" {
		return "-"
	}
	return s
}

func newKernelAdd() *cobra.Command {
	var name string
	c := &cobra.Command{
		Use:     "add FILE",
		Short:   "copy a kernel into the store",
		Long:    "add copies a bzImage or an ELF vmlinux into the store.",
		Example: "  ring3 kernel add /boot/vmlinuz-6.1.0-28-amd64\n  ring3 kernel add --name mine arch/x86/boot/bzImage",
		Args: func(c *cobra.Command, args []string) error {
			if len(args) != 1 {
				return usageError("kernel add takes one file, got %d (ring3 kernel add --help)", len(args))
			}
			return nil
		},
		RunE: func(c *cobra.Command, args []string) error {
			store, err := kernelstore.Open("")
			if err != nil {
				return err
			}
			ctx, stop := untilSignal(c.Context())
			defer stop()
			k, err := store.Add(ctx, args[0], name)
			if err != nil {
				return signalled(ctx, asInput(err))
			}
			fmt.Fprintln(c.OutOrStdout(), k.Name)
			return nil
		},
	}
	c.Flags().StringVar(&name, "name", "", "name in the store (default: the kernel's release)")
	return c
}
