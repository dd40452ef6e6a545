package debugport

import (
	"bytes"
	"testing"
)

func TestConsole(t *testing.T) {
	var out bytes.Buffer
	c := Console{&out}
	b := []byte{0}
	c.Read(0, b)
	if b[0] != 0xe9 {
		t.Errorf("reads %#x", b[0])
	}
	c.Write(0, []byte("h"))
	c.Write(0, []byte("i!")) // a word: the second byte belongs to the next port
	if out.String() != "hi" {
		t.Errorf("got %q", out.String())
	}
	Console{}.Write(0, []byte("x"))
}

func TestPOST(t *testing.T) {
	var d POST
	d.Write(0, []byte{0x55})
	b := []byte{0}
	d.Read(0, b)
	if d.Last() != 0x55 || b[0] != 0xff {
		t.Errorf("last %#x, reads %#x", d.Last(), b[0])
	}
}

func FuzzAccess(f *testing.F) {
	f.Add([]byte("a"), uint64(0))
	f.Fuzz(func(t *testing.T, b []byte, off uint64) {
		c, d := Console{&bytes.Buffer{}}, &POST{}
		c.Write(off, b)
		c.Read(off, b)
		d.Write(off, b)
		d.Read(off, b)
	})
}
