// Package initramfs builds the built-in userland of a guest: BusyBox, a few
// files under /etc, and scripts that either give a shell on the console or run
// one command, the job, and hand its input, output and exit status to the
// host over serial ports. Package guestjob is the host's end.
//
// The guest's files are in rootfs/ as they appear in the guest.
package initramfs

import (
	"bytes"
	"context"
	"debug/elf"
	"embed"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"regexp"
	"strings"
	"time"

	"ring3/internal/kmod"
)

//go:embed rootfs
var rootfs embed.FS

// Options tell what goes into an archive.
type Options struct {
	BusyBox  string // path of a static x86-64 BusyBox with the usual applets
	Hostname string // "ring3" if empty
	Term     string // $TERM of the shell or job, "linux" if empty
	Rows     int    // size of the terminal, 0 if unknown
	Cols     int
	Job      *Job          // nil for an interactive shell on the console
	Files    []File        // further files
	Modules  []kmod.Module // to be loaded before anything else, in this order
	Mounts   []Mount       // after that
	Root     *Root         // nil to stay in this userland
	Agent    []byte        // static program to start as "PROGRAM guest-agent" (package agent); nil for none
	Network  bool          // set up the first network interface, by DHCP; see AddNetwork
}

// Job is the one command that the guest is to run.
type Job struct {
	Args []string // command and arguments; a command without a slash is searched for in $PATH
	Env  []string // NAME=VALUE, added to PATH, HOME, USER, SHELL and TERM
	Dir  string   // working directory, "/root" if empty
	TTY  bool     // on a terminal, ttyS1, instead of three pipes
}

// File is a regular file to put into the archive.
type File struct {
	Path string
	Mode fs.FileMode // permissions
	Data []byte
}

// DiskModules finds what a kernel needs to use disks, and the file system that
// is most likely on them, among its modules, which are in dir.
func DiskModules(dir string) ([]kmod.Module, error) {
	return kmod.Find(dir, "virtio_pci", "virtio_blk", "virtio_rng", "crc32c_generic", "ext4")
}

// AgentModules finds what a kernel needs for connections between the host and
// the agent.
func AgentModules(dir string) ([]kmod.Module, error) {
	return kmod.Find(dir, "virtio_pci", "vmw_vsock_virtio_transport")
}

// Build returns an uncompressed cpio archive, a few MiB in size.
func Build(ctx context.Context, o Options) ([]byte, error) {
	bb, err := os.ReadFile(o.BusyBox)
	if err != nil {
		return nil, fmt.Errorf("initramfs: %w", err)
	}
	if err := Static(bb); err != nil {
		return nil, fmt.Errorf("initramfs: %s: %w", o.BusyBox, err)
	}
	applets, err := listApplets(ctx, o.BusyBox)
	if err != nil {
		return nil, fmt.Errorf("initramfs: %s: %w", o.BusyBox, err)
	}
	conf, err := o.config()
	if err != nil {
		return nil, fmt.Errorf("initramfs: %w", err)
	}
	var out bytes.Buffer
	out.Grow(len(bb) + len(o.Agent) + 1<<18)
	w := newWriter(&out)
	for _, d := range []string{"dev", "proc", "sys", "run", "root", "tmp", "mnt", "var/log", "usr/bin", "usr/sbin", "sbin", "etc", "ring3"} {
		w.dir(d)
	}
	// The kernel opens the console before anybody can mount /dev.
	w.add(entry{path: "dev/console", mode: modeChar | 0o600, major: 5, minor: 1})
	w.add(entry{path: "dev/null", mode: modeChar | 0o666, major: 1, minor: 3})
	for _, f := range o.Files {
		w.add(entry{path: f.Path, mode: modeReg | uint32(f.Mode.Perm()), data: f.Data})
	}
	if o.Agent != nil {
		if err := Static(o.Agent); err != nil {
			return nil, fmt.Errorf("initramfs: agent: %w", err)
		}
		w.add(entry{path: "ring3/agent", mode: modeReg | 0o755, data: o.Agent})
	}
	var order []byte
	for _, m := range o.Modules {
		w.add(entry{path: "ring3/modules/" + m.Name + ".ko", mode: modeReg | 0o644, data: m.Data})
		order = append(order, m.Name+"\n"...)
	}
	w.add(entry{path: "ring3/modules/order", mode: modeReg | 0o644, data: order})
	if err := addRootfs(w); err != nil {
		return nil, err
	}
	w.add(entry{path: "ring3/config", mode: modeReg | 0o644, data: conf})
	w.add(entry{path: "bin/busybox", mode: modeReg | 0o755, data: bb})
	for _, a := range applets {
		w.add(entry{path: a, mode: modeLink | 0o777, data: []byte("/bin/busybox")})
	}
	if err := w.close(); err != nil {
		return nil, err
	}
	return out.Bytes(), nil
}

// addRootfs adds the embedded files. Scripts, told by their first bytes, are
// executable.
func addRootfs(w *writer) error {
	return fs.WalkDir(rootfs, "rootfs", func(p string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		b, err := rootfs.ReadFile(p)
		if err != nil {
			return err
		}
		mode := uint32(modeReg | 0o644)
		if bytes.HasPrefix(b, []byte("#!")) {
			mode |= 0o111
		}
		w.add(entry{path: strings.TrimPrefix(p, "rootfs/"), mode: mode, data: b})
		return nil
	})
}

// Static makes sure that the guest can run the program b, there being no dynamic
// linker in it.
func Static(b []byte) error {
	f, err := elf.NewFile(bytes.NewReader(b))
	if err != nil {
		return fmt.Errorf("not a program: %w", err)
	}
	if f.Machine != elf.EM_X86_64 {
		return fmt.Errorf("program for another machine: %v", f.Machine)
	}
	for _, p := range f.Progs {
		if p.Type == elf.PT_INTERP {
			return errors.New("needs a dynamic linker; a static program is wanted")
		}
	}
	return nil
}

// listApplets asks a BusyBox for the paths its applets want, such as
// "usr/bin/awk".
func listApplets(ctx context.Context, path string) ([]string, error) {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	out, err := exec.CommandContext(ctx, path, "--list-full").Output()
	if err != nil {
		return nil, fmt.Errorf("cannot list its applets: %w", err)
	}
	list := strings.Fields(string(out))
	for _, need := range []string{"sh", "init", "mount", "stty", "setsid", "dd", "poweroff", "mkfifo", "cat"} {
		if !hasApplet(list, need) {
			return nil, fmt.Errorf("this BusyBox has no %s", need)
		}
	}
	return list, nil
}

func hasApplet(list []string, name string) bool {
	for _, a := range list {
		if strings.HasSuffix("/"+a, "/"+name) {
			return true
		}
	}
	return false
}

var validEnv = regexp.MustCompile(`^[A-Za-z_][A-Za-z0-9_]*$`)

// config writes the options as shell assignments, for the guest's scripts to
// read. The job's words become the positional parameters.
func (o *Options) config() ([]byte, error) {
	var b bytes.Buffer
	var bad error
	set := func(name, val string) {
		if strings.Contains(val, "\x00") {
			bad = fmt.Errorf("NUL byte in %q", val)
		}
		fmt.Fprintf(&b, "%s=%s\n", name, quote(val))
	}
	set("hostname", orElse(o.Hostname, "ring3"))
	set("term", orElse(o.Term, "linux"))
	fmt.Fprintf(&b, "rows=%d\ncols=%d\n", o.Rows, o.Cols)
	o.mounts(set, &b)
	set("network", map[bool]string{true: "yes"}[o.Network])
	if o.Job == nil {
		set("mode", "shell")
		err := o.environment(set, &b)
		return b.Bytes(), errors.Join(bad, err)
	}
	if len(o.Job.Args) == 0 || o.Job.Args[0] == "" {
		return nil, errors.New("empty command")
	}
	set("mode", map[bool]string{false: "pipes", true: "tty"}[o.Job.TTY])
	if o.Root == nil {
		set("dir", orElse(o.Job.Dir, "/root"))
	}
	b.WriteString("set --")
	for _, a := range o.Job.Args {
		if strings.Contains(a, "\x00") {
			bad = fmt.Errorf("NUL byte in argument %q", a)
		}
		b.WriteString(" " + quote(a))
	}
	b.WriteString("\n")
	err := o.environment(set, &b)
	return b.Bytes(), errors.Join(bad, err)
}

// environment writes the job's variables as a function, called in the job's
// process alone: the job may set HOME, PATH and the like without the scripts
// noticing.
func (o *Options) environment(set func(name, val string), b *bytes.Buffer) error {
	var env []string
	if o.Root != nil {
		env = append(env, o.Root.Env...)
	}
	if o.Job != nil {
		env = append(env, o.Job.Env...)
	}
	b.WriteString("job_env() {\n:\n")
	for _, e := range env {
		name, val, ok := strings.Cut(e, "=")
		if !ok || !validEnv.MatchString(name) {
			return fmt.Errorf("%q is not NAME=VALUE", e)
		}
		set("export "+name, val)
	}
	b.WriteString("}\n")
	return nil
}

// quote makes s one word for a POSIX shell.
func quote(s string) string { return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'" }

func orElse(s, alt string) string {
	if s == "" {
		return alt
	}
	return s
}
