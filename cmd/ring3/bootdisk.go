package main

import (
	"context"
	"errors"
	"fmt"

	"github.com/spf13/pflag"

	"ring3/internal/disk"
	"ring3/internal/diskboot"
	"ring3/internal/machine"
	"ring3/internal/vcpu"
)

// diskBootOptions are the flags of ring3 run about systems that boot from a disk.
type diskBootOptions struct {
	noReboot bool
}

const diskBootHelp = `Without --kernel, --initrd, --share, --root and COMMAND, a first --disk with a
partition table or with a kernel in /boot boots what is installed on it: the
default entry of grub.cfg, else the newest kernel in /boot, with its initial RAM disk and root=
argument. Such a machine starts anew when the guest reboots, with --no-reboot it
ends.`

func (o *diskBootOptions) addFlags(f *pflag.FlagSet) {
	f.BoolVar(&o.noReboot, "no-reboot", false, "end when a system that booted from a disk reboots, instead of booting it again")
}

// mayBootDisk reports whether the first disk is asked for a system.
func (o *runOptions) mayBootDisk() bool {
	return len(o.disks) > 0 && !o.shareOptions.any() && o.kernel == "" && o.initrd == "" && !o.noInitrd && len(o.command) == 0
}

// openDisks opens the disks, which stay open and locked until closeDisks, whatever
// machines come and go.
func (s *session) openDisks() error {
	for _, d := range s.o.disks {
		img, err := disk.Open(d)
		if err != nil {
			return fmt.Errorf("--disk: %w", asInput(err))
		}
		s.disks = append(s.disks, img)
	}
	return nil
}

func (s *session) closeDisks() error {
	var errs []error
	for _, img := range s.disks {
		errs = append(errs, img.Close())
	}
	s.disks = nil
	return errors.Join(errs...)
}

// findSystem looks for a system on the first disk, if that may be booted. Without
// one the disk is for data.
func (s *session) findSystem(ctx context.Context) (err error) {
	if !s.o.mayBootDisk() {
		return nil
	}
	s.system, err = diskboot.Find(ctx, s.disks[0], s.o.disks[0].Path)
	switch {
	case errors.Is(err, diskboot.ErrNoSystem):
		return nil
	case err != nil:
		if _, bad := errors.AsType[*diskboot.Error](err); bad {
			return usageError("--disk: %w (give --kernel; with --kernel cloud the disk is one for data)", err)
		}
		return fmt.Errorf("--disk: %w", asInput(err))
	}
	s.host = nil // the system knows nothing of guestjob
	return nil
}

// bootSystem makes cfg boot the system that was found.
func (s *session) bootSystem(cfg *machine.Config) {
	cfg.CmdLine = s.o.cmdline(s.system.Args)
	cfg.Kernel, cfg.KernelData = s.system.Kernel.Name, s.system.Kernel.Data
	cfg.Initrd, cfg.InitrdData = s.system.Initrd.Name, s.system.Initrd.Data
	s.system.Kernel.Data, s.system.Initrd.Data = nil, nil // cfg has them
}

// reboots reports whether a machine that ended so is to start anew.
func (s *session) reboots(r machine.Result, err error) bool {
	_, panicked := s.watch.Panicked()
	return s.system != nil && !s.o.noReboot && err == nil && r.End == vcpu.Reset && !panicked
}

// restart builds the machine anew: the guest may have changed on its disk what boots.
func (s *session) restart(ctx context.Context, cfg machine.Config) (guest, error) {
	if err := s.findSystem(ctx); err != nil {
		return nil, err
	}
	if s.system == nil {
		return nil, withStatus(statusUsage, "--disk: %s: %w", s.o.disks[0].Path, diskboot.ErrNoSystem)
	}
	s.bootSystem(&cfg)
	var err error
	if cfg.Net, err = s.o.net.open(s.isJob()); err != nil {
		return nil, err
	}
	return newMachine(cfg)
}
