package rng

import (
	"bytes"
	"testing"

	"ring3/internal/virtio"
	"ring3/internal/virtio/virtiotest"
)

func start(t testing.TB) *virtiotest.Driver {
	d := virtiotest.New(t, func(virtio.Platform) virtio.Device { return Device{} })
	d.Start(t, virtiotest.Version1)
	return d
}

func TestRandom(t *testing.T) {
	d := start(t)
	a := bytes.Clone(d.Request(t, 0, nil, 64, 10))
	b := d.Request(t, 0, nil, 64, 64)
	if len(a) != 64 || len(b) != 64 || bytes.Equal(a, b) {
		t.Errorf("% x\n% x", a, b)
	}
	for _, x := range [][]byte{a, b} {
		if bytes.Contains(x, []byte{0xcc, 0xcc, 0xcc, 0xcc}) {
			t.Errorf("not filled: % x", x)
		}
	}
	if n := len(d.Request(t, 0, nil, 200<<10, 100<<10)); n != maxBytes {
		t.Errorf("%d bytes for a request of 200 KiB", n)
	}
}

func TestNoRoom(t *testing.T) {
	d := start(t)
	d.Desc(0, 0, 0x80000, 8, 0, 0)
	d.Offer(0, 0)
	d.Notify(0)
	if d.Get(virtiotest.Status, 1)&virtiotest.NeedsReset == 0 {
		t.Error("the device goes on")
	}
}

// FuzzDriver: a driver that does anything.
func FuzzDriver(f *testing.F) {
	f.Add([]byte{0x40, 1, 0, 0}, []byte{0, 0, 8, 0, 0, 0, 0, 0, 64, 0, 0, 0, 2, 0, 0, 0})
	f.Fuzz(func(t *testing.T, ops, memory []byte) {
		d := start(t)
		virtiotest.Play(d, ops, memory)
		d.Start(t, virtiotest.Version1)
		if n := len(d.Request(t, 0, nil, 8, 8)); n != 8 {
			t.Errorf("after a reset, %d bytes", n)
		}
	})
}
