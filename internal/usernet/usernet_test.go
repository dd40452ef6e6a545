package usernet

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"io"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"gvisor.dev/gvisor/pkg/buffer"
	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/adapters/gonet"
	"gvisor.dev/gvisor/pkg/tcpip/header"
	"gvisor.dev/gvisor/pkg/tcpip/link/channel"
	"gvisor.dev/gvisor/pkg/tcpip/link/ethernet"
	"gvisor.dev/gvisor/pkg/tcpip/network/arp"
	"gvisor.dev/gvisor/pkg/tcpip/network/ipv4"
	"gvisor.dev/gvisor/pkg/tcpip/stack"
	"gvisor.dev/gvisor/pkg/tcpip/transport/icmp"
	"gvisor.dev/gvisor/pkg/tcpip/transport/tcp"
	"gvisor.dev/gvisor/pkg/tcpip/transport/udp"

	"ring3/internal/virtio"
	vnet "ring3/internal/virtio/net"
)

const guestMAC = tcpip.LinkAddress("\x52\x54\x00\x12\x34\x56")

// join starts a network with a guest in it: another stack, which is the guest's
// kernel.
func join(t testing.TB, cfg Config) (*Network, *stack.Stack) {
	t.Helper()
	n, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	s := stack.New(stack.Options{
		NetworkProtocols:   []stack.NetworkProtocolFactory{ipv4.NewProtocol, arp.NewProtocol},
		TransportProtocols: []stack.TransportProtocolFactory{tcp.NewProtocol, udp.NewProtocol, icmp.NewProtocol4},
	})
	ch := channel.New(1024, MTU+header.EthernetMinimumSize, guestMAC)
	if err := s.CreateNIC(1, ethernet.New(ch)); err != nil {
		t.Fatal(err)
	}
	if err := s.AddProtocolAddress(1, tcpip.ProtocolAddress{Protocol: ipv4.ProtocolNumber,
		AddressWithPrefix: tcpip.AddressWithPrefix{Address: tcpip.AddrFromSlice(guest.AsSlice()), PrefixLen: 24}},
		stack.AddressProperties{}); err != nil {
		t.Fatal(err)
	}
	local, _ := tcpip.NewSubnet(tcpip.AddrFrom4([4]byte{10, 0, 2, 0}), tcpip.MaskFrom("\xff\xff\xff\x00"))
	s.SetRouteTable([]tcpip.Route{{Destination: local, NIC: 1},
		{Destination: header.IPv4EmptySubnet, Gateway: tcpip.AddrFromSlice(gateway.AsSlice()), NIC: 1}})
	ctx, cancel := context.WithCancel(context.Background())
	var running sync.WaitGroup
	running.Go(func() {
		for p := ch.ReadContext(ctx); p != nil; p = ch.ReadContext(ctx) {
			n.Send(vnet.Header{}, frame(p.ToView().AsSlice()))
			p.DecRef()
		}
	})
	running.Go(func() {
		f := make([]vnet.Frame, 16)
		for {
			k, err := n.Receive(f)
			if err != nil {
				return
			}
			for _, x := range f[:k] {
				if x.Header != (vnet.Header{}) {
					t.Errorf("header %+v for a guest that knows none", x.Header)
				}
				p := stack.NewPacketBuffer(stack.PacketBufferOptions{Payload: buffer.MakeWithData(bytes.Join(x.Parts, nil))})
				x.Release()
				ch.InjectInbound(0, p)
				p.DecRef()
			}
		}
	})
	t.Cleanup(func() {
		n.Close()
		cancel()
		running.Wait()
		s.Destroy()
	})
	return n, s
}

func frame(b []byte) virtio.Buffers { return virtio.Buffers{{Data: b}} }

// dial connects the guest.
func dial(s *stack.Stack, to netip.AddrPort) (*gonet.TCPConn, error) {
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	return gonet.DialContextTCP(ctx, s, endpoint(to.Addr(), to.Port()), ipv4.ProtocolNumber)
}

// gatewayPort is how the guest reaches who listens on the host's loopback.
func gatewayPort(a net.Addr) netip.AddrPort {
	p := netip.MustParseAddrPort(a.String())
	return netip.AddrPortFrom(gateway, p.Port())
}

func listen(t testing.TB, serve func(net.Conn)) net.Listener {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go serve(c)
		}
	}()
	return l
}

// TestTCP sends more than any buffer holds in both directions, and ends one
// after the other.
func TestTCP(t *testing.T) {
	_, s := join(t, Config{})
	l := listen(t, func(c net.Conn) {
		defer c.Close()
		h := sha256.New()
		n, err := io.Copy(h, c) // up to the guest's end
		if err != nil {
			t.Error(err)
		}
		c.Write(h.Sum(nil))
		io.CopyN(c, zeros{}, n)
	})
	c, err := dial(s, gatewayPort(l.Addr()))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	data := bytes.Repeat([]byte("ring3..."), 1<<20)
	if _, err := c.Write(data); err != nil {
		t.Fatal(err)
	}
	c.CloseWrite()
	got, err := io.ReadAll(c)
	if want := sha256.Sum256(data); err != nil || len(got) != len(want)+len(data) || !bytes.HasPrefix(got, want[:]) {
		t.Errorf("%d bytes came back: %v", len(got), err)
	}
}

type zeros struct{}

func (zeros) Read(p []byte) (int, error) { clear(p); return len(p), nil }

func TestRefused(t *testing.T) {
	_, s := join(t, Config{})
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	at := gatewayPort(l.Addr())
	l.Close()
	for _, to := range []netip.AddrPort{at,
		netip.MustParseAddrPort("10.0.2.3:54"), netip.MustParseAddrPort("240.0.0.1:80"), netip.MustParseAddrPort("0.0.0.1:80")} {
		if c, err := dial(s, to); err == nil {
			c.Close()
			t.Errorf("%v answers", to)
		} else if !strings.Contains(err.Error(), "refused") {
			t.Errorf("%v: %v", to, err)
		}
	}
}

// TestReset: the host's end breaks.
func TestReset(t *testing.T) {
	_, s := join(t, Config{})
	l := listen(t, func(c net.Conn) {
		c.(*net.TCPConn).SetLinger(0)
		c.Close()
	})
	c, err := dial(s, gatewayPort(l.Addr()))
	if err != nil {
		return // it may have been faster
	}
	defer c.Close()
	if _, err := io.ReadAll(c); err == nil {
		t.Error("a reset looks like an orderly end")
	}
}

func TestOutside(t *testing.T) {
	for a, want := range map[string]string{
		"10.0.2.2": "127.0.0.1", "1.2.3.4": "1.2.3.4", "192.168.1.1": "192.168.1.1", "10.0.3.1": "10.0.3.1", "169.254.1.1": "169.254.1.1",
		"10.0.2.3": "", "10.0.2.15": "", "10.0.2.255": "", "127.0.0.1": "", "0.0.0.0": "", "0.1.2.3": "", "224.0.0.251": "", "255.255.255.255": "", "240.1.1.1": "",
	} {
		got, ok := outside(netip.MustParseAddr(a))
		if ok != (want != "") || ok && got.String() != want {
			t.Errorf("%s is %v, %v", a, got, ok)
		}
	}
}

func echoUDP(t *testing.T) net.Addr {
	t.Helper()
	c, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	go func() {
		b := make([]byte, 65536)
		for {
			n, from, err := c.ReadFrom(b)
			if err != nil {
				return
			}
			c.WriteTo(b[:n], from)
		}
	}()
	return c.LocalAddr()
}

func TestUDP(t *testing.T) {
	_, s := join(t, Config{})
	to := gatewayPort(echoUDP(t))
	remote := endpoint(to.Addr(), to.Port())
	c, err := gonet.DialUDP(s, nil, &remote, ipv4.ProtocolNumber)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	for _, size := range []int{0, 1, 1400, 9000} { // the last in fragments
		want := bytes.Repeat([]byte{7}, size)
		if _, err := c.Write(want); err != nil {
			t.Fatal(err)
		}
		b := make([]byte, 65536)
		c.SetReadDeadline(time.Now().Add(10 * time.Second))
		n, err := c.Read(b)
		if err != nil || !bytes.Equal(b[:n], want) {
			t.Errorf("%d bytes of %d came back: %v", n, size, err)
		}
	}
}

// TestPublish: TCP and UDP from the host to the guest.
func TestPublish(t *testing.T) {
	any4 := netip.MustParseAddrPort("127.0.0.1:0")
	n, s := join(t, Config{Publish: []Publish{{Host: any4, Guest: 80}, {UDP: true, Host: any4, Guest: 53}, {Host: any4, Guest: 81}}})
	l, err := gonet.ListenTCP(s, endpoint(guest, 80), ipv4.ProtocolNumber)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() { defer c.Close(); io.Copy(c, c) }()
		}
	}()
	c, err := net.Dial("tcp", n.Published()[0].String())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	want := bytes.Repeat([]byte("hello"), 1<<18)
	go func() { c.Write(want); c.(*net.TCPConn).CloseWrite() }()
	if got, err := io.ReadAll(c); err != nil || !bytes.Equal(got, want) {
		t.Errorf("%d bytes of %d came back: %v", len(got), len(want), err)
	}

	at := endpoint(guest, 53)
	server, err := gonet.DialUDP(s, &at, nil, ipv4.ProtocolNumber)
	if err != nil {
		t.Fatal(err)
	}
	defer server.Close()
	go func() {
		b := make([]byte, 2000)
		for {
			k, from, err := server.ReadFrom(b)
			if err != nil {
				return
			}
			server.WriteTo(b[:k], from)
		}
	}()
	u, err := net.Dial("udp", n.Published()[1].String())
	if err != nil {
		t.Fatal(err)
	}
	defer u.Close()
	for i := range 3 {
		u.Write([]byte{byte(i)})
		b := make([]byte, 10)
		u.SetReadDeadline(time.Now().Add(10 * time.Second))
		if k, err := u.Read(b); err != nil || k != 1 || b[0] != byte(i) {
			t.Errorf("datagram %d: % x, %v", i, b[:k], err)
		}
	}

	refused, err := net.Dial("tcp", n.Published()[2].String())
	if err == nil { // else it was reset already
		defer refused.Close()
		_, err = io.ReadAll(refused)
	}
	if !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("a port where nobody listens: %v", err)
	}
}

func TestPublishError(t *testing.T) {
	l := listen(t, func(c net.Conn) { c.Close() })
	before := runtime.NumGoroutine()
	p := Publish{Host: netip.MustParseAddrPort(l.Addr().String()), Guest: 80}
	n, err := New(Config{Publish: []Publish{{Host: netip.MustParseAddrPort("127.0.0.1:0"), Guest: 1}, p}})
	var perr *PublishError
	if n != nil || !errors.As(err, &perr) || perr.Publish != p || !errors.Is(err, syscall.EADDRINUSE) ||
		err.Error() != l.Addr().String()+":80: address already in use (another program listens there; choose another port of the host)" {
		t.Errorf("%v", err)
	}
	settle(t, before)
}

// settle waits until no more goroutines run than before.
func settle(t *testing.T, before int) {
	t.Helper()
	for range 500 {
		if runtime.NumGoroutine() <= before {
			return
		}
		time.Sleep(10 * time.Millisecond)
	}
	b := make([]byte, 1<<20)
	t.Errorf("%d goroutines, %d before:\n%s", runtime.NumGoroutine(), before, b[:runtime.Stack(b, true)])
}

// TestClose: with everything under way, nothing is left.
func TestClose(t *testing.T) {
	started := make(chan net.Conn, 16)
	l := listen(t, func(c net.Conn) { started <- c })
	udpTo := gatewayPort(echoUDP(t))
	before := runtime.NumGoroutine()
	t.Run("network", func(t *testing.T) {
		n, s := join(t, Config{Publish: []Publish{{Host: netip.MustParseAddrPort("127.0.0.1:0"), Guest: 9}}})
		for range 8 {
			if _, err := dial(s, gatewayPort(l.Addr())); err != nil {
				t.Fatal(err)
			}
		}
		remote := endpoint(udpTo.Addr(), udpTo.Port())
		c, err := gonet.DialUDP(s, nil, &remote, ipv4.ProtocolNumber)
		if err != nil {
			t.Fatal(err)
		}
		c.Write([]byte("x"))
		c.Read(make([]byte, 1))
		// Nobody listens there, and the reset may come early.
		if p, err := net.Dial("tcp", n.Published()[0].String()); err == nil {
			defer p.Close()
		}
	})
	for range 8 {
		c := <-started
		if _, err := io.ReadAll(c); err == nil {
			t.Log("an orderly end") // either will do
		}
		c.Close()
	}
	settle(t, before)
}

// TestLimit: no more connections than allowed, and new ones when others have
// ended.
func TestLimit(t *testing.T) {
	n, s := join(t, Config{})
	n.tcp = newLimit(3)
	l := listen(t, func(c net.Conn) { io.Copy(io.Discard, c); c.Close() })
	var open []*gonet.TCPConn
	for range 3 {
		c, err := dial(s, gatewayPort(l.Addr()))
		if err != nil {
			t.Fatal(err)
		}
		open = append(open, c)
	}
	if c, err := dial(s, gatewayPort(l.Addr())); err == nil {
		c.Close()
		t.Error("a fourth connection")
	}
	for _, c := range open {
		c.Close()
	}
	for range 500 {
		if c, err := dial(s, gatewayPort(l.Addr())); err == nil {
			c.Close()
			return
		}
		time.Sleep(10 * time.Millisecond)
	}
	t.Error("none of the connections has ended")
}

// ping sends an echo request and reports whether there is an answer.
func ping(n *Network, to netip.Addr) bool {
	ip := make([]byte, header.EthernetMinimumSize+header.IPv4MinimumSize+header.ICMPv4MinimumSize)
	header.Ethernet(ip).Encode(&header.EthernetFields{SrcAddr: guestMAC, DstAddr: gatewayMAC, Type: header.IPv4ProtocolNumber})
	h := header.IPv4(ip[header.EthernetMinimumSize:])
	h.Encode(&header.IPv4Fields{TotalLength: uint16(len(h)), TTL: 64, Protocol: uint8(header.ICMPv4ProtocolNumber),
		SrcAddr: tcpip.AddrFromSlice(guest.AsSlice()), DstAddr: tcpip.AddrFromSlice(to.AsSlice())})
	h.SetChecksum(^h.CalculateChecksum())
	m := header.ICMPv4(h.Payload())
	m.SetType(header.ICMPv4Echo)
	m.SetChecksum(header.ICMPv4Checksum(m, 0))
	n.Send(vnet.Header{}, frame(ip))
	n.link.mu.Lock()
	defer n.link.mu.Unlock()
	return len(n.link.queue) > 0
}

// TestPing: the network answers for its own addresses, and for no other.
func TestPing(t *testing.T) {
	for _, to := range []string{"10.0.2.2", "10.0.2.3", "10.0.2.4", "10.0.2.15", "1.1.1.1"} {
		n, err := New(Config{})
		if err != nil {
			t.Fatal(err)
		}
		a := netip.MustParseAddr(to)
		// The answer waits for ARP, so the guest's request comes first.
		n.Send(vnet.Header{}, frame(arpRequest(gateway)))
		f := make([]vnet.Frame, 1)
		if k, err := n.Receive(f); k != 1 || err != nil {
			t.Fatalf("%d answers to ARP, %v", k, err)
		}
		f[0].Release()
		n.Send(vnet.Header{}, frame(arpRequest(a)))
		n.link.mu.Lock()
		answers := len(n.link.queue)
		n.link.mu.Unlock()
		if (answers == 1) != ours(a) {
			t.Errorf("%s: %d answers to ARP", to, answers)
		}
		if answers > 0 {
			n.Receive(f)
		}
		if got := ping(n, a); got != ours(a) {
			t.Errorf("%s answers: %v", to, got)
		}
		n.Close()
	}
}

func arpRequest(for_ netip.Addr) []byte {
	b := make([]byte, header.EthernetMinimumSize+header.ARPSize)
	header.Ethernet(b).Encode(&header.EthernetFields{SrcAddr: guestMAC, DstAddr: header.EthernetBroadcastAddress, Type: header.ARPProtocolNumber})
	a := header.ARP(b[header.EthernetMinimumSize:])
	a.SetIPv4OverEthernet()
	a.SetOp(header.ARPRequest)
	copy(a.HardwareAddressSender(), guestMAC)
	copy(a.ProtocolAddressSender(), guest.AsSlice())
	copy(a.ProtocolAddressTarget(), for_.AsSlice())
	return b
}

// TestQueue: what the guest does not take is bounded.
func TestQueue(t *testing.T) {
	n, err := New(Config{})
	if err != nil {
		t.Fatal(err)
	}
	defer n.Close()
	for range 3 * maxQueued / 42 {
		n.Send(vnet.Header{}, frame(arpRequest(gateway)))
	}
	if size := n.link.size; size < maxQueued || size > maxQueued+MTU {
		t.Errorf("%d bytes wait", size)
	}
}

// FuzzFrame sends frames, and looks whether the network still works.
func FuzzFrame(f *testing.F) {
	f.Add(arpRequest(gateway), uint8(0))
	f.Add(arpRequest(guest), uint8(20))
	f.Fuzz(func(t *testing.T, b []byte, ip uint8) {
		n, err := New(Config{Resolvers: []netip.AddrPort{netip.MustParseAddrPort("127.0.0.1:1")}})
		if err != nil {
			t.Fatal(err)
		}
		defer n.Close()
		n.Send(vnet.Header{}, frame(b))
		// The same as the payload of an IP packet that is well-formed.
		p := make([]byte, header.EthernetMinimumSize+header.IPv4MinimumSize, header.EthernetMinimumSize+header.IPv4MinimumSize+len(b))
		header.Ethernet(p).Encode(&header.EthernetFields{SrcAddr: guestMAC, DstAddr: gatewayMAC, Type: header.IPv4ProtocolNumber})
		p = append(p, b...)
		h := header.IPv4(p[header.EthernetMinimumSize:])
		proto := []tcpip.TransportProtocolNumber{header.ICMPv4ProtocolNumber, header.TCPProtocolNumber, header.UDPProtocolNumber}[ip%3]
		to := []netip.Addr{gateway, resolve, netip.MustParseAddr("10.0.2.9"), netip.MustParseAddr("255.255.255.255")}[ip/3%4]
		h.Encode(&header.IPv4Fields{TotalLength: uint16(len(h)), TTL: 64, Protocol: uint8(proto),
			SrcAddr: tcpip.AddrFromSlice(guest.AsSlice()), DstAddr: tcpip.AddrFromSlice(to.AsSlice())})
		h.SetChecksum(^h.CalculateChecksum())
		n.Send(vnet.Header{}, frame(p))
		n.Send(vnet.Header{}, frame(arpRequest(gateway)))
		if !ping(n, gateway) {
			t.Error("the gateway does not answer any more")
		}
	})
}

func write(t *testing.T, text string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}
