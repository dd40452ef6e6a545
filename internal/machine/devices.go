package machine

import (
	"errors"
	"io"

	"ring3/internal/bus"
	"ring3/internal/device/acpipm"
	"ring3/internal/device/debugport"
	"ring3/internal/device/i8042"
	"ring3/internal/device/pit"
	"ring3/internal/device/pvclock"
	"ring3/internal/device/rtc"
	"ring3/internal/device/uart"
	"ring3/internal/irqchip"
	"ring3/internal/pci"
	"ring3/internal/vcpu"
	"ring3/internal/virtio/blk"
	"ring3/internal/virtio/fs"
	vnet "ring3/internal/virtio/net"
	"ring3/internal/virtio/vsock"
)

// devices are the machine's devices besides the interrupt controllers.
type devices struct {
	serial [4]*uart.UART
	disks  []*blk.Device
	shares []*fs.Device
	vsock  *vsock.Device // nil without
	net    *vnet.Device  // nil for none
	pm     *acpipm.PM
	clock  *pvclock.Clock
}

// attachDevices puts everything on the buses. The places are those of a PC.
func (m *Machine) attachDevices(cfg Config) error {
	var errs []error
	port := func(name string, base, size uint64, d bus.Device) {
		errs = append(errs, m.pio.Attach(name, base, size, d))
	}
	master, slave, elcr := m.chip.PIC()
	port("8259A master", irqchip.PortPIC1, 2, master)
	port("8259A slave", irqchip.PortPIC2, 2, slave)
	port("8259A ELCR", irqchip.PortELCR, 2, elcr)
	errs = append(errs,
		m.mmio.Attach("I/O APIC", irqchip.IOAPICBase, 0x1000, m.chip.IOAPIC()),
		m.mmio.Attach("local APIC", irqchip.LAPICBase, 0x1000, localAPICs{m}))
	for i, at := range uart.Legacy {
		out := cfg.Serial[i]
		if out == nil {
			out = io.Discard
		}
		m.dev.serial[i] = uart.New(m.chip.Line(at.IRQ), out)
		port([]string{"ttyS0", "ttyS1", "ttyS2", "ttyS3"}[i], at.Port, uart.Ports, m.dev.serial[i])
	}

	reset := func() { m.vcpus.End(vcpu.Reset) }
	m.dev.pm = acpipm.New(m.chip.Line(acpipm.IRQ), m.clock, func() { m.vcpus.End(vcpu.PowerOff) })
	port("ACPI PM", acpipm.Port, acpipm.Ports, m.dev.pm)
	timer8254 := pit.New(m.chip.Line(pit.IRQ), m.clock)
	port("8254", pit.Port, pit.Ports, timer8254)
	port("port B", pit.PortB, 1, timer8254.ControlB())
	port("RTC", rtc.Port, rtc.Ports, rtc.New(m.chip.Line(rtc.IRQ), m.clock, m.mem.Low(), m.mem.Size()-m.mem.Low()))
	kbd := i8042.New(m.chip.Line(i8042.IRQ), reset)
	port("i8042 data", i8042.PortData, 1, kbd.Data())
	port("i8042", i8042.PortStatus, 1, kbd.Status())
	port("port A", i8042.PortA, 1, kbd.SystemPortA())
	host := pci.NewHost(pci.HostConfig{Reset: reset, MSI: m.chip.SendMSI, Pin: m.chip.Line})
	port("PCI ports", pci.Port, pci.Ports, host.Ports())
	errs = append(errs, m.mmio.Attach("PCI", pci.Window, pci.WindowSize, host.Memory()),
		m.plugVirtio(host, cfg))
	m.dev.clock = pvclock.New(m.mem, m.clock, cfg.CPUs)
	port("POST", debugport.PortPOST, 1, &debugport.POST{})
	return errors.Join(errs...)
}

// PowerButton presses the machine's power button.
func (m *Machine) PowerButton() { m.dev.pm.PressPowerButton() }

func (d *devices) close() error {
	var errs []error
	for _, b := range d.disks {
		errs = append(errs, b.Close())
	}
	for _, s := range d.shares {
		errs = append(errs, s.Close())
	}
	if d.vsock != nil {
		errs = append(errs, d.vsock.Close())
	}
	if d.net != nil {
		errs = append(errs, d.net.Close())
	}
	for _, u := range d.serial {
		if u != nil {
			errs = append(errs, u.Close())
		}
	}
	return errors.Join(errs...)
}

// serialWriter is the host's end of a serial line.
type serialWriter struct{ u *uart.UART }

func (w serialWriter) Write(p []byte) (int, error) {
	if err := w.u.Send(p); err != nil {
		return 0, err
	}
	return len(p), nil
}

// SerialWriter returns the input of serial port i. A write blocks until the
// guest has taken what was written before, up to a bounded buffer, and fails
// once the machine is closed.
func (m *Machine) SerialWriter(i int) io.Writer { return serialWriter{m.dev.serial[i]} }

// SerialInput gives serial port i as much of p as it has room for at once.
func (m *Machine) SerialInput(i int, p []byte) (n int) { return m.dev.serial[i].Receive(p) }
