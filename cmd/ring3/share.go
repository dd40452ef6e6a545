package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/spf13/pflag"

	"ring3/internal/cli"
	"ring3/internal/initramfs"
	"ring3/internal/kernelstore"
	"ring3/internal/kmod"
	"ring3/internal/machine"
	"ring3/internal/share"
)

// shareOptions are the flags for directories of the host.
type shareOptions struct {
	shares cli.Shares
	root   cli.Root
}

func (o *shareOptions) addFlags(f *pflag.FlagSet) {
	f.Var(&o.shares, "share", "directory `HOST` at the same path in the guest; HOST:GUEST: at another;\nHOST,ro: read-only; may be repeated")
	f.Var(&o.root, "root", "directory `DIR` as the guest's root, below a throw-away layer; DIR,rw: writes\nstay; \"host\": the host's own root, with the caller's directory and environment")
}

// any reports whether there are any.
func (o *shareOptions) any() bool { return len(o.shares) > 0 || o.root.Path != "" }

// check finds mistakes that need no machine to be seen.
func (o *shareOptions) check(builtIn bool) error {
	switch {
	case !o.any():
		return nil
	case !builtIn:
		return usageError("--share and --root are mounted by the built-in userland: leave out --initrd")
	case len(o.devices()) > machine.MaxShares:
		return usageError("--share: %d are too many, a machine can have %d", len(o.devices()), machine.MaxShares)
	}
	at := map[string]bool{}
	for _, s := range o.shares {
		if at[s.Guest] {
			return usageError("--share: there are two for %s in the guest", s.Guest)
		}
		at[s.Guest] = true
	}
	for _, d := range o.devices() {
		flag := "--share"
		if d.Tag == rootTag {
			flag = "--root"
		}
		t, err := share.Open(d.Options)
		if err != nil {
			return usageError("%s: %w", flag, err)
		}
		t.Close()
	}
	return nil
}

// rootTag is the tag of the root; shares have numbers.
const rootTag = "root"

// devices are the machine's, in the order of its slots.
func (o *shareOptions) devices() (list []machine.Share) {
	if o.root.Path != "" {
		list = append(list, machine.Share{Tag: rootTag, Options: share.Options{Path: o.root.Path, ReadOnly: !o.root.Writable}})
	}
	for i, s := range o.shares {
		list = append(list, machine.Share{Tag: fmt.Sprintf("share%d", i), Options: s.Options})
	}
	return list
}

// mount has the userland mount them.
func (o *shareOptions) mount(opt *initramfs.Options, k kernelstore.Kernel) error {
	if !o.any() {
		return nil
	}
	flag := "--share"
	if o.root.Path != "" {
		flag = "--root"
	}
	if k.Modules == "" {
		return usageError("%s: ring3 has no modules for kernel %s, and virtiofs and overlay are modules: use one that ring3 kernel fetch has brought, such as --kernel cloud", flag, k.Image)
	}
	modules, err := initramfs.ShareModules(k.Modules)
	if errors.Is(err, kmod.ErrNotFound) {
		return usageError("%s: kernel %s: %w", flag, k.Name, err)
	} else if err != nil {
		return fmt.Errorf("%s: kernel %s: %w", flag, k.Name, err)
	}
	opt.Modules = kmod.Join(opt.Modules, modules)
	for i, s := range o.shares {
		opt.Mounts = append(opt.Mounts, initramfs.Mount{Tag: fmt.Sprintf("share%d", i), Path: s.Guest, ReadOnly: s.ReadOnly})
	}
	if o.root.Path == "" {
		return nil
	}
	opt.Root = &initramfs.Root{Tag: rootTag, Writable: o.root.Writable}
	if opt.Root.Dir, err = workingDir(); err != nil {
		return err
	}
	if o.root.Path == "/" {
		opt.Root.Env = environment()
		if opt.Root.Modules, err = filepath.Abs(k.Modules); err != nil {
			return err
		}
	}
	return nil
}

// workingDir is the working directory without symbolic links.
func workingDir() (string, error) {
	dir, err := os.Getwd()
	if err == nil {
		dir, err = filepath.EvalSymlinks(dir)
	}
	return dir, err
}

// environment is what a command in the host's own root gets of the caller's:
// where programs and the caller's settings are, and the language. Not what
// belongs to the caller's session, such as sockets.
func environment() (env []string) {
	for _, e := range os.Environ() {
		name, _, _ := strings.Cut(e, "=")
		switch name {
		case "HOME", "PATH", "LANG", "LANGUAGE", "TZ", "EDITOR", "PAGER":
			env = append(env, e)
		default:
			if strings.HasPrefix(name, "LC_") {
				env = append(env, e)
			}
		}
	}
	return env
}
