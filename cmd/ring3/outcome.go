package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"syscall"
	"time"

	"ring3/internal/console"
	"ring3/internal/machine"
	"ring3/internal/vcpu"
)

// tailLines is how much of the console an abnormal end shows.
const tailLines = 30

// Causes for stopping a machine from outside, beside signalError.
var (
	errTimeout = errors.New("timeout")
	errStopKey = errors.New("stopped with the escape key")
)

// outcome is all that is known of a run when it has ended.
type outcome struct {
	result    machine.Result
	err       error // of the machine
	cause     error // why ring3 stopped it, nil if it did not
	timeout   time.Duration
	panicked  bool
	message   string // of the panic
	isJob     bool
	jobStatus int // of the command, -1 if it did not end
}

// verdict turns an outcome into an exit status; abnormal says that the end of
// the console helps to understand it.
func (o *outcome) verdict() (err error, abnormal bool) {
	var (
		sig   *signalError
		other *statusError
	)
	switch {
	case o.err != nil && !errors.Is(o.err, context.Canceled):
		return withStatus(statusInternal, "internal error: %w", o.err), true
	case o.isJob && o.jobStatus >= 0:
		// Whatever came after it, the command has ended.
		return statusOrNil(o.jobStatus), false
	case errors.As(o.cause, &sig):
		return exit(statusSignal + int(sig.sig)), false
	case errors.As(o.cause, &other):
		return other, false
	case errors.Is(o.cause, errStopKey):
		return nil, false
	case o.panicked:
		return withStatus(statusPanic, "the guest kernel panicked: %s", o.message), true
	case errors.Is(o.cause, errTimeout):
		return withStatus(statusTimeout, "stopped after the timeout of %v", o.timeout), true
	}
	switch o.result.End {
	case vcpu.TripleFault:
		return withStatus(statusTripleFault, "the guest ended in a triple fault at rip %#x, cr3 %#x", o.result.RIP, o.result.CR3), true
	case vcpu.PowerOff, vcpu.Reset:
		if o.isJob {
			return withStatus(statusNoStatus, "the guest ended (%v) before the command did", o.result.End), true
		}
		return nil, false
	}
	return withStatus(statusInternal, "BUG: the machine ended for no reason: %v", o.result.End), true
}

func statusOrNil(status int) error {
	if status == 0 {
		return nil
	}
	return exit(status)
}

// printTail prints the last lines of the console.
func printTail(w io.Writer, t *console.Tail) {
	lines := t.Lines(tailLines)
	if len(lines) == 0 {
		fmt.Fprintln(w, "ring3: the guest's console is empty")
		return
	}
	fmt.Fprintln(w, "ring3: the end of the guest's console:")
	for _, l := range lines {
		fmt.Fprintln(w, "  | "+l)
	}
}

// endSignalName is the name the guest knows a signal by.
func endSignalName(s syscall.Signal) string {
	switch s {
	case syscall.SIGINT:
		return "INT"
	case syscall.SIGHUP:
		return "HUP"
	case syscall.SIGQUIT:
		return "QUIT"
	}
	return "TERM"
}
