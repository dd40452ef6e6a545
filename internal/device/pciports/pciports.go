// Package pciports is what a PC without PCI has at the configuration ports
// 0xcf8 to 0xcff: nothing, so that probing ends at the first read, except the
// reset control register in their middle.
//
// Source: Intel ICH9 data sheet (order 316972), section 13.7.5 "RST_CNT: Reset
// Control Register".
package pciports

import "sync/atomic"

// Layout. Attach all of it as one range: the register lies inside the
// configuration address.
const (
	Port      = 0xcf8
	Ports     = 8
	ResetPort = 0xcf9

	// ResetValue written to ResetPort resets the machine; the FADT says so.
	ResetValue = sysReset | resetCPU

	sysReset  = 1 << 1 // hard reset, not only the processors
	resetCPU  = 1 << 2 // a change from 0 to 1 resets
	fullReset = 1 << 3 // with a power cycle
	writable  = sysReset | resetCPU | fullReset
)

// Device is a bus.Device of Ports ports.
type Device struct {
	reset   func()
	control atomic.Uint32
}

// New returns the ports of a machine that reset resets.
func New(reset func()) *Device { return &Device{reset: reset} }

// Reset is power on.
func (d *Device) Reset() { d.control.Store(0) }

// Read implements bus.Device.
func (d *Device) Read(off uint64, p []byte) {
	for i := range p {
		p[i] = 0xff
	}
	if off == ResetPort-Port && len(p) == 1 {
		p[0] = uint8(d.control.Load())
	}
}

// Write implements bus.Device. A wider write is one of the configuration
// address and leaves the register alone.
func (d *Device) Write(off uint64, p []byte) {
	if off != ResetPort-Port || len(p) != 1 {
		return
	}
	v := uint32(p[0]) & writable
	old := d.control.Swap(v)
	if v&resetCPU != 0 && old&resetCPU == 0 {
		d.reset()
	}
}
