// Package boot boots real, stock kernels and runs programs in them.
package boot

import (
	"bytes"
	"context"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"ring3/internal/cli"
	"ring3/internal/disk"
	"ring3/internal/initramfs"
	"ring3/internal/initramfs/guestjob"
	"ring3/internal/kernelstore"
	"ring3/internal/kmod"
	"ring3/internal/machine"
	"ring3/internal/share"
	"ring3/internal/vcpu"
	vnet "ring3/internal/virtio/net"
	"ring3/internal/virtio/vsock"
)

// defaults is the command line that ring3 run uses too.
const defaults = "console=ttyS0 panic=-1 mitigations=off cryptomgr.notests"

// guest describes a machine that runs one command.
type guest struct {
	flavour string         // kernel flavour of the store
	memory  uint64         // bytes, 512 MiB if 0
	cmdline string         // defaults if empty
	engine  machine.Engine // that of RING3_TEST_ENGINE, or the default, if empty
	cpus    int            // 1 if 0
	verify  int            // see machine.Config
	files   []initramfs.File
	disks   []disk.Options
	shares  []share.Options // at /share0, /share1, ...
	root    *cli.Root       // as --root has it
	modules []string        // of the kernel, to be loaded
	vsock   *vsock.Config
	// during is called once the machine runs, when the command's output has
	// duringAt in it.
	during   func(*machine.Machine)
	duringAt string
	stdin    []byte
	args     []string
	timeout  time.Duration // 2 minutes if 0
	net      *vnet.Config
}

// outcome is what came of it.
type outcome struct {
	machine.Result
	stdout, stderr, console string
	table                   string // of exits
	status                  int
	told                    bool // status is known
}

var (
	storeOnce sync.Once
	store     *kernelstore.Store
	busybox   string
	storeErr  error
)

func openStore(t *testing.T) *kernelstore.Store {
	t.Helper()
	storeOnce.Do(func() {
		if store, storeErr = kernelstore.Open(""); storeErr == nil {
			busybox, storeErr = store.FetchBusyBox(context.Background(), os.Stderr)
		}
	})
	if storeErr != nil {
		t.Fatal(storeErr)
	}
	return store
}

func kernel(t *testing.T, flavour string) kernelstore.Kernel {
	t.Helper()
	k, err := openStore(t).Ensure(t.Context(), flavour, os.Stderr)
	if err != nil {
		t.Fatal(err)
	}
	return k
}

// run boots g and fails the test unless the guest switches itself off after
// having told an exit status.
func (g guest) run(t *testing.T) outcome {
	t.Helper()
	o, err := g.boot(t)
	if err != nil {
		t.Fatalf("run: %v\nconsole:\n%s", err, tail(o.console))
	}
	if o.End != machine.PowerOff || !o.told {
		t.Fatalf("machine ended with %v at RIP %#x, exit status known: %v\nstdout:\n%s\nstderr:\n%s\nconsole:\n%s",
			o.End, o.RIP, o.told, tail(o.stdout), tail(o.stderr), tail(o.console))
	}
	for _, bad := range []string{"WARNING:", "BUG:", "Oops", "unchecked MSR access", "soft lockup", "self-detected stall", "detected stalls"} {
		if strings.Contains(o.console, bad) {
			t.Errorf("the kernel complains (%s):\n%s", bad, tail(o.console))
		}
	}
	return o
}

// boot boots g and runs it to whatever end. err is that of the run.
func (g guest) boot(t *testing.T) (o outcome, err error) {
	t.Helper()
	if g.flavour == "" {
		g.flavour = kernelstore.Cloud
	}
	if g.memory == 0 {
		g.memory = 512 << 20
	}
	if g.cmdline == "" {
		g.cmdline = defaults
	}
	if g.engine == "" {
		g.engine = machine.Engine(os.Getenv("RING3_TEST_ENGINE"))
	}
	if g.timeout == 0 {
		g.timeout = 2 * time.Minute
	}
	k := kernel(t, g.flavour)
	opt := initramfs.Options{BusyBox: busybox, Files: g.files, Job: &initramfs.Job{Args: g.args}}
	if len(g.disks) > 0 {
		var err error
		if opt.Modules, err = initramfs.DiskModules(k.Modules); err != nil {
			t.Fatal(err)
		}
	}
	shares := g.share(t, &opt, k)
	if g.vsock != nil {
		g.modules = append(g.modules, "virtio_pci", "vmw_vsock_virtio_transport")
	}
	more, err := kmod.Find(k.Modules, g.modules...)
	if err != nil {
		t.Fatal(err)
	}
	opt.Modules = kmod.Join(opt.Modules, more)
	if g.net != nil {
		if err := opt.AddNetwork(k.Modules); err != nil {
			t.Fatal(err)
		}
	}
	initrd, err := initramfs.Build(t.Context(), opt)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), g.timeout)
	defer cancel()
	var stdout, stderr, console safeBuffer
	ctl := &later{}
	m, err := machine.New(machine.Config{
		Kernel: k.Image, InitrdData: initrd, CmdLine: g.cmdline, Memory: g.memory, CPUs: g.cpus,
		Cache:  store.Cache(),
		Serial: [4]io.Writer{&console, &stdout, &stderr, ctl},
		Disks:  g.disks,
		Shares: shares,
		Vsock:  g.vsock,
		Net:    g.net,
		Timed:  true,
		Engine: g.engine,
		Verify: g.verify,
	})
	if err != nil {
		t.Fatal(err)
	}
	host := guestjob.New(guestjob.Config{Stdin: bytes.NewReader(g.stdin),
		JobIn: m.SerialWriter(1), Control: m.SerialWriter(3)})
	ctl.set(host)
	hostCtx, stopHost := context.WithCancel(ctx)
	hostDone := make(chan struct{})
	go func() { defer close(hostDone); host.Run(hostCtx) }()
	if g.during != nil {
		stdout.when(g.duringAt, func() { g.during(m) })
	}
	r, err := m.Run(ctx)
	stopHost()
	var table strings.Builder
	serr := m.WriteStats(&table)
	cerr := m.Close()
	<-hostDone
	o = outcome{Result: r, table: table.String(), stdout: stdout.String(), stderr: stderr.String(), console: console.String()}
	o.status, o.told = host.Status()
	if d, ok := errors.AsType[*vcpu.Difference](err); ok {
		t.Log(d.Report())
	}
	if cerr != nil || serr != nil {
		t.Fatalf("run: %v, close: %v, stats: %v\nconsole:\n%s", err, cerr, serr, tail(o.console))
	}
	return o, err
}

// must fails the test unless the command succeeded.
func (o outcome) must(t *testing.T) outcome {
	t.Helper()
	if o.status != 0 {
		t.Errorf("exit status %d\nstdout:\n%s\nstderr:\n%s\nconsole:\n%s", o.status, tail(o.stdout), tail(o.stderr), tail(o.console))
	}
	return o
}

func tail(s string) string {
	lines := strings.Split(s, "\n")
	return strings.Join(lines[max(0, len(lines)-60):], "\n")
}

// dynamic builds ../guest/NAME.c against the host's shared libraries and
// returns it with its dynamic linker and libraries.
func dynamic(t *testing.T, name string, flags ...string) []initramfs.File {
	t.Helper()
	out := filepath.Join(t.TempDir(), name)
	args := append([]string{"-O1", "-pthread", "-o", out, filepath.Join("..", "guest", name+".c")}, flags...)
	if b, err := exec.Command("gcc", args...).CombinedOutput(); err != nil {
		t.Fatalf("gcc %s: %v\n%s", strings.Join(args, " "), err, b)
	}
	ldd, err := exec.Command("ldd", out).Output()
	if err != nil {
		t.Fatalf("ldd: %v", err)
	}
	paths := map[string]string{"bin/" + name: out}
	for _, word := range strings.Fields(string(ldd)) {
		if strings.HasPrefix(word, "/") {
			paths[strings.TrimPrefix(word, "/")] = word
		}
	}
	var files []initramfs.File
	for at, from := range paths {
		data, err := os.ReadFile(from)
		if err != nil {
			t.Fatal(err)
		}
		files = append(files, initramfs.File{Path: at, Mode: 0o755, Data: data})
	}
	return files
}

// compile builds ../guest/NAME.c with gcc and runs it natively, as a control,
// unless native is false.
func compile(t *testing.T, name string, native bool, flags ...string) initramfs.File {
	t.Helper()
	out := filepath.Join(t.TempDir(), name)
	args := append([]string{"-O1", "-static", "-pthread", "-o", out, filepath.Join("..", "guest", name+".c")}, flags...)
	if b, err := exec.Command("gcc", args...).CombinedOutput(); err != nil {
		t.Fatalf("gcc %s: %v\n%s", strings.Join(args, " "), err, b)
	}
	if native {
		if b, err := exec.Command(out).CombinedOutput(); err != nil {
			t.Fatalf("%s fails natively: %v\n%s", name, err, b)
		}
	}
	data, err := os.ReadFile(out)
	if err != nil {
		t.Fatal(err)
	}
	return initramfs.File{Path: "bin/" + name, Mode: 0o755, Data: data}
}

// safeBuffer is a bytes.Buffer for two goroutines.
type safeBuffer struct {
	mu   sync.Mutex
	b    bytes.Buffer
	at   string
	then func() // to be called, once, when there is at
}

// when has fn called, on a goroutine, when there is s.
func (b *safeBuffer) when(s string, fn func()) {
	b.mu.Lock()
	b.at, b.then = s, fn
	b.mu.Unlock()
	b.Write(nil)
}

func (b *safeBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	n, err := b.b.Write(p)
	if b.then != nil && strings.Contains(b.b.String(), b.at) {
		go b.then()
		b.then = nil
	}
	return n, err
}

func (b *safeBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.String()
}

// later passes writes on to a writer that is known later.
type later struct {
	mu sync.Mutex
	w  io.Writer
}

func (l *later) set(w io.Writer) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.w = w
}

func (l *later) Write(p []byte) (int, error) {
	l.mu.Lock()
	w := l.w
	l.mu.Unlock()
	if w == nil {
		return len(p), nil
	}
	return w.Write(p)
}
