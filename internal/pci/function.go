package pci

import (
	"fmt"
	"sync"

	"ring3/internal/bus"
	"ring3/internal/irqchip"
)

// Registers of the configuration header, type 0 (PCI 3.0, figure 6-1).
const (
	regVendor       = 0x00 // u16
	regDevice       = 0x02 // u16
	regCommand      = 0x04 // u16
	regStatus       = 0x06 // u16
	regRevision     = 0x08 // u8
	regClass        = 0x09 // 3 bytes: interface, subclass, base class
	regBAR          = 0x10 // 6 × u32
	regSubVendor    = 0x2c // u16
	regSubsystem    = 0x2e // u16
	regCapabilities = 0x34 // u8, offset of the first capability
	regIntLine      = 0x3c // u8, for software to note where the pin goes
	regIntPin       = 0x3d // u8, 1 for INTA

	configSize   = 0x100
	headerSize   = 0x40
	noCapability = 0
)

// Command and status bits (PCI 3.0, tables 6-1 and 6-2).
const (
	cmdMemory  = 1 << 1 // BARs are decoded
	cmdMaster  = 1 << 2
	cmdIntxOff = 1 << 10

	stIntx         = 1 << 3 // the pin is, or would be, asserted
	stCapabilities = 1 << 4
)

// barMem64 are the low bits of a 64-bit memory BAR, not prefetchable (PCI 3.0,
// section 6.2.5.1).
const barMem64 = 0x4

// ID is what a function's header says it is.
type ID struct {
	Vendor, Device       uint16
	SubVendor, Subsystem uint16
	Class                uint32 // 24 bits: base class, subclass, interface
	Revision             uint8
}

// Function is one function of a device: its configuration space and BARs. Build
// it before it is plugged in.
type Function struct {
	mu       sync.Mutex
	config   [configSize]byte
	writable [configSize]byte // bits that a write changes
	intx     bool             // the device asserts its pin
	pin      irqchip.Line     // of the host; nil before it is plugged in

	bars [6]bar
	caps []capability
	free int // offset of the next capability
	link int // offset of the pointer to it
}

// bar is a 64-bit memory BAR; the next register has its upper half. Its address
// is in the configuration space.
type bar struct {
	size uint64 // 0: there is none
	dev  bus.Device
}

// capability is one with registers that are more than bytes.
type capability struct {
	off, size int // of what regs stands for, in the configuration space
	regs      bus.Device
}

// NewFunction returns a function without BARs and capabilities.
func NewFunction(id ID) *Function {
	f := &Function{free: headerSize, link: regCapabilities}
	le.PutUint16(f.config[regVendor:], id.Vendor)
	le.PutUint16(f.config[regDevice:], id.Device)
	le.PutUint32(f.config[regRevision:], id.Class<<8|uint32(id.Revision))
	le.PutUint16(f.config[regSubVendor:], id.SubVendor)
	le.PutUint16(f.config[regSubsystem:], id.Subsystem)
	le.PutUint16(f.writable[regCommand:], cmdMemory|cmdMaster|cmdIntxOff)
	f.writable[regIntLine] = 0xff
	return f
}

// AddBAR makes BAR n and the next one a 64-bit memory BAR of size bytes, a power
// of two from 16 up, behind which dev is.
func (f *Function) AddBAR(n int, size uint64, dev bus.Device) {
	if n < 0 || n > 4 || size < 16 || size&(size-1) != 0 || f.bars[n].size != 0 || f.bars[n+1].size != 0 {
		panic(fmt.Sprintf("BUG: pci: BAR %d of %d bytes", n, size))
	}
	f.bars[n] = bar{size, dev}
	reg := regBAR + 4*n
	le.PutUint64(f.config[reg:], barMem64)
	le.PutUint64(f.writable[reg:], ^(size - 1))
}

// AddCapability appends a capability: an ID and a body, which starts at its
// third byte. Reads and writes of the body go to regs, with offsets into it,
// or, if that is nil, the body is constant. It returns the capability's place.
func (f *Function) AddCapability(id uint8, body []byte, regs bus.Device) (off int) {
	off = f.free
	if off+2+len(body) > configSize {
		panic("BUG: pci: configuration space is full")
	}
	f.config[f.link] = byte(off)
	f.config[off], f.config[off+1] = id, noCapability
	copy(f.config[off+2:], body)
	f.link, f.free = off+1, (off+2+len(body)+3)&^3
	f.config[regStatus] |= stCapabilities
	if regs != nil {
		f.caps = append(f.caps, capability{off + 2, len(body), regs})
	}
	return off
}

// UseINTx gives the function an interrupt pin.
func (f *Function) UseINTx() { f.config[regIntPin] = 1 }

// SetINTx drives the interrupt pin.
func (f *Function) SetINTx(level bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.intx = level
	f.drive()
}

// drive sets the line to what the pin and the command register say. f.mu is
// held.
func (f *Function) drive() {
	f.config[regStatus] &^= stIntx
	if f.intx {
		f.config[regStatus] |= stIntx
	}
	if f.pin != nil {
		f.pin.Set(f.intx && le.Uint16(f.config[regCommand:])&cmdIntxOff == 0)
	}
}

// Read reads configuration space: 1, 2 or 4 bytes that do not cross a multiple
// of 4.
func (f *Function) Read(off uint64, p []byte) {
	f.mu.Lock()
	copy(p, f.config[off:])
	f.mu.Unlock()
	for _, c := range f.caps {
		if part, at := c.overlap(off, p); len(part) > 0 {
			c.regs.Read(at, part)
		}
	}
}

// Write writes configuration space, with the same restriction.
func (f *Function) Write(off uint64, p []byte) {
	f.mu.Lock()
	for i, v := range p {
		mask := f.writable[int(off)+i]
		f.config[int(off)+i] = f.config[int(off)+i]&^mask | v&mask
	}
	f.drive()
	f.mu.Unlock()
	for _, c := range f.caps {
		if part, at := c.overlap(off, p); len(part) > 0 {
			c.regs.Write(at, part)
		}
	}
}

// overlap is the part of an access of p at off that reaches c, and where in c.
func (c *capability) overlap(off uint64, p []byte) (part []byte, at uint64) {
	from, to := max(int(off), c.off), min(int(off)+len(p), c.off+c.size)
	if from >= to {
		return nil, 0
	}
	return p[from-int(off) : to-int(off)], uint64(from - c.off)
}

// BAR is what is behind BAR n, and its size; nil and 0 if it has none.
func (f *Function) BAR(n int) (dev bus.Device, size uint64) {
	if n < 0 || n >= len(f.bars) {
		return nil, 0
	}
	return f.bars[n].dev, f.bars[n].size
}

// decode finds the BAR that an address belongs to.
func (f *Function) decode(addr uint64) (dev bus.Device, off uint64, ok bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.config[regCommand]&cmdMemory == 0 {
		return nil, 0, false
	}
	for n, b := range f.bars {
		if base := f.base(n); b.size != 0 && addr-base < b.size {
			return b.dev, addr - base, true
		}
	}
	return nil, 0, false
}

// base is the address in BAR n. f.mu is held.
func (f *Function) base(n int) uint64 { return le.Uint64(f.config[regBAR+4*n:]) &^ 0xf }
