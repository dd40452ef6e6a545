package main

import (
	"context"
	"errors"
	"io"
	"net"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"ring3/internal/agent"
	"ring3/internal/console"
	"ring3/internal/vmdir"
)

// agentTimeout is how long a guest may take from its start until its agent
// answers.
const agentTimeout = 2 * time.Minute

// execOptions are the flags of ring3 exec.
type execOptions struct {
	tty bool
	env []string
	dir string
}

func newExecCommand() *cobra.Command {
	o := &execOptions{}
	c := &cobra.Command{
		Use:   "exec [flags] NAME -- COMMAND ARG...",
		Short: "run a command in a virtual machine",
		Long: `exec runs a command in a machine that runs, as root of the built-in userland.
Standard input, output and error are the command's, and ring3 exits with its
status: 128+N if signal N ended it, 127 if there is no such command, 126 if it
cannot be started, 122 if the machine ended before it did. SIGINT, SIGTERM, SIGHUP
and SIGQUIT go to the command; with the second one ring3 ends, and the command
with it.

The machine must have been started with --name or --detach: others have no agent,
which makes them start faster.`,
		Example: `  ring3 exec web -- uptime
  ring3 exec -t web -- sh
  tar c src | ring3 exec web -- tar x -C /tmp
  ring3 exec -e DEBUG=1 -w /tmp web -- ./test.sh`,
		Args: func(c *cobra.Command, args []string) error {
			switch dash := c.ArgsLenAtDash(); {
			case len(args) == 0 || dash == 0:
				return usageError("which machine? (ring3 exec NAME -- COMMAND; ring3 ps lists them)")
			case len(args) == 1:
				return usageError("no command (ring3 exec %s -- COMMAND)", args[0])
			}
			return nil
		},
		RunE: func(c *cobra.Command, args []string) error {
			// Behind NAME flags are not looked for, so that -- is an argument.
			name, command := args[0], args[1:]
			if command[0] == "--" {
				command = command[1:]
			}
			return o.run(c.Context(), name, command)
		},
	}
	f := c.Flags()
	f.SortFlags = false
	f.SetInterspersed(false)
	f.BoolVarP(&o.tty, "tty", "t", false, "give COMMAND a terminal, which is this one")
	f.StringArrayVarP(&o.env, "env", "e", nil, "set a variable, `NAME=VALUE`; may be repeated")
	f.StringVarP(&o.dir, "workdir", "w", "", "run COMMAND in directory `DIR` (default /root)")
	return c
}

func (o *execOptions) run(ctx context.Context, name string, command []string) error {
	if len(command) == 0 || command[0] == "" {
		return usageError("no command (ring3 exec %s -- COMMAND)", name)
	}
	for _, e := range o.env {
		if n, _, ok := strings.Cut(e, "="); !ok || n == "" {
			return usageError("--env: %q is not NAME=VALUE", e)
		}
	}
	if o.tty && !console.IsTerminal(os.Stdin) {
		return usageError("--tty: standard input is no terminal")
	}
	m, err := findRunning(name)
	if err != nil {
		return err
	}
	if m.NoAgent != "" {
		return usageError("machine %s has no agent to run commands: %s", name, m.NoAgent)
	}
	conn, err := dialAgent(ctx, m)
	if err != nil {
		return err
	}
	defer conn.Close()
	c := agent.Command{Args: command, Env: o.env, Dir: o.dir, TTY: o.tty}
	if o.tty {
		if t := os.Getenv("TERM"); t != "" {
			c.Env = append([]string{"TERM=" + t}, c.Env...)
		}
		if cols, rows, err := console.Size(os.Stdin); err == nil {
			c.Rows, c.Cols = uint16(rows), uint16(cols)
		}
	}
	s, err := agent.Start(conn, c)
	if err != nil {
		return withStatus(statusUsage, "%w", err)
	}
	return o.join(s)
}

// dialAgent connects to the agent of a machine, which may still be booting.
func dialAgent(ctx context.Context, m *vmdir.Machine) (net.Conn, error) {
	ctx, stop := untilSignal(ctx)
	defer stop()
	late := time.After(agentTimeout)
	for {
		conn, err := agent.Dial(m.Vsock)
		if err == nil {
			return conn, nil
		}
		if again, ferr := m.Again(); ferr != nil || !again.Lives() {
			return nil, withStatus(statusNoStatus, "machine %s ended before the command ran", m.Name)
		}
		if !errors.Is(err, agent.ErrNobody) {
			return nil, withStatus(statusHost, "machine %s: %w", m.Name, err)
		}
		select {
		case <-ctx.Done():
			return nil, signalled(ctx, ctx.Err())
		case <-late:
			return nil, withStatus(statusHost, "machine %s: no agent answers in the guest (ring3 logs --console %s shows how it boots)", m.Name, m.Name)
		case <-time.After(50 * time.Millisecond):
		}
	}
}

// join joins this process to the command, until that has ended.
func (o *execOptions) join(s *agent.Session) error {
	if o.tty {
		term, err := console.OpenTerminal(os.Stdin)
		if err != nil {
			return withStatus(statusHost, "terminal: %w", err)
		}
		defer term.Close()
		defer onTerminalSignals(term, func() {
			if cols, rows, err := term.Size(); err == nil {
				s.Resize(rows, cols)
			}
		})()
	} else {
		defer passSignals(s)()
	}
	return execVerdict(s.Run(io.Reader(os.Stdin), os.Stdout, os.Stderr))
}

// execVerdict is the end of ring3 exec.
func execVerdict(status int, err error) error {
	var failed *agent.FailedError
	switch {
	case errors.As(err, &failed):
		return withStatus(failed.Status, "%w", err)
	case err != nil:
		return withStatus(statusNoStatus, "%w", err)
	}
	return statusOrNil(status)
}

// passSignals sends signals on to the command; the second ends ring3.
func passSignals(s *agent.Session) (stop func()) {
	c := make(chan os.Signal, 16)
	signal.Notify(c, endSignals...)
	done := make(chan struct{})
	go func() {
		for asked := false; ; asked = true {
			select {
			case sig := <-c:
				if asked {
					os.Exit(statusSignal + int(sig.(syscall.Signal)))
				}
				s.Signal(sig.(syscall.Signal))
			case <-done:
				return
			}
		}
	}()
	return func() {
		signal.Stop(c)
		close(done)
	}
}
