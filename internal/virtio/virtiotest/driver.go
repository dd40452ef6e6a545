// Package virtiotest is a driver for tests of virtio devices: it finds them as
// a guest's driver does, by configuration space and registers alone, and can
// break every rule.
package virtiotest

import (
	"bytes"
	"encoding/binary"
	"log/slog"
	"sync"
	"testing"
	"time"

	"ring3/internal/bus"
	"ring3/internal/guestmem"
	"ring3/internal/irqchip"
	"ring3/internal/pci"
	"ring3/internal/virtio"
)

// Guest memory: three pages of rings for each queue, then buffers.
const (
	memorySize = 4 << 20
	rings      = 0x10000
	buffers    = 0x100000
)

// Registers of the common configuration that tests use.
const (
	DeviceFeatureSelect = 0x00
	DeviceFeature       = 0x04
	DriverFeatureSelect = 0x08
	DriverFeature       = 0x0c
	ConfigVector        = 0x10
	NumQueues           = 0x12
	Status              = 0x14
	QueueSelect         = 0x16
	QueueSize           = 0x18
	QueueVector         = 0x1a
	QueueEnable         = 0x1c
	QueueDesc           = 0x20
	QueueDriver         = 0x28
	QueueDevice         = 0x30
)

// Status bits and features.
const (
	FeaturesOK = 8
	DriverOK   = 4
	NeedsReset = 0x40

	Indirect = 1 << 28
	EventIdx = 1 << 29
	Version1 = 1 << 32
)

// Descriptor flags.
const (
	Next  = 1
	Write = 2
	Table = 4
)

// Driver drives one device, alone on a PCI bus.
type Driver struct {
	Mem  *guestmem.Memory
	Log  *bytes.Buffer // what the device has logged
	host *pci.Host
	mmio bus.Device

	bars                        [6]uint64
	common, notify, isr, device uint64 // places in the window
	configCap                   uint64 // of the capability with a window into BARs
	multiplier                  uint64

	mu       sync.Mutex // held while the device has the guest stand still
	settled  *sync.Cond
	messages []uint32
	pin      bool
	queue    map[int]*ring
}

// ring is what the driver knows of a queue.
type ring struct {
	base         uint64
	size         uint16
	avail, taken uint16
}

// New plugs in the device that make returns. The caller closes it, if it must
// be, in a cleanup that it registers in make: memory goes after it.
func New(t testing.TB, make func(virtio.Platform) virtio.Device) *Driver {
	t.Helper()
	mem, err := guestmem.New(memorySize)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { mem.Close() })
	d := &Driver{Mem: mem, Log: new(bytes.Buffer), queue: map[int]*ring{}}
	d.settled = sync.NewCond(&d.mu)
	p := virtio.Platform{Mem: mem, Log: slog.New(slog.NewTextHandler(d.Log, nil)), Sync: func(fn func()) {
		d.mu.Lock()
		defer d.mu.Unlock()
		fn()
		d.settled.Broadcast()
	}}
	d.host = pci.NewHost(pci.HostConfig{Reset: func() {},
		MSI: func(_ uint64, data uint32) { d.messages = append(d.messages, data) },
		Pin: func(int) irqchip.Line { return pinOf{d} }})
	d.mmio = d.host.Memory()
	if err := d.host.Plug(virtio.NewPCI(p, make(p), d.host.MSI).Function); err != nil {
		t.Fatal(err)
	}
	d.find(t)
	return d
}

type pinOf struct{ d *Driver }

func (p pinOf) Set(level bool) { p.d.pin = level }

var le = binary.LittleEndian

// Config reads size bytes of configuration space.
func (d *Driver) Config(reg uint64, size int) uint64 {
	d.host.Ports().Write(0, le.AppendUint32(nil, uint32(1<<31|1<<11|reg&^3)))
	var b [8]byte
	d.host.Ports().Read(4+reg&3, b[:size])
	return le.Uint64(b[:])
}

// SetConfig writes size bytes of configuration space.
func (d *Driver) SetConfig(reg uint64, size int, v uint64) {
	d.host.Ports().Write(0, le.AppendUint32(nil, uint32(1<<31|1<<11|reg&^3)))
	d.host.Ports().Write(4+reg&3, le.AppendUint64(nil, v)[:size])
}

// find walks the capabilities.
func (d *Driver) find(t testing.TB) {
	d.SetConfig(4, 2, 6)
	for n := range d.bars {
		d.bars[n] = d.Config(0x10+4*uint64(n), 4)
	}
	for c := d.Config(0x34, 1); c != 0; c = d.Config(c+1, 1) {
		if d.Config(c, 1) != 9 {
			continue
		}
		bar := d.Config(0x10+4*d.Config(c+4, 1), 4)&^0xf - pci.Window
		at := bar + d.Config(c+8, 4)
		switch d.Config(c+3, 1) {
		case 1:
			d.common = at
		case 2:
			d.notify, d.multiplier = at, d.Config(c+16, 4)
		case 3:
			d.isr = at
		case 4:
			d.device = at
		case 5:
			d.configCap = c
		}
	}
	if d.multiplier == 0 || d.configCap == 0 || d.isr == 0 {
		t.Fatal("capabilities are missing")
	}
}

// restore puts the BARs back to where find has found them.
func (d *Driver) restore() {
	for n, at := range d.bars {
		d.SetConfig(0x10+4*uint64(n), 4, at)
	}
	d.SetConfig(4, 2, 6)
}

// ReadAt and WriteAt are accesses of the window for BARs.
func (d *Driver) ReadAt(at uint64, size int) uint64 {
	var b [8]byte
	d.mu.Lock()
	defer d.mu.Unlock()
	d.mmio.Read(at, b[:size])
	return le.Uint64(b[:])
}

// WriteAt is the counterpart of ReadAt.
func (d *Driver) WriteAt(at uint64, size int, v uint64) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.mmio.Write(at, le.AppendUint64(nil, v)[:size])
}

// Get and Set access a register of the common configuration.
func (d *Driver) Get(reg uint64, size int) uint64 { return d.ReadAt(d.common+reg, size) }

// Set is the counterpart of Get.
func (d *Driver) Set(reg uint64, size int, v uint64) { d.WriteAt(d.common+reg, size, v) }

// ISR reads the interrupt status, which acknowledges it.
func (d *Driver) ISR() uint64 { return d.ReadAt(d.isr, 1) }

// DeviceConfig reads the device configuration.
func (d *Driver) DeviceConfig(off uint64, size int) uint64 { return d.ReadAt(d.device+off, size) }

// ConfigCapability is where the capability with a window into BARs is.
func (d *Driver) ConfigCapability() uint64 { return d.configCap }

// Pin is the level of the interrupt pin.
func (d *Driver) Pin() bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.pin
}

// Messages returns the data of the messages since the last call.
func (d *Driver) Messages() []uint32 {
	d.mu.Lock()
	defer d.mu.Unlock()
	m := d.messages
	d.messages = nil
	return m
}

// UseMSIX gives vector i data i, and takes away the mask.
func (d *Driver) UseMSIX(vectors int) {
	for c := d.Config(0x34, 1); c != 0; c = d.Config(c+1, 1) {
		if d.Config(c, 1) != 0x11 {
			continue
		}
		table := d.Config(0x10+4*(d.Config(c+4, 4)&7), 4)&^0xf - pci.Window + d.Config(c+4, 4)&^7
		for i := range uint64(vectors) {
			d.WriteAt(table+16*i, 8, 0xfee00000)
			d.WriteAt(table+16*i+8, 8, i)
		}
		d.SetConfig(c+2, 2, 1<<15)
	}
}

// Offered are the device's features.
func (d *Driver) Offered() uint64 {
	d.Set(DeviceFeatureSelect, 4, 1)
	hi := d.Get(DeviceFeature, 4)
	d.Set(DeviceFeatureSelect, 4, 0)
	return hi<<32 | d.Get(DeviceFeature, 4)
}

// Accept resets the device and accepts features.
func (d *Driver) Accept(features uint64) (ok bool) {
	d.Set(Status, 1, 0)
	d.Set(Status, 1, 1|2)
	d.Set(DriverFeatureSelect, 4, 0)
	d.Set(DriverFeature, 4, features&0xffffffff)
	d.Set(DriverFeatureSelect, 4, 1)
	d.Set(DriverFeature, 4, features>>32)
	d.Set(Status, 1, 1|2|FeaturesOK)
	return d.Get(Status, 1)&FeaturesOK != 0
}

// Enable sets up queue n with size descriptors and an interrupt vector.
func (d *Driver) Enable(n int, size uint16, vector uint64) {
	r := &ring{base: rings + uint64(n)*0x3000, size: size}
	d.queue[n] = r
	d.Mem.WriteAt(make([]byte, 0x3000), r.base)
	d.Set(QueueSelect, 2, uint64(n))
	d.Set(QueueSize, 2, uint64(size))
	d.Set(QueueVector, 2, vector)
	d.Set(QueueDesc, 4, r.base)
	d.Set(QueueDesc+4, 4, 0)
	d.Set(QueueDriver, 8, r.base+0x1000)
	d.Set(QueueDevice, 8, r.base+0x2000)
	d.Set(QueueEnable, 2, 1)
}

// Start does all of it: features, all queues with vector 1 and so on, DRIVER_OK.
func (d *Driver) Start(t testing.TB, features uint64) {
	t.Helper()
	if !d.Accept(features) {
		t.Fatalf("features %#x are not accepted", features)
	}
	n := int(d.Get(NumQueues, 2))
	d.UseMSIX(n + 1)
	d.Set(ConfigVector, 2, 0)
	for q := range n {
		d.Enable(q, 16, uint64(q+1))
	}
	d.Set(Status, 1, 1|2|FeaturesOK|DriverOK)
}

// Desc writes descriptor i of queue n.
func (d *Driver) Desc(n int, i uint16, addr uint64, size uint32, flags, next uint16) {
	d.DescAt(d.queue[n].base+16*uint64(i), addr, size, flags, next)
}

// DescAt writes a descriptor of an indirect table.
func (d *Driver) DescAt(at, addr uint64, size uint32, flags, next uint16) {
	b := le.AppendUint32(le.AppendUint64(nil, addr), size)
	d.write(at, le.AppendUint16(le.AppendUint16(b, flags), next))
}

func (d *Driver) write(at uint64, b []byte) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.Mem.WriteAt(b, at)
}

func (d *Driver) u16(at uint64) uint16 {
	b := make([]byte, 2)
	d.mu.Lock()
	defer d.mu.Unlock()
	d.Mem.ReadAt(b, at)
	return le.Uint16(b)
}

// Offer puts a head into the available ring of queue n.
func (d *Driver) Offer(n int, head uint16) {
	r := d.queue[n]
	d.write(r.base+0x1000+4+2*uint64(r.avail%r.size), le.AppendUint16(nil, head))
	d.SetAvail(n, r.avail+1)
}

// SetAvail sets the index of the available ring.
func (d *Driver) SetAvail(n int, idx uint16) {
	d.queue[n].avail = idx
	d.write(d.queue[n].base+0x1000+2, le.AppendUint16(nil, idx))
}

// SetUsedEvent asks for an interrupt when the used ring's index passes idx.
func (d *Driver) SetUsedEvent(n int, idx uint16) {
	r := d.queue[n]
	d.write(r.base+0x1000+4+2*uint64(r.size), le.AppendUint16(nil, idx))
}

// AvailEvent is when the device wants to be notified.
func (d *Driver) AvailEvent(n int) uint16 {
	r := d.queue[n]
	return d.u16(r.base + 0x2000 + 4 + 8*uint64(r.size))
}

// Notify tells the device of new requests.
func (d *Driver) Notify(n int) { d.WriteAt(d.notify+d.multiplier*uint64(n), 2, uint64(n)) }

// UsedIdx is the index of the used ring.
func (d *Driver) UsedIdx(n int) uint16 { return d.u16(d.queue[n].base + 0x2000 + 2) }

// Take waits for the next request to come back.
func (d *Driver) Take(t testing.TB, n int) (head, written uint32) {
	t.Helper()
	r := d.queue[n]
	late := time.AfterFunc(10*time.Second, d.settled.Broadcast)
	defer late.Stop()
	start := time.Now()
	d.mu.Lock()
	defer d.mu.Unlock()
	b := make([]byte, 8)
	for {
		if d.Mem.ReadAt(b[:2], r.base+0x2000+2); le.Uint16(b) != r.taken {
			break
		}
		if time.Since(start) > 9*time.Second {
			t.Fatalf("queue %d: nothing comes back; log: %s", n, d.Log)
		}
		d.settled.Wait()
	}
	d.Mem.ReadAt(b, r.base+0x2000+4+8*uint64(r.taken%r.size))
	r.taken++
	return le.Uint32(b), le.Uint32(b[4:])
}

// Request sends a request: out for the device to read and room for in bytes.
// Each is cut into pieces of at most piece bytes. It returns what the device
// wrote.
func (d *Driver) Request(t testing.TB, n int, out []byte, in, piece int) []byte {
	t.Helper()
	d.write(buffers, out)
	at, i := uint64(buffers), uint16(0)
	put := func(size int, flags uint16, last bool) {
		for size > 0 {
			part := min(size, piece)
			size -= part
			f := flags
			if size > 0 || !last {
				f |= Next
			}
			d.Desc(n, i, at, uint32(part), f, i+1)
			at, i = at+uint64(part), i+1
		}
	}
	put(len(out), 0, in == 0)
	from := at
	d.write(from, bytes.Repeat([]byte{0xcc}, in))
	put(in, Write, true)
	d.Offer(n, 0)
	d.Notify(n)
	_, written := d.Take(t, n)
	got := make([]byte, in)
	d.mu.Lock()
	defer d.mu.Unlock()
	d.Mem.ReadAt(got, from)
	return got[:min(int(written), in)]
}
