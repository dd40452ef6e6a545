package usernet

import (
	"context"
	"errors"
	"io"
	"net"
	"net/netip"
	"sync"
	"syscall"
	"time"

	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/adapters/gonet"
	"gvisor.dev/gvisor/pkg/tcpip/network/ipv4"
	"gvisor.dev/gvisor/pkg/tcpip/transport/tcp"
	"gvisor.dev/gvisor/pkg/waiter"
)

// copySize is how much of a connection is moved at a time, in bytes.
const copySize = 64 << 10

// keepAlive is how long a connection of the guest may be silent before it is
// asked whether it still exists: a guest can go without saying so.
const keepAlive = 5 * time.Minute

// conn is what a relay needs of either side.
type conn interface {
	net.Conn
	CloseWrite() error
}

// guestConn is a connection with the guest.
type guestConn struct {
	*gonet.TCPConn
	ep tcpip.Endpoint
}

// abort ends the connection with a reset.
func (c *guestConn) abort() { c.ep.Abort() }

// acceptTCP answers a guest's SYN, on a goroutine of the stack: first the host's
// side is connected, so that a refusal reaches the guest.
func (n *Network) acceptTCP(r *tcp.ForwarderRequest) {
	id := r.ID()
	to, ok := n.tcpTarget(address(id.LocalAddress), id.LocalPort)
	if !ok || !n.start(n.tcp) {
		r.Complete(true)
		return
	}
	defer n.running.Done()
	defer n.tcp.drop()
	host, err := (&net.Dialer{Timeout: dialTimeout}).DialContext(n.ctx, "tcp", to.String())
	if err != nil {
		r.Complete(true)
		return
	}
	var wq waiter.Queue
	ep, terr := r.CreateEndpoint(&wq)
	r.Complete(terr != nil)
	if terr != nil {
		host.Close()
		return
	}
	idle := tcpip.KeepaliveIdleOption(keepAlive)
	ep.SetSockOpt(&idle)
	ep.SocketOptions().SetKeepAlive(true)
	n.relay(&guestConn{gonet.NewTCPConn(&wq, ep), ep}, host.(conn))
}

// tcpTarget is where a connection of the guest goes.
func (n *Network) tcpTarget(a netip.Addr, port uint16) (to netip.AddrPort, ok bool) {
	if a == resolve && port == dnsPort {
		servers := n.resolvers()
		if len(servers) == 0 {
			return to, false
		}
		return servers[0], true
	}
	host, ok := outside(a)
	return netip.AddrPortFrom(host, port), ok
}

// start counts one more goroutine that works for the guest, unless there are
// too many or the network is closed.
func (n *Network) start(l limit) bool {
	if !l.take() {
		return false
	}
	n.starting.Lock()
	defer n.starting.Unlock()
	if n.ctx.Err() != nil {
		l.drop()
		return false
	}
	n.running.Add(1)
	return true
}

// relay moves bytes between a connection with the guest and one of the host
// until both directions have ended, and closes both.
func (n *Network) relay(guest *guestConn, host conn) {
	stop := context.AfterFunc(n.ctx, func() {
		guest.abort()
		host.Close()
	})
	defer stop()
	defer closeAll(guest, host)
	var up sync.WaitGroup
	up.Go(func() { n.pump(host, guest, guest, host) })
	n.pump(guest, host, guest, host)
	up.Wait()
}

// pump moves one direction, and passes its end on: an orderly one as such, and
// a failure to both sides.
func (n *Network) pump(to conn, from io.Reader, guest *guestConn, host conn) {
	_, err := io.CopyBuffer(writerOnly{to}, readerOnly{from}, make([]byte, copySize))
	if err == nil {
		err = to.CloseWrite()
	}
	if err != nil && !errors.Is(err, syscall.ENOTCONN) {
		guest.abort()
		host.Close()
	}
}

// writerOnly and readerOnly hide methods that io.CopyBuffer would prefer to the
// buffer it is given.
type (
	writerOnly struct{ io.Writer }
	readerOnly struct{ io.Reader }
)

// dialGuest connects to a port of the guest. One that is not there yet, such as
// while it boots, is waited for.
func (n *Network) dialGuest(port uint16) (*guestConn, error) {
	ctx, cancel := context.WithTimeout(n.ctx, dialTimeout)
	defer cancel()
	for {
		c, err := n.dialOnce(ctx, port)
		if err == nil || ctx.Err() != nil || errors.Is(err, errRefused) {
			return c, err
		}
		select {
		case <-ctx.Done():
			return nil, err
		case <-time.After(200 * time.Millisecond):
		}
	}
}

var errRefused = errors.New("connection refused")

func (n *Network) dialOnce(ctx context.Context, port uint16) (*guestConn, error) {
	var wq waiter.Queue
	ep, err := n.stack.NewEndpoint(tcp.ProtocolNumber, ipv4.ProtocolNumber, &wq)
	if err != nil {
		return nil, asError("connection", err)
	}
	e, ready := waiter.NewChannelEntry(waiter.WritableEvents | waiter.EventErr | waiter.EventHUp)
	wq.EventRegister(&e)
	defer wq.EventUnregister(&e)
	err = ep.Bind(endpoint(gateway, 0))
	if err == nil {
		err = ep.Connect(endpoint(guest, port))
	}
	if _, started := err.(*tcpip.ErrConnectStarted); started {
		select {
		case <-ctx.Done():
			ep.Abort()
			return nil, ctx.Err()
		case <-ready:
		}
		err = ep.LastError()
	}
	switch err.(type) {
	case nil:
		return &guestConn{gonet.NewTCPConn(&wq, ep), ep}, nil
	case *tcpip.ErrConnectionRefused, *tcpip.ErrConnectionReset:
		ep.Close()
		return nil, errRefused
	}
	ep.Close()
	return nil, asError("connection", err)
}
