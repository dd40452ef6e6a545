package boot

import (
	"bytes"
	"encoding/binary"
	"io"
	"math/rand"
	"runtime"
	"strings"
	"testing"
	"time"
)

func unpackAll(p []byte) ([]byte, string, error) {
	r, done, name, err := unpack(io.NewSectionReader(bytes.NewReader(p), 0, int64(len(p))))
	if err != nil {
		return nil, name, err
	}
	defer done()
	b, err := io.ReadAll(io.LimitReader(r, 64<<20))
	return b, name, err
}

func TestUnpack(t *testing.T) {
	want := append(testKernel(), make([]byte, 1<<20)...)
	rand.New(rand.NewSource(1)).Read(want[len(want)-300_000:])
	for name := range packers {
		got, format, err := unpackAll(pack(t, name, want))
		if err != nil || format != name || !bytes.Equal(got, want) {
			t.Errorf("%s: %s, %d bytes, %v", name, format, len(got), err)
		}
	}
	got, format, err := unpackAll(want)
	if err != nil || format != "none" || !bytes.Equal(got, want) {
		t.Errorf("none: %s, %d bytes, %v", format, len(got), err)
	}
}

func TestUnpackBzip2(t *testing.T) {
	got, format, err := unpackAll(withSize(unhex("425a6839314159265359d1f61334000004d18000104000024d9000200031064c411ea263d53623a39a3109f92b85dc914e1424347d84cd00"), 25))
	if err != nil || format != "bzip2" || string(got) != "hello hello hello kernel\n" {
		t.Errorf("%s: %q, %v", format, got, err)
	}
}

// TestUnpackXZX86 has 40 calls to one target, packed as the kernel build packs:
// xz --check=crc32 --x86 --lzma2=dict=32MiB.
func TestUnpackXZX86(t *testing.T) {
	var want []byte
	for range 40 {
		want = append(want, 0xe8)
		want = binary.LittleEndian.AppendUint32(want, uint32(0x2000-len(want)-4))
		want = append(want, 0x90)
	}
	got, _, err := unpackAll(withSize(unhex("fd377a585a0000016922de360201040021011a0001c980b3e000ef000c5d0073ffffe00c02ac1417e9c00000a62dc4c3000124f001000000c5a4e0af3e300d8b020000000001595a"), len(want)))
	if err != nil || !bytes.Equal(got, want) {
		t.Errorf("% x, %v", got, err)
	}
}

// TestUnpackDamaged wants an error, and no goroutine left, from every format
// for every kind of damage.
func TestUnpackDamaged(t *testing.T) {
	before := runtime.NumGoroutine()
	plain := make([]byte, 300_000)
	rand.New(rand.NewSource(2)).Read(plain)
	for name := range packers {
		p := pack(t, name, plain)
		short := append(bytes.Clone(p[:len(p)/2]), p[len(p)-4:]...)
		less, more := bytes.Clone(p), bytes.Clone(p)
		if name != "gzip" { // its length is under its own checksum
			binary.LittleEndian.PutUint32(less[len(less)-4:], uint32(len(plain)-1))
			binary.LittleEndian.PutUint32(more[len(more)-4:], uint32(len(plain)+1))
		} else {
			less[len(less)-4]--
			more[len(more)-4]++
		}
		huge := bytes.Clone(p)
		binary.LittleEndian.PutUint32(huge[len(huge)-4:], MaxUnpacked+1)
		for what, b := range map[string][]byte{"truncated": short, "says less": less, "says more": more, "says huge": huge} {
			if _, _, err := unpackAll(b); err == nil || strings.Contains(err.Error(), "\n") {
				t.Errorf("%s, %s: error %v", name, what, err)
			}
		}
	}
	for end := time.Now().Add(5 * time.Second); runtime.NumGoroutine() > before; time.Sleep(10 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("%d goroutines left", runtime.NumGoroutine()-before)
		}
	}
}

func TestUnpackUnknown(t *testing.T) {
	for in, want := range map[string]string{
		"\x89LZO\x00\x0d\x0a\x1a":        "lzo is not supported",
		"just some text":                 "unknown compression (starts with 6a 75 73 74)",
		"\x5d\x00\x00\x00\xff" + "01234": "dictionary",
	} {
		if _, _, err := unpackAll([]byte(in + "0123456789")); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v, want %q", in, err, want)
		}
	}
}

func FuzzUnpack(f *testing.F) {
	for name := range packers {
		f.Add(pack(f, name, testKernel()))
	}
	f.Add([]byte("BZh91AY&SY"))
	f.Fuzz(func(t *testing.T, p []byte) {
		if len(p) < 16 {
			return
		}
		r, done, _, err := unpack(io.NewSectionReader(bytes.NewReader(p), 0, int64(len(p))))
		if err != nil {
			return
		}
		defer done()
		io.Copy(io.Discard, io.LimitReader(r, 1<<20))
	})
}
