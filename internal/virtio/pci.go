package virtio

import (
	"fmt"
	"log/slog"
	"slices"
	"sync"

	"ring3/internal/bus"
	"ring3/internal/pci"
)

// PCI is a virtio device on the PCI bus (section 4.1).
type PCI struct {
	Function *pci.Function
	p        Platform
	dev      Device
	info     Info
	msix     *pci.MSIX
	puller   Puller // dev, nil if it is none

	mu           sync.Mutex
	status       uint8
	features     uint64 // that the driver has accepted
	deviceSelect uint32 // which half of the device's features is shown
	driverSelect uint32
	queueSelect  uint16
	configVector uint16
	queues       []*queue
	isr          uint8
	busy         int  // requests that the device has
	resetting    bool // the driver wants a reset, which waits for them
	reports      int  // of broken rules

	doneMu     sync.Mutex
	done       []*Chain // complete, but not given back
	delivering bool     // somebody is about to
}

// Vendor and device ID (section 4.1.2.1). The class is the device's.
const (
	vendorID    = 0x1af4
	firstDevice = 0x1040 // plus the device ID
	revision    = 1      // not transitional
)

// BAR 0 has the registers, BAR 2 the interrupt vectors. One page for each
// structure lets a driver map them apart.
const (
	registersBAR  = 0
	registersSize = 0x4000
	vectorsBAR    = 2

	commonOffset = 0x0000
	isrOffset    = 0x1000
	deviceOffset = 0x2000
	notifyOffset = 0x3000
	structSize   = 0x1000

	notifyMultiplier = 4 // bytes between the notification registers of two queues
)

// Virtio capabilities (section 4.1.4): type, BAR, offset, length.
const (
	capVendor = 0x09

	cfgCommon = 1
	cfgNotify = 2
	cfgISR    = 3
	cfgDevice = 4
	cfgPCI    = 5
)

// NewPCI makes a PCI function of dev, to be plugged in. msi delivers a
// message-signalled interrupt.
func NewPCI(p Platform, dev Device, msi func(addr uint64, data uint32)) *PCI {
	info := dev.Info()
	t := &PCI{p: p, dev: dev, info: info}
	t.puller, _ = dev.(Puller)
	t.queues = make([]*queue, info.Queues)
	t.clear()
	t.Function = pci.NewFunction(pci.ID{
		Vendor: vendorID, Device: firstDevice + info.Type,
		SubVendor: vendorID, Subsystem: firstDevice + info.Type,
		Class: info.Class, Revision: revision,
	})
	t.Function.UseINTx()
	t.Function.AddBAR(registersBAR, registersSize, registers{t})
	t.msix = t.Function.AddMSIX(info.Queues+1, vectorsBAR, msi)
	add := func(kind uint8, off, size uint32, more ...byte) {
		t.Function.AddCapability(capVendor, capability(kind, off, size, more...), nil)
	}
	add(cfgCommon, commonOffset, commonSize)
	add(cfgNotify, notifyOffset, uint32(info.Queues)*notifyMultiplier, notifyMultiplier, 0, 0, 0)
	add(cfgISR, isrOffset, 1)
	if n := len(info.Config); n > 0 {
		add(cfgDevice, deviceOffset, uint32(n))
	}
	window := capability(cfgPCI, 0, 0, 0, 0, 0, 0)
	t.Function.AddCapability(capVendor, window, &pciConfig{f: t.Function, body: window})
	return t
}

// capability is the body of one, from its length on.
func capability(kind uint8, off, size uint32, more ...byte) []byte {
	b := []byte{byte(16 + len(more)), kind, registersBAR, 0, 0, 0}
	b = le.AppendUint32(b, off)
	b = le.AppendUint32(b, size)
	return append(b, more...)
}

// registers is BAR 0.
type registers struct{ t *PCI }

var _ bus.Device = registers{}

// Read implements bus.Device.
func (r registers) Read(off uint64, p []byte) {
	clear(p)
	t := r.t
	t.mu.Lock()
	defer t.mu.Unlock()
	switch at := off % structSize; off - at {
	case commonOffset:
		t.readCommon(at, p)
	case isrOffset:
		p[0] = t.isr // reading acknowledges (section 4.1.4.5)
		t.isr = 0
		t.Function.SetINTx(false)
	case deviceOffset:
		if at < uint64(len(t.info.Config)) {
			copy(p, t.info.Config[at:])
		}
	}
}

// Write implements bus.Device. The device configuration cannot be written.
func (r registers) Write(off uint64, p []byte) {
	t := r.t
	t.mu.Lock()
	defer t.mu.Unlock()
	switch at := off % structSize; off - at {
	case commonOffset:
		t.writeCommon(at, p)
	case notifyOffset:
		if n := at / notifyMultiplier; n < uint64(len(t.queues)) {
			t.serve(int(n))
		}
	}
}

// clear is the state after reset. t.mu is held.
func (t *PCI) clear() {
	t.status, t.features, t.isr, t.resetting = 0, 0, 0, false
	t.deviceSelect, t.driverSelect, t.queueSelect, t.configVector = 0, 0, 0, noVector
	for i := range t.queues {
		t.queues[i] = &queue{mem: t.p.Mem, size: QueueSize, vector: noVector}
	}
}

// reset begins a reset. While the device has requests the status shows that it
// is not over yet (section 4.1.4.3.1). t.mu is held.
func (t *PCI) reset() {
	t.Function.SetINTx(false)
	if k, ok := t.dev.(Keeper); ok {
		t.busy -= k.Reset()
	}
	if t.puller != nil {
		t.puller.Stop()
	}
	if t.busy > 0 {
		t.resetting = true
		return
	}
	t.clear()
}

// working reports whether rings may be looked at. t.mu is held.
func (t *PCI) working() bool { return t.status&(driverOK|needsReset) == driverOK && !t.resetting }

// serve takes all requests of a queue. t.mu is held.
func (t *PCI) serve(n int) {
	q := t.queues[n]
	if t.puller != nil && t.puller.Pulls(n) {
		if t.working() && q.enabled {
			t.puller.Available(n)
		}
		return
	}
	for t.working() && q.enabled {
		c, err := q.pop()
		if err == nil && c == nil {
			if q.arm(q.next) {
				continue
			}
			break
		}
		if err == nil {
			err = t.begin(n, c)
		}
		if err != nil {
			t.broken(fmt.Sprintf("queue %d: %v", n, err))
		}
	}
	if t.puller != nil && t.puller.Defers(n) && q.used-q.told < q.size/2 {
		return
	}
	t.interrupt(q)
}

// begin gives a request to the device, which may have another goroutine working
// on it at once. t.mu is held.
func (t *PCI) begin(n int, c *Chain) error {
	c.dev = t
	t.busy++
	written, done, err := t.dev.Begin(n, c)
	if done || err != nil {
		t.busy--
	}
	if done && err == nil {
		c.written = written
		c.queue.push(c)
	}
	return err
}

// interrupt interrupts for a queue, if the driver wants that. t.mu is held.
func (t *PCI) interrupt(q *queue) {
	if t.working() && q.enabled && q.interrupt() {
		t.signal(q.vector, isrQueue)
	}
}

// Bits of the ISR status (section 4.1.4.5).
const (
	isrQueue  = 1 << 0
	isrConfig = 1 << 1
)

// signal sends an interrupt: a message, or the pin with a bit that says why.
// t.mu is held.
func (t *PCI) signal(vector uint16, why uint8) {
	if t.msix.Enabled() {
		t.msix.Trigger(int(vector))
		return
	}
	t.isr |= why
	t.Function.SetINTx(true)
}

// maxReports bounds the log: a driver can break rules as often as it likes.
const maxReports = 10

// broken stops the device because of what the driver did (section 2.1.2).
// t.mu is held.
func (t *PCI) broken(why string) {
	if t.reports++; t.reports <= maxReports {
		t.p.Log.Warn("the guest's driver broke a rule of virtio; the device is stopped", slog.String("device", t.info.Name), slog.String("why", why))
	}
	running := t.status&driverOK != 0
	t.status |= needsReset
	if running {
		t.signal(t.configVector, isrConfig)
	}
}

// complete gives requests back from a goroutine of the device. Of several
// goroutines at once one does it for all.
func (t *PCI) complete(chains ...*Chain) {
	t.doneMu.Lock()
	t.done = append(t.done, chains...)
	first := !t.delivering
	t.delivering = true
	t.doneMu.Unlock()
	if first {
		t.p.Sync(t.deliver)
	}
}

// deliver gives back what is complete, while the guest stands still.
func (t *PCI) deliver() {
	t.doneMu.Lock()
	done := t.done
	t.done, t.delivering = nil, false
	t.doneMu.Unlock()
	t.giveBack(done)
}

// giveBack gives back requests and interrupts for them, while the guest stands
// still.
func (t *PCI) giveBack(done []*Chain) {
	t.mu.Lock()
	defer t.mu.Unlock()
	var queues []*queue
	for _, c := range done {
		t.busy--
		if !t.working() {
			continue // nobody waits for it
		}
		c.queue.push(c)
		if !slices.Contains(queues, c.queue) {
			queues = append(queues, c.queue)
		}
	}
	for _, q := range queues {
		t.interrupt(q)
	}
	if t.resetting && t.busy == 0 {
		t.clear()
	}
}
