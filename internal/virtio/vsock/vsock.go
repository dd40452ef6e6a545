// Package vsock is the virtio socket device (virtio 1.2, section 5.10): stream
// connections between programs in the guest and programs on the host, without a
// network. The host's side are Unix sockets, by the convention of Firecracker:
//
//   - To connect to port N of the guest, connect to the socket PATH, send
//     "CONNECT N\n" and read "OK PORT\n"; what follows is the connection. It is
//     closed instead if nobody in the guest listens there.
//   - A connection of the guest to port N of CID 2, the host, goes to the Unix
//     socket PATH_N, and is refused if nobody listens there.
//
// # Flow
//
// Each side tells the other how much room it has (buf_alloc) and how much it
// has taken out of there (fwd_cnt). A connection buffers at most bufAlloc bytes
// of the guest's, and chunk bytes for it.
//
//	Unix socket ──► conn.read ──► conn.in  ──► Device.pump ──► receive queue
//	Unix socket ◄── conn.write ◄─ conn.out ◄── Device.Begin ◄─ transmit queue
//
// Begin runs on the vCPU's thread and never waits. The driver's receive buffers
// are kept; pump, a goroutine, fills them while the guest stands still, as many
// at a time as there are packets for.
//
// # Hostile drivers
//
// Beyond what package virtio checks, a packet is input. One that makes no sense
// is answered with a reset of its connection, as is data that exceeds the
// credit. Connections, and resets that wait to be sent, are bounded in number.
package vsock

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"sync"

	"ring3/internal/virtio"
)

// Well-known addresses (section 5.10.4).
const (
	HostCID = 2
	MinCID  = 3         // of a guest
	MaxCID  = 1<<32 - 2 // of a guest
	anyPort = 1<<32 - 1 // VMADDR_PORT_ANY: names no port
)

// deviceType is the device ID of a socket device; its PCI class is
// communication controller, other.
const (
	deviceType = 19
	pciClass   = 0x078000
)

// Queues (section 5.10.2).
const (
	queueReceive = iota // to the driver
	queueTransmit
	queueEvent // never used: it tells of a move to another host
	queues
)

// Limits, which bound the memory to some 80 MiB in the worst case.
const (
	MaxConns  = 256
	bufAlloc  = 256 << 10 // bytes of the guest's that a connection buffers
	chunk     = 64 << 10  // bytes for the guest that a connection buffers
	maxResets = 256       // that wait to be sent; the guest runs into its timeouts without more
)

// firstPort is the first port that a host's connection comes from.
const firstPort = 1 << 30

// Config describes a socket device.
type Config struct {
	CID  uint64 // of the guest, MinCID to MaxCID
	Path string // of the Unix socket for connections to the guest
}

// Device is a virtio.Device.
type Device struct {
	p      virtio.Platform
	cfg    Config
	listen *net.UnixListener
	ctx    context.Context // ends when the device is closed
	cancel context.CancelFunc
	run    sync.WaitGroup // goroutines

	mu       sync.Mutex // behind virtio's
	wake     *sync.Cond // pump may have work
	closed   bool
	driver   bool            // the guest has one, which has given buffers
	buffers  []*virtio.Chain // of the receive queue, that wait for packets
	events   int             // buffers of the event queue
	conns    map[key]*conn
	nextPort uint32
	callers  map[net.Conn]bool // that have not said yet what they want
	ready    []*conn           // that may have a packet for the guest
	resets   []header          // for connections that do not exist
}

// key tells connections apart.
type key struct{ guest, host uint32 } // ports

var _ virtio.Keeper = (*Device)(nil)

// New returns a socket device, which must be closed. A mistake in cfg is
// reported as *Error.
func New(p virtio.Platform, cfg Config) (*Device, error) {
	if cfg.CID < MinCID || cfg.CID > MaxCID {
		return nil, &Error{cfg.Path, fmt.Errorf("CID %d is not between %d and %d", cfg.CID, MinCID, uint64(MaxCID))}
	}
	l, err := bind(cfg.Path)
	if err != nil {
		return nil, &Error{cfg.Path, err}
	}
	d := &Device{p: p, cfg: cfg, listen: l, conns: map[key]*conn{}, callers: map[net.Conn]bool{}, nextPort: firstPort}
	d.wake = sync.NewCond(&d.mu)
	d.ctx, d.cancel = context.WithCancel(context.Background())
	d.run.Go(d.accept)
	d.run.Go(d.pump)
	return d, nil
}

// Close ends all connections and removes the socket. Platform.Sync must return
// meanwhile.
func (d *Device) Close() error {
	d.cancel()
	err := d.listen.Close()
	d.mu.Lock()
	d.closed = true
	for _, c := range d.conns {
		d.drop(c)
	}
	for s := range d.callers {
		s.Close()
	}
	d.wake.Broadcast()
	d.mu.Unlock()
	d.run.Wait()
	return err
}

// Info implements virtio.Device.
func (d *Device) Info() virtio.Info {
	return virtio.Info{Name: "vsock", Type: deviceType, Class: pciClass, Queues: queues,
		Config: binary.LittleEndian.AppendUint64(nil, d.cfg.CID)}
}

// Begin implements virtio.Device.
func (d *Device) Begin(queue int, c *virtio.Chain) (n uint32, done bool, err error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	switch queue {
	case queueReceive:
		if size := c.Writable.Len(); size < headerSize {
			return 0, false, fmt.Errorf("a receive buffer of %d bytes has no room for a header", size)
		}
		d.buffers, d.driver = append(d.buffers, c), true
		d.wake.Signal()
		return 0, false, nil
	case queueTransmit:
		size := c.Readable.Len()
		if size < headerSize {
			return 0, false, fmt.Errorf("a packet of %d bytes has no header", size)
		}
		h := readHeader(c.Readable)
		_, data := c.Readable.Split(headerSize)
		if int64(h.size) > size-headerSize {
			return 0, false, fmt.Errorf("a packet of %d bytes says it has %d of data", size, h.size)
		}
		d.receive(h, data)
		return 0, true, nil
	}
	d.events++
	return 0, false, nil
}

// Reset implements virtio.Keeper: connections end with the driver.
func (d *Device) Reset() (kept int) {
	d.mu.Lock()
	defer d.mu.Unlock()
	kept = len(d.buffers) + d.events
	d.buffers, d.events, d.ready, d.resets, d.driver = nil, 0, nil, nil, false
	for _, c := range d.conns {
		d.drop(c)
	}
	return kept
}

// receive obeys a packet of the guest. d.mu is held.
func (d *Device) receive(h header, data virtio.Buffers) {
	k := key{guest: h.srcPort, host: h.dstPort}
	if h.srcCID != d.cfg.CID || h.dstCID != HostCID || h.kind != typeStream {
		d.refuse(h)
		return
	}
	c := d.conns[k]
	switch {
	case c != nil && h.op == opReset:
		d.drop(c)
	case c != nil:
		if err := c.receive(h, data); err != nil {
			d.reset(c)
		}
	case h.op == opRequest && len(d.conns) < MaxConns && !d.closed:
		c := d.add(k, nil)
		c.credit(h)
		d.run.Go(c.dial)
	default:
		d.refuse(h)
	}
}

// refuse answers a packet that belongs to no connection (section 5.10.6.4.1).
// d.mu is held.
func (d *Device) refuse(h header) {
	if h.op == opReset || len(d.resets) == maxResets {
		return
	}
	kind := h.kind
	d.resets = append(d.resets, header{srcCID: h.dstCID, dstCID: h.srcCID, srcPort: h.dstPort, dstPort: h.srcPort, kind: kind, op: opReset})
	d.wake.Signal()
}

// add makes a connection; sock is nil if it is the guest's. d.mu is held.
func (d *Device) add(k key, sock *net.UnixConn) *conn {
	c := &conn{d: d, key: k, sock: sock, changed: sync.NewCond(&d.mu)}
	d.conns[k] = c
	return c
}

// drop ends a connection without telling the guest. d.mu is held.
func (d *Device) drop(c *conn) {
	if c.dead {
		return
	}
	c.dead = true
	delete(d.conns, c.key)
	if c.sock != nil {
		c.sock.Close()
	}
	if c.expire != nil {
		c.expire.Stop()
	}
	c.changed.Broadcast()
}

// reset ends a connection and tells the guest. d.mu is held.
func (d *Device) reset(c *conn) {
	if c.dead {
		return
	}
	d.drop(c)
	d.refuse(header{srcCID: d.cfg.CID, dstCID: HostCID, srcPort: c.key.guest, dstPort: c.key.host, kind: typeStream})
}

// enqueue has pump look whether c has a packet for the guest. d.mu is held.
func (d *Device) enqueue(c *conn) {
	if !c.queued && !c.dead {
		c.queued = true
		d.ready = append(d.ready, c)
		d.wake.Signal()
	}
}

// pump sends packets to the guest until the device is closed.
func (d *Device) pump() {
	for {
		d.mu.Lock()
		for !d.closed && (len(d.buffers) == 0 || len(d.resets)+len(d.ready) == 0) {
			d.wake.Wait()
		}
		closed := d.closed
		d.mu.Unlock()
		if closed {
			return
		}
		d.p.Sync(d.fill)
	}
}

// fill puts packets into receive buffers while the guest stands still.
func (d *Device) fill() {
	type filled struct {
		c *virtio.Chain
		n uint32
	}
	var done []filled
	d.mu.Lock()
	for len(d.buffers) > 0 {
		c := d.buffers[0]
		h, data, ok := d.next(int(min(c.Writable.Len()-headerSize, chunk)))
		if !ok {
			break
		}
		d.buffers = d.buffers[1:]
		c.Writable.Write(h.bytes())
		_, rest := c.Writable.Split(headerSize)
		rest.Write(data)
		done = append(done, filled{c, headerSize + h.size})
	}
	d.mu.Unlock()
	for _, f := range done {
		f.c.CompleteNow(f.n)
	}
}

// next is the next packet, with at most room bytes of data, which the next call
// may overwrite. d.mu is held.
func (d *Device) next(room int) (h header, data []byte, ok bool) {
	if len(d.resets) > 0 {
		h, d.resets = d.resets[0], d.resets[1:]
		return h, nil, true
	}
	for len(d.ready) > 0 {
		c := d.ready[0]
		d.ready = d.ready[1:]
		c.queued = false
		if h, data, ok := c.next(room); ok {
			d.enqueue(c) // it may have more, after the others
			return h, data, true
		}
	}
	return header{}, nil, false
}

// Error is a mistake in a Config: the message names the socket and why.
type Error struct {
	Path string
	Err  error
}

func (e *Error) Error() string { return e.Path + ": " + e.Err.Error() }

func (e *Error) Unwrap() error { return e.Err }

var errCredit = errors.New("more data than there is credit for")
