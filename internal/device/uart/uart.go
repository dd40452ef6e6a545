// Package uart is a 16550A serial port with 16-byte FIFOs.
//
// Source: National Semiconductor PC16550D data sheet (TL/C/8652), sections 6
// and 8. On a PC the OUT2 output enables the interrupt line.
//
// The line has no speed: a byte is transmitted as soon as it is written, and
// received as soon as the guest has room. The other end uses hardware flow
// control: it is always ready (CTS, DSR and DCD are on) and sends only while
// the guest asserts RTS, so that input waits for the guest's driver instead of
// being lost in a FIFO which that driver clears when it starts.
package uart

import (
	"io"
	"sync"

	"ring3/internal/irqchip"
)

// Ports is the size of the port range.
const Ports = 8

// Legacy says where a PC has its four serial ports. COM3 and COM4 do not
// share the interrupts of COM1 and COM2: ACPI announces their own, and drivers
// take those before any built-in table.
var Legacy = [4]struct {
	Port uint64
	IRQ  int
}{{0x3f8, 4}, {0x2f8, 3}, {0x3e8, 5}, {0x2e8, 7}}

// Register offsets (data sheet, table 2).
const (
	regData = 0 // RBR and THR; divisor latch low with DLAB
	regIER  = 1 // divisor latch high with DLAB
	regIIR  = 2 // FCR when written
	regLCR  = 3
	regMCR  = 4
	regLSR  = 5
	regMSR  = 6
	regSCR  = 7
)

// Register bits (data sheet, sections 8.1 to 8.8).
const (
	ierRDA  = 1 << 0 // received data available, and timeout
	ierTHRE = 1 << 1
	ierRLS  = 1 << 2 // receiver line status
	ierMS   = 1 << 3 // modem status

	iirNone    = 0x01
	iirMS      = 0x00
	iirTHRE    = 0x02
	iirRDA     = 0x04
	iirRLS     = 0x06
	iirTimeout = 0x0c
	iirFIFO    = 0xc0

	fcrEnable  = 1 << 0
	fcrClearRX = 1 << 1

	lcrBreak = 1 << 6
	lcrDLAB  = 1 << 7

	mcrDTR  = 1 << 0
	mcrRTS  = 1 << 1
	mcrOUT1 = 1 << 2
	mcrOUT2 = 1 << 3
	mcrLoop = 1 << 4

	lsrDR   = 1 << 0
	lsrOE   = 1 << 1
	lsrBI   = 1 << 4
	lsrTHRE = 1 << 5
	lsrTEMT = 1 << 6
	lsrErr  = 1 << 7 // an error or break in the FIFO

	msrCTS  = 1 << 4
	msrDSR  = 1 << 5
	msrRI   = 1 << 6
	msrDCD  = 1 << 7
	msrTERI = 1 << 2 // trailing edge of RI; the other deltas are msr>>4
)

// fifoSize is the size of the receiver FIFO in bytes.
const fifoSize = 16

// UART is one port. It is a bus.Device of Ports ports.
type UART struct {
	irq irqchip.Line
	out *output

	mu      sync.Mutex
	ier     uint8
	fcr     uint8
	lcr     uint8
	mcr     uint8
	lsr     uint8 // error bits only; the others follow from the state
	msr     uint8
	scratch uint8
	divisor uint16
	rx      []item // receiver FIFO, or one RBR
	thre    bool   // THRE interrupt pending
	level   bool   // of irq

	pending []item     // input that the guest has no room for yet
	room    *sync.Cond // pending shrank, or closed
	closed  bool
}

// item is a received byte, or a break.
type item struct {
	b    byte
	errs uint8 // LSR bits that come with it
}

// New returns a port that interrupts on irq and sends to w, from a goroutine
// of its own. w may block: the guest then sees a busy transmitter. Close it.
func New(irq irqchip.Line, w io.Writer) *UART {
	u := &UART{irq: irq}
	u.room = sync.NewCond(&u.mu)
	u.reset()
	u.out = newOutput(w, u.drained)
	return u
}

// Reset is the master reset input. Input that waits stays.
func (u *UART) Reset() {
	u.mu.Lock()
	u.reset()
	u.update()
	u.mu.Unlock()
}

func (u *UART) reset() {
	u.ier, u.fcr, u.lcr, u.mcr, u.lsr, u.scratch, u.divisor = 0, 0, 0, 0, 0, 0, 12
	u.rx, u.thre = nil, false
	u.msr = msrCTS | msrDSR | msrDCD
}

// Close sends what is still to be sent, waiting a little if w blocks, and ends
// Send calls.
func (u *UART) Close() error {
	u.mu.Lock()
	u.closed = true
	u.room.Broadcast()
	u.mu.Unlock()
	return u.out.close()
}

// Read implements bus.Device.
func (u *UART) Read(off uint64, p []byte) {
	u.mu.Lock()
	for i := range p {
		p[i] = 0xff
		if o := off + uint64(i); o < Ports {
			p[i] = u.readReg(o)
		}
	}
	u.update()
	u.mu.Unlock()
}

// Write implements bus.Device.
func (u *UART) Write(off uint64, p []byte) {
	u.mu.Lock()
	for i, v := range p {
		if o := off + uint64(i); o < Ports {
			u.writeReg(o, v)
		}
	}
	u.update()
	u.mu.Unlock()
}

func (u *UART) readReg(reg uint64) uint8 {
	switch reg {
	case regData:
		if u.lcr&lcrDLAB != 0 {
			return uint8(u.divisor)
		}
		return u.receiveData()
	case regIER:
		if u.lcr&lcrDLAB != 0 {
			return uint8(u.divisor >> 8)
		}
		return u.ier
	case regIIR:
		v := u.interrupt()
		if v == iirTHRE {
			u.thre = false // reading it is what ends it
		}
		if u.fcr&fcrEnable != 0 {
			v |= iirFIFO
		}
		return v
	case regLCR:
		return u.lcr
	case regMCR:
		return u.mcr
	case regLSR:
		v := u.lineStatus()
		u.lsr = 0
		if len(u.rx) > 0 {
			u.rx[0].errs = 0
		}
		return v
	case regMSR:
		v := u.msr
		u.msr &= 0xf0
		return v
	default:
		return u.scratch
	}
}

func (u *UART) writeReg(reg uint64, v uint8) {
	switch reg {
	case regData:
		if u.lcr&lcrDLAB != 0 {
			u.divisor = u.divisor&0xff00 | uint16(v)
			return
		}
		u.transmit(v)
	case regIER:
		if u.lcr&lcrDLAB != 0 {
			u.divisor = u.divisor&0x00ff | uint16(v)<<8
			return
		}
		// Enabling it while the transmitter is empty interrupts at once.
		if v&ierTHRE != 0 && u.ier&ierTHRE == 0 && !u.out.busy() {
			u.thre = true
		}
		u.ier = v & 0x0f
	case regIIR:
		if v&fcrEnable != u.fcr&fcrEnable || v&fcrClearRX != 0 {
			u.rx = nil
		}
		u.fcr = v & 0xc9
	case regLCR:
		u.lcr = v
	case regMCR:
		u.mcr = v & 0x1f
		u.modemStatus()
	case regSCR:
		u.scratch = v
	}
}

// transmit writes the THR. The byte is gone at once, so that the THR is empty
// again, which is an interrupt.
func (u *UART) transmit(v uint8) {
	u.thre = false
	if u.mcr&mcrLoop != 0 {
		if len(u.rx) >= u.capacity() {
			u.lsr |= lsrOE
		} else {
			u.rx = append(u.rx, item{b: v})
		}
		u.thre = true
		return
	}
	u.thre = u.out.put(v)
}

// drained is called by the output when it is no longer busy.
func (u *UART) drained() {
	u.mu.Lock()
	u.thre = true
	u.update()
	u.mu.Unlock()
}

func (u *UART) capacity() int {
	if u.fcr&fcrEnable != 0 {
		return fifoSize
	}
	return 1
}

func (u *UART) receiveData() uint8 {
	if len(u.rx) == 0 {
		return 0
	}
	b := u.rx[0].b
	u.rx = u.rx[1:]
	return b
}

// lineStatus is the LSR. Errors show while their byte is on top of the FIFO.
func (u *UART) lineStatus() uint8 {
	v := u.lsr
	for i, it := range u.rx {
		if i == 0 {
			v |= lsrDR | it.errs
		}
		if it.errs != 0 && u.fcr&fcrEnable != 0 {
			v |= lsrErr
		}
	}
	if u.mcr&mcrLoop != 0 || !u.out.busy() {
		v |= lsrTHRE | lsrTEMT
	}
	return v
}

// modemStatus updates the MSR and its change bits after a change of the MCR:
// in loopback mode the outputs are the inputs.
func (u *UART) modemStatus() {
	v := uint8(msrCTS | msrDSR | msrDCD)
	if u.mcr&mcrLoop != 0 {
		v = u.mcr&mcrRTS<<3 | u.mcr&mcrDTR<<5 | u.mcr&mcrOUT1<<4 | u.mcr&mcrOUT2<<4
	}
	change := (u.msr ^ v) >> 4
	if v&msrRI != 0 {
		change &^= msrTERI // only its end counts
	}
	u.msr = v | u.msr&0x0f | change
}

// trigger is the number of bytes in the FIFO that interrupts.
func (u *UART) trigger() int {
	if u.fcr&fcrEnable == 0 {
		return 1
	}
	return [4]int{1, 4, 8, 14}[u.fcr>>6]
}

// interrupt returns the IIR: the pending interrupt of highest priority (data
// sheet, table 4). With no line speed, the four character times after which
// fewer bytes than the trigger level interrupt are over at once.
func (u *UART) interrupt() uint8 {
	switch {
	case u.ier&ierRLS != 0 && u.lineStatus()&(lsrOE|lsrBI) != 0:
		return iirRLS
	case u.ier&ierRDA != 0 && len(u.rx) >= u.trigger():
		return iirRDA
	case u.ier&ierRDA != 0 && len(u.rx) > 0:
		return iirTimeout
	case u.ier&ierTHRE != 0 && u.thre:
		return iirTHRE
	case u.ier&ierMS != 0 && u.msr&0x0f != 0:
		return iirMS
	}
	return iirNone
}

// update refills the FIFO and drives the interrupt line.
func (u *UART) update() {
	u.refill()
	level := u.interrupt() != iirNone && u.mcr&mcrOUT2 != 0 && u.mcr&mcrLoop == 0
	if level != u.level {
		u.level = level
		u.irq.Set(level)
	}
}
