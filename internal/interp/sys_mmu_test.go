package interp

import (
	"testing"

	"ring3/internal/mmu"
	"ring3/internal/x86"
)

// Access rights of pages (SDM vol. 3A, section 4.6) and error codes (4.7), for
// all combinations of page, privilege, access and control bits.
func TestPageProtection(t *testing.T) {
	const (
		read = iota
		write
		fetch
		implicit // system access
	)
	r := newRig(t, long)
	for i := range 1 << 9 {
		bit := func(n int) bool { return i>>n&1 != 0 }
		user, writable, nx := bit(0), bit(1), bit(2)
		cpl3, wp, smep, smap, ac := bit(3), bit(4), bit(5), bit(6), bit(7)
		if bit(8) && nx {
			continue // NX off and the bit set is a reserved bit; tested below
		}
		for kind := read; kind <= implicit; kind++ {
			r.fault, r.CPL = fault{}, 0
			pte := uint64(x86.PTEPresent | x86.PTEAccessed | x86.PTEDirty)
			for b, on := range map[uint64]bool{x86.PTEUser: user, x86.PTEWrite: writable, x86.PTENX: nx} {
				if on {
					pte |= b
				}
			}
			r.map4k(rigData, pte)
			set := func(reg *uint64, b uint64, on bool) {
				*reg &^= b
				if on {
					*reg |= b
				}
			}
			set(&r.CR0, x86.CR0WP, wp)
			set(&r.CR4, x86.CR4SMEP, smep)
			set(&r.CR4, x86.CR4SMAP, smap)
			set(&r.EFER, x86.EFERNX, !bit(8))
			if cpl3 {
				r.CPL = 3
			}
			f := uint64(0)
			if ac {
				f = x86.FlagAC
			}
			r.setFlags(f)
			r.modeChanged()
			super := !cpl3 || kind == implicit
			allowed := true
			code := uint32(x86.PFPresent)
			if !super {
				allowed = user
				code |= x86.PFUser
			} else if user && kind != fetch && smap && (kind == implicit || !ac) {
				allowed = false
			}
			var ok bool
			switch kind {
			case read:
				_, ok = r.readLin(rigData, 8)
			case implicit:
				_, ok = r.readSys(rigData, 8)
			case write:
				allowed = allowed && (writable || super && !wp)
				code |= x86.PFWrite
				ok = r.writeLin(rigData, 8, 1)
			case fetch:
				allowed = allowed && !nx && !(super && user && smep)
				if smep || !bit(8) {
					code |= x86.PFFetch
				}
				acc := mmu.Fetch
				if cpl3 {
					acc |= mmu.User
				}
				var c uint32
				if _, c, ok = r.Walk.Walk(&r.State, rigData, acc); !ok {
					r.raisePF(rigData, c)
				}
			}
			if ok != allowed || !ok && r.fault.err != code {
				t.Fatalf("kind %d user %v writable %v nx %v CPL3 %v WP %v SMEP %v SMAP %v AC %v: ok %v error %#x, want %v %#x",
					kind, user, writable, nx, cpl3, wp, smep, smap, ac, ok, r.fault.err, allowed, code)
			}
		}
	}
}

func TestPageFaultCodes(t *testing.T) {
	for _, tc := range []struct {
		name string
		prep func(r *rig)
		code uint32
	}{
		{"PTE absent", func(r *rig) { r.map4k(rigData, 0) }, 0},
		{"PDE absent", func(r *rig) { r.page(rigPD, 0) }, 0},
		{"PTE above MAXPHYADDR", func(r *rig) { r.map4k(rigData, 1<<46|7) }, 9},
		{"NX bit without NX", func(r *rig) { r.map4k(rigData, 1<<63|7); r.EFER &^= x86.EFERNX }, 9},
		{"PS in PML4E", func(r *rig) { r.page(rigPML4, rigPDPT|7|x86.PTELarge) }, 9},
		{"2 MiB page not aligned", func(r *rig) { r.page(rigPD, 0x4000|7|x86.PTELarge) }, 9},
		{"1 GiB page not aligned", func(r *rig) { r.page(rigPDPT, 0x200000|7|x86.PTELarge) }, 9},
		{"PDPTE above MAXPHYADDR", func(r *rig) { r.page(rigPDPT, 1<<50|rigPD|7) }, 9},
	} {
		for _, write := range []bool{false, true} {
			r := newRig(t, long)
			tc.prep(r)
			r.modeChanged()
			r.flushTLB(Flush{Kind: FlushAll})
			code := tc.code
			var ok bool
			if write {
				code |= x86.PFWrite
				ok = r.writeLin(rigData+8, 8, 0)
			} else {
				_, ok = r.readLin(rigData+8, 8)
			}
			if r.fault.cr2 != rigData+8 {
				t.Errorf("%s: CR2 %#x", tc.name, r.fault.cr2)
			}
			r.wantFault(ok, x86.VecPF, code)
		}
	}
}

// Accessed and dirty bits (SDM vol. 3A, section 4.8).
func TestAccessedDirty(t *testing.T) {
	r := newRig(t, long)
	pte := func() uint64 { return r.get(rigPT+rigData>>12*8, 8) & (x86.PTEAccessed | x86.PTEDirty) }
	if pte() != 0 {
		t.Fatal("bits set from the start")
	}
	r.readLin(rigData, 8)
	if pte() != x86.PTEAccessed {
		t.Errorf("after a read: %#x", pte())
	}
	r.writeLin(rigData, 8, 1)
	if pte() != x86.PTEAccessed|x86.PTEDirty {
		t.Errorf("after a write: %#x", pte())
	}
	for _, at := range []uint64{rigPML4, rigPDPT, rigPD} {
		if e := r.get(at, 8); e&x86.PTEAccessed == 0 || e&x86.PTEDirty != 0 {
			t.Errorf("entry at %#x is %#x", at, e)
		}
	}
	// A write that faults leaves the dirty bit alone, and bits are not set by
	// an access that is refused.
	r.map4k(rigData, x86.PTEPresent)
	r.user()
	r.writeLin(rigData, 8, 1)
	if pte() != 0 {
		t.Errorf("after a refused write: %#x", pte())
	}
}

func TestLargePages(t *testing.T) {
	r := newRig(t, long)
	r.put(0x100000, 8, 0x1122334455667788)
	r.page(rigPD+8, 0|x86.PTEPresent|x86.PTELarge) // linear 2 MiB = physical 0
	r.page(rigPDPT+8, 0|x86.PTEPresent|x86.PTELarge)
	r.flushTLB(Flush{Kind: FlushAll})
	for _, lin := range []uint64{0x300000, 0x40100000} {
		if v, ok := r.readLin(lin, 8); !ok || v != 0x1122334455667788 {
			t.Errorf("%#x: %#x %v", lin, v, ok)
		}
	}
}
