package usernet

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"sync"
	"syscall"
	"time"

	"gvisor.dev/gvisor/pkg/tcpip/adapters/gonet"
	"gvisor.dev/gvisor/pkg/tcpip/network/ipv4"
)

// Publish is a port of the guest that can be reached from the host.
type Publish struct {
	UDP   bool
	Host  netip.AddrPort // where the host listens; port 0 for any free one
	Guest uint16
}

// String is the form that the command line has.
func (p Publish) String() string {
	s := fmt.Sprintf("%v:%d", p.Host, p.Guest)
	if p.UDP {
		s += "/udp"
	}
	return s
}

// PublishError says why a port cannot be published.
type PublishError struct {
	Publish Publish
	Err     error
}

func (e *PublishError) Error() string {
	mend := ""
	switch {
	case errors.Is(e.Err, syscall.EADDRINUSE):
		mend = " (another program listens there; choose another port of the host)"
	case errors.Is(e.Err, syscall.EACCES):
		mend = " (ports below 1024 need privilege; choose a higher one)"
	case errors.Is(e.Err, syscall.EADDRNOTAVAIL):
		mend = " (the host has no such address)"
	}
	return fmt.Sprintf("%v: %v%s", e.Publish, reason(e.Err), mend)
}

func (e *PublishError) Unwrap() error { return e.Err }

// reason is the part of a network error that is no repetition.
func reason(err error) error {
	if s, ok := errors.AsType[*os.SyscallError](err); ok {
		return s.Err
	}
	return err
}

// publish listens on the ports that shall be published.
func (n *Network) publish() error {
	for _, p := range n.cfg.Publish {
		start := n.publishTCP
		if p.UDP {
			start = n.publishUDP
		}
		if err := start(p); err != nil {
			return &PublishError{p, err}
		}
	}
	return nil
}

func (n *Network) publishTCP(p Publish) error {
	l, err := net.ListenTCP("tcp", net.TCPAddrFromAddrPort(p.Host))
	if err != nil {
		return err
	}
	n.published = append(n.published, l.Addr())
	n.closeOnEnd(l)
	n.running.Go(func() {
		defer l.Close()
		for {
			host, err := l.AcceptTCP()
			if errors.Is(err, net.ErrClosed) {
				return
			}
			if err != nil { // such as too many open files
				if !n.pause(100 * time.Millisecond) {
					return
				}
				continue
			}
			if !n.start(n.tcp) {
				host.Close()
				continue
			}
			go func() {
				defer n.running.Done()
				defer n.tcp.drop()
				n.forwardTCP(host, p.Guest)
			}()
		}
	})
	return nil
}

// forwardTCP connects somebody with the guest. A refusal shows as a reset.
func (n *Network) forwardTCP(host *net.TCPConn, port uint16) {
	guest, err := n.dialGuest(port)
	if err != nil {
		host.SetLinger(0)
		host.Close()
		return
	}
	n.relay(guest, host)
}

// pause waits unless the network is closed meanwhile.
func (n *Network) pause(d time.Duration) (open bool) {
	select {
	case <-n.ctx.Done():
		return false
	case <-time.After(d):
		return true
	}
}

// udpServer is a published port of UDP: each who sends to it gets a port of the
// gateway, so that answers find back.
type udpServer struct {
	n     *Network
	p     Publish
	c     *net.UDPConn
	mu    sync.Mutex
	peers map[netip.AddrPort]*udpPeer
}

func (n *Network) publishUDP(p Publish) error {
	c, err := net.ListenUDP("udp", net.UDPAddrFromAddrPort(p.Host))
	if err != nil {
		return err
	}
	n.published = append(n.published, c.LocalAddr())
	n.closeOnEnd(c)
	s := &udpServer{n: n, p: p, c: c, peers: map[netip.AddrPort]*udpPeer{}}
	n.running.Go(s.serve)
	return nil
}

func (s *udpServer) serve() {
	defer s.c.Close()
	b := make([]byte, maxDatagram)
	for {
		k, from, err := s.c.ReadFromUDPAddrPort(b)
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil {
			continue // of an answer that could not be delivered
		}
		if guest := s.peer(from); guest != nil {
			guest.Write(b[:k])
		}
	}
}

// peer returns the connection with the guest for one who sends.
func (s *udpServer) peer(from netip.AddrPort) *gonet.UDPConn {
	s.mu.Lock()
	defer s.mu.Unlock()
	if p := s.peers[from]; p != nil {
		p.used()
		return p.guest
	}
	if !s.n.start(s.n.udp) {
		return nil
	}
	local, remote := endpoint(gateway, 0), endpoint(guest, s.p.Guest)
	c, err := gonet.DialUDP(s.n.stack, &local, &remote, ipv4.ProtocolNumber)
	if err != nil {
		s.n.running.Done()
		s.n.udp.drop()
		return nil
	}
	p := &udpPeer{guest: c}
	p.idle = time.AfterFunc(udpIdle, func() { c.Close() })
	s.peers[from] = p
	go s.answer(from, p)
	return c
}

// answer passes on what the guest says to a peer, until that is idle.
func (s *udpServer) answer(to netip.AddrPort, p *udpPeer) {
	defer s.n.running.Done()
	defer s.n.udp.drop()
	stop := s.n.closeOnEnd(p.guest)
	defer stop()
	b := make([]byte, maxDatagram)
	for {
		k, err := p.guest.Read(b)
		if err != nil {
			break
		}
		p.used()
		s.c.WriteToUDPAddrPort(b[:k], to)
	}
	p.idle.Stop()
	p.guest.Close()
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.peers, to)
}

// udpPeer is one who sends to a published port.
type udpPeer struct {
	guest *gonet.UDPConn
	idle  *time.Timer
}

func (p *udpPeer) used() { p.idle.Reset(udpIdle) }
