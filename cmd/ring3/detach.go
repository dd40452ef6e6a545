package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"math"
	"os"
	"os/exec"
	"os/signal"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// detachedCommand is the argument with which ring3 starts itself as the monitor
// of a detached machine; the rest of the command line is as the user wrote it.
// Descriptor 3 is a pipe, for the name of the machine once it runs.
const detachedCommand = "detached-monitor"

// parentKey is the context's value for that pipe.
type parentKey struct{}

// asDetached is the context of a detached monitor.
func asDetached(ctx context.Context) context.Context {
	unix.CloseOnExec(3)
	return context.WithValue(ctx, parentKey{}, os.NewFile(3, "pipe to the parent"))
}

// parentOf is the pipe of a detached monitor, and nil for all else.
func parentOf(ctx context.Context) *os.File {
	f, _ := ctx.Value(parentKey{}).(*os.File)
	return f
}

// startDetached starts this command once more, in a session of its own, and
// returns when the machine runs, or with the status of its failure.
func startDetached() error {
	self, err := os.Executable()
	if err != nil {
		return err
	}
	r, w, err := os.Pipe()
	if err != nil {
		return err
	}
	defer r.Close()
	// What the shell has left open is nothing for a process that stays. Kernels
	// before 5.11 cannot; then it is inherited.
	unix.CloseRange(3, math.MaxUint32, unix.CLOSE_RANGE_CLOEXEC)
	cmd := exec.Command(self, append([]string{detachedCommand}, os.Args[1:]...)...)
	cmd.Args[0] = os.Args[0]
	cmd.Stderr = os.Stderr
	cmd.ExtraFiles = []*os.File{w}
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, endSignals...)
	if err := cmd.Start(); err != nil {
		return withStatus(statusHost, "--detach: %w", err)
	}
	w.Close()
	go func() {
		for sig := range signals {
			cmd.Process.Signal(sig)
		}
	}()
	if name, err := bufio.NewReader(r).ReadString('\n'); err == nil {
		fmt.Print(name)
		return nil
	}
	// It has said why.
	err = cmd.Wait()
	var exitErr *exec.ExitError
	if errors.As(err, &exitErr) {
		if s := exitErr.Sys().(syscall.WaitStatus); s.Signaled() {
			return withStatus(statusInternal, "--detach: the monitor was killed by %v", s.Signal())
		}
		return exit(exitErr.ExitCode())
	}
	return withStatus(statusInternal, "--detach: the monitor ended before the machine ran: %v", strings.TrimSpace(fmt.Sprint(err)))
}
