// Package debugport has the ports that take bytes and do nothing else: the
// Bochs debug console at 0xe9 and the POST code port at 0x80, which software
// also writes for a short delay.
package debugport

import (
	"io"
	"sync/atomic"
)

// Where a PC has them, one port each.
const (
	PortConsole = 0xe9
	PortPOST    = 0x80
)

// Console sends what is written to it to a writer, which must not block. It is
// a bus.Device of one port.
type Console struct{ W io.Writer }

// Read implements bus.Device: the port number tells that it is there (Bochs
// documentation, port_e9_hack).
func (c Console) Read(_ uint64, p []byte) {
	for i := range p {
		p[i] = PortConsole
	}
}

// Write implements bus.Device.
func (c Console) Write(off uint64, p []byte) {
	if off == 0 && len(p) > 0 && c.W != nil {
		_, _ = c.W.Write(p[:1]) // nobody to tell
	}
}

// POST keeps the last byte that was written to it. It is a bus.Device.
type POST struct{ last atomic.Uint32 }

// Last returns the last POST code.
func (d *POST) Last() uint8 { return uint8(d.last.Load()) }

// Read implements bus.Device: the port cannot be read.
func (d *POST) Read(_ uint64, p []byte) {
	for i := range p {
		p[i] = 0xff
	}
}

// Write implements bus.Device.
func (d *POST) Write(off uint64, p []byte) {
	if off == 0 && len(p) > 0 {
		d.last.Store(uint32(p[0]))
	}
}
