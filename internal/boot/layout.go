package boot

// Guest-physical memory map. All fixed addresses of the machine are here.
//
//	0000_1000  initial GDT
//	0000_2000  initial page tables (PML4, PDPT, four page directories)
//	0000_8000  boot_params, the "zero page"
//	0000_9000  initial stack, growing down from 0001_0000
//	0001_0000  setup_data (seed of the random number generator)
//	0002_0000  kernel command line, up to 64 KiB
//	0009_fc00  end of conventional memory (EBDA, reserved)
//	000a_0000  video memory, no RAM shown to the guest
//	000e_0000  ACPI tables, reserved, to 0010_0000
//	0010_0000  RAM; kernels are usually linked at 0100_0000; initrd at the top
//	c000_0000  end of low RAM; devices up to 4 GiB
//	d000_0000  PCI devices, to e000_0000
//	fec0_0000  I/O APIC
//	fee0_0000  local APIC
//	1_0000_0000 RAM beyond the first 3 GiB
//
// RAM as the host sees it is one block: RAM offset and guest-physical address
// are equal below LowMax, and from HighBase on they differ by HoleSize.
const (
	GDTAddr = 0x1000
	GDTSize = 4 * 8 // null, null, 64-bit code, data

	PageTableAddr = 0x2000                   // PML4
	pdptAddr      = PageTableAddr + pageSize // one PDPT
	pdAddr        = pdptAddr + pageSize      // identityGiB page directories
	identityGiB   = 4
	pageTableEnd  = pdAddr + identityGiB*pageSize

	ZeroPageAddr = 0x8000
	StackTop     = 0x10000

	SetupDataAddr = 0x10000
	CmdlineAddr   = 0x20000
	CmdlineMax    = 0x10000 // bytes, with the final NUL

	EBDAAddr = 0x9fc00
	VGAAddr  = 0xa0000

	// ACPIAddr to ACPIEnd is where the machine puts its ACPI tables; the
	// RSDP, 16-byte aligned in there, is found by a scan as well.
	ACPIAddr = 0xe0000
	ACPIEnd  = 0x100000

	HighMemAddr = 0x100000 // first byte above 1 MiB

	LowMax   = 0xc0000000  // end of RAM below the device hole
	HighBase = 0x100000000 // RAM goes on here
	HoleSize = HighBase - LowMax

	IOAPICAddr = 0xfec00000
	LAPICAddr  = 0xfee00000

	pageSize = 4096

	// MinMemory is the least RAM that holds the fixed structures and anything
	// above 1 MiB, in bytes.
	MinMemory = 2 << 20
)

// The fixed areas must not run into each other.
const (
	_ = uint(PageTableAddr - (GDTAddr + GDTSize))
	_ = uint(ZeroPageAddr - pageTableEnd)
	_ = uint(StackTop - (ZeroPageAddr + pageSize))
	_ = uint(CmdlineAddr - (SetupDataAddr + pageSize))
	_ = uint(EBDAAddr - (CmdlineAddr + CmdlineMax))
)

// LowRAM is how many of size bytes of RAM lie below the device hole.
func LowRAM(size uint64) uint64 { return min(size, LowMax) }

// HighRAM is how many of size bytes of RAM lie at HighBase and up.
func HighRAM(size uint64) uint64 { return size - LowRAM(size) }

// Range is a guest-physical range, [Start, End).
type Range struct{ Start, End uint64 }

// RAMRanges lists where size bytes of RAM appear, in order of address and of
// offset into the block.
func RAMRanges(size uint64) []Range {
	r := []Range{{0, LowRAM(size)}}
	if h := HighRAM(size); h > 0 {
		r = append(r, Range{HighBase, HighBase + h})
	}
	return r
}

// E820 entry types (ACPI specification, table "Address Range Types").
const (
	E820RAM      = 1
	E820Reserved = 2
)

// E820Entry is one line of the memory map given to the guest.
type E820Entry struct {
	Addr, Size uint64
	Type       uint32
}

// E820 is the memory map of a machine with size bytes of RAM.
func E820(size uint64) []E820Entry {
	low := LowRAM(size)
	m := []E820Entry{
		{0, EBDAAddr, E820RAM},
		{EBDAAddr, VGAAddr - EBDAAddr, E820Reserved},
		{ACPIAddr, ACPIEnd - ACPIAddr, E820Reserved},
	}
	if low > HighMemAddr {
		m = append(m, E820Entry{HighMemAddr, low - HighMemAddr, E820RAM})
	}
	if h := HighRAM(size); h > 0 {
		m = append(m, E820Entry{HighBase, h, E820RAM})
	}
	return m
}
