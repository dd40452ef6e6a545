package bus

import (
	"bytes"
	"testing"
)

// recorder answers reads with the offset and notes the last write.
type recorder struct {
	off uint64
	p   []byte
}

func (r *recorder) Read(off uint64, p []byte) {
	for i := range p {
		p[i] = byte(off) + byte(i)
	}
}

func (r *recorder) Write(off uint64, p []byte) { r.off, r.p = off, bytes.Clone(p) }

func TestRouting(t *testing.T) {
	var b Bus
	low, high := &recorder{}, &recorder{}
	if err := b.Attach("high", 0x100, 0x10, high); err != nil {
		t.Fatal(err)
	}
	if err := b.Attach("low", 0x10, 4, low); err != nil {
		t.Fatal(err)
	}
	for _, bad := range []struct{ base, size uint64 }{{0x13, 1}, {0xf8, 9}, {0x10f, 1}, {0, 0x1000}, {5, 0}, {^uint64(0), 2}} {
		if err := b.Attach("bad", bad.base, bad.size, low); err == nil {
			t.Errorf("Attach(%#x, %#x) overlaps or is malformed, and was taken", bad.base, bad.size)
		}
	}
	b.Timed = true
	p := make([]byte, 2)
	if !b.Read(0x12, p) || p[0] != 2 || p[1] != 3 {
		t.Errorf("Read(0x12) = %v", p)
	}
	if !b.Write(0x10f, []byte{7}) || high.off != 0xf || high.p[0] != 7 {
		t.Errorf("Write(0x10f) reached offset %#x with %v", high.off, high.p)
	}
	for _, hole := range []uint64{0, 0xf, 0x14, 0xff, 0x110, ^uint64(0)} {
		if b.Read(hole, p) || p[0] != 0xff || p[1] != 0xff {
			t.Errorf("Read(%#x) found a device: %v", hole, p)
		}
		if b.Write(hole, p) {
			t.Errorf("Write(%#x) found a device", hole)
		}
	}
	r := b.Ranges()
	if len(r) != 2 || r[0].Name != "low" || r[0].Count != 1 || r[1].Count != 1 {
		t.Errorf("Ranges: %+v, %+v", r[0], r[1])
	}
}
