// Package usernet is a network for a guest that needs no privilege on the host:
// a TCP/IP stack in this process ends the guest's connections, and ordinary
// sockets of the host begin them anew.
//
//	 guest 10.0.2.15                     Network                           host
//	┌───────────────┐  frames  ┌────────────────────────────────┐
//	│ virtio_net    ├──────────► link   ──► gVisor's stack      │
//	│               ◄──────────┤            │ any TCP, UDP       │  sockets
//	│               │          │            ├─► relay  ──────────┼──► 10.0.2.2 is 127.0.0.1,
//	│ udhcpc        │          │            ├─► DHCP server      │    others are themselves
//	│ resolver      │          │            └─► DNS proxy  ──────┼──► the host's resolver
//	│ server        │          │ publish  ◄─────────────────────┼─── who connects to a port
//	└───────────────┘          └────────────────────────────────┘
//
// The addresses are those of QEMU's user network: 10.0.2.0/24, the gateway and
// host at .2, DNS at .3, the guest at .15.
//
// The guest is hostile. Its frames go into the stack after a look at their
// kind; what it can open is bounded by Limits, and everything ends with Close.
package usernet

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"sync"
	"time"

	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/header"
	"gvisor.dev/gvisor/pkg/tcpip/network/arp"
	"gvisor.dev/gvisor/pkg/tcpip/network/ipv4"
	"gvisor.dev/gvisor/pkg/tcpip/stack"
	"gvisor.dev/gvisor/pkg/tcpip/transport/icmp"
	"gvisor.dev/gvisor/pkg/tcpip/transport/tcp"
	"gvisor.dev/gvisor/pkg/tcpip/transport/udp"

	vnet "ring3/internal/virtio/net"
)

// MTU of the guest's network, in bytes.
const MTU = 1500

// The addresses.
var (
	subnet  = netip.MustParsePrefix("10.0.2.0/24")
	gateway = netip.MustParseAddr("10.0.2.2")
	resolve = netip.MustParseAddr("10.0.2.3")
	guest   = netip.MustParseAddr("10.0.2.15")

	loopback   = netip.AddrFrom4([4]byte{127, 0, 0, 1})
	gatewayMAC = tcpip.LinkAddress("\x52\x55\x0a\x00\x02\x02")
)

// nic is the only interface of the stack.
const nic tcpip.NICID = 1

// Limits of what a guest can have at a time. A connection's buffers hold at most
// 1 MiB in each direction.
const (
	maxTCP     = 1024 // connections, in both directions
	maxOpening = 256  // of them such as the host has not answered yet
	maxUDP     = 512  // pairs of addresses
	maxQueries = 64   // of DNS
	tcpBuffer  = 1 << 20
)

// Times.
const (
	dialTimeout  = 30 * time.Second // until a connection is there
	udpIdle      = 2 * time.Minute  // without a datagram a pair is forgotten
	queryTimeout = 4 * time.Second  // for each of the host's resolvers
)

// Config describes a network.
type Config struct {
	Publish []Publish
	// Resolvers are asked for names. Empty: those of /etc/resolv.conf, as it is
	// when a name is asked for.
	Resolvers []netip.AddrPort
	// Hosts is a file of names that are known without asking, "" for
	// /etc/hosts. An address of the host's loopback becomes the gateway's.
	Hosts string
	Log   *slog.Logger // may be nil
}

// Network is a virtio port with a network behind it.
type Network struct {
	cfg   Config
	stack *stack.Stack
	link  *link

	ctx      context.Context // ends with Close
	cancel   context.CancelFunc
	running  sync.WaitGroup
	starting sync.Mutex // orders start before Close, or after
	tcp      limit
	udp      limit
	queries  limit
	close    sync.Once

	published []net.Addr // where it listens, in the order of Config.Publish
}

var _ vnet.Port = (*Network)(nil)

// New starts a network, which must be closed. What keeps a port from being
// published is a *PublishError.
func New(cfg Config) (n *Network, err error) {
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	n = &Network{cfg: cfg, link: newLink(), tcp: newLimit(maxTCP), udp: newLimit(maxUDP), queries: newLimit(maxQueries)}
	n.ctx, n.cancel = context.WithCancel(context.Background())
	n.stack = stack.New(stack.Options{
		NetworkProtocols:   []stack.NetworkProtocolFactory{ipv4.NewProtocol, arp.NewProtocol},
		TransportProtocols: []stack.TransportProtocolFactory{tcp.NewProtocol, udp.NewProtocol, icmp.NewProtocol4},
	})
	defer func() {
		if err != nil {
			n.Close()
			n = nil
		}
	}()
	if err := n.setUp(); err != nil {
		return n, err
	}
	for _, start := range []func() error{n.serveDHCP, n.serveDNS, n.publish} {
		if err := start(); err != nil {
			return n, err
		}
	}
	return n, nil
}

// setUp makes the interface, its addresses and routes, and says what becomes of
// packets to other addresses.
func (n *Network) setUp() error {
	s := n.stack
	set := func(v tcpip.SettableTransportProtocolOption) error {
		return asError("TCP option", s.SetTransportProtocolOption(tcp.ProtocolNumber, v))
	}
	sack := tcpip.TCPSACKEnabled(true)
	receive := tcpip.TCPReceiveBufferSizeRangeOption{Min: 4 << 10, Default: tcpBuffer, Max: tcpBuffer}
	send := tcpip.TCPSendBufferSizeRangeOption{Min: 4 << 10, Default: tcpBuffer, Max: tcpBuffer}
	errs := []error{set(&sack), set(&receive), set(&send),
		asError("interface", s.CreateNIC(nic, n.link)),
		asError("promiscuous mode", s.SetPromiscuousMode(nic, true)),
		asError("spoofing", s.SetSpoofing(nic, true)),
	}
	for _, a := range []netip.Addr{gateway, resolve} {
		errs = append(errs, asError("address", s.AddProtocolAddress(nic, tcpip.ProtocolAddress{
			Protocol: ipv4.ProtocolNumber,
			AddressWithPrefix: tcpip.AddressWithPrefix{
				Address: tcpip.AddrFromSlice(a.AsSlice()), PrefixLen: subnet.Bits()},
		}, stack.AddressProperties{})))
	}
	s.SetRouteTable([]tcpip.Route{{Destination: header.IPv4EmptySubnet, NIC: nic}})
	s.SetTransportProtocolHandler(tcp.ProtocolNumber, tcp.NewForwarder(s, tcpBuffer, maxOpening, n.acceptTCP).HandlePacket)
	s.SetTransportProtocolHandler(udp.ProtocolNumber, udp.NewForwarder(s, n.acceptUDP).HandlePacket)
	return errors.Join(errs...)
}

// Close implements net.Port: it ends all connections and gives everything back.
func (n *Network) Close() error {
	n.close.Do(func() {
		n.starting.Lock()
		n.cancel()
		n.starting.Unlock()
		n.link.close()
		n.running.Wait()
		n.stack.Destroy()
	})
	return nil
}

// Offloads implements net.Port.
func (n *Network) Offloads() bool { return true }

// outside is the host's address for one that the guest uses; ok is false for
// what there is no way to.
func outside(a netip.Addr) (host netip.Addr, ok bool) {
	switch {
	case a == gateway:
		return loopback, true
	case subnet.Contains(a), !a.IsGlobalUnicast() && !a.IsLinkLocalUnicast(), a.As4()[0] == 0, a.As4()[0] >= 240:
		return a, false
	}
	return a, true
}

// endpoint is an address in the form that the stack has.
func endpoint(a netip.Addr, port uint16) tcpip.FullAddress {
	return tcpip.FullAddress{NIC: nic, Addr: tcpip.AddrFromSlice(a.AsSlice()), Port: port}
}

// address is the other way.
func address(a tcpip.Address) netip.Addr {
	v, _ := netip.AddrFromSlice(a.AsSlice())
	return v
}

// asError makes an error of one of the stack.
func asError(what string, err tcpip.Error) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("user network: %s: %v", what, err)
}

// limit counts what may exist at a time.
type limit chan struct{}

func newLimit(n int) limit { return make(limit, n) }

// take reports whether one more may exist. It does until drop.
func (l limit) take() bool {
	select {
	case l <- struct{}{}:
		return true
	default:
		return false
	}
}

func (l limit) drop() { <-l }

// closeAll closes several things.
func closeAll(c ...interface{ Close() error }) {
	for _, x := range c {
		x.Close() // there is nobody to tell
	}
}

// closeOnEnd closes c when the network is closed, unless stop is called first.
func (n *Network) closeOnEnd(c ...interface{ Close() error }) (stop func() bool) {
	return context.AfterFunc(n.ctx, func() { closeAll(c...) })
}

// Published is where the host listens, in the order of Config.Publish.
func (n *Network) Published() []net.Addr { return n.published }
