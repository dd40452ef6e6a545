// Package net is the virtio network device (virtio 1.2, section 5.1), with one
// pair of queues.
//
//	 driver in the guest               Device                         Port
//	┌────────────────────┐  notify  ┌──────────────┐   Send   ┌─────────────────────┐
//	│ transmit queue     ├──────────► Begin        ├──────────► usernet, or a       │
//	│                    │          │              │          │ file descriptor     │
//	│ receive queue      ◄──────────┤ receive      ◄──────────┤                     │
//	└────────────────────┘ interrupt└──────────────┘ Receive  └─────────────────────┘
//
// A frame from the guest is handed over and complete while the vCPU waits. For
// frames to the guest there is a goroutine: it takes all that have come, pulls
// buffers for them out of the ring, copies, and has the guest stand still once
// for all of them. The driver needs to notify of receive buffers only when the
// device has run out of them.
//
// With offloads (Header) a frame is up to 64 KiB of TCP; that is what makes a
// network fast whose cost is by the frame.
package net

import (
	"errors"
	"sync"
	"sync/atomic"
	"time"

	"ring3/internal/virtio"
)

// Feature bits (section 5.1.3).
const (
	featureCsum      = 1 << 0
	featureGuestCsum = 1 << 1
	featureMTU       = 1 << 3
	featureMAC       = 1 << 5
	featureGuestTSO4 = 1 << 7
	featureHostTSO4  = 1 << 11
	featureMrgRxbuf  = 1 << 15
	featureStatus    = 1 << 16
)

// deviceType is the device ID of a network device; its PCI class is network
// controller, Ethernet.
const (
	deviceType = 1
	pciClass   = 0x020000
)

// Queues (section 5.1.2).
const (
	receiveQueue  = 0
	transmitQueue = 1
	numQueues     = 2
)

// Sizes of frames, in bytes: an Ethernet header at least, and no more than one
// with the longest IP packet.
const (
	minFrame = 14
	maxFrame = 14 + 65535
)

// transmitDelay is how late the driver is told that a frame was sent, at most
// (interruptLate).
const transmitDelay = time.Millisecond

// batch is how many frames are given to the guest at a time.
const batch = 64

// Config describes a device.
type Config struct {
	Name string // for messages
	MAC  [6]byte
	MTU  uint16 // the longest IP packet on the wire, in bytes, at least 68
	Port Port
}

// Device is a virtio.Device.
type Device struct {
	p   virtio.Platform
	cfg Config

	transport atomic.Pointer[virtio.PCI] // nil until there is a driver
	features  atomic.Uint64              // that the driver has accepted
	wake      chan struct{}              // something happened that receive may wait for
	sent      chan struct{}              // frames were sent since the last interrupt for that
	quit      chan struct{}
	running   sync.WaitGroup
}

var _ virtio.Puller = (*Device)(nil)

// New returns a device, which must be closed. It closes the port.
func New(p virtio.Platform, cfg Config) *Device {
	d := &Device{p: p, cfg: cfg, wake: make(chan struct{}, 1), sent: make(chan struct{}, 1), quit: make(chan struct{})}
	d.running.Go(d.receive)
	d.running.Go(d.interruptLate)
	return d
}

// Close closes the port and ends. Platform.Sync must return meanwhile.
func (d *Device) Close() error {
	close(d.quit)
	err := d.cfg.Port.Close()
	d.running.Wait()
	return err
}

// Info implements virtio.Device.
func (d *Device) Info() virtio.Info {
	f := uint64(featureMTU | featureMAC | featureMrgRxbuf | featureStatus)
	if d.cfg.Port.Offloads() {
		f |= featureCsum | featureGuestCsum | featureGuestTSO4 | featureHostTSO4
	}
	return virtio.Info{Name: d.cfg.Name, Type: deviceType, Class: pciClass, Features: f,
		Queues: numQueues, Config: d.configuration()}
}

// configuration is the device configuration space (section 5.1.4). The link is
// always up.
func (d *Device) configuration() []byte {
	b := make([]byte, 12)
	copy(b, d.cfg.MAC[:])
	le.PutUint16(b[6:], 1) // status: VIRTIO_NET_S_LINK_UP
	le.PutUint16(b[8:], 1) // pairs of queues
	le.PutUint16(b[10:], d.cfg.MTU)
	return b
}

// Pulls implements virtio.Puller.
func (d *Device) Pulls(queue int) bool { return queue == receiveQueue }

// Start implements virtio.Puller.
func (d *Device) Start(t *virtio.PCI, features uint64) {
	d.features.Store(features)
	sum := features&featureGuestCsum != 0
	d.cfg.Port.Ready(Accepts{Checksum: sum, TCP4: sum && features&featureGuestTSO4 != 0})
	d.transport.Store(t)
	d.poke()
}

// Available implements virtio.Puller.
func (d *Device) Available(int) { d.poke() }

// Defers implements virtio.Puller.
func (d *Device) Defers(queue int) bool { return queue == transmitQueue }

// Stop implements virtio.Puller.
func (d *Device) Stop() { d.poke() }

func (d *Device) poke() { poke(d.wake) }

// poke wakes who waits for c, now or next.
func poke(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default: // it is awake
	}
}

// interruptLate interrupts for frames that were sent, some time later. Drivers
// look at the transmit queue by themselves when they send or receive the next
// frame; an interrupt is for those who do neither.
func (d *Device) interruptLate() {
	for {
		select {
		case <-d.sent:
		case <-d.quit:
			return
		}
		select {
		case <-time.After(transmitDelay):
		case <-d.quit:
			return
		}
		if t := d.transport.Load(); t != nil {
			t.Interrupt(transmitQueue)
		}
	}
}

// Begin implements virtio.Device: a frame from the guest.
func (d *Device) Begin(_ int, c *virtio.Chain) (n uint32, done bool, err error) {
	if c.Readable.Len() < headerSize {
		return 0, false, errors.New("a frame to transmit is shorter than its header")
	}
	head, frame := c.Readable.Split(headerSize)
	var b [headerSize]byte
	head.Read(b[:])
	size := frame.Len()
	if h, ok := decode(&b, size, d.features.Load()); ok && size >= minFrame && size <= maxFrame {
		d.cfg.Port.Send(h, frame)
	}
	poke(d.sent)
	return 0, true, nil
}
