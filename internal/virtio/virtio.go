// Package virtio is the transport of virtio devices: virtio 1.2 over PCI,
// without the legacy interface, with split virtqueues.
//
//	 driver in the guest         PCI (this package)             Device
//	┌───────────────────┐     ┌─────────────────────┐
//	│ negotiates        ├─────► common configuration│
//	│ fills a ring,     │     │                     │ Begin ┌─────────────┐
//	│ notifies          ├─────► queue: take chains  ├───────► a request   │
//	│                   │     │                     │       │ ...         │
//	│ is interrupted    ◄─────┤ queue: give back    ◄───────┤ is complete │
//	└───────────────────┘     └─────────────────────┘       └─────────────┘
//
// # Threads
//
// The rings are read when the driver notifies, on the thread of the vCPU that
// does. A device that needs time hands the request to a goroutine of its own,
// which may read and write the request's buffers while the guest runs, as DMA
// does. What the guest can notice comes at the end, all of it within
// Platform.Sync, while the guest stands still: guestmem is told what was
// written, so that code in it is forgotten, and only then the request goes to
// the used ring and the interrupt is sent. So the engines, which know nothing
// of other threads, never run code that a device has overwritten.
//
// Lock order: Platform.Sync, PCI.mu, locks of pci and irqchip. PCI.doneMu is
// taken alone.
//
// # Hostile drivers
//
// Rings and descriptors are input. Every address is checked, every loop bounded
// by the size of the queue, every descriptor read once. A driver that breaks
// the rules gets DEVICE_NEEDS_RESET: the device takes nothing more, the reason
// is logged, and the rest of the machine does not notice.
//
// Source: Virtual I/O Device (VIRTIO) Version 1.2, OASIS; sections are its.
package virtio

import (
	"encoding/binary"
	"log/slog"

	"ring3/internal/guestmem"
)

// Feature bits of every device (section 6).
const (
	featureIndirectDesc = 1 << 28
	featureEventIdx     = 1 << 29
	featureVersion1     = 1 << 32

	transportFeatures = featureIndirectDesc | featureEventIdx | featureVersion1
)

// Platform is what devices need of the machine.
type Platform struct {
	Mem *guestmem.Memory
	// Sync calls fn while no guest code runs and returns when it has returned.
	// It must not be called on a vCPU's thread.
	Sync func(fn func())
	// Exclusive has requests executed within Sync as a whole. A machine that
	// undoes writes to its memory, to repeat them, cannot have others there.
	Exclusive bool
	Log       *slog.Logger
}

// Info is what a device is. It never changes.
type Info struct {
	Name     string // for messages and the table of exits
	Type     uint16 // device ID (section 5)
	Class    uint32 // of the PCI function
	Features uint64 // beside those of the transport
	Queues   int
	Config   []byte // device configuration space, read only
}

// QueueSize is the number of descriptors that each queue can have.
const QueueSize = 256

// Device is one kind of device behind the transport.
type Device interface {
	Info() Info
	// Begin takes request c of a queue; it must not block. Either the request
	// is complete then, with n bytes written to its buffers (done), or the
	// device calls c.Complete later, from another goroutine. An error says
	// how the driver broke the rules, and stops the device.
	Begin(queue int, c *Chain) (n uint32, done bool, err error)
}

// Keeper is a Device that keeps requests until it has something for them, such
// as buffers for what comes in.
type Keeper interface {
	Device
	// Reset forgets all that the driver has told the device, and the requests
	// that it keeps. It returns their number: a reset waits for all others.
	// Like Begin it must not block.
	Reset() (kept int)
}

var le = binary.LittleEndian
