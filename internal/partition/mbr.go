package partition

import "fmt"

// mbr reads the four partitions of an MBR, and the chain of logical ones: each link
// is a table with a partition, placed from that table on, and the next link, placed
// from the extended partition on.
func (d *disk) mbr(table []byte) ([]Partition, error) {
	signature := le32(table[440:])
	var out []Partition
	add := func(number int, e []byte, base uint64) error {
		start, size, err := d.place(base+uint64(le32(e[8:])), uint64(le32(e[12:])))
		if err != nil {
			return fmt.Errorf("MBR: partition %d: %w", number, err)
		}
		out = append(out, Partition{number, start, size, fmt.Sprintf("%08x-%02x", signature, number)})
		return nil
	}
	var extended uint64
	for i := range 4 {
		switch e := table[446+16*i:][:16]; {
		case e[4] == 0:
		case isExtended(e[4]):
			extended = uint64(le32(e[8:]))
		default:
			if err := add(i+1, e, 0); err != nil {
				return nil, err
			}
		}
	}
	for link, number := extended, 5; link != 0 && number <= Max; {
		t, err := d.read(int64(link)*SectorSize, SectorSize)
		if err != nil || le16(t[510:]) != 0xaa55 {
			break // what comes behind a damaged link is lost, as for Linux
		}
		if e := t[446:][:16]; e[4] != 0 && !isExtended(e[4]) {
			if err := add(number, e, link); err != nil {
				return nil, err
			}
			number++
		}
		e := t[462:][:16]
		next := extended + uint64(le32(e[8:]))
		if !isExtended(e[4]) || next <= link { // backwards would never end
			break
		}
		link = next
	}
	return out, nil
}

func isExtended(kind byte) bool { return kind == 0x05 || kind == 0x0f || kind == 0x85 }
