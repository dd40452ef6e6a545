package main

import (
	"errors"
	"io"
	"net"
	"os"
	"os/signal"
	"syscall"

	"github.com/spf13/cobra"

	"ring3/internal/console"
	"ring3/internal/control"
	"ring3/internal/vmdir"
)

func newConsoleCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "console NAME",
		Short: "use the console of a virtual machine",
		Long: `console connects this terminal to the serial console of a machine. Ctrl-A d leaves
it, and the machine goes on; Ctrl-A x stops the machine; Ctrl-A h lists the keys.
Several can be connected at the same time. Without a terminal, standard input is
passed on as it comes, and output is shown until the machine ends.`,
		Args: names(1, 1),
		RunE: func(_ *cobra.Command, args []string) error {
			m, err := findRunning(args[0])
			if err != nil {
				return err
			}
			return attach(m)
		},
	}
}

// errDetached is the end of an attachment that the user wanted.
var errDetached = errors.New("detached")

// attach joins this terminal to the console of a machine.
func attach(m *vmdir.Machine) error {
	conn, err := control.Ask(m.File(vmdir.ControlSocket), control.Request{Op: control.Attach})
	if err != nil {
		return withStatus(statusHost, "machine %s does not answer: %w", m.Name, err)
	}
	defer conn.Close()
	if !console.IsTerminal(os.Stdin) {
		go io.Copy(conn, os.Stdin)
		_, err := io.Copy(os.Stdout, conn)
		return err
	}
	stderrf("console of %s; Ctrl-A d leaves it, Ctrl-A h lists the keys", m.Name)
	term, err := console.OpenTerminal(os.Stdin)
	if err != nil {
		return withStatus(statusHost, "terminal: %w", err)
	}
	defer term.Close()
	resize := func() {
		cols, rows, err := term.Size()
		if err != nil {
			return
		}
		if c, err := control.Ask(m.File(vmdir.ControlSocket), control.Request{Op: control.Resize, Rows: rows, Cols: cols}); err == nil {
			c.Close()
		}
	}
	resize()
	defer onTerminalSignals(term, resize)()
	end := make(chan error, 2)
	go func() { end <- typeToConsole(m, conn) }()
	go func() {
		_, err := io.Copy(os.Stdout, conn)
		end <- err
	}()
	err = <-end
	term.Close()
	os.Stderr.WriteString("\n")
	if errors.Is(err, errDetached) {
		return nil
	}
	if err == nil {
		stderrf("the console of %s has ended", m.Name)
	}
	return err
}

// typeToConsole passes on what is typed, and obeys the escape key.
func typeToConsole(m *vmdir.Machine, conn net.Conn) error {
	escape := console.Escape{Attached: true}
	buf := make([]byte, 4096)
	for {
		n, err := os.Stdin.Read(buf)
		for rest := buf[:n]; len(rest) > 0; {
			var keys []byte
			var action console.Action
			keys, action, rest = escape.Next(rest)
			if _, err := conn.Write(keys); err != nil {
				return nil // the machine has ended
			}
			switch action {
			case console.Detach:
				return errDetached
			case console.Help:
				os.Stderr.WriteString(console.AttachedHelp)
			case console.Stop:
				return errors.Join(killMachine(m), errDetached)
			}
		}
		if err != nil {
			return errDetached
		}
	}
}

// onTerminalSignals keeps a raw terminal in order: its size, and its state after
// the process was stopped. A signal to end leaves the terminal as it was.
func onTerminalSignals(term *console.Terminal, resize func()) (stop func()) {
	c := make(chan os.Signal, 16)
	signal.Notify(c, append([]os.Signal{syscall.SIGWINCH, syscall.SIGCONT}, endSignals...)...)
	done := make(chan struct{})
	go func() {
		for {
			select {
			case sig := <-c:
				switch sig {
				case syscall.SIGWINCH:
					resize()
				case syscall.SIGCONT:
					term.Resume()
					resize()
				default:
					term.Close()
					os.Exit(statusSignal + int(sig.(syscall.Signal)))
				}
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
