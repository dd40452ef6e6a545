// Package fs is the virtio file system device (virtio 1.2, section 5.11): the
// guest mounts a directory of the host by its tag.
//
// The requests are those of FUSE. Module go-fuse decodes and encodes them,
// package share answers. What the host can answer from memory is answered
// while the vCPU waits: that takes less time than to wake another thread, and
// a program that opens files waits for each answer anyway. What may wait for a
// disk, or move much, goes to a few goroutines.
package fs

import (
	"encoding/binary"
	"io"
	"log"
	"log/slog"
	"math"
	"sync"
	"sync/atomic"

	"github.com/hanwen/go-fuse/v2/fuse"

	"ring3/internal/share"
	"ring3/internal/virtio"
)

// deviceType is the device ID of a file system; its PCI class is mass storage,
// other.
const (
	deviceType = 26
	pciClass   = 0x018000
)

// The queues (section 5.11.2): one for requests that must not wait behind
// others, such as to forget, and one for all else.
const queues = 2

// TagSize is how long a tag can be, in bytes (section 5.11.4).
const TagSize = 36

// Limits of a request, in bytes.
const (
	maxData    = 1 << 20  // that are read or written
	maxWritten = 64 << 10 // while the vCPU waits
	maxHeaders = 64 << 10 // that are no data, such as two names
)

// workers is how many requests are executed at the same time.
const workers = 4

// Device is a virtio.Device.
type Device struct {
	p        virtio.Platform
	tag      string
	tree     *share.Tree
	cached   *share.Cached        // of tree, for requests that are answered at once
	atOnce   *fuse.ProtocolServer // on cached
	server   *fuse.ProtocolServer // on tree
	requests chan *request        // has room for all that the driver can send
	waiting  atomic.Int32         // requests that workers have or shall have
	quit     chan struct{}
	running  sync.WaitGroup
}

// New returns a device for tree, which must be closed. It closes the tree.
func New(p virtio.Platform, tag string, tree *share.Tree) *Device {
	d := &Device{p: p, tag: tag, tree: tree, cached: tree.Cached(), quit: make(chan struct{}),
		requests: make(chan *request, queues*virtio.QueueSize)}
	opt := &fuse.MountOptions{
		MaxWrite:             maxData,
		MaxReadAhead:         maxData,
		EnableSymlinkCaching: true, // a symbolic link never changes
		DisableXAttrs:        true,
		ExtraCapabilities:    fuse.CAP_ATOMIC_O_TRUNC | fuse.CAP_READDIRPLUS_AUTO,
		DisabledCapabilities: fuse.CAP_PASSTHROUGH,
		Logger:               log.New(io.Discard, "", 0), // a guest can provoke what would be in it
		PanicHandler:         d.bug,
	}
	d.atOnce = fuse.NewProtocolServer(d.cached, opt)
	d.server = fuse.NewProtocolServer(tree, opt)
	for range workers {
		d.running.Go(d.work)
	}
	return d
}

// bug reports a request that ended in a panic. The guest gets an error.
func (d *Device) bug(what any) fuse.Status {
	d.p.Log.Error("BUG: a request to a shared directory failed", slog.String("share", d.tag), slog.Any("panic", what))
	return fuse.EIO
}

// Close waits for the requests that are being executed, drops the others, and
// closes the tree. Platform.Sync must return meanwhile.
func (d *Device) Close() error {
	close(d.quit)
	d.running.Wait()
	return d.tree.Close()
}

// Info implements virtio.Device.
func (d *Device) Info() virtio.Info {
	config := make([]byte, TagSize, TagSize+4)
	copy(config, d.tag)
	config = binary.LittleEndian.AppendUint32(config, queues-1) // of requests
	return virtio.Info{Name: d.tag, Type: deviceType, Class: pciClass, Queues: queues, Config: config}
}

// Begin implements virtio.Device.
func (d *Device) Begin(_ int, c *virtio.Chain) (n uint32, done bool, err error) {
	r := parse(c)
	if r.status != fuse.OK {
		return r.fail(), true, nil
	}
	if !r.mayWait(d.waiting.Load() > 0) {
		n = r.execute(d, d.atOnce)
		if !d.cached.Missed() {
			return n, true, nil
		}
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
			var n uint32
			if d.p.Exclusive {
				d.p.Sync(func() { n = r.execute(d, d.server) })
			} else {
				n = r.execute(d, d.server)
			}
			d.waiting.Add(-1)
			r.chain.Complete(n)
		}
	}
}

// size is the number of bytes, at most what a used ring can tell.
func size(b virtio.Buffers) uint32 { return uint32(min(b.Len(), math.MaxUint32)) }
