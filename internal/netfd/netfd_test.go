package netfd

import (
	"bytes"
	"os"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"ring3/internal/virtio"
	vnet "ring3/internal/virtio/net"
)

// pair is a port and the other end of its socket.
func pair(t *testing.T, kind int) (*Port, int) {
	t.Helper()
	fds, err := unix.Socketpair(unix.AF_UNIX, kind|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	p, err := Open(fds[0])
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { p.Close() })
	return p, fds[1]
}

func TestFrames(t *testing.T) {
	for _, kind := range []int{unix.SOCK_SEQPACKET, unix.SOCK_DGRAM} {
		p, other := pair(t, kind)
		p.Send(vnet.Header{}, virtio.Buffers{{Data: []byte("hel")}, {Data: []byte("lo")}})
		b := make([]byte, 100)
		if n, err := unix.Read(other, b); err != nil || string(b[:n]) != "hello" {
			t.Errorf("sent %q, %v", b[:n], err)
		}
		long := bytes.Repeat([]byte{5}, maxFrame)
		go func() {
			unix.Write(other, []byte("one"))
			unix.Write(other, long)
		}()
		var got [][]byte
		for len(got) < 2 {
			f := make([]vnet.Frame, 3)
			n, err := p.Receive(f)
			if err != nil {
				t.Fatal(err)
			}
			for _, x := range f[:n] {
				got = append(got, bytes.Join(x.Parts, nil))
			}
		}
		if string(got[0]) != "one" || !bytes.Equal(got[1], long) {
			t.Errorf("received %q and %d bytes", got[0], len(got[1]))
		}
		unix.Close(other)
	}
}

// TestEnds: the other end goes, or the port is closed while it waits.
func TestEnds(t *testing.T) {
	p, other := pair(t, unix.SOCK_SEQPACKET)
	unix.Close(other)
	if n, err := p.Receive(make([]vnet.Frame, 1)); n != 0 || err == nil {
		t.Errorf("%d frames, %v", n, err)
	}
	p.Send(vnet.Header{}, virtio.Buffers{{Data: []byte("x")}})
	p, other = pair(t, unix.SOCK_DGRAM)
	defer unix.Close(other)
	done := make(chan error)
	go func() {
		_, err := p.Receive(make([]vnet.Frame, 1))
		done <- err
	}()
	if err := p.Close(); err != nil {
		t.Error(err)
	}
	if err := <-done; err == nil {
		t.Error("no error of a closed port")
	}
	if err := p.Close(); err != nil {
		t.Error(err)
	}
}

// TestFull: frames that nobody takes are lost, and nothing waits for them.
func TestFull(t *testing.T) {
	p, other := pair(t, unix.SOCK_SEQPACKET)
	defer unix.Close(other)
	for range 10000 {
		p.Send(vnet.Header{}, virtio.Buffers{{Data: make([]byte, 1500)}})
	}
}

func TestRefused(t *testing.T) {
	stream, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(stream[0])
	defer unix.Close(stream[1])
	null, err := os.Open(os.DevNull)
	if err != nil {
		t.Fatal(err)
	}
	defer null.Close()
	for fd, want := range map[int]string{
		stream[0]:      "stream socket",
		int(null.Fd()): "neither a tap device nor a socket",
		9999:           "no such descriptor",
	} {
		if _, err := Open(fd); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("descriptor %d: %v, want %q", fd, err, want)
		}
	}
}
