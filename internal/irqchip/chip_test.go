package irqchip

import (
	"sync/atomic"
	"testing"

	"ring3/internal/bus"
	"ring3/internal/timer/timertest"
	"ring3/internal/x86"
)

const tscHz = 2_000_000_000

// rig is a Chip on test buses.
type rig struct {
	*Chip
	t     *testing.T
	clock *timertest.Clock
	kicks atomic.Int64
	ports bus.Bus
	mem   bus.Bus
}

func newRig(t *testing.T, cpus int) *rig {
	clock := timertest.New(tscHz)
	r := &rig{t: t, clock: clock, Chip: New(Config{CPUs: cpus, Clock: clock})}
	r.Notify = func(int, bool) { r.kicks.Add(1) }
	master, slave, elcr := r.PIC()
	for _, err := range []error{
		r.ports.Attach("pic1", PortPIC1, 2, master),
		r.ports.Attach("pic2", PortPIC2, 2, slave),
		r.ports.Attach("elcr", PortELCR, 2, elcr),
		r.mem.Attach("ioapic", IOAPICBase, 4096, r.IOAPIC()),
		r.mem.Attach("lapic", LAPICBase, 4096, r.CPU(0)),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	return r
}

func (r *rig) out(port uint64, vs ...byte) {
	for _, v := range vs {
		r.ports.Write(port, []byte{v})
	}
}

func (r *rig) in(port uint64) byte {
	var b [1]byte
	r.ports.Read(port, b[:])
	return b[0]
}

func (r *rig) store(addr uint64, v uint32) {
	var b [4]byte
	put(b[:], uint64(v))
	r.mem.Write(addr, b[:])
}

func (r *rig) load(addr uint64) uint32 {
	var b [4]byte
	r.mem.Read(addr, b[:])
	return uint32(get(b[:]))
}

// lapic writes a register of CPU 0 in xAPIC mode.
func (r *rig) lapic(reg uint64, v uint32) { r.store(LAPICBase+reg<<4, v) }

func (r *rig) rte(pin uint64, v uint64) {
	r.store(IOAPICBase, uint32(ioredtbl+2*pin+1))
	r.store(IOAPICBase+iowin, uint32(v>>32))
	r.store(IOAPICBase, uint32(ioredtbl+2*pin))
	r.store(IOAPICBase+iowin, uint32(v))
}

func (r *rig) readRTE(pin uint64) uint32 {
	r.store(IOAPICBase, uint32(ioredtbl+2*pin))
	return r.load(IOAPICBase + iowin)
}

func (r *rig) wrmsr(cpu int, msr uint32, v uint64) {
	r.t.Helper()
	if !r.CPU(cpu).WriteMSR(msr, v) {
		r.t.Fatalf("WRMSR %#x <- %#x: #GP", msr, v)
	}
}

func (r *rig) rdmsr(cpu int, msr uint32) uint64 {
	r.t.Helper()
	v, ok := r.CPU(cpu).ReadMSR(msr)
	if !ok {
		r.t.Fatalf("RDMSR %#x: #GP", msr)
	}
	return v
}

// x2 puts a CPU in x2APIC mode, software-enabled.
func (r *rig) x2(cpu int) {
	r.t.Helper()
	r.wrmsr(cpu, x86.MSRAPICBase, r.rdmsr(cpu, x86.MSRAPICBase)|baseX2)
	r.wrmsr(cpu, x2First+regSVR, svrEnable|0xff)
}

func (r *rig) wantVector(cpu int, want uint8) {
	r.t.Helper()
	if !r.CPU(cpu).PendingInterrupt() {
		r.t.Fatalf("CPU %d: nothing pending, want vector %#x", cpu, want)
	}
	if v, ok := r.CPU(cpu).Acknowledge(); !ok || v != want {
		r.t.Fatalf("CPU %d: acknowledged %#x, %v, want %#x", cpu, v, ok, want)
	}
}

func (r *rig) wantNone(cpu int) {
	r.t.Helper()
	if r.CPU(cpu).PendingInterrupt() {
		v, ok := r.CPU(cpu).Acknowledge()
		r.t.Fatalf("CPU %d: vector %#x (%v) pending, want none", cpu, v, ok)
	}
	if v, ok := r.CPU(cpu).Acknowledge(); ok {
		r.t.Fatalf("CPU %d: acknowledged %#x that was not pending", cpu, v)
	}
}

// initPIC is the initialization of every PC operating system: vectors 0x30
// and 0x38, all unmasked.
func (r *rig) initPIC() {
	r.out(PortPIC1, 0x11)
	r.out(PortPIC1+1, 0x30, 0x04, 0x01, 0)
	r.out(PortPIC2, 0x11)
	r.out(PortPIC2+1, 0x38, 0x02, 0x01, 0)
}

func TestLineWiring(t *testing.T) {
	r := newRig(t, 1)
	r.lapic(regSVR, svrEnable|0xff)
	r.rte(2, 0x40)
	r.rte(0, 0x41)
	r.rte(5, 0x45)
	r.rte(20, 0x54)
	r.Line(0).Set(true) // IRQ0 is pin 2
	r.wantVector(0, 0x40)
	r.lapic(regEOI, 0)
	r.Line(5).Set(true)
	r.wantVector(0, 0x45)
	r.lapic(regEOI, 0)
	r.Line(20).Set(true)
	r.wantVector(0, 0x54)
	r.lapic(regEOI, 0)
	r.wantNone(0)
}

func TestSharedLine(t *testing.T) {
	r := newRig(t, 1)
	r.lapic(regSVR, svrEnable|0xff)
	r.rte(10, rteLevel|0x50)
	a, b := r.Line(10), r.Line(10)
	a.Set(true)
	b.Set(true)
	r.wantVector(0, 0x50)
	a.Set(false)
	a.Set(false)
	r.lapic(regEOI, 0)
	r.wantVector(0, 0x50) // b still drives it
	b.Set(false)
	r.lapic(regEOI, 0)
	r.wantNone(0)
}

func TestNotify(t *testing.T) {
	r := newRig(t, 1)
	r.x2(0)
	before := r.kicks.Load()
	r.SendMSI(LAPICBase, 0x61)
	if got := r.kicks.Load() - before; got != 1 {
		t.Errorf("%d notifications of a new interrupt, want 1", got)
	}
	r.SendMSI(LAPICBase, 0x62) // one is pending already
	if got := r.kicks.Load() - before; got != 1 {
		t.Errorf("%d notifications, want 1", got)
	}
	r.wantVector(0, 0x62)
	before = r.kicks.Load()
	r.SendMSI(LAPICBase, 0x63) // same class as the one in service
	if got := r.kicks.Load() - before; got != 0 {
		t.Errorf("%d notifications of an interrupt that must wait, want 0", got)
	}
	r.wrmsr(0, x2First+regEOI, 0)
	if got := r.kicks.Load() - before; got != 1 {
		t.Errorf("%d notifications at EOI, want 1", got)
	}
}

func TestReset(t *testing.T) {
	r := newRig(t, 2)
	r.initPIC()
	r.x2(0)
	r.SendMSI(LAPICBase, 0x61)
	r.PulseNMI()
	r.Reset()
	r.wantNone(0)
	if r.CPU(0).Pending() != 0 {
		t.Error("events pending after reset")
	}
	if v := r.rdmsr(0, x86.MSRAPICBase); v != LAPICBase|baseEnable|baseBSP {
		t.Errorf("IA32_APIC_BASE %#x after reset", v)
	}
	if v := r.rdmsr(1, x86.MSRAPICBase); v != LAPICBase|baseEnable {
		t.Errorf("IA32_APIC_BASE of CPU 1 %#x after reset", v)
	}
	if r.in(PortPIC1+1) != 0xff {
		t.Error("8259A unmasked after reset")
	}
}
