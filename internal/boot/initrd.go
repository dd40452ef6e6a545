package boot

import (
	"io"
)

// loadInitrd copies the initrd f as high in low RAM as the kernel's header
// allows, page aligned and above the kernel, or behind 4 GiB if it must and
// the kernel can.
func loadInitrd(mem Memory, f File, header []byte, kernel Range) (Range, error) {
	if f.Data == nil || f.Size == 0 {
		return Range{}, nil
	}
	at, err := placeInitrd(mem.Size(), uint64(f.Size), header, kernel)
	if err != nil {
		return Range{}, inputErr(f.Name, err, "initrd does not fit")
	}
	buf := make([]byte, 256<<10)
	r := io.NewSectionReader(f.Data, 0, f.Size)
	for gpa := at; gpa < at+uint64(f.Size); {
		n, err := r.Read(buf)
		if n > 0 {
			if err := mem.WriteAt(buf[:n], gpa); err != nil {
				return Range{}, err
			}
			gpa += uint64(n)
			continue
		}
		if err == nil || err == io.EOF {
			err = io.ErrUnexpectedEOF
		}
		return Range{}, inputErr(f.Name, err, "cannot read the initrd")
	}
	return Range{at, at + uint64(f.Size)}, nil
}

// placeInitrd chooses the initrd's address.
func placeInitrd(ram, size uint64, header []byte, kernel Range) (uint64, error) {
	h := &bzImage{header: header}
	low := LowRAM(ram)
	// The kernel may use init_size bytes from where it is before it has read
	// the memory map.
	floor := max(kernel.End, kernel.Start+uint64(h.u32(hdrInitSize)))
	floor = alignUp(min(floor, low), pageSize)

	tops := []Range{{floor, min(low, uint64(h.u32(hdrInitrdMax))+1)}}
	if h.u16(hdrXLoadFlags)&xlfAbove4G != 0 {
		tops = append(tops, Range{floor, low}, Range{HighBase, HighBase + HighRAM(ram)})
	}
	for _, r := range tops {
		if r.End < r.Start || r.End-r.Start < size {
			continue
		}
		if at := (r.End - size) &^ (pageSize - 1); at >= r.Start {
			return at, nil
		}
	}
	return 0, &initrdError{ram, size, floor}
}

// initrdError says that an initrd is larger than the memory left for it.
type initrdError struct{ ram, size, floor uint64 }

func (e *initrdError) Error() string {
	return mib(e.size) + " long, the machine has " + mib(e.ram) + " of memory and the kernel takes the first " + mib(e.floor)
}

func alignUp(x, a uint64) uint64 { return (x + a - 1) &^ (a - 1) }
