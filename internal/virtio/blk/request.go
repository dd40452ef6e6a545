package blk

import (
	"encoding/binary"
	"fmt"
	"math"

	"ring3/internal/disk"
	"ring3/internal/virtio"
)

// Request types and their outcome (section 5.2.6).
const (
	typeIn          = 0
	typeOut         = 1
	typeFlush       = 4
	typeGetID       = 8
	typeDiscard     = 11
	typeWriteZeroes = 13

	statusOK          = 0
	statusIOErr       = 1
	statusUnsupported = 2

	headerSize = 16 // type u32, reserved u32, sector u64
	idSize     = 20
	rangeSize  = 16 // sector u64, number of sectors u32, flags u32
	flagUnmap  = 1 << 0
)

// request is a header and data for the device to read, and data and a status
// byte for it to write.
type request struct {
	chain  *virtio.Chain
	kind   uint32
	sector uint64
	out    virtio.Buffers // behind the header
	in     virtio.Buffers // before the status
	status virtio.Buffers // one byte
}

// parse reads the header. What has no room for one, or for a status, is no
// request.
func parse(c *virtio.Chain) (*request, error) {
	readable, writable := c.Readable.Len(), c.Writable.Len()
	if readable < headerSize || writable < 1 || writable > math.MaxUint32 {
		return nil, fmt.Errorf("a request of %d bytes to read and %d to write", readable, writable)
	}
	r := &request{chain: c}
	var h [headerSize]byte
	c.Readable.Read(h[:])
	r.kind, r.sector = binary.LittleEndian.Uint32(h[:]), binary.LittleEndian.Uint64(h[8:])
	_, r.out = c.Readable.Split(headerSize)
	r.in, r.status = c.Writable.Split(writable - 1)
	return r, nil
}

// execute does what r asks for and writes the status.
func (d *Device) execute(r *request) {
	status, err := d.perform(r)
	if err != nil {
		d.report(err)
		status = statusIOErr
	}
	r.status.Write([]byte{status})
}

// perform returns the status of a request, and an error if the image has one.
func (d *Device) perform(r *request) (status byte, err error) {
	img := d.cfg.Image
	switch r.kind {
	case typeIn:
		off, ok := d.place(r.sector, r.in.Len())
		if !ok {
			return statusIOErr, nil
		}
		return statusOK, img.ReadAt(r.in.Slices(), off)
	case typeOut:
		off, ok := d.place(r.sector, r.out.Len())
		if !ok || d.cfg.ReadOnly {
			return statusIOErr, nil
		}
		return statusOK, img.WriteAt(r.out.Slices(), off)
	case typeFlush:
		if d.cfg.ReadOnly {
			return statusOK, nil
		}
		return statusOK, img.Flush()
	case typeGetID:
		if r.in.Len() < idSize {
			return statusIOErr, nil
		}
		var id [idSize]byte
		copy(id[:], d.cfg.Name)
		r.in.Write(id[:])
		return statusOK, nil
	case typeDiscard, typeWriteZeroes:
		if d.cfg.ReadOnly {
			return statusIOErr, nil
		}
		return d.ranges(r)
	}
	return statusUnsupported, nil
}

// atOnce executes a request if the vCPU is not likely to wait for long: to read
// a little that the host has in memory, or to write a little to its memory,
// unless there are others, such as a flush, that a write might wait for.
func (d *Device) atOnce(r *request) bool {
	switch {
	case r.kind == typeIn && r.in.Len() <= maxAtOnce:
		off, ok := d.place(r.sector, r.in.Len())
		if ok = ok && d.cfg.Image.ReadCached(r.in.Slices(), off); ok {
			r.status.Write([]byte{statusOK})
		}
		return ok
	case r.kind == typeOut && r.out.Len() <= maxAtOnce && d.waiting.Load() == 0:
		d.execute(r)
		return true
	}
	return false
}

// place is where n bytes from a sector on are in the image, if they are: whole
// sectors, and at least one.
func (d *Device) place(sector uint64, n int64) (off int64, ok bool) {
	sectors := uint64(d.cfg.Image.Size() / disk.SectorSize)
	if n <= 0 || n%disk.SectorSize != 0 || sector > sectors || uint64(n/disk.SectorSize) > sectors-sector {
		return 0, false
	}
	return int64(sector) * disk.SectorSize, true
}

// ranges executes a request to discard, or to write zeros to, some ranges. All
// of them are looked at before the first is changed.
func (d *Device) ranges(r *request) (status byte, err error) {
	n, limit, flags := r.out.Len(), int64(maxZeroes), uint32(flagUnmap)
	if r.kind == typeDiscard {
		limit, flags = maxDiscard, 0
	}
	if n == 0 || n%rangeSize != 0 || n > maxRanges*rangeSize {
		return statusIOErr, nil
	}
	b := make([]byte, n)
	r.out.Read(b)
	type span struct {
		off, n int64
		unmap  bool
	}
	var spans []span
	for ; len(b) > 0; b = b[rangeSize:] {
		size := int64(binary.LittleEndian.Uint32(b[8:]))
		f := binary.LittleEndian.Uint32(b[12:])
		if f&^flags != 0 {
			return statusUnsupported, nil
		}
		off, ok := d.place(binary.LittleEndian.Uint64(b), size*disk.SectorSize)
		if !ok || size > limit {
			return statusIOErr, nil
		}
		spans = append(spans, span{off, size * disk.SectorSize, f&flagUnmap != 0})
	}
	for _, s := range spans {
		if r.kind == typeDiscard {
			err = d.cfg.Image.Discard(s.off, s.n)
		} else {
			err = d.cfg.Image.Zero(s.off, s.n, s.unmap)
		}
		if err != nil {
			return 0, err
		}
	}
	return statusOK, nil
}
