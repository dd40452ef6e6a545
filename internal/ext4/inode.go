package ext4

import "fmt"

// Inode fields that are used, and their bits.
const (
	inoMode     = 0x00
	inoSizeLow  = 0x04
	inoFlags    = 0x20
	inoBlock    = 0x28 // i_block: extents, a block map, or a short symbolic link
	inoSizeHigh = 0x6c

	blockBytes = 60 // of i_block

	modeType    = 0xf000
	modeDir     = 0x4000
	modeRegular = 0x8000
	modeSymlink = 0xa000

	flagEncrypt = 0x800
	flagExtents = 0x80000
	flagInline  = 0x10000000

	rootInode = 2
)

// inode is a file.
type inode struct {
	mode  uint16
	flags uint32
	size  int64
	block [blockBytes]byte
}

// inode reads the inode with number n.
func (f *FS) inode(n uint32) (*inode, error) {
	if n == 0 || n > f.inodes {
		return nil, corrupt("there is no inode %d", n)
	}
	group, index := int64((n-1)/f.inodesPerGroup), int64((n-1)%f.inodesPerGroup)
	desc, err := f.read((f.firstDataBlock+1)*f.blockSize+group*f.descSize, f.descSize)
	if err != nil {
		return nil, err
	}
	table := int64(le32(desc[0x08:])) // bg_inode_table_lo
	if f.descSize >= 64 {
		table |= int64(le32(desc[0x28:])) << 32
	}
	if table <= 0 || table > f.size/f.blockSize {
		return nil, corrupt("the inodes of group %d are at block %d", group, table)
	}
	b, err := f.read(table*f.blockSize+index*f.inodeSize, 128)
	if err != nil {
		return nil, err
	}
	i := &inode{mode: le16(b[inoMode:]), flags: le32(b[inoFlags:]), size: int64(le32(b[inoSizeLow:])) | int64(le32(b[inoSizeHigh:]))<<32}
	copy(i.block[:], b[inoBlock:])
	switch {
	case i.size < 0:
		return nil, corrupt("inode %d has a size of %d", n, i.size)
	case i.flags&flagEncrypt != 0:
		return nil, fmt.Errorf("inode %d is encrypted", n)
	case i.flags&flagInline != 0:
		return nil, fmt.Errorf("inode %d has its data inline, which is not supported", n)
	}
	return i, nil
}

// data reads all of a file, of limit bytes at most. Holes and blocks that were
// allocated and never written are zeros.
func (f *FS) data(i *inode, limit int64) ([]byte, error) {
	if i.size > limit {
		return nil, fmt.Errorf("%w: %d bytes, at most %d", ErrTooLarge, i.size, limit)
	}
	b := make([]byte, i.size)
	for at := int64(0); at < i.size; {
		r, err := f.locate(i, at/f.blockSize)
		if err != nil {
			return nil, err
		}
		// at is always the beginning of a block.
		n := min(r.blocks*f.blockSize, i.size-at)
		if r.start != 0 {
			from := r.start * f.blockSize
			if from > f.size-n {
				return nil, corrupt("data at block %d", r.start)
			}
			if _, err := f.r.ReadAt(b[at:at+n], from); err != nil {
				return nil, err
			}
		}
		at += n
	}
	return b, nil
}

// run is where some blocks of a file are, one after the other: from start on, or
// nowhere if that is 0. There is one block at least.
type run struct{ start, blocks int64 }

// locate finds block n of a file and those behind it.
func (f *FS) locate(i *inode, n int64) (run, error) {
	if i.flags&flagExtents != 0 {
		return f.extent(i.block[:], n)
	}
	return f.mapped(i.block[:], n)
}
