package blk

import (
	"bytes"
	"encoding/binary"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"ring3/internal/disk"
	"ring3/internal/virtio"
	"ring3/internal/virtio/virtiotest"
)

const sectors = 256

// open makes a disk of 256 sectors, each full of its number.
func open(t testing.TB, o disk.Options) (d *virtiotest.Driver, path string) {
	t.Helper()
	path = filepath.Join(t.TempDir(), "disk.img")
	var b []byte
	for i := range sectors {
		b = append(b, bytes.Repeat([]byte{byte(i)}, disk.SectorSize)...)
	}
	if err := os.WriteFile(path, b, 0o600); err != nil {
		t.Fatal(err)
	}
	o.Path = path
	img, err := disk.Open(o)
	if err != nil {
		t.Fatal(err)
	}
	return drive(t, img, o.ReadOnly, false), path
}

func drive(t testing.TB, img disk.Image, readOnly, exclusive bool) *virtiotest.Driver {
	return virtiotest.New(t, func(p virtio.Platform) virtio.Device {
		p.Exclusive = exclusive
		dev := New(p, Config{Name: "vda", Image: img, ReadOnly: readOnly, Queues: 2})
		t.Cleanup(func() {
			if err := dev.Close(); err != nil {
				t.Error(err)
			}
		})
		return dev
	})
}

func header(kind uint32, sector uint64, data ...byte) []byte {
	b := binary.LittleEndian.AppendUint32(nil, kind)
	b = binary.LittleEndian.AppendUint32(b, 0)
	return append(binary.LittleEndian.AppendUint64(b, sector), data...)
}

// ask sends a request and returns its data and status.
func ask(t testing.TB, d *virtiotest.Driver, out []byte, in, piece int) ([]byte, byte) {
	t.Helper()
	got := d.Request(t, 1, out, in+1, piece)
	if len(got) != in+1 {
		t.Fatalf("%d bytes came back, want %d", len(got), in+1)
	}
	return got[:in], got[in]
}

// ranges are those to discard or to write zeros to: sector, number, flags of
// each.
func ranges(v ...uint32) (b []byte) {
	for ; len(v) > 0; v = v[3:] {
		b = binary.LittleEndian.AppendUint64(b, uint64(v[0]))
		b = binary.LittleEndian.AppendUint32(b, v[1])
		b = binary.LittleEndian.AppendUint32(b, v[2])
	}
	return b
}

func TestConfiguration(t *testing.T) {
	d, _ := open(t, disk.Options{})
	for off, want := range map[uint64]uint64{0: sectors, 12: 254, 20: 512, 36: maxDiscard, 44: 8, 48: maxZeroes} {
		if got := d.DeviceConfig(off, 4); got != want {
			t.Errorf("configuration at %d: %d, want %d", off, got, want)
		}
	}
	if got := d.DeviceConfig(34, 2); got != 2 {
		t.Errorf("%d queues", got)
	}
	if d.Offered()&featureReadOnly != 0 {
		t.Error("the disk is read-only")
	}
	d, _ = open(t, disk.Options{ReadOnly: true})
	if f := d.Offered(); f&featureReadOnly == 0 || f&(featureDiscard|featureWriteZeroes) != 0 {
		t.Errorf("features of a read-only disk %#x", f)
	}
}

func TestReadWrite(t *testing.T) {
	for _, piece := range []int{4096, 700, 512, 300} { // buffers end anywhere
		d, path := open(t, disk.Options{})
		d.Start(t, virtiotest.Version1)
		got, st := ask(t, d, header(typeIn, 3), 1024, piece)
		if want := append(bytes.Repeat([]byte{3}, 512), bytes.Repeat([]byte{4}, 512)...); st != statusOK || !bytes.Equal(got, want) {
			t.Errorf("piece %d: read has status %d", piece, st)
		}
		data := bytes.Repeat([]byte("ring3..."), 128)
		if _, st := ask(t, d, header(typeOut, 254, data...), 0, piece); st != statusOK {
			t.Errorf("piece %d: write has status %d", piece, st)
		}
		if _, st := ask(t, d, header(typeFlush, 0), 0, piece); st != statusOK {
			t.Errorf("piece %d: flush has status %d", piece, st)
		}
		b, err := os.ReadFile(path)
		if err != nil || !bytes.Equal(b[254*512:], data) || b[253*512] != 253 {
			t.Errorf("piece %d: the file has something else: %v", piece, err)
		}
	}
}

func TestSnapshot(t *testing.T) {
	d, path := open(t, disk.Options{Snapshot: true})
	d.Start(t, virtiotest.Version1)
	data := bytes.Repeat([]byte{0xaa}, 512)
	if _, st := ask(t, d, header(typeOut, 0, data...), 0, 4096); st != statusOK {
		t.Errorf("status %d", st)
	}
	if got, _ := ask(t, d, header(typeIn, 0), 512, 4096); !bytes.Equal(got, data) {
		t.Error("the write is lost")
	}
	if b, err := os.ReadFile(path); err != nil || b[0] != 0 {
		t.Errorf("the file was written to: %v", err)
	}
}

func TestZeroes(t *testing.T) {
	d, path := open(t, disk.Options{})
	d.Start(t, virtiotest.Version1)
	if _, st := ask(t, d, header(typeWriteZeroes, 0, ranges(5, 2, 0, 9, 1, flagUnmap)...), 0, 4096); st != statusOK {
		t.Errorf("status %d", st)
	}
	if _, st := ask(t, d, header(typeDiscard, 0, ranges(16, 8, 0)...), 0, 4096); st != statusOK {
		t.Errorf("discard has status %d", st)
	}
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	for i, want := range map[int]byte{4: 4, 5: 0, 6: 0, 7: 7, 8: 8, 9: 0, 10: 10} {
		if b[i*512] != want || b[i*512+511] != want {
			t.Errorf("sector %d has %d", i, b[i*512])
		}
	}
}

func TestID(t *testing.T) {
	d, _ := open(t, disk.Options{})
	d.Start(t, virtiotest.Version1)
	if got, st := ask(t, d, header(typeGetID, 0), 20, 4096); st != statusOK || string(bytes.TrimRight(got, "\x00")) != "vda" {
		t.Errorf("%q, status %d", got, st)
	}
}

// TestRefused: requests that the device answers with an error, and works on.
func TestRefused(t *testing.T) {
	sector := make([]byte, 512)
	for name, tt := range map[string]struct {
		readOnly bool
		out      []byte
		in       int
		status   byte
	}{
		"read behind the end":    {out: header(typeIn, sectors), in: 512, status: statusIOErr},
		"read over the end":      {out: header(typeIn, sectors-1), in: 1024, status: statusIOErr},
		"read far away":          {out: header(typeIn, 1<<63), in: 512, status: statusIOErr},
		"read at the last":       {out: header(typeIn, 1<<64-1), in: 1024, status: statusIOErr},
		"read half a sector":     {out: header(typeIn, 0), in: 100, status: statusIOErr},
		"read nothing":           {out: header(typeIn, 0), status: statusIOErr},
		"write behind the end":   {out: header(typeOut, sectors, sector...), status: statusIOErr},
		"write half a sector":    {out: header(typeOut, 0, sector[:9]...), status: statusIOErr},
		"write to read-only":     {readOnly: true, out: header(typeOut, 0, sector...), status: statusIOErr},
		"zero read-only":         {readOnly: true, out: header(typeWriteZeroes, 0, ranges(0, 1, 0)...), status: statusIOErr},
		"unknown":                {out: header(77, 0), status: statusUnsupported},
		"short ID":               {out: header(typeGetID, 0), in: 19, status: statusIOErr},
		"discard nothing":        {out: header(typeDiscard, 0), status: statusIOErr},
		"discard half a range":   {out: header(typeDiscard, 0, make([]byte, 8)...), status: statusIOErr},
		"discard no sector":      {out: header(typeDiscard, 0, ranges(0, 0, 0)...), status: statusIOErr},
		"discard over the end":   {out: header(typeDiscard, 0, ranges(0, 1, 0, sectors-1, 2, 0)...), status: statusIOErr},
		"discard with unmap":     {out: header(typeDiscard, 0, ranges(0, 1, flagUnmap)...), status: statusUnsupported},
		"zero with another flag": {out: header(typeWriteZeroes, 0, ranges(0, 1, 2)...), status: statusUnsupported},
		"too many ranges":        {out: header(typeDiscard, 0, make([]byte, 17*16)...), status: statusIOErr},
		"zero far away":          {out: header(typeWriteZeroes, 0, ranges(0xffffffff, 0xffffffff, 0)...), status: statusIOErr},
	} {
		t.Run(name, func(t *testing.T) {
			d, path := open(t, disk.Options{ReadOnly: tt.readOnly})
			before, _ := os.ReadFile(path)
			d.Start(t, virtiotest.Version1)
			if _, st := ask(t, d, tt.out, tt.in, 4096); st != tt.status {
				t.Errorf("status %d, want %d", st, tt.status)
			}
			if got, st := ask(t, d, header(typeIn, 1), 512, 4096); st != statusOK || got[0] != 1 {
				t.Errorf("afterwards, status %d", st)
			}
			if after, err := os.ReadFile(path); err != nil || !bytes.Equal(before, after) {
				t.Errorf("the image was changed: %v", err)
			}
		})
	}
}

// TestBroken: what is no request stops the device.
func TestBroken(t *testing.T) {
	for name, shape := range map[string]struct{ out, in int }{"no header": {15, 1}, "no status": {16, 0}} {
		d, _ := open(t, disk.Options{})
		d.Start(t, virtiotest.Version1)
		flags := uint16(0)
		if shape.in > 0 {
			flags = virtiotest.Next
		}
		d.Desc(0, 0, 0x80000, uint32(shape.out), flags, 1)
		d.Desc(0, 1, 0x81000, uint32(shape.in), virtiotest.Write, 0)
		d.Offer(0, 0)
		d.Notify(0)
		if d.Get(virtiotest.Status, 1)&virtiotest.NeedsReset == 0 || !strings.Contains(d.Log.String(), "a request of") {
			t.Errorf("%s: the device goes on; log %q", name, d.Log)
		}
	}
}

// failing is an image on a host that fails.
type failing struct{ disk.Image }

func (f failing) ReadAt([][]byte, int64) error    { return errors.New("the cable is out") }
func (f failing) ReadCached([][]byte, int64) bool { return false }
func (f failing) Flush() error                    { return errors.New("the cable is out") }
func (f failing) Size() int64                     { return 512 * sectors }
func (f failing) Close() error                    { return nil }

func TestHostFails(t *testing.T) {
	for _, exclusive := range []bool{false, true} {
		d := drive(t, failing{}, false, exclusive)
		d.Start(t, virtiotest.Version1)
		for range 3 {
			if _, st := ask(t, d, header(typeIn, 0), 512, 4096); st != statusIOErr {
				t.Errorf("read has status %d", st)
			}
			if _, st := ask(t, d, header(typeFlush, 0), 0, 4096); st != statusIOErr {
				t.Errorf("flush has status %d", st)
			}
		}
		if n := strings.Count(d.Log.String(), "the cable is out"); n != 1 {
			t.Errorf("%d lines of log", n)
		}
	}
}

// FuzzDriver: a driver that does anything, to a disk that is thrown away.
func FuzzDriver(f *testing.F) {
	read := append([]byte{0, 0, 8, 0, 0, 0, 0, 0, 16, 0, 0, 0, 1, 0, 1, 0}, 0, 2, 8, 0, 0, 0, 0, 0, 1, 2, 0, 0, 2, 0, 0, 0)
	f.Add([]byte{0x40, 1, 0, 0}, append(read, make([]byte, 32)...), header(typeIn, 1))
	f.Add([]byte{0x40, 2, 0, 0, 0x00, 0x14, 0, 0}, append(read, make([]byte, 32)...), header(typeWriteZeroes, 0, ranges(1, 1, 1)...))
	f.Fuzz(func(t *testing.T, ops, memory, request []byte) {
		d, _ := open(t, disk.Options{Snapshot: true})
		d.Start(t, virtiotest.Version1|virtiotest.EventIdx|virtiotest.Indirect)
		d.Mem.WriteAt(request[:min(len(request), 4096)], 0x80000)
		virtiotest.Play(d, ops, memory)
		for d.Set(virtiotest.Status, 1, 0); d.Get(virtiotest.Status, 1) != 0; {
		}
		d.Start(t, virtiotest.Version1)
		if _, st := ask(t, d, header(typeIn, 1), 512, 4096); st != statusOK {
			t.Errorf("after a reset, status %d", st)
		}
	})
}
