package pci

import (
	"sync"

	"ring3/internal/bus"
)

// MSI-X capability (PCI 3.0, section 6.8.2). Its body is message control, then
// the places of the table and of the pending bits: an offset of which the
// lowest three bits are the number of the BAR.
const (
	capMSIX = 0x11

	msixMasked  = 1 << 14 // message control: all vectors are masked
	msixEnable  = 1 << 15
	msixControl = msixMasked | msixEnable // writable; bits 0-10 are the size of the table, less 1

	entrySize   = 16 // table: address (u64), data (u32), control (u32)
	entryData   = 8
	entryCtl    = 12
	entryMasked = 1 << 0

	pbaOffset   = 0x800 // in the BAR, behind the table
	msixBAR     = 0x1000
	maxMSIXSize = pbaOffset / entrySize
)

// MSIX is the message-signalled interrupts of a function: a table of vectors,
// each with an address and data for it to be written there.
type MSIX struct {
	mu      sync.Mutex
	send    func(addr uint64, data uint32)
	control uint16
	table   []byte
	pending []uint64 // a bit for each vector
}

// AddMSIX gives f a table of vectors, all of them masked, in BAR n. send
// delivers a message; it must not call f.
func (f *Function) AddMSIX(vectors, n int, send func(addr uint64, data uint32)) *MSIX {
	if vectors < 1 || vectors > maxMSIXSize {
		panic("BUG: pci: size of an MSI-X table")
	}
	m := &MSIX{send: send, control: uint16(vectors - 1),
		table: make([]byte, vectors*entrySize), pending: make([]uint64, (vectors+63)/64)}
	for v := range vectors {
		m.table[v*entrySize+entryCtl] = entryMasked
	}
	body := le.AppendUint16(nil, m.control)
	body = le.AppendUint32(body, uint32(n))
	body = le.AppendUint32(body, uint32(pbaOffset|n))
	f.AddCapability(capMSIX, body, msixCapability{m, [8]byte(body[2:])})
	f.AddBAR(n, msixBAR, msixTable{m})
	return m
}

// Vectors is the size of the table.
func (m *MSIX) Vectors() int { return len(m.table) / entrySize }

// Enabled reports whether the operating system uses MSI-X for the function,
// and not its pin.
func (m *MSIX) Enabled() bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.control&msixEnable != 0
}

// Trigger interrupts with a vector; with one that the table does not have,
// nothing happens. While the vector is masked the interrupt is pending.
func (m *MSIX) Trigger(vector int) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if vector < 0 || vector >= m.Vectors() || m.control&msixEnable == 0 {
		return
	}
	m.pending[vector/64] |= 1 << (vector % 64)
	m.deliver(vector)
}

// deliver sends what is pending for a vector, unless that is masked. m.mu is
// held.
func (m *MSIX) deliver(vector int) {
	e := m.table[vector*entrySize:]
	bit := uint64(1) << (vector % 64)
	if m.pending[vector/64]&bit == 0 || m.control&(msixEnable|msixMasked) != msixEnable || e[entryCtl]&entryMasked != 0 {
		return
	}
	m.pending[vector/64] &^= bit
	m.send(le.Uint64(e), le.Uint32(e[entryData:]))
}

// msixCapability is the body of the capability, a bus.Device.
type msixCapability struct {
	m      *MSIX
	places [8]byte // of table and pending bits
}

func (c msixCapability) bytes() [10]byte {
	b := [10]byte{}
	le.PutUint16(b[:], c.m.control)
	copy(b[2:], c.places[:])
	return b
}

// Read implements bus.Device.
func (c msixCapability) Read(off uint64, p []byte) {
	c.m.mu.Lock()
	defer c.m.mu.Unlock()
	b := c.bytes()
	copy(p, b[off:])
}

// Write implements bus.Device.
func (c msixCapability) Write(off uint64, p []byte) {
	m := c.m
	m.mu.Lock()
	defer m.mu.Unlock()
	b := c.bytes()
	copy(b[off:], p)
	m.control = m.control&^msixControl | le.Uint16(b[:])&msixControl
	for v := range m.Vectors() {
		m.deliver(v)
	}
}

// msixTable is the BAR, a bus.Device.
type msixTable struct{ m *MSIX }

var _, _ bus.Device = msixTable{}, msixCapability{}

// Read implements bus.Device.
func (t msixTable) Read(off uint64, p []byte) {
	clear(p)
	t.m.mu.Lock()
	defer t.m.mu.Unlock()
	switch {
	case off < uint64(len(t.m.table)):
		copy(p, t.m.table[off:])
	case off >= pbaOffset:
		var pba []byte
		for _, w := range t.m.pending {
			pba = le.AppendUint64(pba, w)
		}
		if off -= pbaOffset; off < uint64(len(pba)) {
			copy(p, pba[off:])
		}
	}
}

// Write implements bus.Device. The pending bits are read only.
func (t msixTable) Write(off uint64, p []byte) {
	t.m.mu.Lock()
	defer t.m.mu.Unlock()
	if off < uint64(len(t.m.table)) {
		copy(t.m.table[off:], p)
		t.m.deliver(int(off / entrySize))
	}
}
