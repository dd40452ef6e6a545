// Package partition reads the partition table of a disk, GPT or MBR.
//
// A disk is input from anybody: what makes no sense is an error, and there are at
// most Max partitions.
//
// Source: UEFI Specification 2.10, chapter 5 "GUID Partition Table (GPT) Disk
// Layout", which describes the MBR too (5.2).
package partition

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
)

// SectorSize is the logical block of a disk, in bytes.
const SectorSize = 512

// Max is how many partitions of a disk are looked at.
const Max = 128

// ErrNone is returned for a disk without a partition table.
var ErrNone = errors.New("no partition table")

// Partition is a part of a disk.
type Partition struct {
	Number int    // as in /dev/vda1
	Start  int64  // bytes
	Size   int64  // bytes
	UUID   string // as root=PARTUUID= of Linux has it
}

// Read returns the partitions of a disk of size bytes in the order of their numbers.
// It returns ErrNone for a disk without a table.
func Read(r io.ReaderAt, size int64) ([]Partition, error) {
	d := &disk{r, size}
	mbr, err := d.read(0, SectorSize)
	if err != nil {
		return nil, err
	}
	if le16(mbr[510:]) != 0xaa55 || !plausible(mbr) {
		return nil, ErrNone
	}
	for i := range 4 {
		if mbr[446+16*i+4] == typeProtective {
			return d.gpt()
		}
	}
	return d.mbr(mbr)
}

// plausible reports whether a boot sector has a partition table: the boot sector of
// a FAT or NTFS file system has the same signature, and code in that place.
func plausible(mbr []byte) bool {
	some := false
	for i := range 4 {
		e := mbr[446+16*i:][:16]
		if e[0]&0x7f != 0 {
			return false
		}
		some = some || e[4] != 0
	}
	return some
}

type disk struct {
	r    io.ReaderAt
	size int64
}

// read returns n bytes at off.
func (d *disk) read(off, n int64) ([]byte, error) {
	if off < 0 || n < 0 || off > d.size-n {
		return nil, fmt.Errorf("%d bytes at %d are behind the end of the disk", n, off)
	}
	b := make([]byte, n)
	_, err := d.r.ReadAt(b, off)
	return b, err
}

// place checks that sectors first to first+n-1 are on the disk, and returns them in
// bytes.
func (d *disk) place(first, n uint64) (start, size int64, err error) {
	sectors := uint64(d.size / SectorSize)
	if first == 0 || n == 0 || first >= sectors || n > sectors-first {
		return 0, 0, fmt.Errorf("its sectors, %d from %d on, are not on the disk of %d", n, first, sectors)
	}
	return int64(first * SectorSize), int64(n * SectorSize), nil
}

func le16(b []byte) uint16 { return binary.LittleEndian.Uint16(b) }
func le32(b []byte) uint32 { return binary.LittleEndian.Uint32(b) }
func le64(b []byte) uint64 { return binary.LittleEndian.Uint64(b) }
