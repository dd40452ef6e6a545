package vsock

import (
	"errors"
	"fmt"
	"net"
	"sync"
	"time"

	"ring3/internal/virtio"
)

// requestTimeout is how long the guest may take to answer a request. It answers
// at once unless it stands still.
const requestTimeout = 10 * time.Second

// state of a connection.
type state uint8

const (
	dialing   state = iota // the guest's: ring3 connects to the Unix socket
	requested              // the host's: the guest has not answered
	open
)

// want is a set of packets without data that a connection has to send.
type want uint8

const (
	wantRequest want = 1 << iota
	wantResponse
	wantCredit
)

// conn is one connection. Its fields are used under Device.mu, but sock.
type conn struct {
	d       *Device
	key     key
	sock    *net.UnixConn // nil while dialing
	changed *sync.Cond    // in, out or dead
	expire  *time.Timer   // of the request

	state  state
	dead   bool
	queued bool // in Device.ready
	want   want

	// From the guest.
	out      []byte // waits to be written to sock
	received uint32 // bytes, free-running
	fwd      uint32 // of them, written to sock
	told     uint32 // fwd, as the guest last heard
	sendEnd  bool   // the guest sends no more
	outDone  bool   // and all of it is written

	// To the guest.
	in         []byte // read from sock
	inEnd      bool   // nothing more comes
	shutdown   bool   // which the guest was told
	receiveEnd bool   // the guest takes no more
	sent       uint32 // bytes, free-running
	peerAlloc  uint32
	peerFwd    uint32
}

// credit notes what a packet of the guest tells of its buffers.
func (c *conn) credit(h header) { c.peerAlloc, c.peerFwd = h.bufAlloc, h.fwdCnt }

// room is how many bytes the guest has room for.
func (c *conn) room() int {
	flying := c.sent - c.peerFwd
	if flying >= c.peerAlloc {
		return 0
	}
	return int(c.peerAlloc - flying)
}

// receive obeys a packet of the guest. An error resets the connection. d.mu is
// held.
func (c *conn) receive(h header, data virtio.Buffers) error {
	c.credit(h)
	switch {
	case h.op == opResponse && c.state == requested:
		c.expire.Stop()
		c.start(fmt.Sprintf("OK %d\n", c.key.host))
	case h.op == opCreditUpdate:
	case h.op == opCreditRequest:
		c.want |= wantCredit
	case h.op == opData && c.state == open && !c.sendEnd:
		if h.size > bufAlloc-(c.received-c.fwd) {
			return errCredit
		}
		b := make([]byte, h.size)
		data.Read(b)
		c.out = append(c.out, b...)
		c.received += h.size
	case h.op == opShutdown && c.state == open:
		c.sendEnd = c.sendEnd || h.flags&shutdownSend != 0
		c.receiveEnd = c.receiveEnd || h.flags&shutdownReceive != 0
		if c.receiveEnd {
			c.in = nil
		}
		c.finish()
	default:
		return errors.New("a packet out of place")
	}
	c.changed.Broadcast()
	c.d.enqueue(c)
	return nil
}

// start makes the connection open, with a line that the host gets first. d.mu is
// held.
func (c *conn) start(greeting string) {
	c.state = open
	c.d.run.Go(c.read)
	c.d.run.Go(func() { c.write(greeting) })
}

// dial connects to the socket that the guest wants.
func (c *conn) dial() {
	var dialer net.Dialer
	s, err := dialer.DialContext(c.d.ctx, "unix", fmt.Sprintf("%s_%d", c.d.cfg.Path, c.key.host))
	c.d.mu.Lock()
	defer c.d.mu.Unlock()
	switch {
	case err != nil:
		c.d.reset(c)
	case c.dead:
		s.Close()
	default:
		c.sock = s.(*net.UnixConn)
		c.want |= wantResponse
		c.start("")
		c.d.enqueue(c)
	}
}

// read takes what comes from the host, a chunk at a time.
func (c *conn) read() {
	buf := make([]byte, chunk)
	for {
		n, err := c.sock.Read(buf)
		c.d.mu.Lock()
		if !c.receiveEnd {
			c.in = buf[:n]
		}
		c.inEnd = err != nil
		c.d.enqueue(c)
		for len(c.in) > 0 && !c.dead {
			c.changed.Wait()
		}
		end := c.dead || c.inEnd
		c.finish()
		c.d.mu.Unlock()
		if end {
			return
		}
	}
}

// write gives the host what comes from the guest.
func (c *conn) write(greeting string) {
	b, counted := []byte(greeting), false
	for {
		n, err := c.sock.Write(b)
		c.d.mu.Lock()
		if counted {
			c.fwd += uint32(n)
		}
		if err != nil {
			c.d.reset(c)
		}
		if c.fwd-c.told >= bufAlloc/2 {
			c.want |= wantCredit
			c.d.enqueue(c)
		}
		for len(c.out) == 0 && !c.sendEnd && !c.dead {
			c.changed.Wait()
		}
		b, counted, c.out = c.out, true, nil
		if c.dead || len(b) == 0 {
			c.outDone = true
			c.sock.CloseWrite()
			c.finish()
			c.d.mu.Unlock()
			return
		}
		c.d.mu.Unlock()
	}
}

// finish ends a connection that has nothing more to do in either direction
// (section 5.10.6.5). d.mu is held.
func (c *conn) finish() {
	if c.outDone && (c.receiveEnd || c.shutdown) {
		c.d.reset(c)
	}
}

// next is the next packet for the guest. d.mu is held.
func (c *conn) next(room int) (h header, data []byte, ok bool) {
	if c.dead {
		return header{}, nil, false
	}
	h = header{srcCID: HostCID, dstCID: c.d.cfg.CID, srcPort: c.key.host, dstPort: c.key.guest,
		kind: typeStream, bufAlloc: bufAlloc, fwdCnt: c.fwd}
	switch n := min(len(c.in), room, c.room()); {
	case c.want&wantRequest != 0:
		h.op, c.want = opRequest, c.want&^wantRequest
	case c.want&wantResponse != 0:
		h.op, c.want = opResponse, c.want&^wantResponse
	case n > 0 && c.state == open:
		h.op, h.size, data = opData, uint32(n), c.in[:n]
		c.in = c.in[n:]
		c.sent += uint32(n)
		c.want &^= wantCredit // the header tells it
		if len(c.in) == 0 {
			c.changed.Broadcast()
		}
	case c.want&wantCredit != 0:
		h.op, c.want = opCreditUpdate, c.want&^wantCredit
	case c.inEnd && len(c.in) == 0 && !c.shutdown && !c.receiveEnd:
		h.op, h.flags = opShutdown, shutdownSend
		c.shutdown = true
		c.finish()
	default:
		return header{}, nil, false
	}
	c.told = c.fwd
	return h, data, true
}
