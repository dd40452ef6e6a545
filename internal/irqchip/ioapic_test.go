package irqchip

import "testing"

func TestIOAPICRegisters(t *testing.T) {
	r := newRig(t, 1)
	r.store(IOAPICBase, ioapicVer)
	if v := r.load(IOAPICBase + iowin); v != 0x00170020 {
		t.Errorf("version %#x", v)
	}
	r.store(IOAPICBase, ioapicID)
	r.store(IOAPICBase+iowin, 0xffffffff)
	if v := r.load(IOAPICBase + iowin); v != 0x0f000000 {
		t.Errorf("ID %#x", v)
	}
	if v := r.readRTE(7); v != rteMasked {
		t.Errorf("entry after reset %#x, want masked", v)
	}
	r.rte(7, ^uint64(0))
	if v := r.readRTE(7); v != 0x1afff {
		t.Errorf("entry %#x, want 0x1afff: status bits are read only", v)
	}
	r.store(IOAPICBase, 0x80)
	if v := r.load(IOAPICBase + iowin); v != 0xffffffff {
		t.Errorf("no such register reads %#x", v)
	}
}

func TestIOAPICEdge(t *testing.T) {
	r := newRig(t, 1)
	r.lapic(regSVR, svrEnable|0xff)
	l := r.Line(4)
	l.Set(true)
	r.rte(4, 0x44)
	r.wantNone(0) // the edge came while it was masked
	l.Set(false)
	l.Set(true)
	r.wantVector(0, 0x44)
	r.lapic(regEOI, 0)
	r.wantNone(0)
}

func TestIOAPICLevel(t *testing.T) {
	r := newRig(t, 1)
	r.lapic(regSVR, svrEnable|0xff)
	l := r.Line(9)
	l.Set(true)
	r.rte(9, rteLevel|0x49)
	if r.readRTE(9)&rteRemoteIRR == 0 {
		t.Error("remote IRR clear after delivery")
	}
	r.wantVector(0, 0x49)
	l.Set(false)
	l.Set(true)
	r.wantNone(0)
	if r.load(LAPICBase+(regTMR+2)<<4)&(1<<9) == 0 {
		t.Error("TMR bit clear")
	}
	r.lapic(regEOI, 0)
	r.wantVector(0, 0x49) // still high
	l.Set(false)
	r.lapic(regEOI, 0)
	r.wantNone(0)
	if r.readRTE(9)&rteRemoteIRR != 0 {
		t.Error("remote IRR set after EOI")
	}
}

func TestIOAPICDirectedEOI(t *testing.T) {
	r := newRig(t, 1)
	r.lapic(regSVR, svrEnable|0xff)
	r.rte(9, rteLevel|0x49)
	r.Line(9).Set(true)
	r.store(IOAPICBase+ioeoi, 0x48)
	if r.readRTE(9)&rteRemoteIRR == 0 {
		t.Error("EOI of another vector cleared remote IRR")
	}
	r.rte(9, rteMasked|rteLevel|0x49)
	r.store(IOAPICBase+ioeoi, 0x49)
	if r.readRTE(9)&rteRemoteIRR != 0 {
		t.Error("EOI register did not clear remote IRR")
	}
}

func TestIOAPICEdgeClearsRemoteIRR(t *testing.T) {
	r := newRig(t, 1)
	r.lapic(regSVR, svrEnable|0xff)
	r.rte(9, rteLevel|0x49)
	r.Line(9).Set(true)
	r.rte(9, rteMasked|0x49)
	r.rte(9, rteMasked|rteLevel|0x49)
	if r.readRTE(9)&rteRemoteIRR != 0 {
		t.Error("remote IRR set")
	}
}

func TestIOAPICDestinations(t *testing.T) {
	r := newRig(t, 3)
	for i := range 3 {
		r.x2(i)
	}
	pulse := func(pin int) { l := r.Line(pin); l.Set(true); l.Set(false) }
	r.rte(10, 1<<56|0x50)
	pulse(10)
	r.wantNone(0)
	r.wantVector(1, 0x50)
	r.rte(10, 0b110<<56|rteLogical|0x50)
	pulse(10)
	r.wantNone(0)
	r.wrmsr(1, x2First+regEOI, 0)
	r.wantVector(1, 0x50)
	r.wantVector(2, 0x50)
	r.rte(10, 0xff<<56|modeNMI<<8)
	pulse(10)
	for i := range 3 {
		if !r.CPU(i).TakeNMI() || r.CPU(i).TakeNMI() {
			t.Errorf("CPU %d: want one NMI", i)
		}
	}
	// Lowest priority: CPU 2 is idle, CPU 0 and 1 have an interrupt in service.
	r.wrmsr(2, x2First+regEOI, 0)
	r.SendMSI(LAPICBase, 0x90)
	r.wantVector(0, 0x90)
	r.rte(10, 0b111<<56|rteLogical|modeLowest<<8|0xa0)
	pulse(10)
	r.wantVector(2, 0xa0)
	r.wantNone(0)
	r.wantNone(1)
}
