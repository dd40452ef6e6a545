// Package rng is the virtio entropy device (virtio 1.2, section 5.4): it fills
// buffers with random bytes of the host.
package rng

import (
	"crypto/rand"
	"errors"

	"ring3/internal/virtio"
)

// deviceType is the device ID of an entropy source; its PCI class is
// unclassified.
const (
	deviceType = 4
	pciClass   = 0x00ff00
)

// maxBytes bounds what one request gets: its vCPU waits for it.
const maxBytes = 64 << 10

// Device is a virtio.Device.
type Device struct{}

// Info implements virtio.Device.
func (Device) Info() virtio.Info {
	return virtio.Info{Name: "rng", Type: deviceType, Class: pciClass, Queues: 1}
}

// Begin implements virtio.Device.
func (Device) Begin(_ int, c *virtio.Chain) (n uint32, done bool, err error) {
	if len(c.Writable) == 0 {
		return 0, false, errors.New("a request for randomness has no room for any")
	}
	for _, b := range c.Writable {
		part := b.Data[:min(len(b.Data), maxBytes-int(n))]
		rand.Read(part) // never fails
		n += uint32(len(part))
	}
	return n, true, nil
}
