package pci

import (
	"bytes"
	"testing"

	"ring3/internal/irqchip"
)

// rig is a host bridge whose interrupts are noted.
type rig struct {
	*Host
	resets   int
	messages []message
	pins     map[int]bool
}

type message struct {
	addr uint64
	data uint32
}

type pin struct {
	r *rig
	n int
}

func (p pin) Set(level bool) { p.r.pins[p.n] = level }

func newRig() *rig {
	r := &rig{pins: map[int]bool{}}
	r.Host = NewHost(HostConfig{
		Reset: func() { r.resets++ },
		MSI:   func(addr uint64, data uint32) { r.messages = append(r.messages, message{addr, data}) },
		Pin:   func(n int) irqchip.Line { return pin{r, n} },
	})
	return r
}

func (r *rig) address(slot, reg int) {
	r.Host.Ports().Write(0, le.AppendUint32(nil, addressEnable|uint32(slot)<<11|uint32(reg)&^3))
}

func (r *rig) in(slot, reg, size int) uint32 {
	r.address(slot, reg)
	p := make([]byte, 4)
	r.Host.Ports().Read(uint64(dataPort+reg&3), p[:size])
	return le.Uint32(p)
}

func (r *rig) out(slot, reg, size int, v uint32) {
	r.address(slot, reg)
	r.Host.Ports().Write(uint64(dataPort+reg&3), le.AppendUint32(nil, v)[:size])
}

// ram is a device of bytes.
type ram []byte

func (m ram) Read(off uint64, p []byte)  { copy(p, m[off:]) }
func (m ram) Write(off uint64, p []byte) { copy(m[off:], p) }

func plug(t *testing.T, r *rig, f *Function) {
	t.Helper()
	if err := r.Plug(f); err != nil {
		t.Fatal(err)
	}
}

// TestEnumerate does what an operating system does: it looks for the bridge,
// for devices, and asks BARs for their size.
func TestEnumerate(t *testing.T) {
	r := newRig()
	f := NewFunction(ID{Vendor: 0x1234, Device: 0x5678, SubVendor: 0x9abc, Subsystem: 0xdef0, Class: 0x018000, Revision: 1})
	regs := make(ram, 0x4000)
	f.AddBAR(0, 0x4000, regs)
	f.UseINTx()
	plug(t, r, f)

	if got := r.in(0, regClass-1, 4); got != 0x06000000 {
		t.Errorf("the bridge's class and revision: %#x", got)
	}
	if got := r.in(1, regVendor, 4); got != 0x56781234 {
		t.Errorf("vendor and device: %#x", got)
	}
	if got := r.in(1, regSubVendor, 4); got != 0xdef09abc {
		t.Errorf("subsystem: %#x", got)
	}
	if got := r.in(1, regDevice+1, 1); got != 0x56 {
		t.Errorf("one byte of the device: %#x", got)
	}
	for _, nobody := range []int{2, 31} {
		if got := r.in(nobody, regVendor, 4); got != 0xffffffff {
			t.Errorf("slot %d: %#x", nobody, got)
		}
	}
	p := make([]byte, 4)
	for name, a := range map[string]uint32{"disabled": 1 << 11, "function 1": addressEnable | 1<<11 | 1<<8, "bus 1": addressEnable | 1<<16 | 1<<11} {
		r.Host.Ports().Write(0, le.AppendUint32(nil, a))
		if r.Host.Ports().Read(dataPort, p); le.Uint32(p) != 0xffffffff {
			t.Errorf("%s: reads % x", name, p)
		}
	}

	bar := r.in(1, regBAR, 4)
	if bar != Window|barMem64 || r.in(1, regBAR+4, 4) != 0 {
		t.Errorf("BAR 0 was put at %#x", bar)
	}
	r.out(1, regBAR, 4, 0xffffffff)
	r.out(1, regBAR+4, 4, 0xffffffff)
	if lo, hi := r.in(1, regBAR, 4), r.in(1, regBAR+4, 4); lo != 0xffffc004 || hi != 0xffffffff {
		t.Errorf("size of BAR 0: %#x, %#x", lo, hi)
	}
	if got := r.in(1, regBAR+8, 4); got != 0 {
		t.Errorf("BAR 2, of which there is none: %#x", got)
	}
	const at = Window + 0x10000
	r.out(1, regBAR, 4, at)
	r.out(1, regBAR+4, 4, 0)

	regs[5] = 0x77
	b := []byte{0}
	if r.Memory().Read(at-Window+5, b); b[0] != 0xff {
		t.Errorf("a BAR that is off reads %#x", b[0])
	}
	r.out(1, regCommand, 2, 0xffff)
	if got := r.in(1, regCommand, 2); got != cmdMemory|cmdMaster|cmdIntxOff {
		t.Errorf("command register: %#x", got)
	}
	if r.Memory().Read(at-Window+5, b); b[0] != 0x77 {
		t.Errorf("the BAR reads %#x", b[0])
	}
	r.Memory().Write(at-Window+0x3fff, []byte{0x55})
	if regs[0x3fff] != 0x55 {
		t.Error("a write to the end of the BAR is lost")
	}
	if r.Memory().Read(at-Window+0x4000, b); b[0] != 0xff {
		t.Errorf("behind the BAR: %#x", b[0])
	}
}

func TestCapabilities(t *testing.T) {
	r := newRig()
	f := NewFunction(ID{})
	f.AddCapability(9, []byte{1, 2, 3, 4, 5, 6, 7}, nil)
	live := make(ram, 6)
	f.AddCapability(9, live, live)
	f.AddMSIX(2, 2, r.MSI)
	plug(t, r, f)
	if r.in(1, regStatus, 2)&stCapabilities == 0 {
		t.Error("no capabilities announced")
	}
	var ids []byte
	var at []int
	for off := int(r.in(1, regCapabilities, 1)); off != 0; off = int(r.in(1, off+1, 1)) {
		if off%4 != 0 || len(ids) > 3 {
			t.Fatalf("capability at %#x after %v", off, ids)
		}
		ids, at = append(ids, byte(r.in(1, off, 1))), append(at, off)
	}
	if !bytes.Equal(ids, []byte{9, 9, capMSIX}) {
		t.Fatalf("capabilities %v", ids)
	}
	r.out(1, at[0], 4, 0xffffffff)
	if got := r.in(1, at[0]+4, 4); got != 0x06050403 {
		t.Errorf("a constant body: %#x", got)
	}
	r.out(1, at[1], 4, 0xbbaa0000) // ID and link stay
	r.out(1, at[1]+6, 2, 0xddcc)
	if !bytes.Equal(live, []byte{0xaa, 0xbb, 0, 0, 0xcc, 0xdd}) {
		t.Errorf("a live body: % x", live)
	}
	if got := r.in(1, at[1], 4); got != 0xbbaa0009|uint32(at[2])<<8 {
		t.Errorf("a live capability reads %#x", got)
	}
	if got := r.in(1, at[2]+2, 2); got != 1 {
		t.Errorf("MSI-X message control: %#x", got)
	}
	if table, pba := r.in(1, at[2]+4, 4), r.in(1, at[2]+8, 4); table != 2 || pba != pbaOffset|2 {
		t.Errorf("MSI-X table at %#x, pending bits at %#x", table, pba)
	}
}

func TestMSIX(t *testing.T) {
	r := newRig()
	f := NewFunction(ID{})
	m := f.AddMSIX(70, 2, r.MSI)
	plug(t, r, f)
	r.out(1, regCommand, 2, cmdMemory)
	cap := int(r.in(1, regCapabilities, 1))
	set := func(v int, ctl uint32) {
		b := le.AppendUint64(nil, 0xfee01000+uint64(v))
		b = le.AppendUint32(le.AppendUint32(b, uint32(v)), ctl)
		for i := 0; i < len(b); i += 4 {
			r.Memory().Write(uint64(v*entrySize+i), b[i:i+4])
		}
	}
	pending := func(v int) bool {
		b := make([]byte, 8)
		r.Memory().Read(pbaOffset+uint64(v/64*8), b)
		return le.Uint64(b)>>(v%64)&1 != 0
	}
	expect := func(what string, n int) {
		t.Helper()
		if len(r.messages) != n {
			t.Errorf("%s: %d messages, want %d", what, len(r.messages), n)
		}
	}
	m.Trigger(3)
	expect("off", 0)
	r.out(1, cap+2, 2, msixEnable)
	if !m.Enabled() || pending(3) {
		t.Error("off interrupts are pending, or on is off")
	}
	m.Trigger(69)
	expect("masked as at reset", 0)
	if !pending(69) {
		t.Error("a masked interrupt is not pending")
	}
	set(69, 0)
	expect("unmasked", 1)
	if r.messages[0] != (message{0xfee01045, 69}) || pending(69) {
		t.Errorf("%+v, pending %v", r.messages[0], pending(69))
	}
	set(0, 0)
	r.out(1, cap+2, 2, msixEnable|msixMasked)
	m.Trigger(0)
	m.Trigger(0)
	expect("all masked", 1)
	r.out(1, cap+2, 2, msixEnable)
	expect("all unmasked", 2)
	for _, v := range []int{-1, 70, 0xffff} {
		m.Trigger(v)
	}
	expect("no such vector", 2)
}

func TestINTx(t *testing.T) {
	r := newRig()
	f := NewFunction(ID{})
	f.UseINTx()
	plug(t, r, f)
	gsi := Pin(1)
	if got := r.in(1, regIntLine, 2); got != uint32(gsi)|1<<8 {
		t.Errorf("interrupt line and pin: %#x", got)
	}
	f.SetINTx(true)
	if !r.pins[gsi] || r.in(1, regStatus, 2)&stIntx == 0 {
		t.Error("the pin is low")
	}
	r.out(1, regCommand, 2, cmdIntxOff)
	if r.pins[gsi] || r.in(1, regStatus, 2)&stIntx == 0 {
		t.Error("the pin is driven though it is off, or not shown")
	}
	r.out(1, regCommand, 2, 0)
	f.SetINTx(false)
	if r.pins[gsi] || r.in(1, regStatus, 2)&stIntx != 0 {
		t.Error("the pin is high")
	}
}

func TestReset(t *testing.T) {
	r := newRig()
	out := func(v byte) { r.Host.Ports().Write(1, []byte{v}) }
	r.Host.Ports().Write(0, []byte{6, 6, 6, 6})
	r.Host.Ports().Write(1, []byte{6, 6})
	out(sysReset)
	if r.resets != 0 {
		t.Error("reset before bit 2")
	}
	b := []byte{0}
	if r.Host.Ports().Read(1, b); b[0] != sysReset {
		t.Errorf("reads %#x", b[0])
	}
	out(ResetValue)
	out(ResetValue)
	if r.resets != 1 {
		t.Errorf("%d resets, want 1: the change of bit 2 counts", r.resets)
	}
}

func TestFull(t *testing.T) {
	r := newRig()
	for range Slots - 1 {
		plug(t, r, NewFunction(ID{}))
	}
	if r.Plug(NewFunction(ID{})) == nil {
		t.Error("a device without a slot was plugged in")
	}
	r = newRig()
	f := NewFunction(ID{})
	f.AddBAR(0, WindowSize*2, ram{})
	if r.Plug(f) == nil {
		t.Error("a BAR larger than the window was placed")
	}
}

// FuzzPorts: whatever is written to the ports and the window, nothing breaks,
// and what is constant stays so.
func FuzzPorts(f *testing.F) {
	f.Add([]byte{0, 0, 8, 0, 0x80, 4, 2, 0, 0, 0})
	f.Fuzz(func(t *testing.T, ops []byte) {
		r := newRig()
		fn := NewFunction(ID{Vendor: 0x1234})
		fn.AddBAR(0, 0x4000, make(ram, 0x4000+8))
		fn.AddMSIX(3, 2, r.MSI)
		fn.UseINTx()
		plug(t, r, fn)
		for ; len(ops) >= 5; ops = ops[5:] {
			size := 1 << (ops[0] >> 4 & 3)
			v := append([]byte(nil), ops[1:5]...)
			v = append(v, 0, 0, 0, 0)[:size]
			off := uint64(ops[0] & 7)
			if ops[0]&0x80 != 0 {
				off = uint64(le.Uint16(ops[1:]))
				r.Memory().Write(off, v)
				r.Memory().Read(off, v)
				continue
			}
			r.Host.Ports().Write(off, v)
			r.Host.Ports().Read(off, v)
		}
		if got := r.in(1, regVendor, 2); got != 0x1234 {
			t.Errorf("vendor %#x", got)
		}
	})
}
