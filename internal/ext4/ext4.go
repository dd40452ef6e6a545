// Package ext4 reads files of an ext2, ext3 or ext4 file system, as a boot loader
// does: no journal is replayed, no checksum is verified, nothing is written.
//
// An image is input from anybody. Whatever is in it, reading ends, takes no more
// memory than the limits that the caller gives, and fails with an error at worst.
//
// Source: the Linux kernel's documentation, filesystems/ext4 ("ext4 Data Structures
// and Algorithms").
package ext4

import (
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
)

// Errors of an image, beside io/fs's of names.
var (
	// ErrMagic is returned for what is no such file system.
	ErrMagic = errors.New("no ext2, ext3 or ext4 file system")
	// ErrCorrupt is returned for structures that cannot be.
	ErrCorrupt = errors.New("corrupt ext4 file system")
	// ErrTooLarge is returned for a file larger than the caller's limit.
	ErrTooLarge = errors.New("too large")
)

// Superblock: where it is, and the fields that are used.
const (
	superblockAt   = 1024
	superblockSize = 1024
	magic          = 0xef53

	sbFirstDataBlock = 0x14
	sbLogBlockSize   = 0x18
	sbInodesPerGroup = 0x28
	sbMagic          = 0x38
	sbRevision       = 0x4c
	sbInodeSize      = 0x58
	sbIncompat       = 0x60
	sbUUID           = 0x68
	sbDescSize       = 0xfe
	sbInodesCount    = 0x00
)

// Incompatible features (s_feature_incompat). Those of known change nothing for
// who only reads; an inode that is encrypted or has its data inline says so itself.
const (
	incompatJournalDev = 0x8
	incompat64Bit      = 0x80

	known = 0x2 | // filetype: directory entries have one
		0x4 | // needs_recovery
		0x40 | // extents
		incompat64Bit |
		0x100 | // mmp
		0x200 | // flex_bg
		0x400 | // ea_inode
		0x2000 | // csum_seed
		0x4000 | // largedir
		0x8000 | // inline_data
		0x10000 | // encrypt
		0x20000 // casefold
)

// FS is a file system.
type FS struct {
	r              io.ReaderAt
	size           int64 // bytes
	blockSize      int64
	firstDataBlock int64
	inodes         uint32
	inodesPerGroup uint32
	inodeSize      int64
	descSize       int64
	uuid           [16]byte
}

// Open looks at the superblock of the file system in the first size bytes of r.
func Open(r io.ReaderAt, size int64) (*FS, error) {
	f := &FS{r: r, size: size}
	if size < superblockAt+superblockSize {
		return nil, ErrMagic
	}
	sb, err := f.read(superblockAt, superblockSize)
	if err != nil {
		return nil, err
	}
	if le16(sb[sbMagic:]) != magic {
		return nil, ErrMagic
	}
	incompat := le32(sb[sbIncompat:])
	if incompat&incompatJournalDev != 0 {
		return nil, ErrMagic
	}
	if u := incompat &^ known; u != 0 {
		return nil, fmt.Errorf("ext4 file system with features that are not known (s_feature_incompat %#x)", u)
	}
	log := le32(sb[sbLogBlockSize:])
	if log > 6 {
		return nil, corrupt("block size of 2^%d KiB", log)
	}
	f.blockSize = 1024 << log
	f.firstDataBlock = int64(le32(sb[sbFirstDataBlock:]))
	f.inodes = le32(sb[sbInodesCount:])
	f.inodesPerGroup = le32(sb[sbInodesPerGroup:])
	f.inodeSize, f.descSize = 128, 32
	if le32(sb[sbRevision:]) > 0 {
		f.inodeSize = int64(le16(sb[sbInodeSize:]))
	}
	if incompat&incompat64Bit != 0 {
		f.descSize = int64(le16(sb[sbDescSize:]))
	}
	if f.inodesPerGroup == 0 || f.inodeSize < 128 || f.inodeSize > f.blockSize || f.descSize < 32 || f.descSize > f.blockSize {
		return nil, corrupt("%d inodes of %d bytes in a group, whose descriptor has %d", f.inodesPerGroup, f.inodeSize, f.descSize)
	}
	copy(f.uuid[:], sb[sbUUID:])
	return f, nil
}

// UUID is the file system's, as root=UUID= and blkid write it.
func (f *FS) UUID() string {
	h := hex.EncodeToString(f.uuid[:])
	return h[:8] + "-" + h[8:12] + "-" + h[12:16] + "-" + h[16:20] + "-" + h[20:]
}

// read returns n bytes at off, all within the file system.
func (f *FS) read(off, n int64) ([]byte, error) {
	if off < 0 || n < 0 || off > f.size-n {
		return nil, corrupt("%d bytes at %d are behind the end", n, off)
	}
	b := make([]byte, n)
	if _, err := f.r.ReadAt(b, off); err != nil {
		return nil, err
	}
	return b, nil
}

// block returns a block by its number on the disk.
func (f *FS) block(n int64) ([]byte, error) {
	if n <= 0 || n > f.size/f.blockSize {
		return nil, corrupt("there is no block %d", n)
	}
	return f.read(n*f.blockSize, f.blockSize)
}

func corrupt(format string, args ...any) error {
	return fmt.Errorf("%w: %s", ErrCorrupt, fmt.Sprintf(format, args...))
}

func le16(b []byte) uint16 { return binary.LittleEndian.Uint16(b) }
func le32(b []byte) uint32 { return binary.LittleEndian.Uint32(b) }
