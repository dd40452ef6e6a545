// Package bus routes port I/O and memory-mapped I/O to devices. A device does
// not know its address: it sees offsets into its own range.
package bus

import (
	"fmt"
	"sort"
	"time"
)

// Device is anything on a bus. p is 1, 2, 4 or 8 bytes long, little-endian;
// off is relative to the start of the range the device was attached at, and
// off+len(p) may reach past the end of that range. Devices lock themselves.
type Device interface {
	Read(off uint64, p []byte)
	Write(off uint64, p []byte)
}

// Range is an attached device with its counters, which only the vCPU thread
// writes.
type Range struct {
	Name       string
	Base, Size uint64
	Dev        Device
	Count      uint64        // accesses
	Time       time.Duration // spent in the device; counted when Bus.Timed
}

// Bus is one address space of devices. Attach everything before the machine
// runs; look-ups take no lock.
type Bus struct {
	Timed  bool
	ranges []*Range // sorted by Base, disjoint
	last   *Range
}

// Attach puts dev at [base, base+size). It fails when the range overlaps
// another.
func (b *Bus) Attach(name string, base, size uint64, dev Device) error {
	if size == 0 || base+size < base {
		return fmt.Errorf("bus: %s: bad range %#x+%#x", name, base, size)
	}
	for _, r := range b.ranges {
		if base < r.Base+r.Size && r.Base < base+size {
			return fmt.Errorf("bus: %s at %#x+%#x overlaps %s at %#x+%#x",
				name, base, size, r.Name, r.Base, r.Size)
		}
	}
	b.ranges = append(b.ranges, &Range{Name: name, Base: base, Size: size, Dev: dev})
	sort.Slice(b.ranges, func(i, j int) bool { return b.ranges[i].Base < b.ranges[j].Base })
	return nil
}

// Ranges lists what is attached, by address.
func (b *Bus) Ranges() []*Range { return b.ranges }

func (b *Bus) find(addr uint64) *Range {
	if r := b.last; r != nil && addr-r.Base < r.Size {
		return r
	}
	i := sort.Search(len(b.ranges), func(i int) bool { return b.ranges[i].Base > addr })
	if i == 0 || addr-b.ranges[i-1].Base >= b.ranges[i-1].Size {
		return nil
	}
	b.last = b.ranges[i-1]
	return b.last
}

// Read fills p from the device at addr. Where there is none it reads all
// ones, as a PC's bus does, and returns false.
func (b *Bus) Read(addr uint64, p []byte) bool {
	r := b.find(addr)
	if r == nil {
		for i := range p {
			p[i] = 0xff
		}
		return false
	}
	defer b.account(r)()
	r.Dev.Read(addr-r.Base, p)
	return true
}

// Write gives p to the device at addr; false where there is none.
func (b *Bus) Write(addr uint64, p []byte) bool {
	r := b.find(addr)
	if r == nil {
		return false
	}
	defer b.account(r)()
	r.Dev.Write(addr-r.Base, p)
	return true
}

func (b *Bus) account(r *Range) func() {
	r.Count++
	if !b.Timed {
		return func() {}
	}
	start := time.Now()
	return func() { r.Time += time.Since(start) }
}
