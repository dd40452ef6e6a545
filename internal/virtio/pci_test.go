package virtio_test

import (
	"errors"
	"slices"
	"strings"
	"testing"

	"ring3/internal/guestmem"
	"ring3/internal/virtio"
	. "ring3/internal/virtio/virtiotest"
)

// echo is a device that gives back what it reads. With hold it keeps requests.
type echo struct {
	hold   bool
	held   []*virtio.Chain
	config []byte
	err    error
}

func (e *echo) Info() virtio.Info {
	return virtio.Info{Name: "echo", Type: 40, Class: 0x00ff00, Features: 1, Queues: 2, Config: e.config}
}

func (e *echo) Begin(_ int, c *virtio.Chain) (n uint32, done bool, err error) {
	if e.hold {
		e.held = append(e.held, c)
		return 0, false, nil
	}
	b := make([]byte, min(c.Readable.Len(), c.Writable.Len()))
	c.Readable.Read(b)
	c.Writable.Write(b)
	return uint32(len(b)), true, e.err
}

func newEcho(t testing.TB) (*Driver, *echo) {
	e := &echo{config: []byte{1, 2, 3, 4, 5, 6, 7, 8, 9}}
	return New(t, func(virtio.Platform) virtio.Device { return e }), e
}

func TestIdentity(t *testing.T) {
	d, _ := newEcho(t)
	if got := d.Config(0, 4); got != 0x1068_1af4 {
		t.Errorf("vendor and device %#x", got)
	}
	if got := d.Config(8, 1); got < 1 {
		t.Errorf("revision %d is that of a transitional device", got)
	}
	if got := d.Offered(); got != 1|Indirect|EventIdx|Version1 {
		t.Errorf("offered features %#x", got)
	}
	d.Set(DeviceFeatureSelect, 4, 2)
	if got := d.Get(DeviceFeature, 4); got != 0 {
		t.Errorf("features 64 to 95: %#x", got)
	}
	if got := d.DeviceConfig(4, 4); got != 0x08070605 {
		t.Errorf("device configuration %#x", got)
	}
	if got := d.DeviceConfig(8, 4); got != 9 {
		t.Errorf("end of the device configuration %#x", got)
	}
}

func TestNegotiation(t *testing.T) {
	d, _ := newEcho(t)
	for _, tt := range []struct {
		features uint64
		ok       bool
	}{{Version1, true}, {Version1 | EventIdx | Indirect | 1, true}, {0, false}, {1, false}, {Version1 | 2, false}, {Version1 | 1<<34, false}} {
		if got := d.Accept(tt.features); got != tt.ok {
			t.Errorf("features %#x accepted: %v", tt.features, got)
		}
	}
	d.Set(Status, 1, DriverOK)
	if d.Get(Status, 1)&NeedsReset == 0 {
		t.Error("DRIVER_OK without features is taken")
	}
	d.Set(Status, 1, 0)
	if got := d.Get(Status, 1); got != 0 {
		t.Errorf("status %#x after reset", got)
	}
}

func TestRegisters(t *testing.T) {
	d, _ := newEcho(t)
	d.Set(QueueSelect, 2, 1)
	d.Set(QueueDesc, 8, 0x1122334455667788)
	if lo, hi, all := d.Get(QueueDesc, 4), d.Get(QueueDesc+4, 4), d.Get(QueueDesc, 8); lo != 0x55667788 || hi != 0x11223344 || all != 0x1122334455667788 {
		t.Errorf("queue address %#x, %#x, %#x", lo, hi, all)
	}
	d.Set(QueueDesc+4, 4, 1)
	if got := d.Get(QueueDesc, 8); got != 0x155667788 {
		t.Errorf("upper half written: %#x", got)
	}
	d.Set(QueueVector, 2, 2)
	if got := d.Get(QueueVector, 2); got != 2 {
		t.Errorf("vector %#x", got)
	}
	d.Set(QueueVector, 2, 3)
	if got := d.Get(QueueVector, 2); got != 0xffff {
		t.Errorf("a vector that is not there reads %#x", got)
	}
	if got := d.Get(QueueSize, 2); got != virtio.QueueSize {
		t.Errorf("queue size %d", got)
	}
	d.Set(QueueSelect, 2, 2)
	if got := d.Get(QueueSize, 2); got != 0 {
		t.Errorf("size of a queue that is not there: %d", got)
	}
	d.Set(QueueEnable, 2, 1)
	// Firmware's way to the same registers.
	c := d.ConfigCapability()
	d.SetConfig(c+4, 1, 0)
	d.SetConfig(c+8, 4, NumQueues)
	d.SetConfig(c+12, 4, 2)
	if got := d.Config(c+16, 4) & 0xffff; got != 2 {
		t.Errorf("number of queues through configuration space: %d", got)
	}
	d.SetConfig(c+8, 4, QueueSelect)
	d.SetConfig(c+16, 2, 1)
	if got := d.Get(QueueSelect, 2); got != 1 {
		t.Errorf("queue selected through configuration space: %d", got)
	}
	for _, bad := range []struct{ bar, off, size uint64 }{{1, 0, 4}, {6, 0, 4}, {255, 0, 4}, {0, 2, 4}, {0, 0x4000, 4}, {0, 0xfffffffc, 4}, {0, 0, 3}, {0, 0, 0}, {0, 0, 0xffffffff}} {
		d.SetConfig(c+4, 1, bad.bar)
		d.SetConfig(c+8, 4, bad.off)
		d.SetConfig(c+12, 4, bad.size)
		if got := d.Config(c+16, 4); got != 0 {
			t.Errorf("%+v reads %#x", bad, got)
		}
		d.SetConfig(c+16, 4, 0xffffffff)
	}
}

func TestRequests(t *testing.T) {
	d, _ := newEcho(t)
	for _, features := range []uint64{Version1, Version1 | EventIdx | Indirect} {
		d.Start(t, features)
		for i := range 100 { // around the ring
			want := strings.Repeat("x", i+1)
			q := i % 2
			d.SetUsedEvent(q, d.UsedIdx(q))
			if got := d.Request(t, q, []byte(want), 120, 20); string(got) != want {
				t.Fatalf("request %d: %q", i, got)
			}
			if got := d.Messages(); !slices.Equal(got, []uint32{uint32(q + 1)}) {
				t.Fatalf("request %d: interrupts %v", i, got)
			}
		}
		if features&EventIdx != 0 && d.AvailEvent(0) != 50 {
			t.Errorf("the device wants to hear of request %d", d.AvailEvent(0))
		}
	}
	// Nobody wants an interrupt before request 60.
	d.SetUsedEvent(0, 60)
	d.Request(t, 0, []byte("x"), 1, 1)
	if got := d.Messages(); got != nil {
		t.Errorf("interrupts %v", got)
	}
}

func TestIndirect(t *testing.T) {
	d, _ := newEcho(t)
	d.Start(t, Version1|Indirect)
	d.Mem.WriteAt([]byte("ring3"), 0x80000)
	d.DescAt(0x90000, 0x80000, 5, Next, 1)
	d.DescAt(0x90010, 0x80100, 8, Write, 0)
	d.Desc(0, 3, 0x90000, 32, Table, 0)
	d.Offer(0, 3)
	d.Notify(0)
	if head, n := d.Take(t, 0); head != 3 || n != 5 {
		t.Errorf("head %d, %d bytes", head, n)
	}
	b := make([]byte, 5)
	if d.Mem.ReadAt(b, 0x80100); string(b) != "ring3" {
		t.Errorf("%q", b)
	}
}

func TestPin(t *testing.T) {
	d, _ := newEcho(t)
	d.Accept(Version1)
	d.Enable(0, 16, 0xffff)
	d.Set(Status, 1, DriverOK|FeaturesOK)
	d.Request(t, 0, []byte("x"), 1, 1)
	if !d.Pin() {
		t.Error("no interrupt")
	}
	if got := d.ISR(); got != 1 || d.Pin() {
		t.Errorf("interrupt status %d, pin still high: %v", got, d.Pin())
	}
	if got := d.ISR(); got != 0 {
		t.Errorf("interrupt status %d once read", got)
	}
}

// TestReset: a device with requests is reset only when it has none.
func TestReset(t *testing.T) {
	d, e := newEcho(t)
	d.Start(t, Version1)
	e.hold = true
	d.Desc(0, 0, 0x80000, 8, Write, 0)
	d.Offer(0, 0)
	d.Notify(0)
	if len(e.held) != 1 {
		t.Fatalf("%d requests", len(e.held))
	}
	d.Set(Status, 1, 0)
	if d.Get(Status, 1) == 0 {
		t.Error("the reset is over while the device has a request")
	}
	e.held[0].Complete(8)
	if d.Get(Status, 1) != 0 || d.UsedIdx(0) != 0 || d.Messages() != nil {
		t.Error("after the reset something is left of the request")
	}
}

// TestCode: what a device writes is told to engines before the driver sees it.
func TestCode(t *testing.T) {
	d, _ := newEcho(t)
	d.Start(t, Version1)
	u := &codeUser{}
	d.Mem.AddCodeUser(u)
	d.Mem.MarkCode(0x81000)
	d.Mem.MarkCode(0x83000)
	d.Mem.WriteAt(make([]byte, 0x2008), 0x90000)
	d.Desc(0, 0, 0x90000, 0x2004, Next, 1)
	d.Desc(0, 1, 0x80ffc, 0x3000, Write, 0)
	d.Offer(0, 0)
	d.Notify(0)
	if want := []uint64{0x81000}; !slices.Equal(u.dropped, want) {
		t.Errorf("code dropped at %#x, want %#x", u.dropped, want)
	}
}

type codeUser struct{ dropped []uint64 }

func (u *codeUser) DropCode(gpa uint64, n int) bool {
	u.dropped = append(u.dropped, gpa)
	return false
}
func (u *codeUser) PageBecameCode(uint64)  {}
func (u *codeUser) RevokeStubWrite(uint64) {}

// TestHostile: each of these ends with a device that needs a reset, a reason in
// the log, and works again after the reset.
func TestHostile(t *testing.T) {
	const ram = 4 << 20
	type desc struct {
		addr        uint64
		size        uint32
		flags, next uint16
	}
	good := desc{0x80000, 8, Write, 0}
	for name, tt := range map[string]struct {
		descs []desc
		table []desc // indirect, at 0x90000
		head  uint16
		avail uint16 // index of the available ring; 0: one request
		why   string
	}{
		"head":                {descs: []desc{good}, head: 16, why: "descriptor 16"},
		"next":                {descs: []desc{{0x80000, 8, Next, 99}}, why: "descriptor 99"},
		"loop":                {descs: []desc{{0x80000, 8, Next, 1}, {0x80000, 8, Next, 0}}, why: "more descriptors than the queue"},
		"self":                {descs: []desc{{0x80000, 8, Next, 0}}, why: "more descriptors than the queue"},
		"outside":             {descs: []desc{{ram - 4, 8, Write, 0}}, why: "outside RAM"},
		"far outside":         {descs: []desc{{1 << 63, 8, Write, 0}}, why: "outside RAM"},
		"around the end":      {descs: []desc{{^uint64(0) - 3, 8, Write, 0}}, why: "outside RAM"},
		"huge":                {descs: []desc{{0x80000, 0xffffffff, Write, 0}}, why: "outside RAM"},
		"empty":               {descs: []desc{{0x80000, 0, Write, 0}}, why: "no bytes"},
		"read behind write":   {descs: []desc{{0x80000, 8, Write | Next, 1}, {0x80000, 8, 0, 0}}, why: "behind one to be written"},
		"ring too full":       {descs: []desc{good}, avail: 17, why: "17 requests wait"},
		"ring goes back":      {descs: []desc{good}, avail: 0xffff, why: "65535 requests wait"},
		"table in table":      {descs: []desc{{0x90000, 16, Table, 0}}, table: []desc{{0x90000, 16, Table, 0}}, why: "out of place"},
		"table and next":      {descs: []desc{{0x90000, 16, Table | Next, 1}, good}, table: []desc{good}, why: "out of place"},
		"odd table":           {descs: []desc{{0x90000, 17, Table, 0}}, table: []desc{good}, why: "out of place"},
		"loop in table":       {descs: []desc{{0x90000, 16, Table, 0}}, table: []desc{{0x80000, 8, Next, 0}}, why: "more descriptors than the queue"},
		"next outside table":  {descs: []desc{{0x90000, 16, Table, 0}}, table: []desc{{0x80000, 8, Next, 1}}, why: "descriptor 1"},
		"table outside":       {descs: []desc{{ram, 16, Table, 0}}, why: "outside RAM"},
		"table over its rest": {descs: []desc{{ram - 16, 32, Table, 0}}, why: "outside RAM"},
	} {
		t.Run(name, func(t *testing.T) {
			d, _ := newEcho(t)
			d.Start(t, Version1|Indirect)
			for i, e := range tt.descs {
				d.Desc(0, uint16(i), e.addr, e.size, e.flags, e.next)
			}
			for i, e := range tt.table {
				d.DescAt(0x90000+16*uint64(i), e.addr, e.size, e.flags, e.next)
			}
			d.Offer(0, tt.head)
			if tt.avail != 0 {
				d.SetAvail(0, tt.avail)
			}
			d.Notify(0)
			stopped(t, d, tt.why)
			d.Start(t, Version1)
			if got := d.Request(t, 0, []byte("x"), 1, 1); string(got) != "x" {
				t.Errorf("after the reset the device says %q", got)
			}
		})
	}
}

// stopped checks that the device is, and why.
func stopped(t *testing.T, d *Driver, why string) {
	t.Helper()
	if d.Get(Status, 1)&NeedsReset == 0 {
		t.Error("the device goes on")
	}
	if !strings.Contains(d.Log.String(), why) {
		t.Errorf("log %q, want %q", d.Log, why)
	}
	if got := d.Messages(); !slices.Equal(got, []uint32{0}) {
		t.Errorf("interrupts %v, want that of the configuration", got)
	}
	d.Notify(0)
	d.Notify(1)
	if n := d.UsedIdx(0); n != 0 {
		t.Errorf("the stopped device gave back %d", n)
	}
}

// TestHostileQueue: queues that cannot be.
func TestHostileQueue(t *testing.T) {
	for name, set := range map[string]func(*Driver){
		"size 0":           func(d *Driver) { d.Set(QueueSize, 2, 0) },
		"size 3":           func(d *Driver) { d.Set(QueueSize, 2, 3) },
		"size 512":         func(d *Driver) { d.Set(QueueSize, 2, 512) },
		"odd descriptors":  func(d *Driver) { d.Set(QueueDesc, 8, 0x10008) },
		"odd available":    func(d *Driver) { d.Set(QueueDriver, 8, 0x11001) },
		"odd used":         func(d *Driver) { d.Set(QueueDevice, 8, 0x12002) },
		"no RAM":           func(d *Driver) { d.Set(QueueDesc, 8, 1<<40) },
		"end of RAM":       func(d *Driver) { d.Set(QueueDevice, 8, 4<<20-8) },
		"end of addresses": func(d *Driver) { d.Set(QueueDriver, 8, ^uint64(1)) },
	} {
		d, _ := newEcho(t)
		d.Accept(Version1)
		d.Set(QueueSelect, 2, 0)
		d.Set(QueueDesc, 8, 0x10000)
		d.Set(QueueDriver, 8, 0x11000)
		d.Set(QueueDevice, 8, 0x12000)
		set(d)
		d.Set(QueueEnable, 2, 1)
		if d.Get(QueueEnable, 2) != 0 || d.Get(Status, 1)&NeedsReset == 0 {
			t.Errorf("%s: enabled", name)
		}
	}
}

// TestTooMany: the same descriptor over and over, while the device works on it.
func TestTooMany(t *testing.T) {
	d, e := newEcho(t)
	d.Start(t, Version1)
	e.hold = true
	d.Desc(0, 0, 0x80000, 8, Write, 0)
	for range 17 {
		d.Offer(0, 0)
		d.Notify(0)
	}
	if len(e.held) != 16 {
		t.Errorf("the device has %d requests of a queue of 16", len(e.held))
	}
	stopped(t, d, "before one of 16 is complete")
	for _, c := range e.held {
		c.Complete(1)
	}
	if n := d.UsedIdx(0); n != 0 {
		t.Errorf("the stopped device gave back %d", n)
	}
	d.Start(t, Version1)
}

func TestDeviceError(t *testing.T) {
	d, e := newEcho(t)
	e.err = errors.New("nonsense")
	d.Start(t, Version1)
	d.Desc(0, 0, 0x80000, 8, Write, 0)
	d.Offer(0, 0)
	d.Notify(0)
	stopped(t, d, "nonsense")
	for range 100 { // cannot fill the log
		d.Start(t, Version1)
		d.Offer(0, 0)
		d.Notify(0)
	}
	if n := strings.Count(d.Log.String(), "\n"); n > 10 {
		t.Errorf("%d lines of log", n)
	}
}

// FuzzDriver: a driver that does anything. Guest memory is the start of the
// input, then come accesses.
func FuzzDriver(f *testing.F) {
	f.Add([]byte{0x01, 0x1c, 0, 1}, []byte{0, 0, 9, 0, 0, 0, 0, 0, 8, 0, 0, 0, 2, 0, 0, 0})
	f.Add([]byte{0x42, 0, 0, 0, 0x42, 0, 0, 0}, []byte{0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 8, 0, 0, 0, 4, 0})
	f.Fuzz(func(t *testing.T, ops, memory []byte) {
		d, e := newEcho(t)
		d.Start(t, Version1|EventIdx|Indirect)
		Play(d, ops, memory)
		e.hold = len(ops)%2 == 0
		Play(d, ops, memory)
		for _, c := range e.held {
			c.Complete(uint32(len(memory)))
		}
		e.held, e.hold = nil, false
		d.Start(t, Version1)
		if got := d.Request(t, 0, []byte("x"), 1, 1); string(got) != "x" {
			t.Errorf("after a reset the device says %q", got)
		}
	})
}

var _ guestmem.CodeUser = (*codeUser)(nil)
