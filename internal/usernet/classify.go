package usernet

import (
	"net/netip"

	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/header"
)

// class says what becomes of a frame of the guest.
type class int

const (
	drop class = iota
	toGateway
	broadcast
)

// classify looks at a frame before the stack does, which takes every address for
// its own so that it can end connections to all of them. Here is what it must
// not answer for others: ARP and ICMP; and what it has no use for.
func classify(frame []byte, mac tcpip.LinkAddress) (k class) {
	if len(frame) < header.EthernetMinimumSize {
		return drop
	}
	eth, rest := header.Ethernet(frame), frame[header.EthernetMinimumSize:]
	switch eth.DestinationAddress() {
	case mac:
		k = toGateway
	case header.EthernetBroadcastAddress:
		k = broadcast
	default:
		return drop
	}
	switch eth.Type() {
	case header.ARPProtocolNumber:
		a := header.ARP(rest)
		if !a.IsValid() {
			return drop
		}
		if to, _ := netip.AddrFromSlice(a.ProtocolAddressTarget()); !ours(to) {
			return drop
		}
	case header.IPv4ProtocolNumber:
		ip := header.IPv4(rest)
		if !ip.IsValid(len(rest)) {
			return drop
		}
		switch ip.TransportProtocol() {
		case header.TCPProtocolNumber, header.UDPProtocolNumber:
		case header.ICMPv4ProtocolNumber:
			if !ours(address(ip.DestinationAddress())) {
				return drop
			}
		default:
			return drop
		}
	default:
		return drop
	}
	return k
}

// ours says whether the network itself has an address.
func ours(a netip.Addr) bool { return a == gateway || a == resolve }
