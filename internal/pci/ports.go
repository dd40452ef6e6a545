package pci

import "ring3/internal/bus"

// Ports of the host bridge: configuration mechanism 1. The reset control
// register lies inside the address port and answers to single bytes (Intel ICH9
// data sheet, order 316972, section 13.7.5 "RST_CNT: Reset Control Register").
const (
	Port      = 0xcf8
	Ports     = 8
	ResetPort = 0xcf9

	// ResetValue written to ResetPort resets the machine; the FADT says so.
	ResetValue = sysReset | resetCPU

	sysReset  = 1 << 1 // hard reset, not only the processors
	resetCPU  = 1 << 2 // a change from 0 to 1 resets
	fullReset = 1 << 3 // with a power cycle
	resetBits = sysReset | resetCPU | fullReset
)

// Address port.
//
//	31     30      24 23  16 15    11 10      8 7      2 1 0
//	enable [reserved] [bus ] [device] [function] [register] 0 0
const (
	addressPort = 0 // offset from Port, 4 bytes
	dataPort    = 4 // 4 bytes: the register's

	addressEnable = 1 << 31
	addressBits   = 0x80fffffc
)

// Ports is the bus.Device at Port.
func (h *Host) Ports() bus.Device { return ports{h} }

type ports struct{ h *Host }

// target is the function and register that an access to the data port is for.
func (d ports) target(off uint64) (f *Function, reg uint64) {
	d.h.mu.Lock()
	a := d.h.address
	d.h.mu.Unlock()
	if a&addressEnable == 0 || a>>8&0xff07 != 0 { // another bus or function
		return nil, 0
	}
	return d.h.slots[a>>11&0x1f], uint64(a&0xfc) + off - dataPort
}

// Read implements bus.Device.
func (d ports) Read(off uint64, p []byte) {
	ones(p)
	switch {
	case off >= dataPort && off+uint64(len(p)) <= Ports:
		if f, reg := d.target(off); f != nil {
			f.Read(reg, p)
		}
	case off == addressPort && len(p) == 4:
		d.h.mu.Lock()
		le.PutUint32(p, d.h.address)
		d.h.mu.Unlock()
	case off == ResetPort-Port && len(p) == 1:
		d.h.mu.Lock()
		p[0] = d.h.reset
		d.h.mu.Unlock()
	}
}

// Write implements bus.Device.
func (d ports) Write(off uint64, p []byte) {
	switch {
	case off >= dataPort && off+uint64(len(p)) <= Ports:
		if f, reg := d.target(off); f != nil {
			f.Write(reg, p)
		}
	case off == addressPort && len(p) == 4:
		d.h.mu.Lock()
		d.h.address = le.Uint32(p) & addressBits
		d.h.mu.Unlock()
	case off == ResetPort-Port && len(p) == 1:
		d.h.mu.Lock()
		old := d.h.reset
		d.h.reset = p[0] & resetBits
		d.h.mu.Unlock()
		if p[0]&resetCPU != 0 && old&resetCPU == 0 {
			d.h.cfg.Reset()
		}
	}
}
