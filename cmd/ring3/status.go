package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"

	"ring3/internal/boot"
	"ring3/internal/kernelstore"
)

// Exit statuses. Statuses of a guest's command pass through, so ring3's own are
// few and in a range that commands rarely use. statusHelp documents them.
const (
	statusUsage       = 2
	statusPanic       = 120
	statusTripleFault = 121
	statusNoStatus    = 122
	statusHost        = 123
	statusTimeout     = 124
	statusInternal    = 125
	statusSignal      = 128 // plus the signal's number
)

// statusHelp is the table of exit statuses for the help text.
const statusHelp = `Exit status:
  0        the guest switched off, rebooted (unless that boots a disk again), or
           Ctrl-A x stopped it
  0-255    with a COMMAND: its status, 128+N if signal N ended it in the guest
  2        bad usage or input; nothing was started
  120      the guest kernel panicked
  121      the guest ended in a triple fault
  122      the guest ended before COMMAND did
  123      the host lacks something (ring3 check)
  124      --timeout is over
  125      ring3 failed
  128+N    signal N ended ring3: 130 for Ctrl-C`

// statusError is an error with the exit status it ends in. The message may be
// empty: everything is said already.
type statusError struct {
	status int
	err    error
}

func (e *statusError) Error() string {
	if e.err == nil {
		return ""
	}
	return e.err.Error()
}

func (e *statusError) Unwrap() error { return e.err }

// exit is the error that ends ring3 with status and no message.
func exit(status int) error { return &statusError{status: status} }

func withStatus(status int, format string, args ...any) error {
	return &statusError{status, fmt.Errorf(format, args...)}
}

// usageError is a mistake on the command line: what, why and the mend, in one
// line.
func usageError(format string, args ...any) error {
	return withStatus(statusUsage, format, args...)
}

// report prints err in one line and returns the exit status it stands for.
func report(w io.Writer, err error) int {
	if err == nil {
		return 0
	}
	if m := strings.TrimSpace(err.Error()); m != "" {
		fmt.Fprintf(w, "ring3: %s\n", strings.ReplaceAll(m, "\n", "; "))
	}
	return statusOf(err)
}

func statusOf(err error) int {
	var (
		status *statusError
		input  *boot.InputError
		store  *kernelstore.Error
	)
	switch {
	case errors.As(err, &status):
		return status.status
	case errors.As(err, &input):
		return statusUsage
	case errors.As(err, &store):
		return statusHost
	case errors.Is(err, context.Canceled):
		return statusSignal + 2
	}
	return statusInternal
}
