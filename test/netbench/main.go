// Netbench measures the network of a guest beside that of QEMU's emulator: same
// kernel, same userland, virtio-net and a user network both.
//
//	go run ./test/netbench [-rounds N] [-systems LIST] [-rows LIST]
//
// The guest's clock counts, from connecting to the last byte. Results are
// medians over rounds.
package main

import (
	"bufio"
	"bytes"
	"context"
	"embed"
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"ring3/internal/initramfs"
	"ring3/internal/kernelstore"
)

//go:embed guest/traffic.c
var source embed.FS

// row is one thing that is measured.
type row struct {
	kind   string // of guest/traffic.c
	amount int
	title  string
	show   func(seconds float64) string
}

func rate(mib int) func(float64) string {
	return func(s float64) string { return fmt.Sprintf("%.0f MB/s", float64(mib<<20)/1e6/s) }
}

func each(n int) func(float64) string {
	return func(s float64) string { return fmt.Sprintf("%.0f µs", s*1e6/float64(n)) }
}

var rows = []row{
	{"down", 256, "256 MiB from the host", rate(256)},
	{"up", 256, "256 MiB to the host", rate(256)},
	{"small", 8, "8 MiB to the host, 1 KiB at a time", rate(8)},
	{"echo", 2000, "64 bytes there and back", each(2000)},
	{"open", 300, "connect, 64 bytes there and back, close", each(300)},
}

const (
	memory  = "512M"
	cmdline = "console=ttyS0 panic=-1 mitigations=off cryptomgr.notests"
)

func main() {
	rounds := flag.Int("rounds", 3, "how many times each system runs")
	systems := flag.String("systems", "ring3,tcg", "systems to run")
	only := flag.String("rows", "", "rows to measure (default: all)")
	ring3 := flag.String("ring3", "bin/ring3", "ring3's `program`")
	timeout := flag.Duration("timeout", 5*time.Minute, "how long one machine may take")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, *rounds, strings.Split(*systems, ","), *only, *ring3, *timeout); err != nil {
		fmt.Fprintln(os.Stderr, "netbench:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, rounds int, systems []string, only, ring3 string, timeout time.Duration) error {
	dir, err := os.MkdirTemp("", "ring3-netbench-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	defer l.Close()
	go serve(l)
	_, port, err := net.SplitHostPort(l.Addr().String())
	if err != nil {
		return err
	}
	chosen := slices.Clone(rows)
	if only != "" {
		want := strings.Split(only, ",")
		chosen = slices.DeleteFunc(chosen, func(r row) bool { return !slices.Contains(want, r.kind) })
	}
	var script strings.Builder
	for _, r := range chosen {
		fmt.Fprintf(&script, "traffic 10.0.2.2 %s %s %d\n", port, r.kind, r.amount)
	}
	p, err := prepare(ctx, dir, script.String())
	if err != nil {
		return err
	}
	p.ring3 = ring3
	times := map[string][]float64{} // by system and kind
	for range rounds {
		for _, s := range systems {
			ctx, cancel := context.WithTimeout(ctx, timeout)
			out, err := p.command(ctx, s)
			cancel()
			if err != nil {
				return fmt.Errorf("%s: %w", s, err)
			}
			for line := range strings.Lines(out) {
				var kind string
				var seconds float64
				if n, _ := fmt.Sscan(line, &kind, &seconds); n == 2 {
					times[s+kind] = append(times[s+kind], seconds)
				}
			}
			fmt.Fprintf(os.Stderr, "%s: %s\n", s, strings.Join(strings.Fields(out), " "))
		}
	}
	fmt.Printf("| | %s |\n|---|%s\n", strings.Join(systems, " | "), strings.Repeat("---|", len(systems)))
	for _, r := range chosen {
		cells := []string{r.title}
		for _, s := range systems {
			t := times[s+r.kind]
			if len(t) == 0 {
				cells = append(cells, "failed")
				continue
			}
			slices.Sort(t)
			cells = append(cells, r.show(t[len(t)/2]))
		}
		fmt.Printf("| %s |\n", strings.Join(cells, " | "))
	}
	return nil
}

// place is what the machines are made of.
type place struct {
	ring3, script, kernel, image, traffic, initrd string
}

// prepare builds the guest's program, and for QEMU the userland that ring3 makes
// itself.
func prepare(ctx context.Context, dir, script string) (p place, err error) {
	p = place{script: script, initrd: filepath.Join(dir, "initrd"), traffic: filepath.Join(dir, "traffic")}
	src, err := source.ReadFile("guest/traffic.c")
	if err != nil {
		return p, err
	}
	gcc := exec.CommandContext(ctx, "gcc", "-O2", "-static", "-x", "c", "-o", p.traffic, "-")
	gcc.Stdin = bytes.NewReader(src)
	if msg, err := gcc.CombinedOutput(); err != nil {
		return p, fmt.Errorf("gcc: %w\n%s", err, msg)
	}
	store, err := kernelstore.Open("")
	if err != nil {
		return p, err
	}
	k, err := store.Ensure(ctx, kernelstore.Cloud, os.Stderr)
	if err != nil {
		return p, err
	}
	p.kernel, p.image = k.Name, k.Image
	busybox, err := store.FetchBusyBox(ctx, os.Stderr)
	if err != nil {
		return p, err
	}
	program, err := os.ReadFile(p.traffic)
	if err != nil {
		return p, err
	}
	o := initramfs.Options{BusyBox: busybox, Job: &initramfs.Job{Args: []string{"sh", "-c", script}},
		Files: []initramfs.File{{Path: "bin/traffic", Mode: 0o755, Data: program}}}
	if err := o.AddNetwork(k.Modules); err != nil {
		return p, err
	}
	cpio, err := initramfs.Build(ctx, o)
	if err != nil {
		return p, err
	}
	return p, os.WriteFile(p.initrd, cpio, 0o600)
}

// command runs the script in a machine and returns what it says.
func (p *place) command(ctx context.Context, system string) (string, error) {
	var cmd *exec.Cmd
	switch system {
	case "ring3":
		cmd = exec.CommandContext(ctx, p.ring3, "run", "--kernel", p.kernel, "--memory", memory, "--net", "user", "--",
			"sh", "-c", "cat >/bin/traffic; chmod +x /bin/traffic; "+p.script)
		f, err := os.Open(p.traffic)
		if err != nil {
			return "", err
		}
		defer f.Close()
		cmd.Stdin = f
	case "tcg":
		// The script's output is that of the second serial port.
		cmd = exec.CommandContext(ctx, "qemu-system-x86_64", "-accel", "tcg", "-smp", "1", "-m", memory, "-nodefaults",
			"-no-reboot", "-display", "none", "-monitor", "none",
			"-serial", "null", "-serial", "stdio", "-serial", "null", "-serial", "null",
			"-netdev", "user,id=n", "-device", "virtio-net-pci,netdev=n",
			"-kernel", p.image, "-initrd", p.initrd, "-append", cmdline)
	default:
		return "", fmt.Errorf("there is no system %q, only ring3 and tcg", system)
	}
	cmd.Stderr = os.Stderr
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGTERM) }
	cmd.WaitDelay = 10 * time.Second
	out, err := cmd.Output()
	return string(out), err
}

// serve is the host's end.
func serve(l net.Listener) {
	for {
		c, err := l.Accept()
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err == nil {
			go answer(c)
		}
	}
}

// answer does what the guest asks for. A failure shows in the guest.
func answer(c net.Conn) {
	defer c.Close()
	r := bufio.NewReaderSize(c, 256<<10)
	var kind string
	var amount int64
	if _, err := fmt.Fscanf(r, "%s %d\n", &kind, &amount); err != nil {
		return
	}
	switch kind {
	case "down":
		for b := make([]byte, 1<<20); amount > 0; amount-- {
			if _, err := c.Write(b); err != nil {
				return
			}
		}
		io.Copy(io.Discard, r) // until the guest has all
	case "up", "small":
		if _, err := io.CopyN(io.Discard, r, amount<<20); err == nil {
			c.Write([]byte{0})
		}
	case "echo":
		io.Copy(c, r)
	}
}
