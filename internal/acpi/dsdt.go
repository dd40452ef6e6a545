package acpi

import (
	"fmt"

	"ring3/internal/device/acpipm"
	"ring3/internal/device/debugport"
	"ring3/internal/device/i8042"
	"ring3/internal/device/pciports"
	"ring3/internal/device/pit"
	"ring3/internal/device/rtc"
	"ring3/internal/device/uart"
	"ring3/internal/irqchip"
)

// dsdtAML is the definition block of the DSDT. Processors are in the MADT.
func dsdtAML(cfg Config) []byte {
	devices := []([]byte){
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
				io(pciports.ResetPort, 1),
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
