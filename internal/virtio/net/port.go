package net

import (
	"encoding/binary"

	"ring3/internal/virtio"
)

// Port is where the device's cable ends: a network, or another program.
type Port interface {
	// Offloads reports whether frames may have a Header that says anything.
	Offloads() bool
	// Ready tells which headers the guest's driver understands. It is called
	// before any other frame is received for that driver, on a vCPU's thread.
	Ready(a Accepts)
	// Send takes a frame of the guest, with its Ethernet header. It is called
	// on a vCPU's thread, must not block, and reads the frame at most once: the
	// guest can write to it. There is no error; what cannot be sent is lost.
	Send(h Header, frame virtio.Buffers)
	// Receive waits for frames to the guest, puts some into f and says how
	// many. After Close it returns an error, and so it does if there will
	// never be more.
	Receive(f []Frame) (n int, err error)
	// Close ends the other methods. It may be called more than once.
	Close() error
}

// Accepts is what a guest's driver understands.
type Accepts struct {
	Checksum bool // Header.NeedsChecksum
	TCP4     bool // Header.SegmentSize
}

// Frame is an Ethernet frame to the guest.
type Frame struct {
	Header
	Parts [][]byte
	// Release gives the memory of Parts back; nil if that is not needed.
	Release func()
}

// Len is the number of bytes.
func (f *Frame) Len() (n int) {
	for _, p := range f.Parts {
		n += len(p)
	}
	return n
}

func (f *Frame) release() {
	if f.Release != nil {
		f.Release()
	}
}

// Header says what is left to do with a frame (section 5.1.6), which its sender
// saves itself because no real wire is in between.
type Header struct {
	// NeedsChecksum: the TCP or UDP checksum at ChecksumStart + ChecksumOffset
	// covers the pseudo header alone; that of all bytes from ChecksumStart on
	// must be added. ChecksumValid: it need not be checked.
	NeedsChecksum, ChecksumValid  bool
	ChecksumStart, ChecksumOffset uint16
	// SegmentSize is how much of the payload goes into each packet, of TCP over
	// IPv4; 0 for a frame that is one packet.
	SegmentSize uint16
	// HeaderSize is the length of all headers, if SegmentSize is not 0.
	HeaderSize uint16
}

// Layout of the header, flags and types of segmentation.
const (
	headerSize = 12

	flagNeedsChecksum = 1 << 0
	flagDataValid     = 1 << 1

	gsoNone = 0
	gsoTCP4 = 1
)

var le = binary.LittleEndian

// encode writes the header of a frame that takes so many buffers.
func (h *Header) encode(b *[headerSize]byte, buffers uint16) {
	*b = [headerSize]byte{}
	switch {
	case h.NeedsChecksum:
		b[0] = flagNeedsChecksum
		le.PutUint16(b[6:], h.ChecksumStart)
		le.PutUint16(b[8:], h.ChecksumOffset)
	case h.ChecksumValid:
		b[0] = flagDataValid
	}
	if h.SegmentSize != 0 {
		b[1] = gsoTCP4
		le.PutUint16(b[2:], h.HeaderSize)
		le.PutUint16(b[4:], h.SegmentSize)
	}
	le.PutUint16(b[10:], buffers)
}

// decode reads the header of a frame of size bytes from a driver that has
// accepted features. ok is false for one that makes no sense.
func decode(b *[headerSize]byte, size int64, features uint64) (h Header, ok bool) {
	if b[0]&flagNeedsChecksum != 0 {
		h.NeedsChecksum = true
		h.ChecksumStart, h.ChecksumOffset = le.Uint16(b[6:]), le.Uint16(b[8:])
		if features&featureCsum == 0 || int64(h.ChecksumStart)+int64(h.ChecksumOffset)+2 > size {
			return h, false
		}
	}
	switch b[1] {
	case gsoNone:
	case gsoTCP4:
		h.HeaderSize, h.SegmentSize = le.Uint16(b[2:]), le.Uint16(b[4:])
		if features&featureHostTSO4 == 0 || !h.NeedsChecksum || h.SegmentSize == 0 {
			return h, false
		}
	default:
		return h, false
	}
	return h, true
}
