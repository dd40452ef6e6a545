package partition

import (
	"errors"
	"fmt"
	"hash/crc32"
)

const (
	// typeProtective is the type of the one partition of a GPT disk's MBR.
	typeProtective = 0xee

	gptSignature = "EFI PART"
	gptHeader    = 92 // bytes
	gptEntry     = 128
	gptArray     = 4 << 20 // bytes of entries at most
)

// gpt reads a GPT, or the backup at the end of the disk if the first is damaged.
func (d *disk) gpt() ([]Partition, error) {
	p, err := d.gptAt(1)
	if err != nil {
		var berr error
		if p, berr = d.gptAt(d.size/SectorSize - 1); berr != nil {
			return nil, fmt.Errorf("GPT: %w", err)
		}
	}
	return p, nil
}

func (d *disk) gptAt(sector int64) ([]Partition, error) {
	h, err := d.read(sector*SectorSize, SectorSize)
	if err != nil {
		return nil, err
	}
	size := le32(h[12:])
	if string(h[:8]) != gptSignature || size < gptHeader || size > SectorSize {
		return nil, errors.New("no header")
	}
	sum := le32(h[16:])
	clear(h[16:20]) // as it was when the sum was made
	if crc32.ChecksumIEEE(h[:size]) != sum {
		return nil, errors.New("checksum of the header is wrong")
	}
	at, count, each := le64(h[72:]), int64(le32(h[80:])), int64(le32(h[84:]))
	if each < gptEntry || each%8 != 0 || each > gptArray || count > gptArray/each || at > uint64(d.size/SectorSize) {
		return nil, fmt.Errorf("%d entries of %d bytes at sector %d", count, each, at)
	}
	entries, err := d.read(int64(at)*SectorSize, count*each)
	if err != nil {
		return nil, err
	}
	if crc32.ChecksumIEEE(entries) != le32(h[88:]) {
		return nil, errors.New("checksum of the entries is wrong")
	}
	var out []Partition
	for i := range int(min(count, Max)) {
		e := entries[int64(i)*each:][:gptEntry]
		if [16]byte(e) == ([16]byte{}) {
			continue // unused
		}
		first, last := le64(e[32:]), le64(e[40:])
		start, size, err := d.place(first, last-first+1)
		if err != nil {
			return nil, fmt.Errorf("partition %d: %w", i+1, err)
		}
		out = append(out, Partition{i + 1, start, size, guid(e[16:])})
	}
	return out, nil
}

// guid writes a GUID as UEFI has it on disks (appendix A): three numbers are little-endian.
func guid(b []byte) string {
	return fmt.Sprintf("%08x-%04x-%04x-%x-%x", le32(b), le16(b[4:]), le16(b[6:]), b[8:10], b[10:16])
}
