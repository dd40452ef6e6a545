package main

import (
	"bytes"
	"context"
	"os"
	"os/signal"
	"syscall"
	"time"
)

// jobGrace is how long a command may take to end after a signal.
const jobGrace = 2 * time.Second

// handleSignals obeys signals until the returned function is called.
func (s *session) handleSignals(ctx context.Context) (stop func()) {
	c := make(chan os.Signal, 16)
	signal.Notify(c, append([]os.Signal{syscall.SIGUSR1, syscall.SIGWINCH, syscall.SIGCONT}, endSignals...)...)
	done := make(chan struct{})
	go func() {
		for {
			select {
			case sig := <-c:
				s.signal(sig.(syscall.Signal))
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

// signal obeys one signal.
func (s *session) signal(sig syscall.Signal) {
	switch sig {
	case syscall.SIGUSR1:
		go s.showStats()
	case syscall.SIGCONT:
		if s.term != nil {
			s.term.Resume()
			s.resize()
		}
	case syscall.SIGWINCH:
		s.resize()
	default:
		s.endBySignal(sig)
	}
}

// shutdownGrace is how long a guest may take to shut down after SIGTERM.
const shutdownGrace = 10 * time.Second

// endBySignal stops the machine. A command is asked first and given a moment,
// SIGTERM asks a guest to shut down; unless either was asked before.
func (s *session) endBySignal(sig syscall.Signal) {
	end := func() { s.stop(&signalError{sig}) }
	switch {
	case s.asked:
		end()
	case s.isJob():
		s.asked = true
		s.host.Signal(endSignalName(sig))
		time.AfterFunc(jobGrace, end)
	case sig == syscall.SIGTERM:
		s.asked = true
		s.ender.Store(&signalError{sig})
		s.shutDown(shutdownGrace, &signalError{sig})
	default:
		end()
	}
}

// shutDown asks the guest to end: the command, or the built-in userland, or
// whoever minds the power button. After grace the machine is stopped, because of
// cause.
func (s *session) shutDown(grace time.Duration, cause error) {
	switch {
	case s.isJob():
		s.host.Signal(endSignalName(syscall.SIGTERM))
	case s.host != nil:
		s.host.PowerOff()
	default:
		s.machine().PowerButton()
	}
	time.AfterFunc(grace, func() { s.stop(cause) })
}

// resize tells the guest the size of its terminal.
func (s *session) resize() {
	if s.term == nil || s.host == nil {
		return
	}
	if cols, rows, err := s.term.Size(); err == nil {
		s.host.Resize(rows, cols)
	}
}

// showStats prints the table of exits while the machine runs.
func (s *session) showStats() {
	var b bytes.Buffer
	if err := s.machine().WriteStats(&b); err != nil {
		return
	}
	p := b.Bytes()
	if s.term != nil {
		p = append([]byte("\r\n"), bytes.ReplaceAll(p, []byte("\n"), []byte("\r\n"))...)
	}
	os.Stderr.Write(p)
}
