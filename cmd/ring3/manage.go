package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"syscall"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"ring3/internal/cli"
	"ring3/internal/console"
	"ring3/internal/control"
	"ring3/internal/vmdir"
)

// lifeCommands are those for machines that are there already.
func lifeCommands() []*cobra.Command {
	return []*cobra.Command{newPsCommand(), newExecCommand(), newLogsCommand(), newConsoleCommand(),
		newStopCommand(), newKillCommand(), newRmCommand()}
}

// names demands at least min and, unless max is 0, at most max names.
func names(min, max int) cobra.PositionalArgs {
	return func(c *cobra.Command, args []string) error {
		switch {
		case len(args) < min:
			return usageError("which machine? (ring3 ps lists them; %s --help)", c.CommandPath())
		case max > 0 && len(args) > max:
			return usageError("unexpected argument %q (%s --help)", args[max], c.CommandPath())
		}
		return nil
	}
}

// find returns a machine that the user named.
func find(name string) (vmdir.Base, *vmdir.Machine, error) {
	base, err := vmdir.Default()
	if err != nil {
		return base, nil, withStatus(statusHost, "%w", err)
	}
	m, err := base.Find(name)
	return base, m, asMachine(err)
}

// findRunning returns a machine that must run.
func findRunning(name string) (*vmdir.Machine, error) {
	_, m, err := find(name)
	if err != nil {
		return nil, err
	}
	switch m.Phase {
	case vmdir.Starting:
		return nil, usageError("machine %s is starting: try again in a moment", name)
	case vmdir.Running:
		return m, nil
	}
	return nil, usageError("machine %s does not run: %s", name, phase(m))
}

// asMachine makes an error about a machine one of input.
func asMachine(err error) error {
	var machine *vmdir.Error
	if errors.As(err, &machine) {
		return &statusError{statusUsage, err}
	}
	return err
}

// each does something with each of several machines. All are tried; the last
// error is returned, those before it are printed.
func each(names []string, do func(name string) error) error {
	var last error
	for _, n := range names {
		if err := do(n); err != nil {
			if last != nil {
				report(os.Stderr, last)
			}
			last = err
		}
	}
	return last
}

func newPsCommand() *cobra.Command {
	var all, asJSON bool
	c := &cobra.Command{
		Use:   "ps",
		Short: "list virtual machines",
		Long: `ps lists the virtual machines of this user that run; with --all also detached
ones that have ended, with their exit status, and what was left of those whose
monitor was killed. ring3 rm removes these.`,
		Example: `  ring3 ps
  ring3 ps --all --json`,
		Args: noArguments,
		RunE: func(*cobra.Command, []string) error {
			base, err := vmdir.Default()
			if err != nil {
				return withStatus(statusHost, "%w", err)
			}
			list, err := base.List()
			if err != nil {
				return withStatus(statusHost, "%w", err)
			}
			var shown []*vmdir.Machine
			for _, m := range list {
				if all || m.Lives() {
					shown = append(shown, m)
				}
			}
			if asJSON {
				return listJSON(os.Stdout, shown)
			}
			return listTable(os.Stdout, shown)
		},
	}
	c.Flags().BoolVarP(&all, "all", "a", false, "also those that do not run any more")
	c.Flags().BoolVar(&asJSON, "json", false, "print them as a JSON array")
	return c
}

// phase says in words how a machine is.
func phase(m *vmdir.Machine) string {
	switch m.Phase {
	case vmdir.Ended:
		return fmt.Sprintf("ended with status %d", *m.Status)
	case vmdir.Dead:
		return "its monitor was killed"
	}
	return m.Phase
}

func listTable(out io.Writer, list []*vmdir.Machine) error {
	w := tabwriter.NewWriter(out, 0, 0, 3, ' ', 0)
	fmt.Fprintln(w, "NAME\tSTATE\tAGE\tMEMORY\tKERNEL\tCOMMAND")
	for _, m := range list {
		age := "-"
		if !m.Created.IsZero() {
			age = time.Since(m.Created).Round(time.Second).String()
		}
		fmt.Fprintf(w, "%s\t%s\t%s\t%v\t%s\t%s\n", m.Name, phase(m), age, cli.Size(m.Memory), orDash(m.Kernel), orDash(commandLine(m.Command)))
	}
	return w.Flush()
}

// commandLine is a command in one line of bounded length.
func commandLine(args []string) string {
	const most = 40
	s := []rune(strings.Join(strings.Fields(strings.Join(args, " ")), " "))
	if len(s) > most {
		s = append(s[:most-1], '…')
	}
	return string(s)
}

func listJSON(out io.Writer, list []*vmdir.Machine) error {
	type entry struct {
		vmdir.State
		Phase     string `json:"phase"` // starting, running, ended or dead
		Directory string `json:"directory"`
	}
	all := []entry{}
	for _, m := range list {
		all = append(all, entry{m.State, m.Phase, m.File("")})
	}
	e := json.NewEncoder(out)
	e.SetIndent("", "\t")
	return e.Encode(all)
}

func newStopCommand() *cobra.Command {
	timeout := cli.Duration(10 * time.Second)
	c := &cobra.Command{
		Use:   "stop NAME...",
		Short: "have virtual machines shut down",
		Long: `stop presses the power button of a machine, or asks its COMMAND to end, and
waits until the machine has ended. If that takes longer than --timeout it is
killed. The built-in userland is told over its control port; another must mind
the ACPI power button, as systemd does.`,
		Example: `  ring3 stop web
  ring3 stop --timeout 60s db1 db2`,
		Args: names(1, 0),
		RunE: func(_ *cobra.Command, args []string) error {
			return each(args, func(name string) error {
				m, err := findRunning(name)
				if err != nil {
					return err
				}
				return endMachine(m, control.Request{Op: control.Stop, Timeout: time.Duration(timeout)})
			})
		},
	}
	c.Flags().VarP(&timeout, "timeout", "t", "kill the machine after `TIME`")
	return c
}

func newKillCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "kill NAME...",
		Short: "end virtual machines at once",
		Long: `kill ends a machine as if its plug was pulled. What the guest has not yet
written to its disks is lost. A monitor that does not answer is killed.`,
		Args: names(1, 0),
		RunE: func(_ *cobra.Command, args []string) error {
			return each(args, func(name string) error {
				_, m, err := find(name)
				if err != nil {
					return err
				}
				if !m.Lives() {
					return usageError("machine %s does not run: %s", name, phase(m))
				}
				return killMachine(m)
			})
		},
	}
}

func newRmCommand() *cobra.Command {
	var force bool
	c := &cobra.Command{
		Use:   "rm NAME...",
		Short: "remove what ended virtual machines left",
		Long: `rm removes the directory of a machine that has ended, with its logs and its exit
status. The name can be used again then.`,
		Example: `  ring3 rm web
  ring3 rm --force web          kill it first if it runs`,
		Args: names(1, 0),
		RunE: func(_ *cobra.Command, args []string) error {
			return each(args, func(name string) error {
				base, m, err := find(name)
				if err != nil {
					return err
				}
				if force && m.Lives() {
					if err := killMachine(m); err != nil {
						return err
					}
					if _, err := base.Find(name); err != nil {
						return nil // one in the foreground takes its directory with it
					}
				}
				return asMachine(base.Remove(name))
			})
		},
	}
	c.Flags().BoolVarP(&force, "force", "f", false, "kill the machine first if it runs")
	return c
}

// endMachine makes a request that ends a machine, and waits until it has ended.
func endMachine(m *vmdir.Machine, r control.Request) error {
	conn, err := control.Ask(m.File(vmdir.ControlSocket), r)
	if err != nil {
		return withStatus(statusHost, "machine %s does not answer (ring3 kill %s): %w", m.Name, m.Name, err)
	}
	control.Wait(conn)
	conn.Close()
	return m.Wait()
}

// killMachine ends a machine, or its monitor if that does not answer.
func killMachine(m *vmdir.Machine) error {
	if m.Phase == vmdir.Running && endMachine(m, control.Request{Op: control.Kill}) == nil {
		return nil
	}
	// The number is the monitor's while the monitor has the lock. A descriptor
	// for the process keeps it from being another's in between.
	fd, err := unix.PidfdOpen(m.PID, 0)
	if err == nil {
		defer unix.Close(fd)
		if again, ferr := m.Again(); ferr != nil || !again.Lives() || again.PID != m.PID {
			return nil
		}
		err = unix.PidfdSendSignal(fd, syscall.SIGKILL, nil, 0)
	}
	if err != nil && !errors.Is(err, syscall.ESRCH) {
		return withStatus(statusHost, "machine %s: cannot kill its monitor, process %d: %w", m.Name, m.PID, err)
	}
	return m.Wait()
}

func newLogsCommand() *cobra.Command {
	var follow, consoleLog bool
	c := &cobra.Command{
		Use:   "logs NAME",
		Short: "print what a virtual machine has said",
		Long: `logs prints the output of a detached machine's COMMAND, standard output and error
together, or else what the guest has written to its console. Of each, 1 to 2 MiB
are kept: the last. On a terminal they are shown without control sequences. Machines in the foreground without --name keep no log.`,
		Example: `  ring3 logs web
  ring3 logs -f web             until the machine has ended, or Ctrl-C
  ring3 logs --console job      the kernel's messages of a machine with a COMMAND`,
		Args: names(1, 1),
		RunE: func(_ *cobra.Command, args []string) error {
			_, m, err := find(args[0])
			if err != nil {
				return err
			}
			path := m.File(vmdir.OutputLog)
			if _, err := os.Stat(path); err != nil || consoleLog {
				path = m.File(vmdir.ConsoleLog)
			}
			var more func() bool
			if follow {
				more = func() bool { m, err := m.Again(); return err == nil && m.Lives() }
			}
			var out io.Writer = os.Stdout
			if console.IsTerminal(os.Stdout) {
				// It may ask the terminal to do or to answer something.
				plain := &console.Plain{W: os.Stdout}
				defer plain.Close()
				out = plain
			}
			err = vmdir.CopyLog(out, path, more)
			if errors.Is(err, os.ErrNotExist) {
				return usageError("machine %s keeps no log: it runs in the foreground and has no --name", m.Name)
			}
			return err
		},
	}
	c.Flags().BoolVarP(&follow, "follow", "f", false, "go on with what comes, until the machine has ended")
	c.Flags().BoolVar(&consoleLog, "console", false, "the console, even if there is a COMMAND")
	return c
}
