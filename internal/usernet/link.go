package usernet

import (
	"io"
	"sync"
	"time"

	"gvisor.dev/gvisor/pkg/buffer"
	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/header"
	"gvisor.dev/gvisor/pkg/tcpip/stack"

	"ring3/internal/virtio"
	vnet "ring3/internal/virtio/net"
)

// maxQueued bounds what waits for the guest to take it, in bytes. A switch
// drops frames too when its queue is full.
const maxQueued = 16 << 20

// maxSegments is the longest TCP packet before it is cut, in bytes.
const maxSegments = 65536

// How long an acknowledgement waits, at most, how many do, and the length of
// TCP's options in one, a time stamp; selective ones, which hurry, are longer.
const (
	ackDelay   = 300 * time.Microsecond
	maxAcks    = 8
	ackOptions = 12
)

// link is the stack's end of the cable: a stack.LinkEndpoint for Ethernet.
type link struct {
	mu         sync.Mutex
	some       sync.Cond // that ready or closed is set
	queue      []*stack.PacketBuffer
	acks       int         // how many are in queue, if there is nothing else
	ready      bool        // the queue is to be taken
	late       *time.Timer // sets ready
	size       int         // of what is in queue, in bytes
	closed     bool
	dispatcher stack.NetworkDispatcher
	accepts    vnet.Accepts
	mac        tcpip.LinkAddress
	mtu        uint32
	onClose    func()
}

var (
	_ stack.LinkEndpoint = (*link)(nil)
	_ stack.GSOEndpoint  = (*link)(nil)
)

func newLink() *link {
	l := &link{mac: gatewayMAC, mtu: MTU}
	l.some.L = &l.mu
	l.late = time.AfterFunc(ackDelay, l.flush)
	return l
}

// flush has the queue taken.
func (l *link) flush() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.ready = len(l.queue) > 0
	l.some.Signal()
}

// close drops what waits, and all that comes later.
func (l *link) close() {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, p := range l.queue {
		p.DecRef()
	}
	l.queue, l.size, l.closed = nil, 0, true
	l.late.Stop()
	l.some.Broadcast()
}

// Ready implements net.Port.
func (n *Network) Ready(a vnet.Accepts) {
	n.link.mu.Lock()
	defer n.link.mu.Unlock()
	n.link.accepts = a
}

// Send implements net.Port: the frame goes into the stack.
func (n *Network) Send(_ vnet.Header, frame virtio.Buffers) {
	l := n.link
	l.mu.Lock()
	d, closed := l.dispatcher, l.closed
	l.mu.Unlock()
	if d == nil || closed {
		return
	}
	v := buffer.NewViewSize(int(frame.Len()))
	frame.Read(v.AsSlice())
	kind := classify(v.AsSlice(), l.LinkAddress())
	if kind == drop {
		v.Release()
		return
	}
	p := stack.NewPacketBuffer(stack.PacketBufferOptions{Payload: buffer.MakeWithView(v)})
	defer p.DecRef()
	eth, _ := p.LinkHeader().Consume(header.EthernetMinimumSize)
	p.PktType = tcpip.PacketHost
	if kind == broadcast {
		p.PktType = tcpip.PacketBroadcast
	}
	d.DeliverNetworkPacket(header.Ethernet(eth).Type(), p)
}

// Receive implements net.Port.
func (n *Network) Receive(f []vnet.Frame) (int, error) {
	l := n.link
	l.mu.Lock()
	defer l.mu.Unlock()
	for !l.ready && !l.closed {
		l.some.Wait()
	}
	if l.closed {
		return 0, io.EOF
	}
	count := min(len(f), len(l.queue))
	for i, p := range l.queue[:count] {
		f[i] = vnet.Frame{Header: offload(p), Parts: p.AsSlices(), Release: p.DecRef}
		l.size -= p.Size()
	}
	rest := copy(l.queue, l.queue[count:])
	clear(l.queue[rest:])
	l.queue = l.queue[:rest]
	l.acks, l.ready = 0, rest > 0
	return count, nil
}

// offload is what the stack has left to do with a packet.
func offload(p *stack.PacketBuffer) (h vnet.Header) {
	g := &p.GSOOptions
	if g.Type != stack.GSOTCPv4 || !g.NeedsCsum {
		return h
	}
	h.NeedsChecksum = true
	h.ChecksumStart, h.ChecksumOffset = header.EthernetMinimumSize+g.L3HdrLen, g.CsumOffset
	if p.Data().Size() > int(g.MSS) {
		h.SegmentSize, h.HeaderSize = g.MSS, uint16(p.HeaderSize())
	}
	return h
}

// WritePackets implements stack.LinkWriter.
func (l *link) WritePackets(list stack.PacketBufferList) (n int, err tcpip.Error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	defer func() {
		if l.ready {
			l.some.Signal()
		}
	}()
	for _, p := range list.AsSlice() {
		switch {
		case l.closed:
			return n, &tcpip.ErrClosedForSend{}
		case l.size >= maxQueued:
			return n, &tcpip.ErrNoBufferSpace{}
		}
		l.queue = append(l.queue, p.Clone())
		l.size += p.Size()
		n++
		switch {
		case !isAck(p) || l.acks == maxAcks:
			l.ready = true
		case len(l.queue) == 1:
			l.acks = 1
			l.late.Reset(ackDelay)
		default:
			l.acks++
		}
	}
	return n, nil
}

// isAck says whether a packet does nothing but acknowledge. Each time the guest
// is interrupted costs more than such a packet is worth, so it waits for
// another to go with, as TCP itself lets it (RFC 1122, section 4.2.3.2).
func isAck(p *stack.PacketBuffer) bool {
	if p.TransportProtocolNumber != header.TCPProtocolNumber || p.Data().Size() > 0 {
		return false
	}
	t := header.TCP(p.TransportHeader().Slice())
	return len(t) == header.TCPMinimumSize+ackOptions && t.Flags() == header.TCPFlagAck && t.WindowSize() > 0
}

// SupportedGSO implements stack.GSOEndpoint.
func (l *link) SupportedGSO() stack.SupportedGSO {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.accepts.TCP4 {
		return stack.HostGSOSupported
	}
	return stack.GSONotSupported
}

// GSOMaxSize implements stack.GSOEndpoint.
func (l *link) GSOMaxSize() uint32 { return maxSegments }

// Capabilities implements stack.LinkEndpoint. Nothing damages a frame on its way
// through memory, so checksums of the guest's are not looked at.
func (l *link) Capabilities() stack.LinkEndpointCapabilities {
	return stack.CapabilityRXChecksumOffload | stack.CapabilityResolutionRequired
}

// AddHeader implements stack.LinkEndpoint.
func (l *link) AddHeader(p *stack.PacketBuffer) {
	header.Ethernet(p.LinkHeader().Push(header.EthernetMinimumSize)).Encode(&header.EthernetFields{
		SrcAddr: p.EgressRoute.LocalLinkAddress,
		DstAddr: p.EgressRoute.RemoteLinkAddress,
		Type:    p.NetworkProtocolNumber,
	})
}

// ParseHeader implements stack.LinkEndpoint.
func (l *link) ParseHeader(p *stack.PacketBuffer) bool {
	_, ok := p.LinkHeader().Consume(header.EthernetMinimumSize)
	return ok
}

// MTU implements stack.LinkEndpoint.
func (l *link) MTU() uint32 {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.mtu
}

// SetMTU implements stack.LinkEndpoint.
func (l *link) SetMTU(mtu uint32) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.mtu = mtu
}

// LinkAddress implements stack.LinkEndpoint.
func (l *link) LinkAddress() tcpip.LinkAddress {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.mac
}

// SetLinkAddress implements stack.LinkEndpoint.
func (l *link) SetLinkAddress(a tcpip.LinkAddress) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.mac = a
}

// Attach implements stack.LinkEndpoint.
func (l *link) Attach(d stack.NetworkDispatcher) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.dispatcher = d
}

// IsAttached implements stack.LinkEndpoint.
func (l *link) IsAttached() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.dispatcher != nil
}

// MaxHeaderLength implements stack.LinkEndpoint.
func (*link) MaxHeaderLength() uint16 { return header.EthernetMinimumSize }

// ARPHardwareType implements stack.LinkEndpoint.
func (*link) ARPHardwareType() header.ARPHardwareType { return header.ARPHardwareEther }

// Wait implements stack.LinkEndpoint: there is no goroutine.
func (*link) Wait() {}

// SetOnCloseAction implements stack.LinkEndpoint.
func (l *link) SetOnCloseAction(f func()) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.onClose = f
}

// Close implements stack.LinkEndpoint.
func (l *link) Close() {
	l.close()
	l.mu.Lock()
	f := l.onClose
	l.mu.Unlock()
	if f != nil {
		f()
	}
}
