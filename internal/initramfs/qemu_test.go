//go:build qemu

// The userland under an emulator, to try it apart from ring3:
//
//	go test -tags qemu -run QEMU ./internal/initramfs

package initramfs

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"math/rand"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"ring3/internal/initramfs/guestjob"
	"ring3/internal/kernelstore"
)

// guest is a machine under QEMU, its four serial ports connected.
type guest struct {
	console, stdout, stderr *buffer
	port                    [4]net.Conn
	host                    *guestjob.Host
	done                    chan error
}

type buffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (b *buffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.Write(p)
}

func (b *buffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.String()
}

func start(t *testing.T, o Options, stdin io.Reader) *guest {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 3*time.Minute)
	t.Cleanup(cancel)
	s, err := kernelstore.Open("")
	if err != nil {
		t.Fatal(err)
	}
	k, err := s.Ensure(ctx, kernelstore.Cloud, os.Stderr)
	if err != nil {
		t.Fatal(err)
	}
	if o.BusyBox, err = s.FetchBusyBox(ctx, os.Stderr); err != nil {
		t.Fatal(err)
	}
	b, err := Build(ctx, o)
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	initrd := filepath.Join(dir, "initrd")
	if err := os.WriteFile(initrd, b, 0o644); err != nil {
		t.Fatal(err)
	}
	args := []string{"-display", "none", "-no-reboot", "-m", "256", "-kernel", k.Image, "-initrd", initrd,
		"-append", "console=ttyS0 quiet mitigations=off cryptomgr.notests no_timer_check panic=-1", "-nodefaults"}
	g := &guest{console: new(buffer), stdout: new(buffer), stderr: new(buffer), done: make(chan error, 1)}
	var ls [4]net.Listener
	for i := range ls {
		path := filepath.Join(dir, fmt.Sprint("port", i))
		if ls[i], err = net.Listen("unix", path); err != nil {
			t.Fatal(err)
		}
		args = append(args, "-chardev", fmt.Sprintf("socket,id=p%d,path=%s", i, path),
			"-device", fmt.Sprintf("isa-serial,chardev=p%d,index=%d", i, i))
	}
	cmd := exec.CommandContext(ctx, "qemu-system-x86_64", args...)
	cmd.Stderr = os.Stderr
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	for i, l := range ls {
		if g.port[i], err = l.Accept(); err != nil {
			t.Fatal(err)
		}
		l.Close()
	}
	g.host = guestjob.New(guestjob.Config{Stdin: stdin, JobIn: g.port[1], Control: g.port[3]})
	hostCtx, cancelHost := context.WithCancel(ctx)
	var wg sync.WaitGroup
	for i, w := range []io.Writer{g.console, g.stdout, g.stderr, g.host} {
		wg.Go(func() { io.Copy(w, g.port[i]) })
	}
	wg.Go(func() {
		if err := g.host.Run(hostCtx); err != nil {
			t.Log("host:", err)
		}
	})
	go func() {
		err := cmd.Wait()
		cancelHost()
		wg.Wait()
		g.done <- err
	}()
	return g
}

// finish waits for the machine to end.
func (g *guest) finish(t *testing.T, wantStatus int) {
	t.Helper()
	err := <-g.done
	st, ok := g.host.Status()
	if err != nil || !ok || st != wantStatus {
		t.Errorf("qemu: %v, status %d (%v), want %d\nconsole: %s\nstdout: %.2000q\nstderr: %.2000q", err, st, ok, wantStatus,
			g.console, g.stdout, g.stderr)
	}
}

func sh(script string) *Job { return &Job{Args: []string{"sh", "-c", script}} }

func TestQEMUPipes(t *testing.T) {
	start0 := time.Now()
	g := start(t, Options{Job: &Job{Args: []string{"sh", "-c", `echo "out $A $1"; echo err >&2; test -t 0 || echo notty; pwd; cat | md5sum; exit 7`, "x", `it's "q" $x`},
		Env: []string{"A=b c"}, Dir: "/tmp"}}, strings.NewReader("hello"))
	g.finish(t, 7)
	want := "out b c it's \"q\" $x\nnotty\n/tmp\n5d41402abc4b2a76b9719d911017c592  -\n"
	if g.stdout.String() != want || g.stderr.String() != "err\n" {
		t.Errorf("stdout %q, stderr %q", g.stdout, g.stderr)
	}
	t.Log(time.Since(start0), g.console)
}

func TestQEMUBinary(t *testing.T) {
	b := make([]byte, 200_000)
	rand.New(rand.NewSource(1)).Read(b)
	g := start(t, Options{Job: &Job{Args: []string{"cat"}}}, bytes.NewReader(b))
	g.finish(t, 0)
	if g.stdout.String() != string(b) {
		t.Errorf("%d bytes came back, of %d", len(g.stdout.String()), len(b))
	}
}

func TestQEMUEnds(t *testing.T) {
	for _, c := range []struct {
		script string
		status int
		out    string
	}{
		{"kill -9 $$", 137, ""},
		{"sleep 1000 & echo bg", 0, "bg\n"},
		{"exec nosuchprogram", 127, ""},
		{"head -c 3; echo", 0, "yyy\n"},
		{"yes | head -c 300000 | md5sum; yes | head -c 100000", 0, ""},
	} {
		g := start(t, Options{Job: sh(c.script)}, strings.NewReader(strings.Repeat("y", 100_000)))
		g.finish(t, c.status)
		if c.out != "" && g.stdout.String() != c.out {
			t.Errorf("%s: stdout %q, want %q", c.script, g.stdout, c.out)
		}
		if strings.HasPrefix(c.script, "yes") && len(g.stdout.String()) != 36+100000 {
			t.Errorf("%s: %d bytes", c.script, len(g.stdout.String()))
		}
	}
}

func TestQEMUSignal(t *testing.T) {
	g := start(t, Options{Job: sh("trap 'echo got; exit 5' INT; echo ready; while :; do sleep 0.1; done")}, nil)
	waitFor(t, g.stdout, "ready")
	g.host.Signal("INT")
	g.finish(t, 5)
}

func waitFor(t *testing.T, b *buffer, s string) {
	t.Helper()
	for i := 0; !strings.Contains(b.String(), s); i++ {
		if i == 600 {
			t.Fatalf("no %q in %q", s, b)
		}
		time.Sleep(100 * time.Millisecond)
	}
}

func TestQEMUTTY(t *testing.T) {
	g := start(t, Options{Rows: 30, Cols: 90, Term: "xterm", Job: &Job{TTY: true, Args: []string{"sh"}}}, nil)
	waitFor(t, g.stdout, "# ")
	io.WriteString(g.port[1], "tty; stty size; echo $TERM\n")
	waitFor(t, g.stdout, "/dev/ttyS1\r\n30 90\r\nxterm\r\n")
	g.host.Resize(40, 100)
	io.WriteString(g.port[1], "sleep 1; stty size\n")
	waitFor(t, g.stdout, "40 100\r\n")
	io.WriteString(g.port[1], "sleep 1000\n")
	time.Sleep(time.Second)
	io.WriteString(g.port[1], "\x03")
	io.WriteString(g.port[1], "echo st=$?\n")
	waitFor(t, g.stdout, "st=130")
	io.WriteString(g.port[1], "exit 9\n")
	g.finish(t, 9)
}

func TestQEMUShell(t *testing.T) {
	g := start(t, Options{}, nil)
	waitFor(t, g.console, "# ")
	t.Logf("%s", g.console)
	io.WriteString(g.port[0], "tty; id; mount; ps; ls -l /dev/std* /dev/fd /dev/tty; ifconfig lo; df\n")
	io.WriteString(g.port[0], "sleep 1000\n")
	time.Sleep(2 * time.Second)
	io.WriteString(g.port[0], "\x03")
	io.WriteString(g.port[0], "echo st=$?\n")
	waitFor(t, g.console, "st=130")
	g.host.Resize(40, 100)
	io.WriteString(g.port[0], "sleep 1; stty size\n")
	waitFor(t, g.console, "40 100\r\n")
	io.WriteString(g.port[0], "poweroff\n")
	err := <-g.done
	t.Logf("%v %s", err, g.console)
}

// TestQEMUScript runs the script in $RING3_SCRIPT, if there is one, as a job.
func TestQEMUScript(t *testing.T) {
	path := os.Getenv("RING3_SCRIPT")
	if path == "" {
		path = "rootfs/etc/profile"
	}
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	g := start(t, Options{Files: []File{{"/root/script", 0o755, b}}, Job: &Job{Args: []string{"sh", "./script"}}}, nil)
	g.finish(t, 0)
	t.Logf("%s%s", g.stdout, g.stderr)
}

// TestQEMUUnread: a job that reads nothing of a long input ends all the same.
func TestQEMUUnread(t *testing.T) {
	g := start(t, Options{Job: sh("sleep 2; echo done")}, bytes.NewReader(make([]byte, 10<<20)))
	g.finish(t, 0)
	if g.stdout.String() != "done\n" {
		t.Errorf("%q", g.stdout)
	}
}
