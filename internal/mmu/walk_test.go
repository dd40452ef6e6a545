package mmu

import (
	"encoding/binary"
	"errors"
	"testing"

	"ring3/internal/cpu"
	"ring3/internal/guestmem"
	"ring3/internal/x86"
)

const memSize = 4 << 20

func newWalker(t *testing.T) Walker {
	t.Helper()
	m, err := guestmem.New(memSize)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { m.Close() })
	return Walker{m}
}

func (w Walker) set64(t *testing.T, gpa, v uint64) {
	t.Helper()
	if err := w.Mem.WriteAt(binary.LittleEndian.AppendUint64(nil, v), gpa); err != nil {
		t.Fatal(err)
	}
}

func (w Walker) get64(t *testing.T, gpa uint64) uint64 {
	t.Helper()
	var b [8]byte
	if err := w.Mem.ReadAt(b[:], gpa); err != nil {
		t.Fatal(err)
	}
	return binary.LittleEndian.Uint64(b[:])
}

// longMode is a state in 4-level paging with every protection on and tables
// at 0x1000 (PML4), 0x2000 (PDPT), 0x3000 (PD), 0x4000 (PT).
func longMode() *cpu.State {
	return &cpu.State{
		CR0: x86.CR0PE | x86.CR0PG | x86.CR0WP, CR3: 0x1000,
		CR4:  x86.CR4PAE | x86.CR4PGE | x86.CR4SMEP | x86.CR4SMAP,
		EFER: x86.EFERLMA | x86.EFERLME | x86.EFERNX,
	}
}

const all = x86.PTEPresent | x86.PTEWrite | x86.PTEUser

func (w Walker) chain(t *testing.T, va, leaf uint64) {
	w.set64(t, 0x1000+va>>39&0x1ff*8, 0x2000|all)
	w.set64(t, 0x2000+va>>30&0x1ff*8, 0x3000|all)
	w.set64(t, 0x3000+va>>21&0x1ff*8, 0x4000|all)
	w.set64(t, 0x4000+va>>12&0x1ff*8, leaf)
}

// TestPermissions goes through the access-rights rules of SDM vol. 3A,
// section 4.6.
func TestPermissions(t *testing.T) {
	const va = 0x7f12_3456_7000
	for _, tt := range []struct {
		name string
		leaf uint64
		acc  Access
		edit func(*cpu.State)
		code uint32 // 0: allowed
		okay bool
	}{
		{"user read", all, User, nil, 0, true},
		{"user write", all, User | Write, nil, 0, true},
		{"user fetch", all, User | Fetch, nil, 0, true},
		{"not present", 0, User | Write, nil, x86.PFUser | x86.PFWrite, false},
		{"user on supervisor page", x86.PTEPresent | x86.PTEWrite, User, nil, x86.PFUser | x86.PFPresent, false},
		{"user write to read-only", x86.PTEPresent | x86.PTEUser, User | Write, nil, x86.PFUser | x86.PFPresent | x86.PFWrite, false},
		{"user fetch from NX", all | x86.PTENX, User | Fetch, nil, x86.PFUser | x86.PFPresent | x86.PFFetch, false},
		{"supervisor write to read-only, WP", x86.PTEPresent, Write, nil, x86.PFPresent | x86.PFWrite, false},
		{"supervisor write to read-only, no WP", x86.PTEPresent, Write, func(s *cpu.State) { s.CR0 &^= x86.CR0WP }, 0, true},
		{"SMAP", all, Read, nil, x86.PFPresent, false},
		{"SMAP, AC", all, Read, func(s *cpu.State) { s.RFLAGS |= x86.FlagAC }, 0, true},
		{"SMAP, AC, implicit", all, Implicit, func(s *cpu.State) { s.RFLAGS |= x86.FlagAC }, x86.PFPresent, false},
		{"SMEP", all, Fetch, nil, x86.PFPresent | x86.PFFetch, false},
		{"no SMEP", all, Fetch, func(s *cpu.State) { s.CR4 &^= x86.CR4SMEP }, 0, true},
		{"NX bit without EFER.NXE is reserved", all | x86.PTENX, User, func(s *cpu.State) { s.EFER &^= x86.EFERNX }, x86.PFUser | x86.PFPresent | x86.PFRsvd, false},
		{"address above MAXPHYADDR", all | 1<<50, User, nil, x86.PFUser | x86.PFPresent | x86.PFRsvd, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			w, s := newWalker(t), longMode()
			w.chain(t, va, tt.leaf|0x5000*(tt.leaf&1))
			if tt.edit != nil {
				tt.edit(s)
			}
			tr, code, ok := w.Walk(s, va+0x123, tt.acc)
			if ok != tt.okay || code != tt.code {
				t.Fatalf("Walk = code %#x, ok %v; want %#x, %v", code, ok, tt.code, tt.okay)
			}
			if ok && tr.GPA != 0x5123 {
				t.Errorf("GPA = %#x, want 0x5123", tr.GPA)
			}
		})
	}
}

// TestAccessedDirty checks SDM vol. 3A, section 4.8: A in every entry, D in
// the leaf on a write, nothing on a fault or a probe.
func TestAccessedDirty(t *testing.T) {
	const va = 0x40_0000
	w, s := newWalker(t), longMode()
	w.chain(t, va, 0x5000|all)
	leaf := uint64(0x4000 + va>>12&0x1ff*8)
	if _, _, ok := w.Walk(s, va, User|Probe); ok {
		t.Error("a probe found a translation whose accessed bit is clear")
	}
	if got := w.get64(t, leaf); got&x86.PTEAccessed != 0 {
		t.Error("a probe set the accessed bit")
	}
	if tr, _, ok := w.Walk(s, va, User); !ok || tr.Dirty {
		t.Errorf("read: ok %v, dirty %v", ok, tr.Dirty)
	}
	if got := w.get64(t, leaf); got&(x86.PTEAccessed|x86.PTEDirty) != x86.PTEAccessed {
		t.Errorf("leaf after a read: %#x", got)
	}
	if got := w.get64(t, 0x1000); got&x86.PTEAccessed == 0 {
		t.Error("PML4E has no accessed bit")
	}
	if tr, _, ok := w.Walk(s, va, User|Write); !ok || !tr.Dirty {
		t.Errorf("write: ok %v, dirty %v", ok, tr.Dirty)
	}
	if got := w.get64(t, leaf); got&x86.PTEDirty == 0 {
		t.Error("a write did not set the dirty bit")
	}
}

func TestLargePages(t *testing.T) {
	w, s := newWalker(t), longMode()
	s.CR4 &^= x86.CR4SMAP
	const va = 0xffff_8880_0012_3456
	w.set64(t, 0x1000+va>>39&0x1ff*8, 0x2000|all)
	w.set64(t, 0x2000+va>>30&0x1ff*8, 0x3000|all)
	w.set64(t, 0x3000+va>>21&0x1ff*8, 0x20_0000|all|x86.PTELarge|x86.PTEGlobal)
	tr, _, ok := w.Walk(s, va, Write)
	if !ok || tr.GPA != 0x32_3456 || tr.Shift != 21 || !tr.Global {
		t.Errorf("2 MiB page: %+v, ok %v", tr, ok)
	}
	s.CR4 &^= x86.CR4PGE
	if tr, _, _ = w.Walk(s, va, Write); tr.Global {
		t.Error("a global page without CR4.PGE")
	}
	w.set64(t, 0x2000+va>>30&0x1ff*8, 0x4000_0000|all|x86.PTELarge)
	tr, _, ok = w.Walk(s, va, Read)
	if !ok || tr.GPA != 0x4012_3456 || tr.Shift != 30 {
		t.Errorf("1 GiB page: %+v, ok %v", tr, ok)
	}
	w.set64(t, 0x2000+va>>30&0x1ff*8, 0x4000_2000|all|x86.PTELarge)
	if _, code, ok := w.Walk(s, va, Read); ok || code&x86.PFRsvd == 0 {
		t.Errorf("misaligned 1 GiB page: code %#x, ok %v", code, ok)
	}
	w.set64(t, 0x1000+va>>39&0x1ff*8, 0x2000|all|x86.PTELarge)
	if _, code, ok := w.Walk(s, va, Read); ok || code&x86.PFRsvd == 0 {
		t.Errorf("PS in a PML4E: code %#x, ok %v", code, ok)
	}
}

func TestLegacyPaging(t *testing.T) {
	w := newWalker(t)
	s := &cpu.State{CR0: x86.CR0PE | x86.CR0PG, CR3: 0x1000, CR4: x86.CR4PSE}
	w.set64(t, 0x1000+0x0040_0000>>22*4, 0x2000|all)
	w.set64(t, 0x2000+0x3*4, 0x5000|all)
	tr, _, ok := w.Walk(s, 0x0040_3abc, User|Write)
	if !ok || tr.GPA != 0x5abc {
		t.Errorf("32-bit page: %+v, ok %v", tr, ok)
	}
	w.set64(t, 0x1000+0x0080_0000>>22*4, 0x0040_0000|0x1<<13|all|x86.PTELarge)
	tr, _, ok = w.Walk(s, 0x0081_2345, User)
	if !ok || tr.GPA != 0x1_0041_2345 || tr.Shift != 22 {
		t.Errorf("PSE-36 page: %+v, ok %v", tr, ok)
	}
	s.CR4 |= x86.CR4PAE
	s.PDPTE[0] = 0x3000 | x86.PTEPresent
	w.set64(t, 0x3000+2*8, 0x4000|all)
	w.set64(t, 0x4000+1*8, 0x6000|all)
	tr, _, ok = w.Walk(s, 0x40_1fff, User)
	if !ok || tr.GPA != 0x6fff {
		t.Errorf("PAE page: %+v, ok %v", tr, ok)
	}
	s.PDPTE[0] = 0
	if _, code, ok := w.Walk(s, 0x40_1fff, User); ok || code != x86.PFUser {
		t.Errorf("absent PDPTE: code %#x, ok %v", code, ok)
	}
	s.CR0 &^= x86.CR0PG
	if tr, _, ok := w.Walk(s, 0x12345, Write); !ok || tr.GPA != 0x12345 {
		t.Errorf("no paging: %+v, ok %v", tr, ok)
	}
}

// FuzzWalk: hostile page tables never crash the walker, and what it returns
// obeys the access asked for.
func FuzzWalk(f *testing.F) {
	f.Add(uint64(0x2067), uint64(0x30e7), uint64(0x4067), uint64(0x5067), uint64(0x1234567), uint32(7))
	m, err := guestmem.New(64 << 10)
	if err != nil {
		f.Fatal(err)
	}
	w := Walker{m}
	f.Fuzz(func(t *testing.T, e4, e3, e2, e1, va uint64, acc uint32) {
		for i, e := range []uint64{e4, e3, e2, e1} {
			base := uint64(0x1000 * (i + 1))
			for o := base; o < base+0x1000; o += 8 {
				*m.Word(o) = e
			}
		}
		tr, code, ok := w.Walk(longMode(), va, Access(acc))
		if ok == (code != 0) && ok {
			t.Fatalf("ok with code %#x", code)
		}
		if ok && Access(acc)&User != 0 && !tr.User {
			t.Fatalf("user access to a supervisor page: %+v", tr)
		}
	})
}

func TestRange(t *testing.T) {
	m := newWalker(t).Mem
	if err := m.WriteAt([]byte{1}, memSize); !errors.Is(err, guestmem.ErrRange) {
		t.Errorf("WriteAt past the end: %v", err)
	}
	if _, err := m.Slice(memSize-1, 2); !errors.Is(err, guestmem.ErrRange) {
		t.Errorf("Slice across the end: %v", err)
	}
	if _, err := m.Slice(8, ^uint64(0)); !errors.Is(err, guestmem.ErrRange) {
		t.Errorf("Slice of everything: %v", err)
	}
}
