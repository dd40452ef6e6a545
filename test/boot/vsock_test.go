package boot

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"net"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"ring3/internal/kernelstore"
	"ring3/internal/machine"
	"ring3/internal/virtio/vsock"
)

// useVsock sends $1 bytes to the host and back, and exchanges as many with it over
// a connection that the host makes.
const useVsock = `
head -c $1 /dev/urandom >/tmp/a
md5sum </tmp/a
vsock connect 80 </tmp/a | md5sum
vsock listen 5 </tmp/a | md5sum
vsock connect 81 </tmp/a >/dev/null && echo FAIL port 81
dmesg | grep -iE 'virtio.*(fail|error)|needs reset' || true
`

// TestVsock: connections in both directions, with data in both at the same time.
func TestVsock(t *testing.T) {
	for name, tt := range map[string]struct {
		guest
		bytes int
	}{
		"cloud":   {guest{}, 16 * mib},
		"generic": {guest{flavour: kernelstore.Generic, cmdline: defaults + " pci=nomsi"}, 4 * mib},
	} {
		t.Run(name, func(t *testing.T) {
			g := tt.guest
			g.vsock = &vsock.Config{CID: 42, Path: filepath.Join(t.TempDir(), "v")}
			g.files = append(g.files, compile(t, "vsock", false))
			g.args = []string{"sh", "-c", useVsock, "sh", fmt.Sprint(tt.bytes)}
			l, err := net.Listen("unix", g.vsock.Path+"_80")
			if err != nil {
				t.Fatal(err)
			}
			defer l.Close()
			go echo(l)
			_, sent := image(t, tt.bytes)
			got := make(chan []byte, 1)
			g.during = func(*machine.Machine) { got <- exchange(t, g.vsock.Path, sent) }
			o := g.run(t).must(t)
			check(t, o.stdout)
			a := <-got
			lines := strings.Fields(strings.ReplaceAll(o.stdout, "-", ""))
			if len(lines) != 3 || lines[0] != lines[1] || lines[2] != sum(sent) || sum(a) != lines[0] || len(a) != tt.bytes {
				t.Errorf("the guest says %q %s; it sent %d bytes with sum %s, and was sent %s", o.stdout, o.stderr, len(a), sum(a), sum(sent))
			}
			if !strings.Contains(o.stderr, "connect: Connection reset by peer") {
				t.Errorf("a port of the host where nobody listens: %s", o.stderr)
			}
		})
	}
}

// echo sends back what comes over one connection.
func echo(l net.Listener) {
	c, err := l.Accept()
	if err != nil {
		return
	}
	defer c.Close()
	io.Copy(c, c)
}

// exchange connects to port 5 of the guest as soon as somebody listens there,
// sends data, and returns what comes.
func exchange(t *testing.T, path string, data []byte) []byte {
	for deadline := time.Now().Add(100 * time.Second); time.Now().Before(deadline); time.Sleep(20 * time.Millisecond) {
		c, err := net.Dial("unix", path)
		if err != nil {
			t.Errorf("socket of the guest: %v", err)
			return nil
		}
		defer c.Close()
		fmt.Fprintln(c, "CONNECT 5")
		r := bufio.NewReader(c)
		if line, err := r.ReadString('\n'); err != nil || !strings.HasPrefix(line, "OK ") {
			continue
		}
		written := make(chan error, 1)
		go func() {
			_, err := c.Write(data)
			c.(*net.UnixConn).CloseWrite()
			written <- err
		}()
		all, err := io.ReadAll(r)
		err = errors.Join(err, <-written)
		if err != nil {
			t.Errorf("with the guest: %v", err)
		}
		return all
	}
	t.Error("nobody listens in the guest")
	return nil
}

// TestPowerButton: an input device of the stock kernel tells of the ACPI power
// button, for whoever minds it.
func TestPowerButton(t *testing.T) {
	g := guest{modules: []string{"button", "evdev"}}
	// An event is 24 bytes: two u64 of time, type u16 (1: key), code u16 (116:
	// power), value u32 (1: pressed).
	g.args = []string{"sh", "-c", "exec 3</dev/input/event0; echo ready; dd bs=24 count=1 <&3 2>/dev/null | tail -c 8 | hexdump -e '4/2 \"%d \"'"}
	g.during = func(m *machine.Machine) { m.PowerButton() }
	g.duringAt = "ready"
	if o := g.run(t).must(t); strings.TrimSpace(o.stdout) != "ready\n1 116 1 0" {
		t.Errorf("the guest says %q %s", o.stdout, o.stderr)
	}
}
