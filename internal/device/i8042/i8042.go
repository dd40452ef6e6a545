// Package i8042 is the keyboard controller of a PC with nothing plugged into
// it, and the two other places from which a PC is reset or its A20 gate set.
//
// Sources: IBM Personal System/2 Hardware Interface Technical Reference,
// "Keyboard and Auxiliary Device Controller" and "System Control Port A".
package i8042

import (
	"sync"

	"ring3/internal/irqchip"
)

// Where a PC has them. Data, Status and PortA are one port each.
const (
	PortData   = 0x60
	PortStatus = 0x64
	PortA      = 0x92
	IRQ        = 1
)

// Status register, configuration byte and output port bits.
const (
	statusOBF     = 1 << 0 // there is a byte to read at PortData
	statusSystem  = 1 << 2 // self-test passed
	statusCommand = 1 << 3 // last write was to PortStatus
	statusKeylock = 1 << 4 // not locked
	statusTimeout = 1 << 6 // the byte came from no device

	configIRQ     = 1 << 0
	configSystem  = 1 << 2
	configDisable = 1 << 4 // keyboard
	configNoAux   = 1 << 5 // auxiliary device

	outputReset = 1 << 0 // active low
	outputA20   = 1 << 1

	portAReset = 1 << 0
	portAA20   = 1 << 1
)

const resend = 0xfe // what the controller says for a keyboard that is absent

// Controller is the keyboard controller.
type Controller struct {
	irq   irqchip.Line
	reset func()

	mu      sync.Mutex
	config  uint8
	ram     [32]uint8
	output  uint8 // output port
	status  uint8 // without OBF
	data    uint8
	full    bool
	command uint8 // that waits for its parameter
}

// New returns a controller that interrupts on irq and calls reset, without
// locks held, when the guest resets the machine.
func New(irq irqchip.Line, reset func()) *Controller {
	c := &Controller{irq: irq, reset: reset}
	c.Reset()
	return c
}

// Reset is power on, with the self-test already run.
func (c *Controller) Reset() {
	c.mu.Lock()
	c.config = configSystem | configNoAux
	c.ram = [32]uint8{}
	c.output = outputReset | outputA20
	c.status = statusSystem | statusKeylock
	c.full, c.command = false, 0
	c.update()
	c.mu.Unlock()
}

// Data returns the bus.Device of PortData.
func (c *Controller) Data() Port { return Port{c.readData, c.writeData} }

// Status returns the bus.Device of PortStatus.
func (c *Controller) Status() Port { return Port{c.readStatus, c.writeCommand} }

// SystemPortA returns the bus.Device of PortA.
func (c *Controller) SystemPortA() Port { return Port{c.readA, c.writeA} }

// Port is a bus.Device of one port.
type Port struct {
	read  func() uint8
	write func(v uint8)
}

// Read implements bus.Device.
func (d Port) Read(off uint64, p []byte) {
	for i := range p {
		p[i] = 0xff
	}
	if off == 0 && len(p) > 0 {
		p[0] = d.read()
	}
}

// Write implements bus.Device.
func (d Port) Write(off uint64, p []byte) {
	if off == 0 && len(p) > 0 {
		d.write(p[0])
	}
}

func (c *Controller) readData() uint8 {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.full = false
	c.status &^= statusTimeout
	c.update()
	return c.data
}

func (c *Controller) readStatus() uint8 {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.full {
		return c.status | statusOBF
	}
	return c.status
}

// reply puts a byte where the guest reads it.
func (c *Controller) reply(v uint8) {
	c.data, c.full = v, true
}

func (c *Controller) update() {
	c.irq.Set(c.full && c.config&configIRQ != 0)
}

func (c *Controller) writeCommand(v uint8) {
	c.mu.Lock()
	c.status |= statusCommand
	reset := c.execute(v)
	c.update()
	c.mu.Unlock()
	if reset {
		c.reset()
	}
}

// execute runs a controller command. Those of the auxiliary device, of which
// there is none, are answered so that a driver sees so at once.
func (c *Controller) execute(v uint8) (reset bool) {
	c.command = 0
	switch {
	case v == 0x20:
		c.reply(c.config)
	case v > 0x20 && v < 0x40:
		c.reply(c.ram[v&0x1f])
	case v >= 0x60 && v < 0x80, v >= 0xd1 && v <= 0xd4:
		c.command = v
	case v == 0xa7:
		c.config |= configNoAux
	case v == 0xa9: // test of the auxiliary interface: clock line stuck low
		c.reply(0x01)
	case v == 0xaa: // self-test
		c.config = configSystem | configDisable | configNoAux
		c.reply(0x55)
	case v == 0xab: // test of the keyboard interface: good
		c.reply(0x00)
	case v == 0xad:
		c.config |= configDisable
	case v == 0xae:
		c.config &^= configDisable
	case v == 0xc0: // input port: not locked
		c.reply(0x80)
	case v == 0xd0:
		c.reply(c.output)
	case v == 0xdd:
		c.output &^= outputA20
	case v == 0xdf:
		c.output |= outputA20
	case v >= 0xf0: // pulse the output lines whose bits are clear
		return v&outputReset == 0
	}
	return false
}

func (c *Controller) writeData(v uint8) {
	c.mu.Lock()
	c.status &^= statusCommand
	command, reset := c.command, false
	c.command = 0
	switch {
	case command == 0: // to the keyboard
		c.config &^= configDisable
		c.status |= statusTimeout
		c.reply(resend)
	case command == 0x60:
		c.config = v&^(1<<1) | configNoAux // no auxiliary interrupts
	case command < 0x80:
		c.ram[command&0x1f] = v
	case command == 0xd1:
		c.output = v
		reset = v&outputReset == 0
	case command == 0xd2, command == 0xd3:
		// As if a device had sent it. The auxiliary bit stays clear: there is
		// no such interface.
		c.reply(v)
	case command == 0xd4: // to the auxiliary device
		c.status |= statusTimeout
		c.reply(resend)
	}
	c.update()
	c.mu.Unlock()
	if reset {
		c.reset()
	}
}

func (c *Controller) readA() uint8 {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.output & outputA20 // bit 1 in both
}

func (c *Controller) writeA(v uint8) {
	c.mu.Lock()
	c.output = c.output&^outputA20 | v&portAA20
	c.mu.Unlock()
	if v&portAReset != 0 {
		c.reset()
	}
}

// A20 reports whether address line 20 passes. The machine has no older
// software that would need it off, and may ignore it.
func (c *Controller) A20() bool { return c.readA() != 0 }
