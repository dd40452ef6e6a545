package usernet

import (
	"net"
	"time"

	"github.com/insomniacslk/dhcp/dhcpv4"
	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/adapters/gonet"
	"gvisor.dev/gvisor/pkg/tcpip/header"
	"gvisor.dev/gvisor/pkg/tcpip/network/ipv4"
	"gvisor.dev/gvisor/pkg/tcpip/transport/udp"
	"gvisor.dev/gvisor/pkg/waiter"
)

// lease is how long the guest may keep its address. There is nobody else to give
// it to.
const lease = 24 * time.Hour

// serveDHCP answers requests for an address (RFC 2131).
func (n *Network) serveDHCP() error {
	var wq waiter.Queue
	ep, err := n.stack.NewEndpoint(udp.ProtocolNumber, ipv4.ProtocolNumber, &wq)
	if err != nil {
		return asError("DHCP", err)
	}
	ep.SocketOptions().SetBroadcast(true)
	// Bound to no address: requests are broadcast.
	if err := ep.Bind(tcpip.FullAddress{NIC: nic, Port: dhcpv4.ServerPort}); err != nil {
		ep.Close()
		return asError("DHCP", err)
	}
	c := gonet.NewUDPConn(&wq, ep)
	n.closeOnEnd(c)
	n.running.Go(func() {
		defer c.Close()
		b := make([]byte, maxDatagram)
		for {
			k, _, err := c.ReadFrom(b)
			if err != nil {
				return
			}
			if r := answerDHCP(b[:k]); r != nil {
				// The guest has no address yet that ARP could find.
				c.WriteTo(r, &net.UDPAddr{IP: net.IPv4bcast, Port: dhcpv4.ClientPort})
			}
		}
	})
	return nil
}

// answerDHCP is the answer to a message, nil for none.
func answerDHCP(b []byte) []byte {
	m, err := dhcpv4.FromBytes(b)
	if err != nil || m.OpCode != dhcpv4.OpcodeBootRequest || len(m.ClientHWAddr) != header.EthernetAddressSize {
		return nil
	}
	self := net.IP(gateway.AsSlice())
	with := []dhcpv4.Modifier{
		dhcpv4.WithServerIP(self),
		dhcpv4.WithOption(dhcpv4.OptServerIdentifier(self)),
	}
	kind := dhcpv4.MessageTypeAck
	switch m.MessageType() {
	case dhcpv4.MessageTypeDiscover:
		kind = dhcpv4.MessageTypeOffer
	case dhcpv4.MessageTypeRequest:
		if s := m.ServerIdentifier(); s != nil && !s.Equal(self) {
			return nil // it has taken another server's offer
		}
		want := m.RequestedIPAddress()
		if want == nil {
			want = m.ClientIPAddr
		}
		if !want.Equal(guest.AsSlice()) {
			kind = dhcpv4.MessageTypeNak
		}
	case dhcpv4.MessageTypeInform:
	default:
		return nil
	}
	if kind != dhcpv4.MessageTypeNak {
		with = append(with,
			dhcpv4.WithNetmask(net.CIDRMask(subnet.Bits(), 32)),
			dhcpv4.WithRouter(self),
			dhcpv4.WithDNS(resolve.AsSlice()),
		)
		if m.MessageType() != dhcpv4.MessageTypeInform {
			with = append(with, dhcpv4.WithYourIP(guest.AsSlice()),
				dhcpv4.WithLeaseTime(uint32(lease/time.Second)))
		}
	}
	r, err := dhcpv4.NewReplyFromRequest(m, append(with, dhcpv4.WithMessageType(kind))...)
	if err != nil {
		return nil
	}
	return r.ToBytes()
}
