package console

import (
	"errors"
	"fmt"
	"os"
	"sync"

	"golang.org/x/term"
)

// IsTerminal reports whether f is a terminal.
func IsTerminal(f *os.File) bool { return term.IsTerminal(int(f.Fd())) }

// Terminal is a terminal in raw mode: every key goes to the guest, every byte
// from the guest to the screen.
type Terminal struct {
	in    *os.File
	guard *guard // puts the terminal back if this process cannot

	mu    sync.Mutex
	saved *term.State // nil once restored
}

// OpenTerminal switches the terminal in to raw mode. Call Close, whatever
// happens; should the process die without it (SIGKILL, a panic in any
// goroutine), a small process of its own restores the terminal.
func OpenTerminal(in *os.File) (*Terminal, error) {
	g, err := startGuard(in)
	if err != nil {
		return nil, err
	}
	saved, err := term.MakeRaw(int(in.Fd()))
	if err != nil {
		return nil, errors.Join(fmt.Errorf("raw mode: %w", err), g.release())
	}
	return &Terminal{in: in, guard: g, saved: saved}, nil
}

// Resume enters raw mode again after the process was stopped and continued:
// the shell has used the terminal in between.
func (t *Terminal) Resume() error {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.saved == nil {
		return nil
	}
	_, err := term.MakeRaw(int(t.in.Fd()))
	return err
}

// Size returns the size of the terminal's window in characters.
func (t *Terminal) Size() (columns, rows int, err error) {
	return Size(t.in)
}

// Close restores the terminal as OpenTerminal found it. It may be called more
// than once, from any goroutine.
func (t *Terminal) Close() error {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.saved == nil {
		return nil
	}
	err := term.Restore(int(t.in.Fd()), t.saved)
	t.saved = nil
	return errors.Join(err, t.guard.release())
}

// Size returns the size of a terminal's window in characters.
func Size(f *os.File) (columns, rows int, err error) {
	return term.GetSize(int(f.Fd()))
}
