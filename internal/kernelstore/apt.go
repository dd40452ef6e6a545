package kernelstore

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// apt gets packages as an ordinary user and leaves the system's state alone.
// What it downloads is verified by apt against the system's keyrings.
type apt struct {
	store    *Store
	progress io.Writer
	private  bool   // with package lists of our own
	conf     string // configuration file, read behind the system's
}

// newApt checks for the tools and writes the configuration into dir.
func newApt(s *Store, dir string, progress io.Writer) (*apt, error) {
	for _, t := range []string{"apt-get", "apt-cache", "dpkg-deb"} {
		if _, err := exec.LookPath(t); err != nil {
			return nil, &Error{What: "cannot fetch packages: there is no " + t + " on this system",
				Mend: "get a kernel another way and use: ring3 kernel add FILE"}
		}
	}
	a := &apt{store: s, progress: progress, conf: filepath.Join(dir, "apt.conf")}
	return a, a.configure()
}

// configure writes a.conf.
func (a *apt) configure() error {
	var b bytes.Buffer
	// Hooks that work on the system's caches; it is none of ours.
	for _, h := range []string{"APT::Update::Pre-Invoke", "APT::Update::Post-Invoke",
		"APT::Update::Post-Invoke-Success", "DPkg::Pre-Invoke", "DPkg::Post-Invoke"} {
		fmt.Fprintf(&b, "#clear %s;\n", h)
	}
	// The sandbox user of a root apt could not write into our directory.
	if u, err := user.Current(); err == nil {
		fmt.Fprintf(&b, "APT::Sandbox::User %q;\n", u.Username)
	}
	fmt.Fprintf(&b, "Acquire::Retries \"2\";\n")
	if a.private {
		dir := filepath.Join(a.store.dir, "apt")
		for _, d := range []string{"state/lists/partial", "cache/archives/partial", "log"} {
			if err := os.MkdirAll(filepath.Join(dir, d), 0o755); err != nil {
				return err
			}
		}
		fmt.Fprintf(&b, "Dir::State %q;\nDir::State::status \"/dev/null\";\nDir::Cache %q;\nDir::Log %q;\n",
			filepath.Join(dir, "state"), filepath.Join(dir, "cache"), filepath.Join(dir, "log"))
		// Only what package lists need: no translations, no icons.
		fmt.Fprintf(&b, "Acquire::Languages \"none\";\n#clear Acquire::IndexTargets::deb::DEP-11;\n")
	} else {
		// Package caches in memory only.
		fmt.Fprintf(&b, "Dir::Cache::pkgcache \"\";\nDir::Cache::srcpkgcache \"\";\n")
	}
	return os.WriteFile(a.conf, b.Bytes(), 0o644)
}

// fresh is how old package lists of our own may be to be used as they are.
const fresh = 24 * time.Hour

// haveLists goes over to package lists of our own if there are fresh ones.
func (a *apt) haveLists() bool {
	st, err := os.Stat(filepath.Join(a.store.dir, "apt", updated))
	if err != nil || time.Since(st.ModTime()) > fresh {
		return false
	}
	a.private = true
	return a.configure() == nil
}

// updated is a file below apt/ whose time is that of the last update.
const updated = "updated"

// update makes package lists of our own and uses them from now on.
func (a *apt) update(ctx context.Context) error {
	a.private = true
	if err := a.configure(); err != nil {
		return err
	}
	say(a.progress, "reading the package lists of the distribution with apt")
	if _, err := a.run(ctx, "", "apt-get", "-q", "update"); err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(a.store.dir, "apt", updated), nil, 0o644)
}

// deb is a package that can be downloaded.
type deb struct {
	name, version string
	size          int64 // bytes, 0 if unknown
	depends       []string
}

// find looks name up in the package lists, which are made if need be.
func (a *apt) find(ctx context.Context, name string) (deb, error) {
	d, err := a.show(ctx, name)
	if err != nil && ctx.Err() == nil && !a.private {
		if a.haveLists() {
			if d, err := a.show(ctx, name); err == nil {
				return d, nil
			}
		}
		if err := a.update(ctx); err != nil {
			return d, err
		}
		d, err = a.show(ctx, name)
	}
	if err != nil && ctx.Err() == nil {
		return d, &Error{What: "this distribution has no package " + name, Err: err,
			Mend: "get a kernel another way and use: ring3 kernel add FILE"}
	}
	return d, err
}

// show parses what apt-cache tells of the candidate version of a package.
func (a *apt) show(ctx context.Context, name string) (deb, error) {
	out, err := a.run(ctx, "", "apt-cache", "--no-all-versions", "show", name)
	if err != nil {
		return deb{}, err
	}
	d := parseShow(out)
	if d.name != name || d.version == "" {
		return deb{}, fmt.Errorf("apt-cache shows nothing usable for %s", name)
	}
	return d, nil
}

// parseShow reads the first stanza of apt-cache show (deb-control(5) syntax).
func parseShow(out []byte) deb {
	var d deb
	sc := bufio.NewScanner(bytes.NewReader(out))
	sc.Buffer(nil, 1<<20)
	for sc.Scan() && sc.Text() != "" {
		key, val, _ := strings.Cut(sc.Text(), ": ")
		switch key {
		case "Package":
			d.name = val
		case "Version":
			d.version = val
		case "Size":
			d.size, _ = strconv.ParseInt(val, 10, 64)
		case "Depends":
			for dep := range strings.SplitSeq(val, ",") {
				if f := strings.Fields(dep); len(f) > 0 {
					d.depends = append(d.depends, f[0])
				}
			}
		}
	}
	return d
}

// download fetches d into dir and returns the path of the package file. Lists
// that are too old are made anew once.
func (a *apt) download(ctx context.Context, d deb, dir string) (string, error) {
	say(a.progress, "downloading %s %s (%.1f MiB)", d.name, d.version, float64(d.size)/(1<<20))
	stop := a.watch(dir, d.size)
	_, err := a.run(ctx, dir, "apt-get", "-q", "download", d.name)
	stop()
	if err != nil && ctx.Err() == nil && !a.private {
		if err := a.update(ctx); err != nil {
			return "", err
		}
		if d, err = a.show(ctx, d.name); err == nil {
			_, err = a.run(ctx, dir, "apt-get", "-q", "download", d.name)
		}
	}
	if err != nil {
		return "", err
	}
	m, err := filepath.Glob(filepath.Join(dir, "*.deb"))
	if err == nil && len(m) != 1 {
		err = fmt.Errorf("apt-get download left %d package files", len(m))
	}
	if err != nil {
		return "", err
	}
	return m[0], nil
}

// watch tells now and then how much of size bytes has arrived in dir.
func (a *apt) watch(dir string, size int64) (stop func()) {
	if a.progress == nil || size == 0 {
		return func() {}
	}
	quit, done := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(done)
		tick := time.NewTicker(3 * time.Second)
		defer tick.Stop()
		for {
			select {
			case <-quit:
				return
			case <-tick.C:
			}
			var have int64
			ents, _ := os.ReadDir(dir)
			for _, e := range ents {
				if i, err := e.Info(); err == nil && strings.Contains(e.Name(), ".deb") {
					have = max(have, i.Size())
				}
			}
			say(a.progress, "  %d %%", 100*have/size)
		}
	}()
	return func() { close(quit); <-done }
}

// run runs an apt tool in dir and returns its standard output.
func (a *apt) run(ctx context.Context, dir, tool string, args ...string) ([]byte, error) {
	cmd := command(ctx, tool, append([]string{"-c", a.conf}, args...)...)
	cmd.Dir = dir
	var out, msg bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &msg
	err := toolErr(ctx, tool, &msg, cmd.Run())
	return out.Bytes(), err
}

// command prepares a tool that ends when ctx does, with its children, and
// speaks English.
func command(ctx context.Context, tool string, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, tool, args...)
	cmd.Env = append(os.Environ(), "LC_ALL=C", "DEBIAN_FRONTEND=noninteractive")
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGTERM) }
	cmd.WaitDelay = 3 * time.Second
	return cmd
}

// toolErr makes one line of a tool's failure: its first error message.
func toolErr(ctx context.Context, tool string, msg *bytes.Buffer, err error) error {
	if err == nil {
		return nil
	}
	if ctx.Err() != nil {
		return ctx.Err()
	}
	what := ""
	for l := range strings.Lines(msg.String()) {
		l = strings.TrimSpace(l)
		l = strings.TrimPrefix(l, tool+": error: ")
		if e, ok := strings.CutPrefix(l, "E: "); ok || l != "" && tool == "dpkg-deb" {
			what = e
			break
		}
	}
	if what == "" {
		return &Error{What: tool + " failed", Err: err}
	}
	return &Error{What: tool + " failed", Err: errors.New(what)}
}
