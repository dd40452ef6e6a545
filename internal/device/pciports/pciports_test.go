package pciports

import (
	"bytes"
	"testing"
)

// The test for configuration mechanism 1 that every operating system makes.
func TestNoPCI(t *testing.T) {
	d := New(func() { t.Error("reset") })
	d.Write(0, []byte{0, 0, 0, 0x80})
	b := make([]byte, 4)
	for _, off := range []uint64{0, 4} {
		d.Read(off, b)
		if !bytes.Equal(b, []byte{0xff, 0xff, 0xff, 0xff}) {
			t.Errorf("port %#x reads % x", Port+off, b)
		}
	}
	d.Write(0, []byte{6, 6, 6, 6})
	d.Write(1, []byte{6, 6})
}

func TestReset(t *testing.T) {
	n := 0
	d := New(func() { n++ })
	out := func(v byte) { d.Write(1, []byte{v}) }
	out(sysReset)
	if n != 0 {
		t.Error("reset before bit 2")
	}
	b := []byte{0}
	if d.Read(1, b); b[0] != sysReset {
		t.Errorf("reads %#x", b[0])
	}
	out(ResetValue)
	out(ResetValue)
	if n != 1 {
		t.Errorf("%d resets, want 1: the change of bit 2 counts", n)
	}
	d.Reset()
	out(ResetValue)
	if n != 2 {
		t.Errorf("%d resets, want 2", n)
	}
}

func FuzzAccess(f *testing.F) {
	f.Add([]byte{6}, uint64(1))
	f.Fuzz(func(t *testing.T, b []byte, off uint64) {
		d := New(func() {})
		d.Write(off, b)
		d.Read(off, b)
	})
}
