package acpi

import (
	"fmt"

	"ring3/internal/device/acpipm"
	"ring3/internal/device/debugport"
	"ring3/internal/device/i8042"
	"ring3/internal/device/pit"
	"ring3/internal/device/rtc"
	"ring3/internal/device/uart"
	"ring3/internal/irqchip"
	"ring3/internal/pci"
)

// dsdtAML is the definition block of the DSDT. Processors are in the MADT.
func dsdtAML(cfg Config) []byte {
	devices := []([]byte){
		// _UID and _BBN 0: the only bus, number 0. Its window has no ports.
		device("PCI0", named("_HID", eisaID("PNP0A03")),
			named("_UID", integer(0)),
			named("_BBN", integer(0)),
			named("_CRS", resources(
				busNumbers(0, 0),
				io(pci.Port, pci.Ports),
				memoryWindow(pci.Window, pci.WindowSize))),
			named("_PRT", interruptPins())),
		device("RTC", named("_HID", eisaID("PNP0B00")),
			named("_CRS", resources(io(rtc.Port, rtc.Ports), irq(rtc.IRQ)))),
		device("TIMR", named("_HID", eisaID("PNP0100")),
			named("_CRS", resources(io(pit.Port, pit.Ports), irq(pit.IRQ)))),
		device("PIC", named("_HID", eisaID("PNP0000")),
			named("_CRS", resources(io(irqchip.PortPIC1, 2), io(irqchip.PortPIC2, 2), io(irqchip.PortELCR, 2)))),
		// What belongs to no driver, so that nobody else takes it.
		device("MBRD", named("_HID", eisaID("PNP0C02")),
			named("_CRS", resources(
				io(pit.PortB, 1),
				io(debugport.PortPOST, 1),
				io(i8042.PortA, 1),
				io(acpipm.Port, acpipm.Ports),
				memory(irqchip.IOAPICBase, 0x1000),
				memory(irqchip.LAPICBase, 0x1000),
			))),
	}
	for i := range min(cfg.UARTs, len(uart.Legacy)) {
		devices = append(devices, device(fmt.Sprintf("COM%d", i+1),
			named("_HID", eisaID("PNP0501")),
			named("_UID", integer(uint32(i+1))),
			named("_CRS", resources(io(uint16(uart.Legacy[i].Port), uart.Ports), irq(uart.Legacy[i].IRQ)))))
	}
	sleep := integer(acpipm.SleepTypeS5)
	return cat(
		// SLP_TYP for PM1a and PM1b, two reserved (section 7.4.2).
		named("_S5", pkg(sleep, sleep, integer(0), integer(0))),
		scope("_SB", devices...),
	)
}

// interruptPins is the PCI routing table (section 6.2.13): for INTA of each
// slot, all functions of it, the global system interrupt that it is wired to.
func interruptPins() []byte {
	var slots [][]byte
	for slot := 1; slot < pci.Slots; slot++ {
		slots = append(slots, pkg(integer(uint32(slot)<<16|0xffff), integer(0), integer(0), integer(uint32(pci.Pin(slot)))))
	}
	return pkg(slots...)
}
