package virtio

import (
	"sync"

	"ring3/internal/bus"
	"ring3/internal/pci"
)

// pciConfig is the body of the capability through which firmware reaches BARs
// without mapping them (section 4.1.4.9): an access of its last four bytes is one
// of the BAR, with the offset and length that were written before them.
type pciConfig struct {
	f    *pci.Function
	mu   sync.Mutex
	body []byte
}

// Places in the body.
const (
	bodyBAR    = 2
	bodyOffset = 6
	bodyLength = 10
	bodyData   = 14
)

// Read implements bus.Device.
func (c *pciConfig) Read(off uint64, p []byte) {
	c.mu.Lock()
	body := [bodyData + 4]byte(c.body)
	c.mu.Unlock()
	if off == bodyData {
		if dev, at, n := c.target(body[:], p); dev != nil {
			dev.Read(at, p[:n])
			return
		}
	}
	copy(p, body[off:])
}

// Write implements bus.Device.
func (c *pciConfig) Write(off uint64, p []byte) {
	c.mu.Lock()
	for i, v := range p {
		if at := int(off) + i; at == bodyBAR || at >= bodyOffset && at < bodyData {
			c.body[at] = v
		}
	}
	body := [bodyData + 4]byte(c.body)
	c.mu.Unlock()
	if off == bodyData {
		if dev, at, n := c.target(body[:], p); dev != nil {
			dev.Write(at, p[:n])
		}
	}
}

// target is what an access of p to the data means; no device if the driver has
// written nonsense before.
func (c *pciConfig) target(body, p []byte) (dev bus.Device, at uint64, n int) {
	at, size := uint64(le.Uint32(body[bodyOffset:])), uint64(le.Uint32(body[bodyLength:]))
	dev, end := c.f.BAR(int(body[bodyBAR]))
	if size != 1 && size != 2 && size != 4 || at%size != 0 || at+size > end || size > uint64(len(p)) {
		return nil, 0, 0
	}
	return dev, at, int(size)
}
