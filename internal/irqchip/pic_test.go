package irqchip

import "testing"

func TestPICVectorsAndCascade(t *testing.T) {
	r := newRig(t, 1)
	r.initPIC()
	r.Line(4).Set(true)
	r.wantVector(0, 0x34)
	r.wantNone(0)
	r.out(PortPIC1, 0x20)
	r.wantNone(0) // an edge is one interrupt
	r.Line(8).Set(true)
	r.Line(12).Set(true)
	r.wantVector(0, 0x38)
	r.wantNone(0)
	r.out(PortPIC2, 0x20)
	r.wantNone(0) // the master still has input 2 in service
	r.out(PortPIC1, 0x20)
	r.wantVector(0, 0x3c)
	r.out(PortPIC2, 0x64) // specific EOI
	r.out(PortPIC1, 0x62)
	r.wantNone(0)
}

func TestPICPriority(t *testing.T) {
	r := newRig(t, 1)
	r.initPIC()
	r.Line(5).Set(true)
	r.wantVector(0, 0x35)
	r.Line(6).Set(true)
	r.wantNone(0) // lower
	r.Line(1).Set(true)
	r.wantVector(0, 0x31) // nests
	if isr := func() byte { r.out(PortPIC1, 0x0b); return r.in(PortPIC1) }(); isr != 0x22 {
		t.Errorf("ISR %#x, want 0x22", isr)
	}
	r.out(PortPIC1, 0x0a)
	if irr := r.in(PortPIC1); irr != 0x40 {
		t.Errorf("IRR %#x, want 0x40", irr)
	}
	r.out(PortPIC1, 0x20, 0x20)
	r.wantVector(0, 0x36)
}

func TestPICMask(t *testing.T) {
	r := newRig(t, 1)
	r.initPIC()
	r.out(PortPIC1+1, 0xfb)
	if got := r.in(PortPIC1 + 1); got != 0xfb {
		t.Errorf("IMR %#x, want 0xfb", got)
	}
	r.Line(3).Set(true)
	r.wantNone(0)
	before := r.kicks.Load()
	r.out(PortPIC1+1, 0)
	if r.kicks.Load() == before {
		t.Error("no notification at unmasking")
	}
	r.wantVector(0, 0x33)
}

func TestPICLevel(t *testing.T) {
	r := newRig(t, 1)
	r.initPIC()
	r.out(PortELCR, 0xff, 0x08)
	if got := r.in(PortELCR); got != 0x08 {
		t.Errorf("ELCR %#x, want 0x08", got)
	}
	r.out(PortELCR, 0xff)
	if got := r.in(PortELCR); got != 0xf8 {
		t.Errorf("ELCR %#x: inputs 0 to 2 cannot be level-triggered", got)
	}
	l := r.Line(3)
	l.Set(true)
	r.wantVector(0, 0x33)
	r.out(PortPIC1, 0x20)
	r.wantVector(0, 0x33) // still high
	l.Set(false)
	r.out(PortPIC1, 0x20)
	r.wantNone(0)
}

func TestPICRotation(t *testing.T) {
	r := newRig(t, 1)
	r.initPIC()
	r.Line(3).Set(true)
	r.wantVector(0, 0x33)
	r.out(PortPIC1, 0xa0) // rotate on non-specific EOI: 3 is lowest now
	r.Line(4).Set(true)
	r.Line(7).Set(true)
	r.wantVector(0, 0x34)
	r.out(PortPIC1, 0x20)
	r.wantVector(0, 0x37)
	r.out(PortPIC1, 0xc2) // set priority: 2 lowest, 3 highest
	r.Line(0).Set(true)
	r.wantNone(0) // 7 is still in service and higher than 0
	r.out(PortPIC1, 0x67)
	r.wantVector(0, 0x30)
}

func TestPICAutoEOI(t *testing.T) {
	r := newRig(t, 1)
	r.out(PortPIC1, 0x11)
	r.out(PortPIC1+1, 0x30, 0x04, 0x03, 0)
	r.Line(0).Set(true)
	r.wantVector(0, 0x30)
	r.Line(7).Set(true)
	r.wantVector(0, 0x37)
}

func TestPICPoll(t *testing.T) {
	r := newRig(t, 1)
	r.initPIC()
	r.Line(6).Set(true)
	r.out(PortPIC1, 0x0c)
	if got := r.in(PortPIC1); got != 0x86 {
		t.Errorf("poll %#x, want 0x86", got)
	}
	r.wantNone(0)
	r.out(PortPIC1, 0x0c)
	if got := r.in(PortPIC1); got != 0 {
		t.Errorf("poll %#x, want 0", got)
	}
}

func TestPICSpecialMask(t *testing.T) {
	r := newRig(t, 1)
	r.initPIC()
	r.Line(1).Set(true)
	r.wantVector(0, 0x31)
	r.Line(4).Set(true)
	r.wantNone(0)
	r.out(PortPIC1+1, 0x02)
	r.out(PortPIC1, 0x68) // special mask mode: lower inputs pass
	r.wantVector(0, 0x34)
}

func TestPICSpurious(t *testing.T) {
	var pp picPair
	pp.reset()
	if v := pp.acknowledge(); v != 0x0f {
		t.Errorf("spurious vector %#x, want 0x0f", v)
	}
}

func TestExtINTRouting(t *testing.T) {
	r := newRig(t, 2)
	r.initPIC()
	r.Line(1).Set(true)
	r.wantNone(1) // only the boot processor is wired
	r.lapic(regSVR, svrEnable|0xff)
	r.lapic(regTimer+lvtLINT0, lvtMasked|modeExtINT<<8)
	r.wantNone(0)
	r.rte(0, modeExtINT<<8) // through the I/O APIC instead
	r.wantVector(0, 0x31)
	r.out(PortPIC1, 0x20)
	r.rte(0, rteMasked)
	r.Line(6).Set(true)
	r.wantNone(0)
	r.wrmsr(0, 0x1b, LAPICBase|baseBSP) // globally disabled: INTR pin
	r.wantVector(0, 0x36)
}

func TestLINT0Fixed(t *testing.T) {
	r := newRig(t, 1)
	r.initPIC()
	r.lapic(regSVR, svrEnable|0xff)
	r.lapic(regTimer+lvtLINT0, 0x77)
	r.Line(3).Set(true)
	r.wantVector(0, 0x77)
}
