package irqchip

import (
	"testing"

	"ring3/internal/x86"
)

func TestLAPICReset(t *testing.T) {
	r := newRig(t, 1)
	for reg, want := range map[uint64]uint32{
		regID: 0, regVersion: 0x50014, regTPR: 0, regPPR: 0, regLDR: 0,
		regDFR: 0xffffffff, regSVR: 0xff, regESR: 0, regICR: 0, regICR2: 0,
		regTimer: lvtMasked, regTimer + 1: lvtMasked, regTimer + 2: lvtMasked,
		regTimer + lvtLINT0: 0x700, regTimer + lvtLINT1: lvtMasked, regError: lvtMasked,
		regInitial: 0, regCurrent: 0, regDivide: 0,
	} {
		if got := r.load(LAPICBase + reg<<4); got != want {
			t.Errorf("register %#x is %#x after reset, want %#x", reg, got, want)
		}
	}
}

func TestLVTForcedMaskWhileDisabled(t *testing.T) {
	r := newRig(t, 1)
	r.lapic(regTimer, 0x40)
	if got := r.load(LAPICBase + regTimer<<4); got != lvtMasked|0x40 {
		t.Errorf("LVT entry %#x: the mask cannot be cleared while software-disabled", got)
	}
	r.lapic(regSVR, svrEnable|0xff)
	r.lapic(regTimer, 0xffffffff)
	if got := r.load(LAPICBase + regTimer<<4); got != 0x700ff {
		t.Errorf("LVT timer %#x", got)
	}
	r.lapic(regTimer, 0x40)
	r.lapic(regSVR, 0xff)
	if got := r.load(LAPICBase + regTimer<<4); got != lvtMasked|0x40 {
		t.Errorf("LVT entry %#x after software disable", got)
	}
}

func TestPriorities(t *testing.T) {
	r := newRig(t, 1)
	r.lapic(regSVR, svrEnable|0xff)
	r.SendMSI(LAPICBase, 0x45)
	r.SendMSI(LAPICBase, 0x83)
	r.wantVector(0, 0x83)
	r.wantNone(0) // 0x45 waits
	if got := r.load(LAPICBase + regPPR<<4); got != 0x80 {
		t.Errorf("PPR %#x, want 0x80", got)
	}
	r.SendMSI(LAPICBase, 0x91)
	r.wantVector(0, 0x91)
	r.lapic(regEOI, 0)
	r.lapic(regEOI, 0)
	r.CPU(0).SetCR8(4)
	r.wantNone(0)
	if got := r.load(LAPICBase + regTPR<<4); got != 0x40 {
		t.Errorf("TPR %#x, want 0x40", got)
	}
	before := r.kicks.Load()
	r.lapic(regTPR, 0x3f)
	if r.kicks.Load() == before {
		t.Error("no notification when the TPR fell")
	}
	if got := r.CPU(0).CR8(); got != 3 {
		t.Errorf("CR8 %d, want 3", got)
	}
	r.wantVector(0, 0x45)
	r.lapic(regEOI, 0)
	r.lapic(regEOI, 0) // of nothing
}

func TestMMIOAccessSizes(t *testing.T) {
	r := newRig(t, 1)
	b := make([]byte, 8)
	r.CPU(0).Read(regVersion<<4, b)
	if get(b) != 0x50014 {
		t.Errorf("8-byte read %#x", get(b))
	}
	r.CPU(0).Read(regVersion<<4+2, b[:1])
	if b[0] != 5 {
		t.Errorf("byte 2 of the version %#x", b[0])
	}
	r.CPU(0).Write(regTPR<<4, []byte{0x20}) // not a whole register
	r.CPU(0).Write(regTPR<<4+4, []byte{0x20, 0, 0, 0})
	if v := r.load(LAPICBase + regTPR<<4); v != 0 {
		t.Errorf("TPR %#x", v)
	}
}

func TestESR(t *testing.T) {
	r := newRig(t, 1)
	r.lapic(regSVR, svrEnable|0xff)
	r.lapic(regError, 0xfe)
	r.load(LAPICBase + 0x3f0)
	r.wantVector(0, 0xfe)
	r.lapic(regEOI, 0)
	r.lapic(regICR, 0x4005) // fixed, vector 5
	r.SendMSI(LAPICBase, 0x03)
	if v := r.load(LAPICBase + regESR<<4); v != 0 {
		t.Errorf("ESR %#x before it was written", v)
	}
	r.lapic(regESR, 0)
	if v := r.load(LAPICBase + regESR<<4); v != esrRegister|esrSendIllegal|esrRecvIllegal {
		t.Errorf("ESR %#x", v)
	}
	r.lapic(regESR, 0)
	if v := r.load(LAPICBase + regESR<<4); v != 0 {
		t.Errorf("ESR %#x after a second write", v)
	}
}

func TestBaseTransitions(t *testing.T) {
	const (
		off = LAPICBase | baseBSP
		xa  = off | baseEnable
		x2  = xa | baseX2
	)
	for _, c := range []struct {
		name string
		path []uint64
		ok   bool // of the last step; the others are valid
	}{
		{"xAPIC to x2APIC", []uint64{x2}, true},
		{"x2APIC to xAPIC", []uint64{x2, xa}, false},
		{"x2APIC to disabled", []uint64{x2, off}, true},
		{"disabled to x2APIC", []uint64{off, x2}, false},
		{"disabled to xAPIC", []uint64{off, xa}, true},
		{"x2APIC without enable", []uint64{off | baseX2}, false},
		{"reserved bit", []uint64{xa | 1}, false},
		{"address beyond 52 bits", []uint64{xa | 1<<52}, false},
		{"moved", []uint64{xa | 0x1000}, true},
	} {
		t.Run(c.name, func(t *testing.T) {
			r := newRig(t, 1)
			for i, v := range c.path {
				last := i == len(c.path)-1
				if ok := r.CPU(0).WriteMSR(x86.MSRAPICBase, v); ok != (!last || c.ok) {
					t.Fatalf("step %d: ok = %v", i, ok)
				}
				if !last || c.ok {
					if got := r.rdmsr(0, x86.MSRAPICBase); got != v {
						t.Errorf("base %#x, want %#x", got, v)
					}
				}
			}
		})
	}
}

func TestDisabled(t *testing.T) {
	r := newRig(t, 1)
	r.lapic(regSVR, svrEnable|0xff)
	r.SendMSI(LAPICBase, 0x50)
	r.wrmsr(0, x86.MSRAPICBase, LAPICBase|baseBSP)
	r.wantNone(0)
	if _, mmio := r.CPU(0).Base(); mmio || r.load(LAPICBase+regVersion<<4) != 0xffffffff {
		t.Error("register page there while disabled")
	}
	r.SendMSI(LAPICBase, 0x51)
	r.PulseNMI()
	if !r.CPU(0).TakeNMI() {
		t.Error("the NMI pin must work while disabled")
	}
	r.wrmsr(0, x86.MSRAPICBase, LAPICBase|baseBSP|baseEnable)
	r.wantNone(0)
	if v := r.load(LAPICBase + regSVR<<4); v != 0xff {
		t.Errorf("SVR %#x after re-enabling", v)
	}
}

func TestX2Registers(t *testing.T) {
	r := newRig(t, 20)
	l := r.CPU(18)
	if _, ok := l.ReadMSR(x2First + regID); ok {
		t.Error("x2APIC MSR readable in xAPIC mode")
	}
	r.x2(18)
	if v := r.rdmsr(18, x2First+regID); v != 18 {
		t.Errorf("ID %d", v)
	}
	if v := r.rdmsr(18, x2First+regLDR); v != 1<<16|1<<2 {
		t.Errorf("LDR %#x", v)
	}
	for _, reg := range []uint32{0, 1, 4, regAPR, regEOI, regRRD, regDFR, regICR2, 0x2f, 0x3a, regSelfIPI, 0xff} {
		if _, ok := l.ReadMSR(x2First + reg); ok {
			t.Errorf("register %#x readable", reg)
		}
	}
	for _, c := range []struct {
		reg uint32
		v   uint64
	}{
		{regID, 0}, {regVersion, 0}, {regPPR, 0}, {regLDR, 0}, {regDFR, 0}, {regISR, 0}, {regTMR, 0},
		{regIRR, 0}, {regCurrent, 0}, {regEOI, 1}, {regESR, 1}, {regTPR, 0x100}, {regSVR, 1 << 32},
		{regSelfIPI, 0x100}, {regTimer, 1 << 11}, {regDivide, 4}, {regICR, 1 << 13}, {regInitial, 1 << 32},
	} {
		if l.WriteMSR(x2First+c.reg, c.v) {
			t.Errorf("register %#x takes %#x", c.reg, c.v)
		}
	}
	if v := r.load(LAPICBase); v != 0 && v != 0xffffffff {
		t.Errorf("page reads %#x", v)
	}
	r.wrmsr(18, x2First+regSelfIPI, 0x70)
	r.wantVector(18, 0x70)
	r.wrmsr(18, x2First+regEOI, 0)
}

func TestIPI(t *testing.T) {
	r := newRig(t, 3)
	for i := range 3 {
		r.x2(i)
	}
	icr := func(dest uint64, v uint64) { r.wrmsr(0, x2First+regICR, dest<<32|v) }
	icr(2, 0x40) // physical
	r.wantVector(2, 0x40)
	r.wantNone(1)
	icr(0b011, icrLogical|0x51) // logical, cluster 0
	r.wantVector(0, 0x51)
	r.wantVector(1, 0x51)
	icr(0, 1<<18|0x61) // self
	r.wantVector(0, 0x61)
	icr(0, 3<<18|0x71) // all but self
	r.wantNone(0)
	r.wantVector(1, 0x71)
	r.wantVector(2, 0x71)
	icr(0xffffffff, 0x81) // broadcast
	for i := range 3 {
		r.wantVector(i, 0x81)
	}
	icr(1, modeNMI<<8)
	if !r.CPU(1).TakeNMI() {
		t.Error("no NMI")
	}
	if v := r.rdmsr(0, x2First+regICR); v != 1<<32|modeNMI<<8 {
		t.Errorf("ICR reads %#x", v)
	}
}

func TestStartup(t *testing.T) {
	r := newRig(t, 2)
	r.lapic(regSVR, svrEnable|0xff)
	r.lapic(regICR2, 1<<24)
	r.lapic(regICR, icrLevel|icrAssert|modeINIT<<8)
	r.lapic(regICR, icrLevel|modeINIT<<8) // de-assert: nothing
	if e := r.CPU(1).Pending(); e != EventINIT {
		t.Fatalf("events %#x, want INIT", e)
	}
	r.lapic(regICR, icrAssert|modeSIPI<<8|0x9a)
	if !r.CPU(1).TakeINIT() || r.CPU(1).TakeINIT() {
		t.Error("want one INIT")
	}
	if page, ok := r.CPU(1).TakeSIPI(); !ok || page != 0x9a {
		t.Errorf("SIPI %#x, %v", page, ok)
	}
	if _, ok := r.CPU(1).TakeSIPI(); ok || r.CPU(1).Pending() != 0 {
		t.Error("SIPI twice")
	}
	if r.CPU(0).Pending() != 0 {
		t.Error("the sender got something")
	}
}

func TestXAPICLogical(t *testing.T) {
	r := newRig(t, 2)
	for i := range 2 {
		p := r.CPU(i)
		w := func(reg uint64, v uint32) {
			var b [4]byte
			put(b[:], uint64(v))
			p.Write(reg<<4, b[:])
		}
		w(regSVR, svrEnable|0xff)
		w(regLDR, 1<<(24+i))
	}
	r.lapic(regICR2, 2<<24)
	r.lapic(regICR, icrLogical|0x40)
	r.wantNone(0)
	r.wantVector(1, 0x40)
	r.lapic(regDFR, 0) // cluster model: cluster 0, bit 0
	r.lapic(regICR2, 0x01<<24)
	r.lapic(regICR, icrLogical|0x50)
	r.wantVector(0, 0x50)
	r.lapic(regICR2, 0x11<<24)
	r.lapic(regICR, icrLogical|0x60)
	r.wantNone(0)
}

func TestLINT1(t *testing.T) {
	r := newRig(t, 1)
	r.lapic(regSVR, svrEnable|0xff)
	r.PulseNMI()
	if r.CPU(0).TakeNMI() {
		t.Error("LINT1 is masked")
	}
	r.lapic(regTimer+lvtLINT1, modeNMI<<8)
	r.PulseNMI()
	if r.CPU(0).Pending() != EventNMI || !r.CPU(0).TakeNMI() {
		t.Error("no NMI through LINT1")
	}
}

// TestIPINotifies: the receiver of an IPI is named to Notify even when something
// is pending for it already, the sender and what devices send are not.
func TestIPINotifies(t *testing.T) {
	r := newRig(t, 3)
	called := map[int]int{}
	r.Notify = func(cpu int, ipi bool) {
		if ipi {
			called[cpu]++
		}
	}
	for i := range 3 {
		r.x2(i)
	}
	want := func(what string, counts ...int) {
		t.Helper()
		for cpu, n := range counts {
			if called[cpu] != n {
				t.Errorf("%s: CPU %d was called %d times, want %d", what, cpu, called[cpu], n)
			}
		}
		clear(called)
	}
	icr := func(dest uint64, v uint64) { r.wrmsr(0, x2First+regICR, dest<<32|v) }
	r.SendMSI(LAPICBase+1<<12, 0x41)
	want("MSI", 0, 0, 0)
	icr(1, 0x31)
	want("one, with a higher one pending", 0, 1, 0)
	icr(1, 0x31)
	want("the same again", 0, 1, 0)
	icr(0, 2<<18|0x51)
	want("all", 0, 1, 1)
	icr(0, 1<<18|0x51)
	want("self", 0, 0, 0)
	icr(0xffffffff, 0x51)
	want("broadcast", 0, 1, 1)
	icr(77, 0x51)
	want("nobody", 0, 0, 0)
	icr(1, 5)
	want("an illegal vector", 0, 0, 0)
	r.wrmsr(0, x2First+regEOI, 0)
	want("no IPI", 0, 0, 0)
}

// FuzzIPI: any interrupt command from any of the processors, any message of a
// device.
func FuzzIPI(f *testing.F) {
	f.Add([]byte{0, 0, 0, 0x45, 0x40, 1, 0, 0, 0})
	f.Fuzz(func(t *testing.T, b []byte) {
		r := newRig(t, 4)
		for i := range 3 { // the fourth is in xAPIC mode
			r.x2(i)
		}
		for ; len(b) >= 9; b = b[9:] {
			v, cpu := get(b[1:9]), int(b[0]&3)
			switch b[0] >> 6 {
			case 0:
				r.CPU(cpu).WriteMSR(x2First+regICR, v)
			case 1:
				r.SendMSI(LAPICBase|v>>32&0xfffff, uint32(v))
			case 2:
				r.CPU(cpu).Write(v>>32&0xff0, b[1:5])
			default:
				r.CPU(cpu).TakeINIT()
				r.CPU(cpu).TakeNMI()
				r.CPU(cpu).TakeSIPI()
				r.CPU(cpu).Acknowledge()
			}
			for i := range 4 {
				if r.CPU(i).Pending()&^(EventInterrupt|EventNMI|EventINIT|EventSIPI) != 0 {
					t.Fatal("unknown events")
				}
			}
		}
	})
}
