package fs

import (
	"bytes"
	"encoding/binary"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"ring3/internal/share"
	"ring3/internal/virtio"
	"ring3/internal/virtio/virtiotest"
)

// start plugs in a share of a new directory with one file, f.
func start(t testing.TB) (d *virtiotest.Driver, dir string) {
	t.Helper()
	dir = t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "f"), []byte("content"), 0o644); err != nil {
		t.Fatal(err)
	}
	return plug(t, share.Options{Path: dir}), dir
}

func plug(t testing.TB, o share.Options) *virtiotest.Driver {
	t.Helper()
	d := virtiotest.New(t, func(p virtio.Platform) virtio.Device {
		tree, err := share.Open(o)
		if err != nil {
			t.Fatal(err)
		}
		dev := New(p, "tag", tree)
		t.Cleanup(func() { dev.Close() })
		return dev
	})
	d.Start(t, virtiotest.Version1)
	return d
}

// message is a request: its header and what follows.
func message(op uint32, node uint64, body ...[]byte) []byte {
	le := binary.LittleEndian
	rest := bytes.Join(body, nil)
	b := le.AppendUint32(nil, uint32(inHeader+len(rest)))
	b = le.AppendUint32(b, op)
	b = le.AppendUint64(b, 77) // unique
	b = le.AppendUint64(b, node)
	return append(append(b, make([]byte, inHeader-24)...), rest...)
}

func u32(v ...uint32) (b []byte) {
	for _, v := range v {
		b = binary.LittleEndian.AppendUint32(b, v)
	}
	return b
}

func u64(v ...uint64) (b []byte) {
	for _, v := range v {
		b = binary.LittleEndian.AppendUint64(b, v)
	}
	return b
}

// ask sends a request with room for an answer, and returns status and body.
func ask(t testing.TB, d *virtiotest.Driver, room, piece int, op uint32, node uint64, body ...[]byte) (errno int32, answer []byte) {
	t.Helper()
	b := d.Request(t, 1, message(op, node, body...), outHeader+room, piece)
	le := binary.LittleEndian
	if len(b) < outHeader || le.Uint64(b[8:]) != 77 || int(le.Uint32(b)) > len(b) {
		t.Fatalf("op %d: the answer is % x", op, b)
	}
	return int32(le.Uint32(b[4:])), b[outHeader:le.Uint32(b)]
}

func initialise(t testing.TB, d *virtiotest.Driver) []byte {
	t.Helper()
	errno, b := ask(t, d, 64, 4096, opInit, 0, u32(7, 38, 1<<20, 1<<22|1<<23|1<<13|1<<12), make([]byte, 48))
	if errno != 0 || len(b) != 64 {
		t.Fatalf("INIT: %d, % x", errno, b)
	}
	return b
}

// TestSession does what a driver does to read and write a file, with buffers in
// one piece and in many.
func TestSession(t *testing.T) {
	for _, piece := range []int{4096, 60} {
		d, dir := start(t)
		if tag := d.DeviceConfig(0, 4); tag != 'g'<<16|'a'<<8|'t' || d.DeviceConfig(36, 4) != 1 {
			t.Errorf("tag %#x, %d queues", tag, d.DeviceConfig(36, 4))
		}
		initialise(t, d)
		le := binary.LittleEndian
		errno, b := ask(t, d, 128, piece, opLookup, 1, []byte("f\x00"))
		if errno != 0 || len(b) != 128 {
			t.Fatalf("LOOKUP: %d, % x", errno, b)
		}
		f := le.Uint64(b)
		errno, b = ask(t, d, 16, piece, opOpen, f, u32(unix.O_RDWR, 0))
		if errno != 0 {
			t.Fatal("OPEN: ", errno)
		}
		fh := le.Uint64(b)
		read := func(off uint64, want string) {
			t.Helper()
			errno, b := ask(t, d, 100, piece, opRead, f, u64(fh, off), u32(100, 0), u64(0), u32(0, 0))
			if errno != 0 || string(b) != want {
				t.Fatalf("READ at %d: %d, %q", off, errno, b)
			}
		}
		read(0, "content")
		read(3, "tent")
		read(100, "")
		for _, n := range []int{5, maxWritten + 100} { // at once, and by a worker
			data := bytes.Repeat([]byte("0123456789"), n/10+1)[:n]
			p := max(piece, n/8)
			errno, b = ask(t, d, 8, p, opWrite, f, u64(fh, 2), u32(uint32(n), 0), u64(0), u32(0, 0), data)
			if errno != 0 || le.Uint32(b) != uint32(n) {
				t.Fatalf("WRITE: %d, % x", errno, b)
			}
			if got, err := os.ReadFile(filepath.Join(dir, "f")); err != nil || string(got[:2+n]) != "co"+string(data) {
				t.Errorf("after a write the file is %.20q", got)
			}
		}
		if errno, _ = ask(t, d, 0, piece, opFsync, f, u64(fh), u32(0, 0)); errno != 0 {
			t.Error("FSYNC: ", errno)
		}
		if errno, _ = ask(t, d, 0, piece, opRelease, f, u64(fh), u32(0, 0), u64(0)); errno != 0 {
			t.Error("RELEASE: ", errno)
		}
		if errno, _ = ask(t, d, 100, piece, opRead, f, u64(fh, 0), u32(100, 0), u64(0), u32(0, 0)); errno != -int32(unix.EBADF) {
			t.Error("READ of a file that is closed: ", errno)
		}
		if b := d.Request(t, 0, message(opForget, f, u64(1)), 0, piece); len(b) != 0 {
			t.Errorf("FORGET is answered: % x", b)
		}
		if errno, _ = ask(t, d, 104, piece, opGetAttr, f, u64(0, 0)); errno != -int32(unix.ESTALE) {
			t.Error("GETATTR of a node that is forgotten: ", errno)
		}
	}
}

// TestDirectory lists a directory in answers that are too small for it.
func TestDirectory(t *testing.T) {
	d, dir := start(t)
	want := map[string]bool{".": true, "..": true, "f": true}
	for i := range 300 {
		name := strings.Repeat("n", i%50+1) + string(rune('a'+i/50))
		want[name] = true
		if err := os.WriteFile(filepath.Join(dir, name), nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	initialise(t, d)
	for op, prefix := range map[uint32]int{opReadDir: 0, opReadDirPlus: 128} {
		errno, b := ask(t, d, 16, 4096, opOpenDir, 1, u32(0, 0))
		if errno != 0 {
			t.Fatal("OPENDIR: ", errno)
		}
		fh, off, got := binary.LittleEndian.Uint64(b), uint64(0), map[string]bool{}
		for {
			errno, b := ask(t, d, 1000, 4096, op, 1, u64(fh, off), u32(1000, 0), u64(0), u32(0, 0))
			if errno != 0 {
				t.Fatalf("op %d: %d", op, errno)
			}
			if len(b) == 0 {
				break
			}
			for len(b) > 0 {
				e := b[prefix:]
				n := int(binary.LittleEndian.Uint32(e[16:]))
				got[string(e[24:24+n])] = true
				off = binary.LittleEndian.Uint64(e[8:])
				b = e[(24+n+7)&^7:]
			}
		}
		if len(got) != len(want) {
			t.Errorf("op %d: %d entries, want %d", op, len(got), len(want))
		}
		for name := range want {
			if !got[name] {
				t.Errorf("op %d: no %s", op, name)
			}
		}
	}
}

// TestHostile sends requests that make no sense. Each gets an error, and the
// device goes on.
func TestHostile(t *testing.T) {
	d, _ := start(t)
	initialise(t, d)
	for name, c := range map[string]struct {
		op   uint32
		body []byte
		room int
		want unix.Errno // 0: any but success
	}{
		"no such operation":      {9999, nil, 0, unix.ENOSYS},
		"attributes":             {opAccess + 200, nil, 0, unix.ENOSYS},
		"short":                  {opOpen, []byte{1}, 100, unix.EIO},
		"no room":                {opLookup, []byte("f\x00"), 5, unix.EIO},
		"huge read":              {opRead, append(u64(1, 0), append(u32(0xffffffff, 0), make([]byte, 16)...)...), 100, unix.EIO},
		"huge directory":         {opReadDir, append(u64(1, 0), append(u32(0xffffffff, 0), make([]byte, 16)...)...), 100, unix.EIO},
		"one name of two":        {opRename, append(u64(1), "f\x00"...), 0, 0},
		"no name":                {opSymlink, nil, 128, 0},
		"no end of a name":       {opUnlink, []byte("nosuch"), 0, 0},
		"long names":             {opSymlink, bytes.Repeat([]byte("x"), 8000), 128, 0},
		"a name upwards":         {opLookup, []byte("..\x00"), 128, unix.EINVAL},
		"a path":                 {opLookup, []byte("a/../../etc\x00"), 128, unix.EINVAL},
		"version":                {opInit, append(u32(8, 0, 0, 0), make([]byte, 48)...), 64, unix.EPROTO},
		"old version":            {opInit, append(u32(7, 8, 0, 0), make([]byte, 48)...), 64, unix.EPROTO},
		"a file that is none":    {opWrite, append(u64(4711, 0), append(u32(9, 0), make([]byte, 25)...)...), 8, unix.EBADF},
		"extensions":             {opMkdir, append(u32(0o755, 0), "..\x00"...), 128, unix.EINVAL},
		"copy of files":          {opCopyFileRange, make([]byte, 56), 8, unix.EBADF},
		"interrupt what is none": {opInterrupt, u64(1), 0, 0},
	} {
		errno, _ := ask(t, d, c.room, 4096, c.op, 1, c.body)
		if errno == 0 || c.want != 0 && errno != -int32(c.want) {
			t.Errorf("%s: %d, want %d", name, errno, -int32(c.want))
		}
	}
	d.Request(t, 1, []byte{1, 2, 3}, 100, 50)
	d.Request(t, 1, message(opLookup, 1, []byte("f\x00")), 3, 50)
	d.Request(t, 0, message(opBatchForget, 0, u32(0xffffffff, 0), u64(1, 1)), 0, 50)
	d.Request(t, 0, message(opBatchForget, 0, u32(5, 0)), 0, 50)
	if errno, _ := ask(t, d, 128, 4096, opLookup, 1, []byte("f\x00")); errno != 0 {
		t.Error("afterwards: ", errno)
	}
	if d.Log.Len() > 0 {
		t.Errorf("the log has %s", d.Log)
	}
}

// TestRestart: a driver that begins anew finds nothing of the one before.
func TestRestart(t *testing.T) {
	d, _ := start(t)
	initialise(t, d)
	_, b := ask(t, d, 128, 4096, opLookup, 1, []byte("f\x00"))
	f := binary.LittleEndian.Uint64(b)
	d.Start(t, virtiotest.Version1)
	initialise(t, d)
	if errno, _ := ask(t, d, 104, 4096, opGetAttr, f, u64(0, 0)); errno != -int32(unix.ESTALE) {
		t.Error(errno)
	}
}

// FuzzRequest: a request of any kind, on a share with a file, a directory that
// is open, and a link to the outside. Nothing outside changes.
func FuzzRequest(f *testing.F) {
	for op := range headers {
		f.Add(op, uint64(2), append(u64(3, 0, 64, 0, 0), "name\x00other\x00"...), uint16(200))
	}
	f.Add(uint32(opMkdir), uint64(1), append(u32(0o755, 0), "..\x00"...), uint16(128))
	top := f.TempDir()
	secret := filepath.Join(top, "secret")
	if err := os.WriteFile(secret, []byte("secret"), 0o600); err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, op uint32, node uint64, body []byte, room uint16) {
		dir, err := os.MkdirTemp(top, "")
		if err != nil {
			t.Fatal(err)
		}
		defer os.RemoveAll(dir)
		os.WriteFile(filepath.Join(dir, "f"), []byte("content"), 0o644)
		os.Symlink("..", filepath.Join(dir, "up"))
		d := plug(t, share.Options{Path: dir})
		initialise(t, d)
		ask(t, d, 128, 4096, opLookup, 1, []byte("f\x00"))  // 2
		ask(t, d, 128, 4096, opLookup, 1, []byte("up\x00")) // 3
		ask(t, d, 16, 4096, opOpen, 2, u32(unix.O_RDWR, 0)) // file 4
		ask(t, d, 16, 4096, opOpenDir, 1, u32(0, 0))        // file 5
		if len(body) > 30000 {
			body = body[:30000]
		}
		d.Request(t, 1, message(op%64, node%8, body), int(room), 4096)
		if strings.Contains(d.Log.String(), "BUG") {
			t.Error(d.Log)
		}
		if list, err := os.ReadDir(top); err != nil || len(list) > 2 {
			t.Errorf("outside of the share: %v, %v", list, err)
		}
		if b, err := os.ReadFile(secret); err != nil || string(b) != "secret" {
			t.Errorf("%q, %v", b, err)
		}
	})
}

// FuzzDriver: a driver that does anything.
func FuzzDriver(f *testing.F) {
	f.Add([]byte{0x40, 1, 0, 0}, []byte{0, 0, 8, 0, 0, 0, 0, 0, 64, 0, 0, 0, 2, 0, 0, 0})
	f.Fuzz(func(t *testing.T, ops, memory []byte) {
		d, _ := start(t)
		virtiotest.Play(d, ops, memory)
		d.Start(t, virtiotest.Version1)
		initialise(t, d)
		if errno, _ := ask(t, d, 128, 4096, opLookup, 1, []byte("f\x00")); errno != 0 {
			t.Errorf("after a reset: %d", errno)
		}
	})
}
