package usernet

import (
	"net"
	"net/netip"
	"sync"
	"time"

	"gvisor.dev/gvisor/pkg/tcpip/adapters/gonet"
	"gvisor.dev/gvisor/pkg/tcpip/transport/udp"
	"gvisor.dev/gvisor/pkg/waiter"
)

// maxDatagram is the longest payload of UDP, in bytes.
const maxDatagram = 65507

// acceptUDP answers the first datagram between a pair of addresses, while the
// vCPU waits.
func (n *Network) acceptUDP(r *udp.ForwarderRequest) (handled bool) {
	id := r.ID()
	to, ok := outside(address(id.LocalAddress))
	if !ok {
		// A broadcast is for nobody here, and nobody is told.
		return !ours(address(id.LocalAddress))
	}
	if !n.start(n.udp) {
		return true
	}
	var wq waiter.Queue
	ep, err := r.CreateEndpoint(&wq)
	if err != nil {
		n.running.Done()
		n.udp.drop()
		return true
	}
	guest := gonet.NewUDPConn(&wq, ep)
	go func() {
		defer n.running.Done()
		defer n.udp.drop()
		host, err := net.DialUDP("udp", nil, net.UDPAddrFromAddrPort(netip.AddrPortFrom(to, id.LocalPort)))
		if err != nil {
			guest.Close()
			return
		}
		n.exchange(guest, host, host.Write)
	}()
	return true
}

// exchange moves datagrams between the guest and a socket of the host until
// neither has sent one for a while, and closes both. What the guest says goes to
// send.
func (n *Network) exchange(guest *gonet.UDPConn, host interface {
	Read([]byte) (int, error)
	Close() error
}, send func([]byte) (int, error)) {
	stop := n.closeOnEnd(guest, host)
	defer stop()
	idle := time.AfterFunc(udpIdle, func() { closeAll(guest, host) })
	defer idle.Stop()
	pump := func(read, write func([]byte) (int, error)) {
		defer closeAll(guest, host)
		b := make([]byte, maxDatagram)
		for {
			k, err := read(b)
			if err != nil {
				return
			}
			idle.Reset(udpIdle)
			write(b[:k]) // what is lost is lost, as with any datagram
		}
	}
	var up sync.WaitGroup
	up.Go(func() { pump(guest.Read, send) })
	pump(host.Read, guest.Write)
	up.Wait()
}
