package boot

import (
	"bufio"
	"bytes"
	"compress/bzip2"
	"compress/gzip"
	"encoding/binary"
	"errors"
	"fmt"
	"io"

	"github.com/klauspost/compress/zstd"
	"github.com/mikelolasagasti/xz"
	"github.com/ulikunitz/xz/lzma"
)

// MaxUnpacked bounds the unpacked kernel, in bytes.
const MaxUnpacked = 512 << 20

// maxDict bounds the window or dictionary of a compressed kernel, in bytes.
// The kernel's own build uses up to 128 MiB.
const maxDict = 128 << 20

// format is a way of compressing kernels.
type format struct {
	name  string
	magic string
	// sizeWord: the kernel build appends the unpacked length, 32 bits little
	// endian, which is not part of the format (gzip has its own).
	sizeWord bool
	open     func(io.Reader) (io.Reader, error)
}

// formats lists the supported ones; the magics are those of the kernel's
// lib/decompress.c.
var formats = []format{
	{"gzip", "\x1f\x8b", false, openGzip},
	{"bzip2", "BZh", true, func(r io.Reader) (io.Reader, error) { return bzip2.NewReader(r), nil }},
	{"xz", "\xfd7zXZ\x00", true, func(r io.Reader) (io.Reader, error) { return xz.NewReader(r, maxDict) }},
	{"lzma", "\x5d\x00\x00", true, openLzma},
	{"lz4", lz4Magic, true, openLZ4},
	{"zstd", "\x28\xb5\x2f\xfd", true, openZstd},
}

const (
	lz4Magic  = "\x02\x21\x4c\x18"
	lzopMagic = "\x89LZO"
)

var errTooLong = fmt.Errorf("unpacks to more than %s", mib(MaxUnpacked))

// unpack opens the compressed kernel p of a bzImage. The reader ends with an
// error if the data are damaged or the kernel is not as long as it says.
// The caller must call the returned function in the end.
func unpack(p *io.SectionReader) (r io.Reader, done func(), name string, err error) {
	var magic [6]byte
	if _, err := p.ReadAt(magic[:], 0); err != nil {
		return nil, nil, "", err
	}
	if bytes.HasPrefix(magic[:], []byte(lzopMagic)) {
		return nil, nil, "lzo", errors.New("compression lzo is not supported")
	}
	if string(magic[:4]) == elfMagic {
		return p, func() {}, "none", nil
	}
	for _, f := range formats {
		if !bytes.HasPrefix(magic[:], []byte(f.magic)) {
			continue
		}
		var size [4]byte
		if _, err := p.ReadAt(size[:], p.Size()-4); err != nil {
			return nil, nil, f.name, err
		}
		body := p
		if f.sizeWord {
			body = io.NewSectionReader(p, 0, p.Size()-4)
		}
		r, err := f.open(bufio.NewReaderSize(body, 64<<10))
		if err != nil {
			return nil, nil, f.name, err
		}
		done := func() {}
		if c, ok := r.(interface{ Close() }); ok { // zstd
			done = c.Close
		}
		return &exactReader{r: r, left: int64(binary.LittleEndian.Uint32(size[:]))}, done, f.name, nil
	}
	return nil, nil, "", fmt.Errorf("unknown compression (starts with % x)", magic[:4])
}

func openGzip(r io.Reader) (io.Reader, error) {
	z, err := gzip.NewReader(r)
	if err == nil {
		z.Multistream(false)
	}
	return z, err
}

func openLzma(r io.Reader) (io.Reader, error) {
	h := make([]byte, lzma.HeaderLen)
	if _, err := io.ReadFull(r, h); err != nil {
		return nil, err
	}
	// Properties byte, dictionary size: refuse what would only eat memory.
	if d := binary.LittleEndian.Uint32(h[1:]); d > maxDict {
		return nil, fmt.Errorf("dictionary of %s is too large", mib(uint64(d)))
	}
	return lzma.NewReader(io.MultiReader(bytes.NewReader(h), r))
}

func openZstd(r io.Reader) (io.Reader, error) {
	return zstd.NewReader(r, zstd.WithDecoderMaxWindow(maxDict), zstd.WithDecoderConcurrency(1),
		zstd.WithDecoderLowmem(true))
}

// exactReader wants exactly left bytes of r.
type exactReader struct {
	r    io.Reader
	left int64
}

func (e *exactReader) Read(p []byte) (int, error) {
	if e.left > MaxUnpacked {
		return 0, errTooLong
	}
	n, err := e.r.Read(p)
	e.left -= int64(n)
	switch {
	case e.left < 0:
		return 0, errors.New("unpacks to more bytes than it says")
	case err == io.EOF && e.left > 0:
		return n, fmt.Errorf("ends %d bytes early: %w", e.left, io.ErrUnexpectedEOF)
	}
	return n, err
}
