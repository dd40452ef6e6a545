package guestmem

import (
	"bytes"
	"errors"
	"fmt"
	"slices"
	"testing"
)

func newMemory(t *testing.T, size uint64) *Memory {
	t.Helper()
	m, err := New(size)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := m.Close(); err != nil {
			t.Error(err)
		}
	})
	return m
}

func TestSize(t *testing.T) {
	for _, size := range []uint64{0, 1, 4095, 4097} {
		if m, err := New(size); err == nil {
			m.Close()
			t.Errorf("New(%d) succeeded", size)
		}
	}
}

// TestHole: RAM beyond 3 GiB appears at 4 GiB, and nothing reaches across the
// hole. Untouched memory costs nothing.
func TestHole(t *testing.T) {
	m := newMemory(t, HoleStart+1<<20)
	for _, tt := range []struct {
		gpa, off uint64
		ok       bool
	}{
		{0, 0, true}, {HoleStart - 1, HoleStart - 1, true}, {HoleStart, 0, false}, {HoleEnd - 1, 0, false},
		{HoleEnd, HoleStart, true}, {HoleEnd + 1<<20 - 1, HoleStart + 1<<20 - 1, true}, {HoleEnd + 1<<20, 0, false},
		{^uint64(0), 0, false},
	} {
		off, ok := m.Offset(tt.gpa)
		if ok != tt.ok || off != tt.off {
			t.Errorf("Offset(%#x) = %#x, %v; want %#x, %v", tt.gpa, off, ok, tt.off, tt.ok)
		}
		if (m.Page(tt.gpa) != nil) != tt.ok || (m.Word(tt.gpa) != nil) != tt.ok {
			t.Errorf("Page or Word of %#x: not %v", tt.gpa, tt.ok)
		}
	}
	if err := m.WriteAt(make([]byte, 2), HoleStart-1); !errors.Is(err, ErrRange) {
		t.Errorf("a write into the hole: %v", err)
	}
	if err := m.WriteAt([]byte("ring3"), HoleEnd+3); err != nil {
		t.Error(err)
	}
	p := make([]byte, 5)
	if err := m.ReadAt(p, HoleEnd+3); err != nil || !bytes.Equal(p, []byte("ring3")) {
		t.Errorf("read back %q, %v", p, err)
	}
}

// codeUser notes what it is told; it says that code is left while keep.
type codeUser struct {
	keep bool
	log  []string
}

func (u *codeUser) DropCode(gpa uint64, n int) bool {
	u.log = append(u.log, fmt.Sprintf("drop %#x+%d", gpa, n))
	return u.keep
}
func (u *codeUser) PageBecameCode(gpa uint64) { u.log = append(u.log, fmt.Sprintf("code %#x", gpa)) }
func (u *codeUser) RevokeStubWrite(gpa uint64) {
	u.log = append(u.log, fmt.Sprintf("revoke %#x", gpa))
}

// TestCodePages: code and stub writes exclude each other, and every write to a
// page with code is told, page by page.
func TestCodePages(t *testing.T) {
	m := newMemory(t, 64<<10)
	u := &codeUser{keep: true}
	m.AddCodeUser(u)
	step := func(what string, f func(), want ...string) {
		t.Helper()
		u.log = nil
		f()
		if !slices.Equal(u.log, want) {
			t.Errorf("%s: told %q, want %q", what, u.log, want)
		}
	}
	step("write without code", func() { m.WriteAt([]byte{1}, 0x1000) })
	step("first code", func() { m.MarkCode(0x1008) }, "code 0x1008")
	step("code again", func() { m.MarkCode(0x1010) })
	step("write to code", func() { m.WriteAt([]byte{1, 2}, 0x1fff) }, "drop 0x1fff+1")
	if m.Flags(0x1000) != PageCode {
		t.Errorf("flags %#x while code is left", m.Flags(0x1000))
	}
	step("stub write", func() { m.AllowStubWrite(0x1234) }, "drop 0x1000+4096")
	if m.Flags(0x1000) != PageStubWrite {
		t.Errorf("flags %#x of a page that a stub may write", m.Flags(0x1000))
	}
	step("code in a page that a stub writes", func() { m.MarkCode(0x1000) }, "revoke 0x1000", "code 0x1000")
	if m.Flags(0x1000) != PageCode {
		t.Errorf("flags %#x after stubs lost the page", m.Flags(0x1000))
	}
	u.keep = false
	step("last code goes", func() { m.Changed(0x1000, 8) }, "drop 0x1000+8")
	if m.Flags(0x1000) != 0 {
		t.Errorf("flags %#x with nothing left", m.Flags(0x1000))
	}
	step("outside RAM", func() { m.MarkCode(1 << 40); m.AllowStubWrite(1 << 40); m.Changed(1<<40, 5) })
}
