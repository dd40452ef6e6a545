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

// endBySignal stops the machine; a command is asked first and given a moment,
// unless it was asked before.
func (s *session) endBySignal(sig syscall.Signal) {
	end := func() { s.stop(&signalError{sig}) }
	if !s.isJob() || s.asked {
		end()
		return
	}
	s.asked = true
	s.host.Signal(endSignalName(sig))
	time.AfterFunc(jobGrace, end)
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
