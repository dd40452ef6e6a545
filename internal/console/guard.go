package console

import (
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"syscall"

	"golang.org/x/term"
)

// GuardCommand is the argument with which the program starts itself as the
// guard of its terminal; main must then call Guard and exit.
const GuardCommand = "guard-terminal"

// guard is the process that restores a terminal when its owner dies without
// doing so. The kernel closes a dead process's descriptors, whatever killed it,
// so the end of a pipe is the signal; a byte in it says that all is well.
type guard struct {
	cmd  *exec.Cmd
	wake *os.File // write end
}

// startGuard starts the guard of tty and waits until it has noted the
// terminal's present state.
func startGuard(tty *os.File) (*guard, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	r, w, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	defer r.Close()
	cmd := exec.Command(self, GuardCommand)
	cmd.Stdin = tty
	cmd.ExtraFiles = []*os.File{r} // descriptor 3
	// A process group of its own: what kills the whole foreground group
	// must not kill the guard.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	ready, err := cmd.StdoutPipe()
	if err == nil {
		err = cmd.Start()
	}
	if err != nil {
		w.Close()
		return nil, fmt.Errorf("guard of the terminal: %w", err)
	}
	g := &guard{cmd: cmd, wake: w}
	if _, err := io.ReadFull(ready, make([]byte, 1)); err != nil {
		g.release()
		return nil, fmt.Errorf("guard of the terminal: %w", err)
	}
	return g, nil
}

// release ends the guard; the terminal stays as it is.
func (g *guard) release() error {
	_, err := g.wake.Write([]byte{0})
	g.wake.Close()
	if werr := g.cmd.Wait(); err == nil {
		err = werr
	}
	return err
}

// Guard is the guard's side: terminal on descriptor 0, pipe on 3, a byte on
// descriptor 1 when ready. It returns when it is not needed any more.
func Guard() error {
	// A background process that sets the terminal gets SIGTTOU, and the
	// signals that end the owner's session may arrive here too.
	signal.Ignore(syscall.SIGTTOU, syscall.SIGHUP, syscall.SIGINT, syscall.SIGTERM, syscall.SIGQUIT)
	saved, err := term.GetState(0)
	if err != nil {
		return err
	}
	if _, err := os.Stdout.Write([]byte{0}); err != nil {
		return err
	}
	n, err := os.NewFile(3, "pipe").Read(make([]byte, 1))
	if n == 1 {
		return nil
	}
	if err != io.EOF {
		return err
	}
	return term.Restore(0, saved)
}
