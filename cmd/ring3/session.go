package main

import (
	"bytes"
	"context"
	"errors"
	"io"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"ring3/internal/console"
	"ring3/internal/disk"
	"ring3/internal/diskboot"
	"ring3/internal/initramfs/guestjob"
	"ring3/internal/machine"
	"ring3/internal/trace"
	"ring3/internal/vcpu"
)

// tailSize is how much of the console is kept for an abnormal end, in bytes.
const tailSize = 16 << 10

// session joins one machine to this process: its serial ports to standard
// input, output and error, signals and keys to what they ask for. Port 0 is the
// console; with a command, ports 1 and 2 carry it. Port 3 is for the built-in
// userland's control messages (package guestjob).
type session struct {
	o     *runOptions
	place *place
	cfg   machine.Config
	tail  *console.Tail
	watch console.PanicWatch
	quiet *quietClock    // of the console
	host  *guestjob.Host // nil without the built-in userland
	ports struct{ console, job, control lateWriter }
	term  *console.Terminal           // nil unless raw
	asked bool                        // a signal has asked for the end before
	ender atomic.Pointer[signalError] // that signal, if the machine was to shut down
	stop  context.CancelCauseFunc
	trace *trace.Trace // nil unless wanted

	disks  []disk.Image   // open until the last machine has ended
	system *diskboot.Boot // what the first of them boots, nil if it does not

	mu sync.Mutex
	m  guest // changes when a system reboots
}

func newSession(p *place) *session {
	o := p.o
	s := &session{o: o, place: p, tail: console.NewTail(tailSize), quiet: newQuietClock(), stop: func(error) {}}
	if s.builtIn() {
		cfg := guestjob.Config{JobIn: &s.ports.job, Control: &s.ports.control}
		if s.isJob() && !o.tty {
			cfg.Stdin = os.Stdin
		}
		s.host = guestjob.New(cfg)
	}
	return s
}

// isJob reports whether a command is run, and not a console.
func (s *session) isJob() bool { return len(s.o.command) > 0 }

// builtIn reports whether the guest runs ring3's own userland.
func (s *session) builtIn() bool { return s.o.initrd == "" && !s.o.noInitrd && s.system == nil }

// terminal reports whether the guest gets this process's terminal, raw.
func (s *session) terminal() bool {
	if s.isJob() {
		return s.o.tty
	}
	return console.IsTerminal(os.Stdin) && console.IsTerminal(os.Stdout)
}

// serial returns where the guest's output goes.
func (s *session) serial() (out [4]io.Writer) {
	watchers := []io.Writer{s.tail, &s.watch, s.quiet, &s.place.hub}
	if s.place.console != nil {
		watchers = append(watchers, s.place.console)
	}
	stdout := &outputWriter{s: s, f: os.Stdout, name: "standard output"}
	switch {
	case s.isJob() && s.o.life.detach:
		out[1], out[2] = s.place.output, s.place.output
	case s.o.life.detach:
	case !s.isJob():
		watchers = append(watchers, stdout)
	case s.o.tty:
		out[1] = stdout
	default:
		out[1] = stdout
		out[2] = &outputWriter{s: s, f: os.Stderr, name: "standard error"}
	}
	out[0] = io.MultiWriter(watchers...)
	if s.host != nil {
		out[3] = s.host
	}
	return out
}

// stopGrace is how long a machine may take to stop. It may be stuck in a write
// to somebody who does not read; then the process ends without it.
const stopGrace = 5 * time.Second

// connect makes m the machine of the session.
func (s *session) connect(m guest) {
	s.mu.Lock()
	s.m = m
	s.mu.Unlock()
	s.ports.console.set(m.SerialWriter(0))
	s.ports.job.set(m.SerialWriter(1))
	s.ports.control.set(m.SerialWriter(3))
}

// machine returns the machine of the session.
func (s *session) machine() guest {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.m
}

// run runs the machine m, and those after it when a system reboots, and closes them
// and the disks.
func (s *session) run(ctx context.Context, m guest) error {
	s.connect(m)
	ctx, s.stop = context.WithCancelCause(ctx)
	defer s.stop(nil)
	if s.o.timeout > 0 {
		t := time.AfterFunc(time.Duration(s.o.timeout), func() { s.stop(errTimeout) })
		defer t.Stop()
	}
	if s.terminal() {
		t, err := console.OpenTerminal(os.Stdin)
		if err != nil {
			return errors.Join(withStatus(statusHost, "terminal: %w", err), m.Close())
		}
		s.term = t
		defer t.Close()
	}
	defer s.handleSignals(ctx)()
	s.startInput(ctx)
	if s.host != nil {
		// Errors of the host's end show as a command that does not end, or
		// as what the command says; a read error of standard input is one.
		go s.host.Run(ctx)
	}
	if err := s.place.started(s); err != nil {
		return errors.Join(err, m.Close())
	}
	o, table := s.wait(ctx)
	if s.term != nil {
		s.term.Close()
		if o.cause != nil {
			os.Stderr.WriteString("\n") // the cursor is wherever the guest left it
		}
	}
	err, abnormal := o.verdict()
	os.Stderr.Write(table)
	if abnormal {
		s.printTail()
	}
	if d, ok := errors.AsType[*vcpu.Difference](o.err); ok {
		os.Stderr.WriteString(d.Report())
	}
	if s.trace != nil {
		if terr := writeTrace(s.o.traceFile, s.trace); terr != nil && err == nil {
			err = withStatus(statusHost, "--trace-file: %w", terr)
		}
	}
	return err
}

// wait runs the machine, closes it and collects how it ended, and the table of
// exits if that is wanted. Closing comes before judging: it sends the last of
// the guest's output. A machine that reboots is followed by the next.
func (s *session) wait(ctx context.Context) (o outcome, table []byte) {
	type end struct {
		result machine.Result
		table  bytes.Buffer
		err    error
	}
	done := make(chan *end, 1)
	go func() {
		e := new(end)
		for m := s.machine(); m != nil; {
			e.result, e.err = m.Run(ctx)
			if s.o.stats {
				e.err = errors.Join(e.err, m.WriteStats(&e.table))
			}
			e.err = errors.Join(e.err, m.Close())
			if !s.reboots(e.result, e.err) {
				break
			}
			var err error
			if m, err = s.restart(ctx, s.cfg); err != nil {
				e.result.End = vcpu.Stopped
				s.stop(err)
				break
			}
			s.connect(m)
		}
		e.err = errors.Join(e.err, s.closeDisks())
		done <- e
	}()
	// Without an end in time the machine counts as stopped.
	e := &end{result: machine.Result{End: vcpu.Stopped}}
	select {
	case e = <-done:
	case <-ctx.Done():
		select {
		case e = <-done:
		case <-time.After(stopGrace):
		}
	}
	o = outcome{result: e.result, err: e.err, cause: context.Cause(ctx), timeout: time.Duration(s.o.timeout),
		isJob: s.isJob(), jobStatus: -1}
	if o.result.End != vcpu.Stopped {
		o.cause = nil // the guest was faster
	}
	if e := s.ender.Load(); e != nil && o.cause == nil {
		o.cause = e
	}
	o.message, o.panicked = s.watch.Panicked()
	if s.host != nil {
		if status, ok := s.host.Status(); ok {
			o.jobStatus = status
		}
	}
	return o, e.table.Bytes()
}

// printTail prints the end of the console, unless the console is right above.
func (s *session) printTail() {
	if s.isJob() || s.term == nil {
		printTail(os.Stderr, s.tail)
	}
}

// outputWriter writes the guest's output to this process's. If that fails the
// machine is stopped: nobody can see what it does.
type outputWriter struct {
	s    *session
	f    *os.File
	name string
	once sync.Once
}

func (w *outputWriter) Write(p []byte) (int, error) {
	if _, err := w.f.Write(p); err != nil {
		w.once.Do(func() { w.s.stop(withStatus(statusHost, "%s: %w", w.name, errors.Unwrap(err))) })
	}
	return len(p), nil
}
