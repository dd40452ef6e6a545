// Package acpi builds the tables that tell an operating system what the
// machine has: RSDP, RSDT, XSDT, FADT, FACS, MADT and DSDT.
//
// Source: ACPI Specification 6.5, chapter 5 "ACPI Software Programming Model";
// the DSDT in AML, chapters 19 and 20.
package acpi

import (
	"encoding/binary"
	"fmt"

	"ring3/internal/device/acpipm"
	"ring3/internal/device/rtc"
	"ring3/internal/irqchip"
	"ring3/internal/pci"
)

// Where the tables go, in guest-physical memory: the area in which an
// operating system looks for the RSDP (section 5.2.5.1).
const (
	Base = 0xe0000
	Size = 0x20000
)

// MaxCPUs is how many the MADT can name with 8-bit APIC IDs; 0xff is the
// broadcast.
const MaxCPUs = 255

// Config is what differs between machines.
type Config struct {
	CPUs  int // APIC IDs 0 to CPUs-1
	UARTs int // of uart.Legacy, 0 to 4
	// Keyboard tells the operating system to look for a keyboard controller.
	Keyboard bool
}

var le = binary.LittleEndian

// Build returns the tables, to be loaded at Base, and the address of the RSDP,
// which is also found by a search.
func Build(cfg Config) (tables []byte, rsdpAddr uint64, err error) {
	if cfg.CPUs < 1 || cfg.CPUs > MaxCPUs {
		return nil, 0, fmt.Errorf("acpi: %d processors, can name 1 to %d", cfg.CPUs, MaxCPUs)
	}
	const rsdpSize, rsdtSize, xsdtSize, align = 64, 64, 64, 64
	out := make([]byte, rsdpSize+rsdtSize+xsdtSize)
	place := func(t []byte) uint64 {
		at := len(out)
		out = append(out, t...)
		out = append(out, make([]byte, -len(t)&(align-1))...)
		return Base + uint64(at)
	}
	facsAt := place(facs())
	dsdtAt := place(table("DSDT", 2, dsdtAML(cfg)))
	listed := []uint64{
		place(fadt(cfg, facsAt, dsdtAt)),
		place(madt(cfg)),
	}
	var rsdt, xsdt []byte
	for _, at := range listed {
		rsdt = le.AppendUint32(rsdt, uint32(at))
		xsdt = le.AppendUint64(xsdt, at)
	}
	copy(out[rsdpSize:], table("RSDT", 1, rsdt))
	copy(out[rsdpSize+rsdtSize:], table("XSDT", 1, xsdt))
	copy(out, rsdp(Base+rsdpSize, Base+rsdpSize+rsdtSize))
	return out, Base, nil
}

const (
	oemID   = "RING3 " // 6 bytes
	oemTag  = "RING3PC "
	creator = "RNG3"
)

// checksum is the byte that makes the sum of all of b 0.
func checksum(b []byte) (sum byte) {
	for _, v := range b {
		sum -= v
	}
	return sum
}

// table puts the header of a system description table before body (section
// 5.2.6, 36 bytes).
func table(signature string, revision uint8, body []byte) []byte {
	b := []byte(signature)
	b = le.AppendUint32(b, uint32(36+len(body)))
	b = append(b, revision, 0)
	b = append(b, oemID+oemTag...)
	b = le.AppendUint32(b, 1) // OEM revision
	b = append(b, creator...)
	b = le.AppendUint32(b, 1)
	b = append(b, body...)
	b[9] = checksum(b)
	return b
}

// rsdp is the Root System Description Pointer (section 5.2.5.3).
func rsdp(rsdt uint32, xsdt uint64) []byte {
	b := append([]byte("RSD PTR "), 0)
	b = append(b, oemID...)
	b = append(b, 2) // revision
	b = le.AppendUint32(b, rsdt)
	b[8] = checksum(b) // of the 20 bytes of revision 0
	b = le.AppendUint32(b, 36)
	b = le.AppendUint64(b, xsdt)
	b = append(b, 0, 0, 0, 0)
	b[32] = checksum(b)
	return b
}

// facs is the Firmware ACPI Control Structure (section 5.2.10): no waking
// vector, global lock free, version 2.
func facs() []byte {
	b := make([]byte, 64)
	copy(b, "FACS")
	le.PutUint32(b[4:], 64)
	b[32] = 2
	return b
}

// FADT flags (table 5.10) and boot architecture flags (table 5.11).
const (
	fadtWBINVD     = 1 << 0
	fadtProcC1     = 1 << 2
	fadtNoSleepBtn = 1 << 5 // the sleep button is no fixed feature
	fadtNoFixedRTC = 1 << 6 // nor is RTC wake
	fadtTimer32    = 1 << 8 // the PM timer has 32 bits
	fadtResetReg   = 1 << 10

	bootLegacy = 1 << 0 // there are ISA devices
	boot8042   = 1 << 1
	bootNoVGA  = 1 << 2
)

// systemIO is a generic address in port space (section 5.2.3.2), with the
// access size that suits bits.
func systemIO(port uint64, bits uint8) []byte {
	access := map[uint8]uint8{8: 1, 16: 2, 32: 3}[bits]
	return le.AppendUint64([]byte{1, bits, 0, access}, port)
}

// fadt is the Fixed ACPI Description Table, revision 6.5 (section 5.2.9, table
// 5.9). Field offsets are those of the whole table.
func fadt(cfg Config, facs, dsdt uint64) []byte {
	const size = 276
	const pm = acpipm.Port
	b := make([]byte, size)
	put32 := func(off int, v uint64) { le.PutUint32(b[off:], uint32(v)) }
	put32(36, facs)
	put32(40, dsdt)
	b[45] = 0 // preferred profile: unspecified
	le.PutUint16(b[46:], acpipm.IRQ)
	put32(56, pm+acpipm.EventBlock)
	put32(64, pm+acpipm.ControlBlock)
	put32(76, pm+acpipm.TimerBlock)
	put32(80, pm+acpipm.GPE0Block)
	b[88], b[89], b[91], b[92] = 4, 2, 4, acpipm.GPE0Size
	le.PutUint16(b[96:], 0xfff) // C2 and C3 latency, us: not supported
	le.PutUint16(b[98:], 0xfff)
	b[108] = rtc.CenturyRegister
	boot := uint16(bootLegacy | bootNoVGA)
	if cfg.Keyboard {
		boot |= boot8042
	}
	le.PutUint16(b[109:], boot)
	put32(112, fadtWBINVD|fadtProcC1|fadtNoSleepBtn|fadtNoFixedRTC|fadtTimer32|fadtResetReg)
	copy(b[116:], systemIO(pci.ResetPort, 8))
	b[128] = pci.ResetValue
	b[131] = 5 // minor revision
	// X_FIRMWARE_CTRL at 132 stays 0: the FACS is below 4 GiB.
	le.PutUint64(b[140:], dsdt)
	copy(b[148:], systemIO(pm+acpipm.EventBlock, 32))
	copy(b[172:], systemIO(pm+acpipm.ControlBlock, 16))
	copy(b[208:], systemIO(pm+acpipm.TimerBlock, 32))
	copy(b[220:], systemIO(pm+acpipm.GPE0Block, 8*acpipm.GPE0Size))
	return table("FACP", 6, b[36:])
}

// MADT structure types (table 5.21) and MPS INTI flags (table 5.26).
const (
	madtLAPIC    = 0
	madtIOAPIC   = 1
	madtOverride = 2
	madtLocalNMI = 4

	pcatCompat = 1 << 0 // there is a pair of 8259A

	intiHigh  = 1 << 0
	intiLevel = 3 << 2
)

// madt is the Multiple APIC Description Table (section 5.2.12).
func madt(cfg Config) []byte {
	b := le.AppendUint32(nil, irqchip.LAPICBase)
	b = le.AppendUint32(b, pcatCompat)
	for i := range cfg.CPUs {
		b = append(b, madtLAPIC, 8, byte(i), byte(i), 1, 0, 0, 0) // enabled
	}
	b = append(b, madtIOAPIC, 12, 0, 0) // ID 0
	b = le.AppendUint32(b, irqchip.IOAPICBase)
	b = le.AppendUint32(b, 0) // first GSI
	override := func(irq byte, gsi uint32, flags uint16) {
		b = append(b, madtOverride, 10, 0, irq)
		b = le.AppendUint32(b, gsi)
		b = le.AppendUint16(b, flags)
	}
	override(0, irqchip.TimerPin, 0) // as the ISA bus has it: edge, high
	override(acpipm.IRQ, acpipm.IRQ, intiHigh|intiLevel)
	return table("APIC", 5, append(b, madtLocalNMI, 6, 0xff, 0, 0, 1)) // LINT1 of all
}
