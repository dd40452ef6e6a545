package stub

import (
	"encoding/binary"
	"testing"

	"golang.org/x/net/bpf"
	"golang.org/x/sys/unix"
)

// TestFilterPages asks the filter for the calls of the hand-over page: what a
// guest kernel knows the secrets of maps and unmaps single pages of RAM, and
// nothing else.
func TestFilterPages(t *testing.T) {
	const ram = 5 << 30
	p, err := Build(0x2345_6780_0000, 7, 832, 0, 1<<63)
	if err != nil {
		t.Fatal(err)
	}
	s := &Secrets{Mmap: [3]uint32{1, 2, 3}, Args: [2]uint64{4, 5}, Page: [3]uint32{6, 7, 8}, Drop: [2]uint64{1<<40 | 9, 10}, Clone: [2]uint64{11, 12}}
	raw, err := Filter(p, s, ram)
	if err != nil {
		t.Fatal(err)
	}
	prog, ok := bpf.Disassemble(raw)
	if !ok {
		t.Fatal("the filter has instructions that are none")
	}
	vm, err := bpf.NewVM(prog)
	if err != nil {
		t.Fatal(err)
	}
	// The virtual machine reads words as networks do.
	allowed := func(nr uint32, ip uint64, args [6]uint64) bool {
		b := binary.BigEndian.AppendUint32(nil, nr)
		b = binary.BigEndian.AppendUint32(b, auditArchX8664)
		for _, v := range append([]uint64{ip}, args[:]...) {
			b = binary.BigEndian.AppendUint32(b, uint32(v))
			b = binary.BigEndian.AppendUint32(b, uint32(v>>32))
		}
		v, err := vm.Run(b)
		if err != nil {
			t.Fatal(err)
		}
		return uint32(v) == retAllow
	}
	const populate = unix.MAP_SHARED | unix.MAP_FIXED | unix.MAP_POPULATE
	mmap := [6]uint64{0x1000_0000, PageSize, 3 | 6<<32, populate | 7<<32, FDRAM | 8<<32, ram - PageSize}
	munmap := [6]uint64{0x1000_0000, PageSize, 0, 0, s.Drop[0], s.Drop[1]}
	if !allowed(unix.SYS_MMAP, p.SiteHand, mmap) || !allowed(unix.SYS_MUNMAP, p.SiteHand, munmap) {
		t.Error("what the stub does is not allowed")
	}
	for _, off := range []uint64{0, 1 << 32, 4<<30 - PageSize} {
		m := mmap
		if m[5] = off; !allowed(unix.SYS_MMAP, p.SiteHand, m) {
			t.Errorf("the page of RAM at %#x cannot be mapped", off)
		}
	}
	for _, bad := range []struct {
		what string
		arg  int
		v    uint64
	}{
		{"without the first secret", 2, 3}, {"without the second", 3, populate}, {"without the third", 4, FDRAM},
		{"with those of the monitor", 2, 3 | 1<<32},
		{"two pages", 1, 2 * PageSize}, {"4 GiB and a page", 1, 1<<32 | PageSize}, {"nothing", 1, 0},
		{"executable", 2, 7 | 6<<32}, {"private", 3, unix.MAP_PRIVATE | unix.MAP_FIXED | 7<<32},
		{"the control pages", 4, FDControl | 8<<32}, {"code", 4, FDCode | 8<<32},
		{"behind RAM", 5, ram}, {"far behind", 5, 1<<44 | 0x1000}, {"farther", 5, 1 << 63},
		{"the stub", 0, p.Base}, {"the control page", 0, p.Base + ControlOff}, {"the 4 GiB of the stub", 0, p.Base&^0xffffffff | 0xfffff000},
	} {
		m := mmap
		if m[bad.arg] = bad.v; allowed(unix.SYS_MMAP, p.SiteHand, m) {
			t.Errorf("mmap: %s is allowed", bad.what)
		}
	}
	for _, bad := range []struct {
		what string
		arg  int
		v    uint64
	}{
		{"without the first secret", 4, 9}, {"without the second", 5, 0}, {"two pages", 1, 2 * PageSize}, {"the stub", 0, p.Base},
	} {
		m := munmap
		if m[bad.arg] = bad.v; allowed(unix.SYS_MUNMAP, p.SiteHand, m) {
			t.Errorf("munmap: %s is allowed", bad.what)
		}
	}
	for _, site := range []uint64{p.SiteCalls, p.SiteProof, p.SiteListens, p.SiteHand + 1, 0x400000} {
		if allowed(unix.SYS_MMAP, site, mmap) || allowed(unix.SYS_MUNMAP, site, munmap) {
			t.Errorf("the calls are allowed at %#x", site)
		}
	}
	if allowed(unix.SYS_MPROTECT, p.SiteHand, munmap) || allowed(unix.SYS_CLONE, p.SiteHand, munmap) {
		t.Error("other calls are allowed")
	}
	read := [6]uint64{FDListens, p.Base + ControlOff + oProofs, 8}
	write := [6]uint64{FDListens, p.One, 8}
	if !allowed(unix.SYS_READ, p.SiteListens, read) || !allowed(unix.SYS_WRITE, p.SitesProve[0], write) || !allowed(unix.SYS_WRITE, p.SitesProve[1], write) {
		t.Error("the proof is not allowed")
	}
	if allowed(unix.SYS_WRITE, p.SiteProof, write) || allowed(unix.SYS_WRITE, p.SiteHand, write) {
		t.Error("the proof is allowed elsewhere")
	}
}
