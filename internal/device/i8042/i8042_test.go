package i8042

import "testing"

type irqLine struct{ level bool }

func (l *irqLine) Set(level bool) { l.level = level }

type rig struct {
	*Controller
	t      *testing.T
	irq    irqLine
	resets int
}

func newRig(t *testing.T) *rig {
	r := &rig{t: t}
	r.Controller = New(&r.irq, func() { r.resets++ })
	return r
}

func in(d Port) byte {
	b := []byte{0}
	d.Read(0, b)
	return b[0]
}

func (r *rig) command(v byte, params ...byte) {
	r.Status().Write(0, []byte{v})
	for _, p := range params {
		r.Data().Write(0, []byte{p})
	}
}

func (r *rig) wantReply(want byte, what string) {
	r.t.Helper()
	if in(r.Status())&statusOBF == 0 {
		r.t.Fatalf("%s: no reply", what)
	}
	if got := in(r.Data()); got != want {
		r.t.Errorf("%s: reply %#x, want %#x", what, got, want)
	}
	if in(r.Status())&statusOBF != 0 {
		r.t.Errorf("%s: more than one reply", what)
	}
}

// What Linux asks of a controller before it registers ports.
func TestProbe(t *testing.T) {
	r := newRig(t)
	if s := in(r.Status()); s&3 != 0 {
		t.Errorf("status %#x: buffers not empty", s)
	}
	r.command(0xaa)
	r.wantReply(0x55, "self-test")
	r.command(0xab)
	r.wantReply(0, "keyboard interface test")
	r.command(0xd3, 0x5a)
	if in(r.Status())&(1<<5) != 0 {
		t.Error("the auxiliary loop works without that interface")
	}
	r.wantReply(0x5a, "auxiliary loop")
	r.command(0xa9)
	r.wantReply(1, "auxiliary interface test")
	r.command(0xa8)
	r.command(0x60, 0x65&^configNoAux)
	r.command(0x20)
	r.wantReply(0x65|configNoAux, "configuration")
}

func TestAbsentKeyboard(t *testing.T) {
	r := newRig(t)
	r.command(0x60, configIRQ)
	r.Data().Write(0, []byte{0xf2})
	if !r.irq.level {
		t.Error("no interrupt")
	}
	if in(r.Status())&statusTimeout == 0 {
		t.Error("no timeout")
	}
	r.wantReply(resend, "identify")
	if r.irq.level || in(r.Status())&statusTimeout != 0 {
		t.Error("interrupt or timeout stays")
	}
}

func TestReset(t *testing.T) {
	for name, do := range map[string]func(r *rig){
		"pulse":       func(r *rig) { r.command(0xfe) },
		"output port": func(r *rig) { r.command(0xd1, 0xfe) },
		"port 92":     func(r *rig) { r.SystemPortA().Write(0, []byte{3}) },
	} {
		r := newRig(t)
		do(r)
		if r.resets != 1 {
			t.Errorf("%s: %d resets, want 1", name, r.resets)
		}
	}
	r := newRig(t)
	r.command(0xff) // pulse nothing
	r.command(0xd1, 0xdf)
	r.SystemPortA().Write(0, []byte{2})
	if r.resets != 0 {
		t.Errorf("%d resets, want none", r.resets)
	}
}

func TestA20(t *testing.T) {
	r := newRig(t)
	if !r.A20() || in(r.SystemPortA()) != 2 {
		t.Error("A20 off at power on")
	}
	r.command(0xd1, 0xdd)
	if r.A20() {
		t.Error("output port")
	}
	r.SystemPortA().Write(0, []byte{2})
	if !r.A20() {
		t.Error("port 92")
	}
	r.command(0xd0)
	r.wantReply(0xdf, "output port")
	r.command(0x2f)
	r.wantReply(0, "memory")
	r.command(0x6f, 0x12)
	r.command(0x2f)
	r.wantReply(0x12, "memory")
}

func FuzzAccess(f *testing.F) {
	f.Add([]byte{1, 0xaa, 0, 0xf2, 2, 3})
	f.Fuzz(func(t *testing.T, data []byte) {
		r := newRig(t)
		ports := []Port{r.Data(), r.Status(), r.SystemPortA()}
		for ; len(data) >= 2; data = data[2:] {
			d := ports[int(data[0]%3)]
			n := 1 << (data[0] >> 6)
			d.Write(uint64(data[0]>>3&1), append([]byte{data[1]}, make([]byte, n-1)...))
			d.Read(uint64(data[0]>>4&1), make([]byte, n))
		}
	})
}
