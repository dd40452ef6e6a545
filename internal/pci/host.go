package pci

import (
	"errors"
	"sync"

	"ring3/internal/bus"
	"ring3/internal/irqchip"
)

// HostConfig connects a Host to the machine.
type HostConfig struct {
	Reset func()                         // resets the machine
	MSI   func(addr uint64, data uint32) // delivers a message-signalled interrupt
	Pin   func(number int) irqchip.Line  // an input of the I/O APIC
}

// Host is the host bridge with the bus behind it, bus 0. Plug everything in
// before the machine runs.
type Host struct {
	cfg   HostConfig
	slots [Slots]*Function
	next  uint64 // free address of the window

	mu      sync.Mutex
	address uint32 // as last written to the address port
	reset   uint8  // reset control register
}

// bridgeID is that of a host bridge (class 06, subclass 00), as QEMU has one.
var bridgeID = ID{Vendor: 0x1b36, Device: 0x0008, Class: 0x060000}

// NewHost returns a host bridge without devices.
func NewHost(cfg HostConfig) *Host {
	h := &Host{cfg: cfg, next: Window}
	h.slots[0] = NewFunction(bridgeID)
	return h
}

// MSI delivers a message-signalled interrupt; for AddMSIX.
func (h *Host) MSI(addr uint64, data uint32) { h.cfg.MSI(addr, data) }

// Plug puts f into the next free slot, and its BARs into the window.
func (h *Host) Plug(f *Function) error {
	slot := 0
	for h.slots[slot] != nil {
		if slot++; slot == Slots {
			return errors.New("pci: all slots are taken")
		}
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	for n, b := range f.bars {
		if b.size == 0 {
			continue
		}
		base := (h.next + b.size - 1) &^ (b.size - 1)
		if base+b.size > Window+WindowSize {
			return errors.New("pci: the window for BARs is full")
		}
		le.PutUint64(f.config[regBAR+4*n:], base|barMem64)
		h.next = base + b.size
	}
	if f.config[regIntPin] != 0 {
		f.config[regIntLine] = uint8(Pin(slot))
		f.pin = h.cfg.Pin(Pin(slot))
	}
	h.slots[slot] = f
	return nil
}

// Memory is the bus.Device at Window.
func (h *Host) Memory() bus.Device { return memory{h} }

type memory struct{ h *Host }

// find returns the device behind an offset into the window.
func (m memory) find(off uint64) (dev bus.Device, at uint64, ok bool) {
	for _, f := range m.h.slots {
		if f == nil {
			continue
		}
		if dev, at, ok = f.decode(Window + off); ok {
			return dev, at, true
		}
	}
	return nil, 0, false
}

// Read implements bus.Device. Where no device is, it reads all ones.
func (m memory) Read(off uint64, p []byte) {
	if dev, at, ok := m.find(off); ok {
		dev.Read(at, p)
		return
	}
	ones(p)
}

// Write implements bus.Device.
func (m memory) Write(off uint64, p []byte) {
	if dev, at, ok := m.find(off); ok {
		dev.Write(at, p)
	}
}

func ones(p []byte) {
	for i := range p {
		p[i] = 0xff
	}
}
