package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"ring3/internal/cli"
	"ring3/internal/console"
	"ring3/internal/control"
	"ring3/internal/initramfs"
	"ring3/internal/kernelstore"
	"ring3/internal/kmod"
	"ring3/internal/virtio/vsock"
	"ring3/internal/vmdir"
)

// lifeOptions are the flags of ring3 run that are about the machine's life and
// how others reach it.
type lifeOptions struct {
	name   string
	detach bool
	vsock  cli.Vsock
}

func (o *lifeOptions) flags(c *cobra.Command) {
	f := c.Flags()
	f.StringVar(&o.name, "name", "", "`NAME` for the machine, by which ring3 exec and the like find it")
	f.BoolVarP(&o.detach, "detach", "d", false, "leave the machine in the background, and print its name once it runs")
	f.Var(&o.vsock, "vsock", "socket device; connections to the guest go through the Unix socket `PATH`, those to\nport N of the host to PATH_N; PATH,cid=N: number of the guest (default 3)")
}

func (o *lifeOptions) check() error {
	if o.name != "" {
		if err := vmdir.CheckName(o.name); err != nil {
			return usageError("--name: %w", err)
		}
	}
	return nil
}

// kept reports whether others shall find the machine: it gets an agent, and
// logs.
func (o *lifeOptions) kept() bool { return o.name != "" || o.detach }

// place is where others find the machine of a session: its directory, and what
// is in it.
type place struct {
	o               *runOptions
	dir             *vmdir.Dir // nil if there is none
	state           vmdir.State
	hub             console.Hub
	console, output *vmdir.Log      // nil unless kept
	server          *control.Server // nil until the machine runs
	parent          *os.File        // of a detached monitor: to be told when the machine runs
}

// claim makes a directory for the machine. One that nobody has asked for is
// done without if there is no place.
func claim(ctx context.Context, o *runOptions) (*place, error) {
	p := &place{o: o, parent: parentOf(ctx)}
	p.state = vmdir.State{Name: o.life.name, PID: os.Getpid(), Created: time.Now(), Memory: uint64(o.memory),
		Command: o.command, Detached: o.life.detach}
	err := p.make()
	if err != nil && o.life.kept() {
		var taken *vmdir.Error
		if errors.As(err, &taken) {
			return nil, &statusError{statusUsage, err}
		}
		return nil, withStatus(statusHost, "directory of the machine: %w", err)
	}
	return p, nil
}

func (p *place) make() (err error) {
	base, err := vmdir.Default()
	if err != nil {
		return err
	}
	if p.state.Name == "" {
		p.state.Name = vmdir.NewName()
	}
	if p.dir, err = base.Create(p.state.Name); err != nil {
		return err
	}
	defer func() {
		if err != nil {
			p.dir.Remove()
			p.dir = nil
		}
	}()
	if p.o.life.kept() {
		if p.console, err = vmdir.CreateLog(p.dir.File(vmdir.ConsoleLog)); err != nil {
			return err
		}
	}
	if p.o.life.detach && len(p.o.command) > 0 {
		if p.output, err = vmdir.CreateLog(p.dir.File(vmdir.OutputLog)); err != nil {
			return err
		}
	}
	return p.dir.Write(&p.state)
}

// vsock is the machine's socket device; nil for none.
func (p *place) vsock() (*vsock.Config, error) {
	cfg := vsock.Config(p.o.life.vsock)
	if cfg.Path == "" {
		if !p.o.life.kept() {
			return nil, nil
		}
		cfg = vsock.Config{CID: vsock.MinCID, Path: p.dir.File(vmdir.VsockSocket)}
	}
	abs, err := filepath.Abs(cfg.Path)
	if err != nil {
		return nil, err
	}
	p.state.Vsock = abs
	return &cfg, nil
}

// addAgent puts the agent into the built-in userland if there is use for it.
func (p *place) addAgent(opt *initramfs.Options, k kernelstore.Kernel) (err error) {
	if !p.o.life.kept() {
		p.state.NoAgent = "it was started without --name"
		return nil
	}
	self, err := os.ReadFile("/proc/self/exe")
	if err != nil {
		return err
	}
	if err := initramfs.Static(self); err != nil {
		p.state.NoAgent = "this ring3 is not statically linked, so that a guest cannot run it (build it with CGO_ENABLED=0)"
		return nil
	}
	opt.Agent = self
	if k.Modules != "" {
		modules, err := initramfs.AgentModules(k.Modules)
		if err != nil {
			p.state.NoAgent = fmt.Sprintf("kernel %s has no virtio sockets (%v)", k.Name, err)
			opt.Agent = nil
			return nil
		}
		opt.Modules = kmod.Join(opt.Modules, modules)
	}
	return nil
}

// started is called when the machine is built and about to run. It lets others
// reach it, and a detached monitor leaves whoever has started it.
func (p *place) started(s *session) error {
	if p.dir == nil {
		return nil
	}
	server, err := control.Listen(p.dir.File(vmdir.ControlSocket), remote{s})
	if err != nil {
		if !p.o.life.kept() {
			return nil
		}
		return withStatus(statusHost, "control socket: %w", err)
	}
	p.server = server
	p.state.Started = true
	if err := p.dir.Write(&p.state); err != nil {
		return withStatus(statusHost, "state of the machine: %w", err)
	}
	if p.parent == nil {
		return nil
	}
	return p.leave()
}

// leave tells the parent that the machine runs, and lets go of its standard
// error.
func (p *place) leave() error {
	log, err := os.OpenFile(p.dir.File(vmdir.MonitorLog), os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o600)
	if err == nil {
		defer log.Close()
		err = unix.Dup3(int(log.Fd()), 2, 0)
	}
	if err == nil {
		_, err = fmt.Fprintln(p.parent, p.state.Name)
		p.parent.Close()
	}
	if err != nil {
		return withStatus(statusHost, "cannot detach: %w", err)
	}
	return nil
}

// close ends what began with claim. The directory of a detached machine stays,
// with err, how it ended.
func (p *place) close(err error) error {
	if p.dir == nil {
		return nil
	}
	var errs []error
	if p.server != nil {
		errs = append(errs, p.server.Close())
	}
	for _, l := range []*vmdir.Log{p.console, p.output} {
		if l != nil {
			errs = append(errs, l.Close())
		}
	}
	if !p.o.life.detach || !p.state.Started {
		return errors.Join(append(errs, p.dir.Remove())...)
	}
	now, status := time.Now(), 0
	if err != nil {
		status = statusOf(err)
		p.state.Message = strings.TrimSpace(err.Error())
	}
	p.state.Ended, p.state.Status = &now, &status
	errs = append(errs, p.dir.Write(&p.state), p.dir.Close())
	return errors.Join(errs...)
}

// remote does what others ask of a session. It implements control.Handler.
type remote struct{ s *session }

func (r remote) Stop(timeout time.Duration) {
	r.s.shutDown(timeout, &signalError{syscall.SIGKILL})
}

func (r remote) Kill() { r.s.stop(&signalError{syscall.SIGKILL}) }

func (r remote) Resize(rows, cols int) {
	if r.s.host != nil {
		r.s.host.Resize(rows, cols)
	}
}

func (r remote) Attach(conn net.Conn) { r.s.place.hub.Attach(conn, &r.s.ports.console) }
