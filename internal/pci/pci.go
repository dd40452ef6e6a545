// Package pci is a conventional PCI bus: a host bridge that is reached through
// ports, up to 31 devices with one function each, memory BARs in one window,
// and interrupts by MSI-X or, for a driver without it, by a pin.
//
//	 guest                 Host                       Function
//	┌──────────────┐  out  ┌───────────────┐  config  ┌──────────────────────┐
//	│ 0xcf8, 0xcfc ├──────►│ Ports         ├─────────►│ header, capabilities │
//	│ memory       ├──────►│ Memory        ├──BARs───►│ registers of a device│
//	│ local APIC   │◄──MSI─┤ HostConfig.MSI│◄─────────┤ MSIX                 │
//	│ I/O APIC     │◄─pin──┤ HostConfig.Pin│◄─────────┤ SetINTx              │
//	└──────────────┘       └───────────────┘          └──────────────────────┘
//
// The Host does what firmware does on a PC: it gives every BAR an address. The
// operating system learns of the window and of the pins from the ACPI tables
// and may move the BARs in it.
//
// Sources: PCI Local Bus Specification 3.0, chapter 6 "Configuration Space" and
// section 6.8 "Message Signaled Interrupts"; for the ports, section 3.2.2.3.2.
package pci

import "encoding/binary"

// Where the bus is, in the guest's address spaces.
const (
	// Window is the range of addresses that BARs can have, inside the hole that
	// RAM leaves to devices.
	Window     = 0xd0000000
	WindowSize = 0x10000000

	// Slots is the number of devices on the bus. Slot 0 is the host bridge.
	Slots = 32

	// FirstPin is the first I/O APIC pin for interrupt pins of devices; there
	// are Pins of them.
	FirstPin = 16
	Pins     = 8
)

// Pin is the I/O APIC pin that the interrupt pin INTA of a slot is wired to.
func Pin(slot int) int { return FirstPin + slot%Pins }

var le = binary.LittleEndian
