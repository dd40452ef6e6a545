package vsock

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"ring3/internal/virtio"
	"ring3/internal/virtio/virtiotest"
)

const (
	guestCID = 77
	bufferAt = 0x200000
	bufferOf = 4096
	buffers  = 16
)

// guest is a driver of a socket device.
type guest struct {
	*virtiotest.Driver
	t    testing.TB
	dev  *Device
	path string
}

func newGuest(t testing.TB) *guest {
	t.Helper()
	g := &guest{t: t, path: filepath.Join(t.TempDir(), "v.sock")}
	g.Driver = virtiotest.New(t, func(p virtio.Platform) virtio.Device {
		dev, err := New(p, Config{CID: guestCID, Path: g.path})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			if err := dev.Close(); err != nil {
				t.Error(err)
			}
		})
		g.dev = dev
		return dev
	})
	g.start()
	return g
}

// start resets the device and gives it buffers.
func (g *guest) start() {
	g.Start(g.t, virtiotest.Version1)
	for i := range uint16(buffers) {
		g.offer(i)
	}
}

func (g *guest) offer(i uint16) {
	g.Desc(queueReceive, i, bufferAt+bufferOf*uint64(i), bufferOf, virtiotest.Write, 0)
	g.Offer(queueReceive, i)
	g.Notify(queueReceive)
}

// send sends a packet, from port 1000 of the guest unless h says otherwise.
func (g *guest) send(h header, data []byte) {
	g.t.Helper()
	if h.srcCID == 0 {
		h.srcCID, h.dstCID, h.kind = guestCID, HostCID, typeStream
	}
	if h.srcPort == 0 {
		h.srcPort = 1000
	}
	if h.bufAlloc == 0 {
		h.bufAlloc = 64 << 10
	}
	if h.size == 0 {
		h.size = uint32(len(data))
	}
	g.Request(g.t, queueTransmit, append(h.bytes(), data...), 0, 1<<20)
}

// receive is the next packet.
func (g *guest) receive() (header, []byte) {
	g.t.Helper()
	i, n := g.Take(g.t, queueReceive)
	b := make([]byte, n)
	if err := g.Mem.ReadAt(b, bufferAt+bufferOf*uint64(i)); err != nil || n < headerSize {
		g.t.Fatalf("a packet of %d bytes: %v", n, err)
	}
	h := readHeader(virtio.Buffers{{Data: b}})
	g.offer(uint16(i))
	if int(h.size) != len(b)-headerSize {
		g.t.Fatalf("%d bytes of data, the header says %d", len(b)-headerSize, h.size)
	}
	return h, b[headerSize:]
}

// expect takes a packet and checks what it is.
func (g *guest) expect(op uint16, guestPort, hostPort uint32) (header, []byte) {
	g.t.Helper()
	h, data := g.receive()
	if h.op != op || h.srcPort != hostPort || h.dstPort != guestPort || h.srcCID != HostCID || h.dstCID != guestCID || h.kind != typeStream {
		g.t.Fatalf("got %+v, want operation %d from port %d to %d", h, op, hostPort, guestPort)
	}
	return h, data
}

// fromHost is a connection of the host to port 5 of the guest.
func (g *guest) fromHost() (s *net.UnixConn, port uint32) {
	g.t.Helper()
	s = g.call("CONNECT 5\n")
	h, _ := g.receive()
	if h.op != opRequest || h.dstPort != 5 || h.srcPort < firstPort {
		g.t.Fatalf("got %+v, want a request for port 5", h)
	}
	g.send(header{op: opResponse, srcPort: 5, dstPort: h.srcPort}, nil)
	want := fmt.Sprintf("OK %d\n", h.srcPort)
	b := make([]byte, len(want))
	if _, err := io.ReadFull(s, b); err != nil || string(b) != want {
		g.t.Fatalf("read %q %v, want %q", b, err, want)
	}
	return s, h.srcPort
}

// call connects to the device and says something.
func (g *guest) call(s string) *net.UnixConn {
	g.t.Helper()
	c, err := net.Dial("unix", g.path)
	if err != nil {
		g.t.Fatal(err)
	}
	g.t.Cleanup(func() { c.Close() })
	c.SetDeadline(time.Now().Add(time.Minute))
	io.WriteString(c, s)
	return c.(*net.UnixConn)
}

// toHost is a connection of the guest's port 1000 to port 80 of the host.
func (g *guest) toHost() *net.UnixConn {
	g.t.Helper()
	l, err := net.Listen("unix", g.path+"_80")
	if err != nil {
		g.t.Fatal(err)
	}
	defer l.Close()
	g.send(header{op: opRequest, dstPort: 80}, nil)
	s, err := l.Accept()
	if err != nil {
		g.t.Fatal(err)
	}
	g.t.Cleanup(func() { s.Close() })
	s.SetDeadline(time.Now().Add(time.Minute))
	g.expect(opResponse, 1000, 80)
	return s.(*net.UnixConn)
}

func (g *guest) conns() int {
	g.dev.mu.Lock()
	defer g.dev.mu.Unlock()
	return len(g.dev.conns)
}

func TestConfiguration(t *testing.T) {
	g := newGuest(t)
	if cid := g.DeviceConfig(0, 8); cid != guestCID {
		t.Errorf("CID %d", cid)
	}
	if st, err := os.Stat(g.path); err != nil || st.Mode().Perm() != 0o600 {
		t.Errorf("the socket: %v %v", st.Mode(), err)
	}
}

func TestFromHost(t *testing.T) {
	g := newGuest(t)
	s, port := g.fromHost()
	io.WriteString(s, "to the guest")
	if _, data := g.expect(opData, 5, port); string(data) != "to the guest" {
		t.Errorf("the guest got %q", data)
	}
	g.send(header{op: opData, srcPort: 5, dstPort: port}, []byte("to the host"))
	b := make([]byte, 11)
	if _, err := io.ReadFull(s, b); err != nil || string(b) != "to the host" {
		t.Errorf("the host got %q: %v", b, err)
	}
	// The guest is done, the host is not.
	g.send(header{op: opShutdown, srcPort: 5, dstPort: port, flags: shutdownSend}, nil)
	if n, err := s.Read(b); n != 0 || err != io.EOF {
		t.Errorf("read %d %v after the guest's end", n, err)
	}
	io.WriteString(s, "more")
	if _, data := g.expect(opData, 5, port); string(data) != "more" {
		t.Errorf("the guest got %q", data)
	}
	s.Close()
	if h, _ := g.expect(opShutdown, 5, port); h.flags != shutdownSend {
		t.Errorf("flags %#x", h.flags)
	}
	g.expect(opReset, 5, port)
	if n := g.conns(); n != 0 {
		t.Errorf("%d connections are left", n)
	}
}

func TestToHost(t *testing.T) {
	g := newGuest(t)
	s := g.toHost()
	g.send(header{op: opData, dstPort: 80}, []byte("last words"))
	g.send(header{op: opShutdown, dstPort: 80, flags: shutdownSend | shutdownReceive}, nil)
	if b, err := io.ReadAll(s); err != nil || string(b) != "last words" {
		t.Errorf("the host got %q: %v", b, err)
	}
	g.expect(opReset, 1000, 80)
}

func TestNobodyListens(t *testing.T) {
	g := newGuest(t)
	g.send(header{op: opRequest, dstPort: 80}, nil)
	g.expect(opReset, 1000, 80)
	s := g.call("CONNECT 5\n")
	h, _ := g.receive()
	g.send(header{op: opReset, srcPort: 5, dstPort: h.srcPort}, nil)
	if b, err := io.ReadAll(s); err != nil || len(b) != 0 {
		t.Errorf("the host got %q: %v", b, err)
	}
}

func TestBadCalls(t *testing.T) {
	g := newGuest(t)
	for _, line := range []string{"\n", "CONNECT\n", "CONNECT x\n", "CONNECT 4294967295\n", "CONNECT 4294967296\n", "connect 5\n", strings.Repeat("C", 1000)} {
		s := g.call(line)
		if b, _ := io.ReadAll(s); len(b) != 0 {
			t.Errorf("%.20q: the host got %q", line, b)
		}
	}
	if n := g.conns(); n != 0 {
		t.Errorf("%d connections", n)
	}
}

// Data flows only as far as there is credit, in both directions, and all of it
// arrives.
func TestCredit(t *testing.T) {
	g := newGuest(t)
	s, port := g.fromHost()
	sent := bytes.Repeat([]byte("0123456789abcdef"), 1000)
	go s.Write(sent)
	var got []byte
	for fwd := uint32(0); len(got) < len(sent); fwd = uint32(len(got)) {
		g.send(header{op: opCreditUpdate, srcPort: 5, dstPort: port, bufAlloc: 1500, fwdCnt: fwd}, nil)
		for uint32(len(got))-fwd < 1500 && len(got) < len(sent) {
			_, data := g.expect(opData, 5, port)
			got = append(got, data...)
		}
		if n := uint32(len(got)) - fwd; n > 1500 {
			t.Fatalf("%d bytes for a credit of 1500", n)
		}
	}
	if !bytes.Equal(got, sent) {
		t.Error("the guest got something else")
	}

	// To a host that does not read, until the credit is used up; then it reads.
	block := bytes.Repeat([]byte("x"), 32<<10)
	room, total := uint32(bufAlloc), 0
	for ; room >= uint32(len(block)); total += len(block) {
		g.send(header{op: opData, srcPort: 5, dstPort: port, bufAlloc: 1 << 20, fwdCnt: uint32(len(got))}, block)
		room -= uint32(len(block))
	}
	read := make(chan int)
	go func() {
		n, _ := io.Copy(io.Discard, s)
		read <- int(n)
	}()
	for fwd := uint32(0); int(fwd) < total/2; {
		h, _ := g.expect(opCreditUpdate, 5, port)
		fwd = h.fwdCnt
	}
	g.send(header{op: opShutdown, srcPort: 5, dstPort: port, flags: shutdownSend}, nil)
	if n := <-read; n != total {
		t.Errorf("the host got %d bytes, want %d", n, total)
	}
}

// What breaks the rules of a connection ends it; others go on.
func TestHostilePackets(t *testing.T) {
	for name, h := range map[string]header{
		"second request":   {op: opRequest},
		"response":         {op: opResponse},
		"unknown":          {op: 99},
		"operation 0":      {op: 0},
		"too much":         {op: opData, size: bufAlloc + 1},
		"data after end":   {op: opData},
		"foreign source":   {op: opData, srcCID: 9, dstCID: HostCID, kind: typeStream},
		"foreign target":   {op: opData, srcCID: guestCID, dstCID: 1 << 40, kind: typeStream},
		"datagram":         {op: opRequest, srcCID: guestCID, dstCID: HostCID, kind: 3},
		"no connection":    {op: opData, srcPort: 2222},
		"credit of nobody": {op: opCreditRequest, srcPort: 2222},
	} {
		t.Run(name, func(t *testing.T) {
			g := newGuest(t)
			other, port := g.fromHost()
			g.toHost()
			if name == "data after end" {
				g.send(header{op: opShutdown, dstPort: 80, flags: shutdownSend}, nil)
			}
			h.dstPort = 80
			g.send(h, make([]byte, h.size))
			if got, _ := g.receive(); got.op != opReset {
				t.Errorf("got %+v, want a reset", got)
			}
			io.WriteString(other, "alive")
			if _, data := g.expect(opData, 5, port); string(data) != "alive" {
				t.Errorf("got %q", data)
			}
			if g.Get(virtiotest.Status, 1)&virtiotest.NeedsReset != 0 {
				t.Error("the device was stopped")
			}
		})
	}
}

// What breaks the rules of the device stops it until it is reset.
func TestBrokenDriver(t *testing.T) {
	for name, spoil := range map[string]func(g *guest){
		"no header":      func(g *guest) { g.Desc(1, 0, 0x80000, 43, 0, 0) },
		"a lie":          func(g *guest) { g.Mem.WriteAt((&header{size: 1}).bytes(), 0x80000); g.Desc(1, 0, 0x80000, 44, 0, 0) },
		"to be written":  func(g *guest) { g.Desc(1, 0, 0x80000, 100, virtiotest.Write, 0) },
		"outside memory": func(g *guest) { g.Desc(1, 0, 1<<40, 100, 0, 0) },
	} {
		t.Run(name, func(t *testing.T) {
			g := newGuest(t)
			s, _ := g.fromHost()
			spoil(g)
			g.Offer(1, 0)
			g.Notify(1)
			if g.Get(virtiotest.Status, 1)&virtiotest.NeedsReset == 0 {
				t.Error("the device goes on")
			}
			g.start()
			if b, err := io.ReadAll(s); len(b) > 0 || err != nil && !errors.Is(err, net.ErrClosed) {
				t.Errorf("a connection of before: %q %v", b, err)
			}
			g.fromHost()
		})
	}
	g := newGuest(t)
	g.Desc(0, 0, 0x80000, headerSize-1, virtiotest.Write, 0)
	g.take0()
	g.Offer(0, 0)
	g.Notify(0)
	if g.Get(virtiotest.Status, 1)&virtiotest.NeedsReset == 0 {
		t.Error("a receive buffer that is too small is taken")
	}
}

// take0 frees a descriptor of the receive queue.
func (g *guest) take0() {
	g.send(header{op: opData}, nil)
	g.Take(g.t, queueReceive)
}

// A guest cannot make more connections, nor have more resets wait, than is
// bounded.
func TestFlood(t *testing.T) {
	g := newGuest(t)
	l, err := net.Listen("unix", g.path+"_80")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	go func() {
		for {
			s, err := l.Accept()
			if err != nil {
				return
			}
			defer s.Close()
		}
	}()
	for i := range uint32(2 * MaxConns) {
		g.send(header{op: opRequest, dstPort: 80, srcPort: 10000 + i}, nil)
	}
	for range 2 * maxResets {
		g.send(header{op: opData, dstPort: 81}, nil)
	}
	g.dev.mu.Lock()
	conns, resets := len(g.dev.conns), len(g.dev.resets)
	g.dev.mu.Unlock()
	if conns > MaxConns || resets > maxResets {
		t.Errorf("%d connections, %d resets", conns, resets)
	}
	s := g.call("CONNECT 5\n")
	if b, _ := io.ReadAll(s); len(b) != 0 {
		t.Errorf("one more from the host: %q", b)
	}
}

func TestNoDriver(t *testing.T) {
	g := newGuest(t)
	g.Set(virtiotest.Status, 1, 0)
	if st := g.Get(virtiotest.Status, 1); st != 0 {
		t.Fatalf("status %#x: a reset waits for buffers", st)
	}
	if b, err := io.ReadAll(g.call("CONNECT 5\n")); err != nil || len(b) != 0 {
		t.Errorf("the host got %q: %v", b, err)
	}
}

func TestPath(t *testing.T) {
	g := newGuest(t)
	for path, want := range map[string]string{
		g.path:                              "something is there already",
		filepath.Join(g.path, "x"):          "not a directory",
		strings.Repeat("x", 100):            "too long",
		filepath.Join(t.TempDir(), "no/no"): "no such file",
	} {
		_, err := New(virtio.Platform{}, Config{CID: 3, Path: path})
		if err == nil || !strings.Contains(err.Error(), want) || !strings.HasPrefix(err.Error(), path+": ") {
			t.Errorf("%s: error %v, want %q", path, err, want)
		}
	}
	if _, err := New(virtio.Platform{}, Config{CID: 2, Path: "s"}); err == nil || !strings.Contains(err.Error(), "CID 2") {
		t.Errorf("CID 2: %v", err)
	}
	// One that a killed monitor has left.
	left := filepath.Join(t.TempDir(), "s")
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: left, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	l.SetUnlinkOnClose(false)
	l.Close()
	dev, err := New(virtio.Platform{}, Config{CID: 3, Path: left})
	if err != nil {
		t.Fatal(err)
	}
	if err := dev.Close(); err != nil {
		t.Error(err)
	}
	if _, err := os.Lstat(left); !os.IsNotExist(err) {
		t.Errorf("the socket is left: %v", err)
	}
}

// FuzzDriver: a driver that does anything, with a connection open, and packets
// that may make sense.
func FuzzDriver(f *testing.F) {
	f.Add([]byte{0x40, 1, 0, 1}, []byte{0, 0, 8, 0, 0, 0, 0, 0, 64, 0, 0, 0, 2, 0, 0, 0}, []byte{opData, 3, opShutdown, 2, opReset, 0})
	f.Add([]byte{0x60, 1, 44, 2}, []byte{}, []byte{opCreditRequest, 0, opData, 255, opShutdown, 1, opRequest, 0, opResponse, 0})
	f.Fuzz(func(t *testing.T, ops, memory, packets []byte) {
		g := newGuest(t)
		_, port := g.fromHost()
		for ; len(packets) >= 2; packets = packets[2:] {
			h := header{op: uint16(packets[0] & 15), srcPort: 5, dstPort: port, flags: uint32(packets[1]), bufAlloc: uint32(packets[1]) << 8, fwdCnt: uint32(packets[0]) << 8}
			if packets[0]&0x80 != 0 {
				h.dstPort++
			}
			g.send(h, make([]byte, packets[1]))
		}
		virtiotest.Play(g.Driver, ops, memory)
		g.start()
		s, port := g.fromHost()
		fmt.Fprintln(s, "still here")
		if _, data := g.expect(opData, 5, port); string(data) != "still here\n" {
			t.Errorf("after a reset, %q", data)
		}
	})
}

// FuzzConnect: what a program on the host may say.
func FuzzConnect(f *testing.F) {
	f.Add([]byte("CONNECT 5\nrest"))
	f.Fuzz(func(t *testing.T, in []byte) {
		a, b := net.Pipe()
		go func() { b.Write(in); b.Close() }()
		port, err := readConnect(a)
		a.Close()
		line, _, _ := bufio.NewReader(bytes.NewReader(in)).ReadLine()
		var want uint32
		if _, serr := fmt.Sscanf(string(line), "CONNECT %d", &want); err == nil && (serr != nil || port != want) {
			t.Errorf("%q is port %d", in, port)
		}
	})
}
