package net

import (
	"errors"

	"ring3/internal/virtio"
)

// filled are buffers of the guest with frames in them, not given back yet.
type filled struct {
	chains  []*virtio.Chain
	written []uint32
}

// give gives them back.
func (f *filled) give() {
	virtio.CompleteAll(f.chains, f.written)
	clear(f.chains)
	f.chains, f.written = f.chains[:0], f.written[:0]
}

// receive brings frames to the guest until the port is closed.
func (d *Device) receive() {
	var out filled
	frames := make([]Frame, batch)
	for {
		n, err := d.cfg.Port.Receive(frames)
		if err != nil {
			return
		}
		for i := range frames[:n] {
			if size := frames[i].Len(); size >= minFrame && size <= maxFrame {
				d.place(&frames[i], &out)
			}
			frames[i].release()
			frames[i] = Frame{}
		}
		out.give()
	}
}

// place copies a frame into buffers of the guest, which it waits for. Without a
// driver, or room, the frame is lost.
func (d *Device) place(f *Frame, out *filled) {
	t := d.transport.Load()
	if t == nil {
		return
	}
	merge := false
	need := func(features uint64) (room int64, most int) {
		if f.NeedsChecksum && features&featureGuestCsum == 0 || f.SegmentSize != 0 && features&featureGuestTSO4 == 0 {
			return 0, 0
		}
		merge, most = false, 1
		if features&featureMrgRxbuf != 0 {
			merge, most = true, virtio.QueueSize
		}
		return int64(headerSize + f.Len()), most
	}
	for {
		chains, err := t.Pull(receiveQueue, need)
		if err == nil {
			d.fill(f, chains, merge, out)
			return
		}
		if !errors.Is(err, virtio.ErrTooFew) {
			return
		}
		out.give() // the driver offers more when it sees these
		if t.Arm(receiveQueue) {
			continue
		}
		select {
		case <-d.wake:
		case <-d.quit:
			return
		}
	}
}

// fill writes a frame with its header to requests that have room for it.
func (d *Device) fill(f *Frame, chains []*virtio.Chain, merge bool, out *filled) {
	var header [headerSize]byte
	buffers := uint16(1) // without MRG_RXBUF as well (section 5.1.6.4.1)
	if merge {
		buffers = uint16(len(chains))
	}
	f.encode(&header, buffers)
	write := func() {
		src := source{rest: header[:], parts: f.Parts}
		for _, c := range chains {
			n := 0
			for _, b := range c.Writable {
				n += src.read(b.Data)
			}
			out.chains, out.written = append(out.chains, c), append(out.written, uint32(n))
		}
	}
	if d.p.Exclusive {
		d.p.Sync(write)
	} else {
		write()
	}
}

// source reads a sequence of slices.
type source struct {
	rest  []byte
	parts [][]byte
}

// read fills p as far as there is something.
func (s *source) read(p []byte) (n int) {
	for n < len(p) {
		if len(s.rest) == 0 {
			if len(s.parts) == 0 {
				break
			}
			s.rest, s.parts = s.parts[0], s.parts[1:]
			continue
		}
		c := copy(p[n:], s.rest)
		n, s.rest = n+c, s.rest[c:]
	}
	return n
}
