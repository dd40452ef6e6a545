// Package blk is the virtio block device (virtio 1.2, section 5.2).
package blk

import (
	"encoding/binary"
	"log/slog"
	"sync"
	"sync/atomic"

	"ring3/internal/disk"
	"ring3/internal/virtio"
)

// Feature bits (section 5.2.3).
const (
	featureSegMax      = 1 << 2
	featureReadOnly    = 1 << 5
	featureBlkSize     = 1 << 6
	featureFlush       = 1 << 9
	featureTopology    = 1 << 10
	featureMQ          = 1 << 12
	featureDiscard     = 1 << 13
	featureWriteZeroes = 1 << 14
)

// Limits that the driver is told.
const (
	maxSegments      = virtio.QueueSize - 2 // buffers besides header and status
	maxDiscard       = 1 << 21              // sectors in one range: 1 GiB
	maxZeroes        = 1 << 15              // sectors: a host without fallocate writes them
	maxRanges        = 16
	physicalExponent = 3 // physical blocks are 2^3 sectors
)

// deviceType is the device ID of a block device; its PCI class is mass
// storage, other.
const (
	deviceType = 2
	pciClass   = 0x018000
)

// maxAtOnce is how much is read or written while the vCPU waits, in bytes. The
// host's cache takes less time for that than two threads to wake each other.
const maxAtOnce = 64 << 10

// workers is how many requests are executed at the same time.
const workers = 4

// Config describes a disk.
type Config struct {
	Name     string // vda, ...; also what it identifies itself with, up to 20 bytes
	Image    disk.Image
	ReadOnly bool
	Queues   int
}

// Device is a virtio.Device.
type Device struct {
	p        virtio.Platform
	cfg      Config
	requests chan *request // has room for all that the driver can send
	waiting  atomic.Int32  // requests that workers have or shall have
	quit     chan struct{}
	running  sync.WaitGroup
	failed   sync.Once // the image, for the log
}

// New returns a disk, which must be closed. It closes the image.
func New(p virtio.Platform, cfg Config) *Device {
	d := &Device{p: p, cfg: cfg, quit: make(chan struct{}),
		requests: make(chan *request, cfg.Queues*virtio.QueueSize)}
	for range workers {
		d.running.Go(d.work)
	}
	return d
}

// Close waits for the requests that are being executed, drops the others, and
// closes the image. Platform.Sync must return meanwhile.
func (d *Device) Close() error {
	close(d.quit)
	d.running.Wait()
	return d.cfg.Image.Close()
}

// Info implements virtio.Device.
func (d *Device) Info() virtio.Info {
	f := uint64(featureSegMax | featureBlkSize | featureFlush | featureTopology | featureMQ)
	if d.cfg.ReadOnly {
		f |= featureReadOnly
	} else {
		f |= featureDiscard | featureWriteZeroes
	}
	return virtio.Info{Name: d.cfg.Name, Type: deviceType, Class: pciClass, Features: f,
		Queues: d.cfg.Queues, Config: d.configuration()}
}

// configuration is the device configuration space (section 5.2.4).
func (d *Device) configuration() []byte {
	le := binary.LittleEndian
	b := make([]byte, 60)
	le.PutUint64(b[0:], uint64(d.cfg.Image.Size()/disk.SectorSize))
	le.PutUint32(b[12:], maxSegments)
	le.PutUint32(b[20:], disk.SectorSize)
	b[24] = physicalExponent
	le.PutUint16(b[26:], 1<<physicalExponent) // suggested minimum, sectors
	le.PutUint16(b[34:], uint16(d.cfg.Queues))
	le.PutUint32(b[36:], maxDiscard)
	le.PutUint32(b[40:], maxRanges)
	le.PutUint32(b[44:], 1<<physicalExponent) // alignment, sectors
	le.PutUint32(b[48:], maxZeroes)
	le.PutUint32(b[52:], maxRanges)
	b[56] = 1 // zeros may be unmapped
	return b
}

// Begin implements virtio.Device.
func (d *Device) Begin(_ int, c *virtio.Chain) (n uint32, done bool, err error) {
	r, err := parse(c)
	if err != nil {
		return 0, false, err
	}
	if d.atOnce(r) {
		return uint32(c.Writable.Len()), true, nil
	}
	d.waiting.Add(1)
	d.requests <- r
	return 0, false, nil
}

// work executes requests until the device is closed.
func (d *Device) work() {
	for {
		select {
		case <-d.quit:
			return
		case r := <-d.requests:
			if d.p.Exclusive {
				d.p.Sync(func() { d.execute(r) })
			} else {
				d.execute(r)
			}
			d.waiting.Add(-1)
			r.chain.Complete(uint32(r.chain.Writable.Len()))
		}
	}
}

// report logs the first failure of the image.
func (d *Device) report(err error) {
	d.failed.Do(func() {
		d.p.Log.Warn("the host cannot access a disk image; the guest sees input/output errors",
			slog.String("disk", d.cfg.Name), slog.Any("err", err))
	})
}
