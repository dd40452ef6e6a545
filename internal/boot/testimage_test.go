package boot

import (
	"bytes"
	"compress/gzip"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"io"
	"testing"

	"github.com/klauspost/compress/zstd"
	"github.com/pierrec/lz4/v4"
	ulixz "github.com/ulikunitz/xz"
	"github.com/ulikunitz/xz/lzma"
)

// ram is guest memory for tests. Only the first len(data) bytes are really
// there; writes beyond them are checked against size and dropped.
type ram struct {
	data []byte
	size uint64
}

func newRAM(size uint64) *ram { return &ram{data: make([]byte, min(size, 64<<20)), size: size} }

func (r *ram) Size() uint64 { return r.size }

func (r *ram) WriteAt(p []byte, gpa uint64) error {
	ok := false
	for _, g := range RAMRanges(r.size) {
		ok = ok || gpa >= g.Start && gpa <= g.End && uint64(len(p)) <= g.End-gpa
	}
	if !ok {
		return fmt.Errorf("write of %d bytes at %#x is outside RAM", len(p), gpa)
	}
	if gpa < uint64(len(r.data)) {
		copy(r.data[gpa:], p)
	}
	return nil
}

func (r *ram) u64(gpa uint64) uint64 { return binary.LittleEndian.Uint64(r.data[gpa:]) }

// prog is a PT_LOAD segment of a test ELF.
type prog struct {
	vaddr, paddr, memsz uint64
	data                []byte
}

// makeELF builds an ELF64 file with the segments' data one behind the other
// from offset 4096.
func makeELF(entry uint64, progs ...prog) []byte {
	le := binary.LittleEndian
	b := make([]byte, 4096)
	copy(b, "\x7fELF\x02\x01\x01")
	le.PutUint16(b[16:], 2)  // ET_EXEC
	le.PutUint16(b[18:], 62) // EM_X86_64
	le.PutUint32(b[20:], 1)
	le.PutUint64(b[24:], entry)
	le.PutUint64(b[32:], 64) // e_phoff
	le.PutUint16(b[52:], 64)
	le.PutUint16(b[54:], 56)
	le.PutUint16(b[56:], uint16(len(progs)))
	for i, p := range progs {
		h := b[64+56*i:]
		le.PutUint32(h, 1) // PT_LOAD
		le.PutUint32(h[4:], 7)
		le.PutUint64(h[8:], uint64(len(b)))
		le.PutUint64(h[16:], p.vaddr)
		le.PutUint64(h[24:], p.paddr)
		le.PutUint64(h[32:], uint64(len(p.data)))
		le.PutUint64(h[40:], p.memsz)
		b = append(b, p.data...)
	}
	return b
}

const (
	testVirt  = 0xffffffff81000000
	testPhys  = 0x1000000
	testEntry = testPhys + 8
)

// testKernel is an ELF kernel of two segments, the second half bss, with
// relocations behind it as the kernel build leaves them.
func testKernel() []byte {
	text := bytes.Repeat([]byte("text"), 2000)
	data := bytes.Repeat([]byte("data"), 1000)
	k := makeELF(testEntry,
		prog{testVirt, testPhys, uint64(len(text)), text},
		prog{testVirt + 0x200000, testPhys + 0x200000, 0x4000, data})
	return append(k, make([]byte, 5000)...)
}

// makeBzImage wraps a compressed kernel. edit may change the setup header.
func makeBzImage(payload []byte, edit func(h []byte)) []byte {
	const setup = 3 * setupSectSize
	le := binary.LittleEndian
	b := make([]byte, setup)
	b[hdrSetupSects] = 2
	le.PutUint16(b[hdrBootFlag:], bootFlag)
	b[hdrJump] = 0x6a
	copy(b[hdrMagic:], "HdrS")
	le.PutUint16(b[hdrVersion:], 0x20f)
	le.PutUint16(b[hdrKVersion:], 0x200)
	copy(b[0x400:], "6.1.0-test (me) #1\x00")
	b[hdrLoadFlags] = 0x83
	le.PutUint32(b[hdrInitrdMax:], 0x7fffffff)
	le.PutUint16(b[hdrXLoadFlags:], 3)
	le.PutUint32(b[hdrCmdlineSize:], 100)
	const off = 64
	le.PutUint32(b[hdrPayloadOff:], off)
	le.PutUint32(b[hdrPayloadLen:], uint32(len(payload)))
	le.PutUint64(b[hdrPrefAddr:], testPhys)
	le.PutUint32(b[hdrInitSize:], 0x300000)
	code := append(make([]byte, off), payload...)
	code = append(code, make([]byte, -len(code)&15)...)
	le.PutUint32(b[hdrSyssize:], uint32(len(code)/16))
	if edit != nil {
		edit(b)
	}
	return append(b, code...)
}

func file(name string, b []byte) File {
	return File{Name: name, Data: bytes.NewReader(b), Size: int64(len(b))}
}

// packers compress as the kernel build does. There is no bzip2 compressor to
// be had; see bzip2Hello.
var packers = map[string]func(io.Writer) (io.WriteCloser, error){
	"gzip": func(w io.Writer) (io.WriteCloser, error) { return gzip.NewWriter(w), nil },
	"xz":   func(w io.Writer) (io.WriteCloser, error) { return ulixz.NewWriter(w) },
	"lzma": func(w io.Writer) (io.WriteCloser, error) { return lzma.NewWriter(w) },
	"zstd": func(w io.Writer) (io.WriteCloser, error) { return zstd.NewWriter(w) },
	"lz4": func(w io.Writer) (io.WriteCloser, error) {
		z := lz4.NewWriter(w)
		return z, z.Apply(lz4.LegacyOption(true))
	},
}

func pack(t testing.TB, name string, b []byte) []byte {
	t.Helper()
	var out bytes.Buffer
	w, err := packers[name](&out)
	if err == nil {
		if _, err = w.Write(b); err == nil {
			err = w.Close()
		}
	}
	if err != nil {
		t.Fatal(err)
	}
	if name != "gzip" {
		return withSize(out.Bytes(), len(b))
	}
	return out.Bytes()
}

func withSize(b []byte, n int) []byte { return binary.LittleEndian.AppendUint32(b, uint32(n)) }

func unhex(s string) []byte {
	b, err := hex.DecodeString(s)
	if err != nil {
		panic(err)
	}
	return b
}
