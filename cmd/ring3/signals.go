package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"syscall"

	"ring3/internal/boot"
	"ring3/internal/console"
	"ring3/internal/disk"
	"ring3/internal/kernelstore"
	"ring3/internal/virtio/vsock"
)

// endSignals are the signals that ask ring3 to end.
var endSignals = []os.Signal{syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP, syscall.SIGQUIT}

// signalError is the cause of a context that a signal ended.
type signalError struct{ sig syscall.Signal }

func (e *signalError) Error() string { return e.sig.String() }

// untilSignal returns a context that ends on the first signal to end.
func untilSignal(parent context.Context) (ctx context.Context, stop func()) {
	ctx, cancel := context.WithCancelCause(parent)
	c := make(chan os.Signal, 1)
	signal.Notify(c, endSignals...)
	go func() {
		select {
		case s := <-c:
			cancel(&signalError{s.(syscall.Signal)})
		case <-ctx.Done():
		}
	}()
	return ctx, func() {
		signal.Stop(c)
		cancel(nil)
	}
}

// signalled replaces an error by the exit status of the signal that caused it.
func signalled(ctx context.Context, err error) error {
	var s *signalError
	if err != nil && errors.As(context.Cause(ctx), &s) {
		return exit(statusSignal + int(s.sig))
	}
	return err
}

// asInput makes an error about a file that the user named one of input.
func asInput(err error) error {
	var (
		input  *boot.InputError
		store  *kernelstore.Error
		path   *os.PathError
		image  *disk.Error
		socket *vsock.Error
		status *statusError
	)
	switch {
	case err == nil || errors.As(err, &status):
		return err
	case errors.As(err, &input), errors.As(err, &store), errors.As(err, &path), errors.As(err, &image):
		return &statusError{statusUsage, err}
	case errors.As(err, &socket):
		return &statusError{statusUsage, fmt.Errorf("--vsock: %w", err)}
	}
	return err
}

// progress is where long work reports: standard error if somebody watches.
func progress() io.Writer {
	if !console.IsTerminal(os.Stderr) {
		return nil
	}
	return os.Stderr
}
