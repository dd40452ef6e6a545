package machine

import (
	"errors"
	"io"

	"ring3/internal/bus"
	"ring3/internal/device/uart"
	"ring3/internal/irqchip"
)

// devices are the machine's devices besides the interrupt controllers.
type devices struct {
	serial [4]*uart.UART
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
		m.mmio.Attach("local APIC", irqchip.LAPICBase, 0x1000, m.chip.CPU(0)))
	for i, at := range uart.Legacy {
		out := cfg.Serial[i]
		if out == nil {
			out = io.Discard
		}
		m.dev.serial[i] = uart.New(m.chip.Line(at.IRQ), out)
		port([]string{"ttyS0", "ttyS1", "ttyS2", "ttyS3"}[i], at.Port, uart.Ports, m.dev.serial[i])
	}
	return errors.Join(errs...)
}

func (d *devices) close() error {
	var errs []error
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
