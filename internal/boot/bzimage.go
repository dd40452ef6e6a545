package boot

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"
)

// File is an input with random access, such as an *os.File or a bytes.Reader.
type File struct {
	Name string // for messages
	Data io.ReaderAt
	Size int64 // bytes
}

// Offsets of setup header fields in the image, which are also their offsets in
// boot_params.
const (
	hdrStart       = 0x1f1
	hdrSetupSects  = 0x1f1 // u8, 512-byte sectors behind the first; 0 means 4
	hdrSyssize     = 0x1f4 // u32, protected-mode code in units of 16 bytes
	hdrVidMode     = 0x1fa // u16
	hdrBootFlag    = 0x1fe // u16, 0xaa55
	hdrJump        = 0x201 // u8, header ends at 0x202 plus this
	hdrMagic       = 0x202 // "HdrS"
	hdrVersion     = 0x206 // u16
	hdrKVersion    = 0x20e // u16, offset from 0x200 of the version string
	hdrLoader      = 0x210 // u8
	hdrLoadFlags   = 0x211 // u8
	hdrCode32      = 0x214 // u32
	hdrInitrdAddr  = 0x218 // u32
	hdrInitrdSize  = 0x21c // u32
	hdrCmdlinePtr  = 0x228 // u32
	hdrInitrdMax   = 0x22c // u32
	hdrAlign       = 0x230 // u32
	hdrRelocatable = 0x234 // u8
	hdrXLoadFlags  = 0x236 // u16, version 2.12
	hdrCmdlineSize = 0x238 // u32, without the NUL
	hdrPayloadOff  = 0x248 // u32, from the start of protected-mode code
	hdrPayloadLen  = 0x24c // u32
	hdrSetupData   = 0x250 // u64
	hdrPrefAddr    = 0x258 // u64, version 2.10
	hdrInitSize    = 0x260 // u32, version 2.10
	hdrMaxEnd      = 0x290 // boot_params has something else from here on

	bootFlag      = 0xaa55
	loadedHigh    = 1 << 0 // loadflags
	xlfAbove4G    = 1 << 1 // xloadflags: initrd and parameters may be above 4 GiB
	minProtocol   = 0x208  // first version with payload_offset
	setupSectSize = 512
)

// bzImage is a parsed bzImage header.
type bzImage struct {
	file    File
	header  []byte // image bytes [0, end of setup header)
	version uint16 // boot protocol version
	kernel  string // version string, "" if the header has none
	payload int64  // file offset of the compressed kernel
	length  int64  // its length in bytes, with the size word behind it
}

// errNotBzImage says that a file has no setup header at all.
var errNotBzImage = errors.New("no Linux boot header")

// parseBzImage reads the setup header of f. It returns errNotBzImage when f
// is something else, and an *InputError when it is a bzImage that cannot be
// used.
func parseBzImage(f File) (*bzImage, error) {
	h := make([]byte, hdrMaxEnd)
	n, err := readAtMost(f, h, 0)
	if err != nil {
		return nil, inputErr(f.Name, err, "cannot read")
	}
	h = h[:n]
	if n < hdrVersion+2 || binary.LittleEndian.Uint16(h[hdrBootFlag:]) != bootFlag ||
		string(h[hdrMagic:hdrMagic+4]) != "HdrS" {
		return nil, errNotBzImage
	}
	b := &bzImage{file: f, version: binary.LittleEndian.Uint16(h[hdrVersion:])}
	if b.version < minProtocol {
		return nil, inputErr(f.Name, nil, "boot protocol %d.%02d is too old, 2.08 (Linux 2.6.26) is the first supported",
			b.version>>8, b.version&0xff)
	}
	end := hdrMagic + int(h[hdrJump])
	if end < hdrSetupData {
		return nil, inputErr(f.Name, nil, "damaged bzImage: setup header of %d bytes is too short", end-hdrStart)
	}
	end = min(end, hdrMaxEnd)
	if n < end {
		return nil, inputErr(f.Name, nil, "truncated bzImage: the file ends inside the setup header")
	}
	b.header = h[:end]

	sects := int64(h[hdrSetupSects])
	if sects == 0 {
		sects = 4
	}
	code := (sects + 1) * setupSectSize
	want := code + 16*int64(binary.LittleEndian.Uint32(h[hdrSyssize:]))
	if f.Size < want {
		return nil, inputErr(f.Name, nil, "truncated bzImage: %d of %d bytes", f.Size, want)
	}
	b.payload = code + int64(binary.LittleEndian.Uint32(h[hdrPayloadOff:]))
	b.length = int64(binary.LittleEndian.Uint32(h[hdrPayloadLen:]))
	if b.length < 16 || b.payload+b.length > f.Size {
		return nil, inputErr(f.Name, nil, "damaged bzImage: compressed kernel at %#x, %#x bytes long, is not inside the file of %#x bytes",
			b.payload, b.length, f.Size)
	}
	b.kernel = b.versionString(code)
	return b, nil
}

// versionString reads the version string in the real-mode code, which ends at
// file offset end.
func (b *bzImage) versionString(end int64) string {
	off := int64(binary.LittleEndian.Uint16(b.header[hdrKVersion:]))
	if off == 0 || off+0x200 >= end {
		return ""
	}
	s := make([]byte, min(end-off-0x200, 256))
	n, err := readAtMost(b.file, s, off+0x200)
	if err != nil {
		return ""
	}
	s, _, ok := bytes.Cut(s[:n], []byte{0})
	if !ok {
		return ""
	}
	return printable(s)
}

func (b *bzImage) u8(off int) uint8   { return field(b.header, off, 1)[0] }
func (b *bzImage) u16(off int) uint16 { return binary.LittleEndian.Uint16(field(b.header, off, 2)) }
func (b *bzImage) u32(off int) uint32 { return binary.LittleEndian.Uint32(field(b.header, off, 4)) }
func (b *bzImage) u64(off int) uint64 { return binary.LittleEndian.Uint64(field(b.header, off, 8)) }

// field returns n bytes of h at off, zeros for what an old, short header does
// not have.
func field(h []byte, off, n int) []byte {
	if off+n > len(h) {
		return make([]byte, n)
	}
	return h[off : off+n]
}

// readAtMost fills p from off as far as the file goes.
func readAtMost(f File, p []byte, off int64) (int, error) {
	if left := f.Size - off; int64(len(p)) > left {
		p = p[:max(left, 0)]
	}
	n, err := f.Data.ReadAt(p, off)
	if errors.Is(err, io.EOF) {
		err = nil
	}
	return n, err
}

// printable replaces what a terminal would act on.
func printable(s []byte) string {
	out := make([]byte, len(s))
	for i, c := range s {
		if c < ' ' || c > '~' {
			c = '?'
		}
		out[i] = c
	}
	return string(out)
}
