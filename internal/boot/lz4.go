package boot

import (
	"encoding/binary"
	"fmt"
	"io"

	"github.com/pierrec/lz4/v4"
)

// lz4Block is the unpacked size of every block of a legacy frame but the last,
// in bytes.
const lz4Block = 8 << 20

// lz4Reader unpacks the legacy frame format that the kernel build uses: magic,
// then blocks of a 32-bit length and that many compressed bytes ("Legacy
// frame" in lz4_Frame_format.md). It holds one block, which the library's
// reader multiplies.
type lz4Reader struct {
	r      io.Reader
	in     []byte
	block  []byte
	unread []byte // rest of block
}

func openLZ4(r io.Reader) (io.Reader, error) {
	if _, err := io.CopyN(io.Discard, r, 4); err != nil { // magic
		return nil, err
	}
	return &lz4Reader{r: r, block: make([]byte, lz4Block)}, nil
}

func (z *lz4Reader) Read(p []byte) (int, error) {
	for len(z.unread) == 0 {
		if err := z.next(); err != nil {
			return 0, err
		}
	}
	n := copy(p, z.unread)
	z.unread = z.unread[n:]
	return n, nil
}

// next unpacks a block.
func (z *lz4Reader) next() error {
	var word [4]byte
	if _, err := io.ReadFull(z.r, word[:]); err != nil {
		return err // io.EOF between blocks is the end
	}
	n := binary.LittleEndian.Uint32(word[:])
	if string(word[:]) == lz4Magic { // another frame
		return nil
	}
	if n == 0 || int64(n) > int64(lz4.CompressBlockBound(lz4Block)) {
		return fmt.Errorf("lz4: block of %d bytes", n)
	}
	if uint32(cap(z.in)) < n {
		z.in = make([]byte, n)
	}
	if _, err := io.ReadFull(z.r, z.in[:n]); err != nil {
		if err == io.EOF {
			err = io.ErrUnexpectedEOF
		}
		return err
	}
	m, err := lz4.UncompressBlock(z.in[:n], z.block)
	if err != nil {
		return fmt.Errorf("lz4: damaged block: %w", err)
	}
	z.unread = z.block[:m]
	return nil
}
