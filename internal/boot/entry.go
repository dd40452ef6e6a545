package boot

import (
	"encoding/binary"

	"ring3/internal/cpu"
	"ring3/internal/x86"
)

// Selectors of the initial GDT (boot.rst: __BOOT_CS and __BOOT_DS).
const (
	bootCS = 0x10
	bootDS = 0x18
)

// Entry is where and how the first processor starts.
type Entry struct {
	RIP     uint64 // guest-physical and linear, they are equal at first
	Kernel  Range  // memory of the kernel with its bss
	Initrd  Range  // empty without one
	Version string // kernel version, "" if the file does not tell
	Packing string // how the kernel was compressed: "xz", "lz4", "none", ...
	Cached  bool   // the unpacked kernel came from the cache
}

// Flat segments: access rights in the layout of cpu.Segment.Attr.
const (
	codeAttr = cpu.AttrP | cpu.AttrS | cpu.AttrCode | cpu.AttrWritable | cpu.AttrAccessed | cpu.AttrL | cpu.AttrG
	dataAttr = cpu.AttrP | cpu.AttrS | cpu.AttrWritable | cpu.AttrAccessed | cpu.AttrDB | cpu.AttrG
)

// Apply sets s to the state at the kernel's 64-bit entry: the state after
// reset, in 64-bit mode with paging on and the first 4 GiB mapped one to one,
// flat segments, interrupts off, RSI pointing to boot_params.
func (e Entry) Apply(s *cpu.State) {
	s.Reset()
	s.GPR = [16]uint64{x86.RSP: StackTop, x86.RSI: ZeroPageAddr}
	s.RIP = e.RIP
	s.RFLAGS = x86.FlagFixed
	s.CPL = 0
	s.CR0 = x86.CR0PE | x86.CR0MP | x86.CR0ET | x86.CR0NE | x86.CR0PG
	s.CR3 = PageTableAddr
	s.CR4 = x86.CR4PAE
	s.EFER = x86.EFERLME | x86.EFERLMA
	for i := range s.Seg {
		s.Seg[i] = cpu.Segment{Sel: bootDS, Limit: 0xffffffff, Attr: dataAttr}
	}
	s.Seg[x86.CS] = cpu.Segment{Sel: bootCS, Limit: 0xffffffff, Attr: codeAttr}
	s.LDTR = cpu.Segment{Unusable: true}
	s.GDTR = cpu.Table{Base: GDTAddr, Limit: GDTSize - 1}
	s.IDTR = cpu.Table{}
}

// gdt is the table that the segments of Apply come from.
func gdt() []byte {
	b := make([]byte, GDTSize)
	put := func(sel int, attr uint64) {
		// Limit 0xfffff pages, base 0 (SDM vol. 3A, figure 3-8).
		binary.LittleEndian.PutUint64(b[sel:], 0xffff|attr<<40|0xf<<48)
	}
	put(bootCS, codeAttr)
	put(bootDS, dataAttr)
	return b
}

// pageTables maps the first identityGiB GiB one to one in 2 MiB pages. The
// tables lie at PageTableAddr one behind the other.
func pageTables() []byte {
	const rw = x86.PTEPresent | x86.PTEWrite | x86.PTEAccessed
	b := make([]byte, pageTableEnd-PageTableAddr)
	put := func(gpa, v uint64) { binary.LittleEndian.PutUint64(b[gpa-PageTableAddr:], v) }
	put(PageTableAddr, pdptAddr|rw)
	for g := uint64(0); g < identityGiB; g++ {
		put(pdptAddr+8*g, pdAddr+g*pageSize|rw)
	}
	for i := uint64(0); i < identityGiB*512; i++ {
		put(pdAddr+8*i, i<<21|rw|x86.PTEDirty|x86.PTELarge)
	}
	return b
}
