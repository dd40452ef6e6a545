package net

import (
	"bytes"
	"encoding/binary"
	"io"
	"strings"
	"sync"
	"testing"

	"ring3/internal/virtio"
	"ring3/internal/virtio/virtiotest"
)

// wire is a port for tests: what is sent is kept, what is received comes from a
// channel.
type wire struct {
	plain    bool // no offloads
	incoming chan []Frame
	closed   chan struct{}
	once     sync.Once

	mu       sync.Mutex
	accepts  Accepts
	sent     []Frame
	released int
}

func (w *wire) Offloads() bool { return !w.plain }

func (w *wire) Ready(a Accepts) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.accepts = a
}

func (w *wire) Send(h Header, frame virtio.Buffers) {
	b := make([]byte, frame.Len())
	frame.Read(b)
	w.mu.Lock()
	defer w.mu.Unlock()
	w.sent = append(w.sent, Frame{Header: h, Parts: [][]byte{b}})
}

func (w *wire) Receive(f []Frame) (int, error) {
	select {
	case in := <-w.incoming:
		for i := range in {
			in[i].Release = w.release
		}
		return copy(f, in), nil
	case <-w.closed:
		return 0, io.EOF
	}
}

func (w *wire) release() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.released++
}

func (w *wire) Close() error {
	w.once.Do(func() { close(w.closed) })
	return nil
}

// take returns what was sent since the last call.
func (w *wire) take() []Frame {
	w.mu.Lock()
	defer w.mu.Unlock()
	s := w.sent
	w.sent = nil
	return s
}

// arrive has frames come, and returns when the device has dealt with those
// before them.
func (w *wire) arrive(f ...Frame) { w.incoming <- f }

var mac = [6]byte{0x52, 0x54, 0, 1, 2, 3}

const everything = virtiotest.Version1 | virtiotest.EventIdx | virtiotest.Indirect |
	featureMAC | featureMTU | featureStatus | featureMrgRxbuf | offloads

const offloads = featureCsum | featureGuestCsum | featureGuestTSO4 | featureHostTSO4

func start(t testing.TB, w *wire, exclusive bool) *virtiotest.Driver {
	w.incoming, w.closed = make(chan []Frame), make(chan struct{})
	return virtiotest.New(t, func(p virtio.Platform) virtio.Device {
		p.Exclusive = exclusive
		d := New(p, Config{Name: "eth0", MAC: mac, MTU: 1500, Port: w})
		t.Cleanup(func() {
			if err := d.Close(); err != nil {
				t.Error(err)
			}
		})
		return d
	})
}

// bytesOf is a frame of n bytes, all different from their neighbours.
func bytesOf(n int) []byte {
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(i*7 + i>>8)
	}
	return b
}

func TestConfiguration(t *testing.T) {
	d := start(t, &wire{}, false)
	if got := d.DeviceConfig(0, 4); got != 0x01005452 {
		t.Errorf("MAC begins with %#x", got)
	}
	for off, want := range map[uint64]uint64{4: 0x0302, 6: 1, 8: 1, 10: 1500} {
		if got := d.DeviceConfig(off, 2); got != want {
			t.Errorf("configuration at %d: %#x, want %#x", off, got, want)
		}
	}
	if got := d.Offered(); got != everything {
		t.Errorf("features %#x, want %#x", got, uint64(everything))
	}
	if got := start(t, &wire{plain: true}, false).Offered(); got != everything&^offloads {
		t.Errorf("features without offloads %#x", got)
	}
}

func TestAccepts(t *testing.T) {
	w := &wire{}
	d := start(t, w, false)
	for features, want := range map[uint64]Accepts{
		everything:                     {true, true},
		everything &^ featureGuestTSO4: {true, false},
		everything &^ featureGuestCsum: {},
		virtiotest.Version1:            {},
	} {
		d.Start(t, features)
		if w.accepts != want {
			t.Errorf("features %#x: %+v, want %+v", features, w.accepts, want)
		}
	}
}

// header is one as a driver writes it.
func header(flags, gso byte, hdrLen, size, start, offset uint16) []byte {
	b := []byte{flags, gso}
	for _, v := range []uint16{hdrLen, size, start, offset, 0} {
		b = binary.LittleEndian.AppendUint16(b, v)
	}
	return b
}

func TestTransmit(t *testing.T) {
	w := &wire{}
	d := start(t, w, false)
	for name, tt := range map[string]struct {
		without uint64 // features
		header  []byte
		size    int
		want    Header
		lost    bool
	}{
		"plain":                       {header: header(0, 0, 0, 0, 0, 0), size: 60},
		"shortest":                    {header: header(0, 0, 0, 0, 0, 0), size: 14},
		"too short":                   {header: header(0, 0, 0, 0, 0, 0), size: 13, lost: true},
		"nothing":                     {header: header(0, 0, 0, 0, 0, 0), lost: true},
		"longest":                     {header: header(0, 0, 0, 0, 0, 0), size: maxFrame},
		"too long":                    {header: header(0, 0, 0, 0, 0, 0), size: maxFrame + 1, lost: true},
		"checksum":                    {header: header(1, 0, 0, 0, 34, 16), size: 100, want: Header{NeedsChecksum: true, ChecksumStart: 34, ChecksumOffset: 16}},
		"checksum at the end":         {header: header(1, 0, 0, 0, 82, 16), size: 100, want: Header{NeedsChecksum: true, ChecksumStart: 82, ChecksumOffset: 16}},
		"checksum over the end":       {header: header(1, 0, 0, 0, 83, 16), size: 100, lost: true},
		"checksum far away":           {header: header(1, 0, 0, 0, 0xffff, 0xffff), size: 100, lost: true},
		"checksum not negotiated":     {without: offloads, header: header(1, 0, 0, 0, 34, 16), size: 100, lost: true},
		"segments":                    {header: header(1, 1, 54, 1448, 34, 16), size: 9000, want: Header{NeedsChecksum: true, ChecksumStart: 34, ChecksumOffset: 16, HeaderSize: 54, SegmentSize: 1448}},
		"segments of nothing":         {header: header(1, 1, 54, 0, 34, 16), size: 9000, lost: true},
		"segments without a checksum": {header: header(0, 1, 54, 1448, 0, 0), size: 9000, lost: true},
		"segments not negotiated":     {without: featureHostTSO4, header: header(1, 1, 54, 1448, 34, 16), size: 9000, lost: true},
		"segments of UDP":             {header: header(1, 3, 54, 1448, 34, 16), size: 9000, lost: true},
		"segments of TCP over IPv6":   {header: header(1, 4, 54, 1448, 34, 16), size: 9000, lost: true},
	} {
		for _, piece := range []int{70000, 8192, 5000} {
			d.Start(t, everything&^tt.without)
			frame := bytesOf(tt.size)
			d.Request(t, transmitQueue, append(bytes.Clone(tt.header), frame...), 0, piece)
			sent := w.take()
			switch {
			case tt.lost && len(sent) == 0:
			case tt.lost || len(sent) != 1:
				t.Errorf("%s: %d frames were sent", name, len(sent))
			case sent[0].Header != tt.want || !bytes.Equal(sent[0].Parts[0], frame):
				t.Errorf("%s: header %+v, want %+v; %d bytes", name, sent[0].Header, tt.want, sent[0].Len())
			}
		}
	}
}

func TestTransmitNoHeader(t *testing.T) {
	w := &wire{}
	d := start(t, w, false)
	d.Start(t, everything)
	d.Desc(transmitQueue, 0, 0x80000, 11, 0, 0)
	d.Offer(transmitQueue, 0)
	d.Notify(transmitQueue)
	if d.Get(virtiotest.Status, 1)&virtiotest.NeedsReset == 0 || !strings.Contains(d.Log.String(), "shorter than its header") {
		t.Errorf("the device goes on; log %q", d.Log)
	}
}

// TestTransmitInterrupt: one comes late, without another frame.
func TestTransmitInterrupt(t *testing.T) {
	d := start(t, &wire{}, false)
	d.Start(t, everything)
	d.Request(t, transmitQueue, append(header(0, 0, 0, 0, 0, 0), bytesOf(60)...), 0, 4096)
	for { // the test's own time limit ends this
		for _, m := range d.Messages() {
			if m == transmitQueue+1 {
				return
			}
		}
	}
}

// buffersAt is where receive puts them; each has a page.
const buffersAt = 0x200000

// offer gives the device n buffers of size bytes.
func offer(d *virtiotest.Driver, n, size int) {
	for i := range n {
		d.Desc(receiveQueue, uint16(i), buffersAt+uint64(i)<<12, uint32(size), virtiotest.Write, 0)
		d.Offer(receiveQueue, uint16(i))
	}
	d.Notify(receiveQueue)
}

// receive takes a frame out of the buffers.
func receive(t *testing.T, d *virtiotest.Driver) (head []byte, frame []byte) {
	t.Helper()
	var all []byte
	for n := 1; n > 0; n-- {
		i, size := d.Take(t, receiveQueue)
		b := make([]byte, size)
		if err := d.Mem.ReadAt(b, buffersAt+uint64(i)<<12); err != nil {
			t.Fatal(err)
		}
		if all == nil {
			n = int(binary.LittleEndian.Uint16(b[10:]))
		}
		all = append(all, b...)
	}
	return all[:headerSize], all[headerSize:]
}

func TestReceive(t *testing.T) {
	long := Header{NeedsChecksum: true, ChecksumStart: 34, ChecksumOffset: 16, SegmentSize: 1448, HeaderSize: 66}
	for _, exclusive := range []bool{false, true} {
		w := &wire{}
		d := start(t, w, exclusive)
		d.Start(t, everything)
		offer(d, 16, 1000)
		first, second := bytesOf(64), bytesOf(9000)
		w.arrive(Frame{Parts: [][]byte{first[:20], nil, first[20:]}}, Frame{Header: long, Parts: [][]byte{second}})
		head, frame := receive(t, d)
		if !bytes.Equal(frame, first) || !bytes.Equal(head, []byte{10: 1, 11: 0}) {
			t.Errorf("first frame: header % x, %d bytes", head, len(frame))
		}
		head, frame = receive(t, d)
		if !bytes.Equal(frame, second) || !bytes.Equal(head, []byte{1, 1, 66, 0, 0xa8, 5, 34, 0, 16, 0, 10, 0}) {
			t.Errorf("second frame: header % x, %d bytes", head, len(frame))
		}
	}
}

// TestReceiveWaits: a frame for which there are too few buffers waits for them.
func TestReceiveWaits(t *testing.T) {
	for _, events := range []uint64{everything, everything &^ virtiotest.EventIdx} {
		w := &wire{}
		d := start(t, w, false)
		d.Start(t, events)
		offer(d, 3, 1000)
		want := bytesOf(5000)
		w.arrive(Frame{Parts: [][]byte{want}})
		for i := 3; i < 6; i++ { // one after the other
			d.Desc(receiveQueue, uint16(i), buffersAt+uint64(i)<<12, 1000, virtiotest.Write, 0)
			d.Offer(receiveQueue, uint16(i))
			d.Notify(receiveQueue)
		}
		if _, frame := receive(t, d); !bytes.Equal(frame, want) {
			t.Errorf("%d bytes", len(frame))
		}
	}
}

// TestReceiveLost: frames that cannot be given to the driver; those behind them
// can.
func TestReceiveLost(t *testing.T) {
	sum := Header{NeedsChecksum: true, ChecksumStart: 34, ChecksumOffset: 16}
	segments := Header{NeedsChecksum: true, ChecksumStart: 34, ChecksumOffset: 16, SegmentSize: 1448, HeaderSize: 66}
	for name, tt := range map[string]struct {
		features uint64
		lost     Frame
	}{
		"longer than the only buffer":   {everything &^ featureMrgRxbuf, Frame{Parts: [][]byte{bytesOf(1001 - headerSize)}}},
		"longer than the ring":          {everything, Frame{Parts: [][]byte{bytesOf(16001 - headerSize)}}},
		"no frame":                      {everything, Frame{Parts: [][]byte{bytesOf(13)}}},
		"longer than any":               {everything, Frame{Parts: [][]byte{bytesOf(maxFrame + 1)}}},
		"checksum that nobody computes": {everything &^ featureGuestCsum, Frame{Header: sum, Parts: [][]byte{bytesOf(100)}}},
		"segments that nobody cuts":     {everything &^ featureGuestTSO4, Frame{Header: segments, Parts: [][]byte{bytesOf(3000)}}},
	} {
		w := &wire{}
		d := start(t, w, false)
		w.arrive(Frame{Parts: [][]byte{bytesOf(60)}}) // there is no driver yet
		w.arrive()
		d.Start(t, tt.features)
		offer(d, 16, 1000)
		want := bytesOf(61)
		w.arrive(tt.lost, Frame{Parts: [][]byte{want}})
		if _, frame := receive(t, d); !bytes.Equal(frame, want) {
			t.Errorf("%s: %d bytes came, want %d", name, len(frame), len(want))
		}
		w.arrive() // the others are dealt with
		if w.mu.Lock(); w.released != 3 {
			t.Errorf("%s: %d of 3 frames were released", name, w.released)
		}
		w.mu.Unlock()
	}
}

// TestReset: while a frame waits for buffers.
func TestReset(t *testing.T) {
	w := &wire{}
	d := start(t, w, false)
	d.Start(t, everything)
	offer(d, 2, 1000)
	w.arrive(Frame{Parts: [][]byte{bytesOf(5000)}})
	for d.Set(virtiotest.Status, 1, 0); d.Get(virtiotest.Status, 1) != 0; {
	}
	w.arrive()
	d.Start(t, everything)
	offer(d, 2, 1000)
	w.arrive(Frame{Parts: [][]byte{bytesOf(500)}})
	if _, frame := receive(t, d); len(frame) != 500 {
		t.Errorf("%d bytes", len(frame))
	}
}

// TestReceiveHostile: buffers that are none.
func TestReceiveHostile(t *testing.T) {
	for name, tt := range map[string]struct {
		addr  uint64
		size  uint32
		flags uint16
		why   string
	}{
		"to be read":  {buffersAt, 1000, 0, "no room"},
		"outside RAM": {1 << 40, 1000, virtiotest.Write, "outside RAM"},
		"empty":       {buffersAt, 0, virtiotest.Write, "no bytes"},
	} {
		w := &wire{}
		d := start(t, w, false)
		d.Start(t, everything)
		d.Desc(receiveQueue, 0, tt.addr, tt.size, tt.flags, 0)
		d.Offer(receiveQueue, 0)
		w.arrive(Frame{Parts: [][]byte{bytesOf(100)}})
		w.arrive()
		if d.Get(virtiotest.Status, 1)&virtiotest.NeedsReset == 0 || !strings.Contains(d.Log.String(), tt.why) {
			t.Errorf("%s: the device goes on; log %q", name, d.Log)
		}
	}
}

// FuzzDriver: a driver that does anything, while frames come.
func FuzzDriver(f *testing.F) {
	f.Add([]byte{0x40, 2, 0, 0, 0x40, 1, 1, 0}, []byte{0, 0, 0x20, 0, 0, 0, 0, 0, 0, 4, 0, 0, 2, 0, 0, 0}, header(1, 1, 54, 100, 34, 16))
	f.Fuzz(func(t *testing.T, ops, memory, frame []byte) {
		w := &wire{}
		d := start(t, w, len(ops)%2 == 0)
		d.Start(t, everything)
		done := make(chan struct{})
		go func() {
			defer close(done)
			for i := range 4 {
				w.arrive(Frame{Parts: [][]byte{bytesOf(60 << (2 * i))}}, Frame{Parts: [][]byte{frame}})
			}
		}()
		virtiotest.Play(d, ops, memory)
		for d.Set(virtiotest.Status, 1, 0); d.Get(virtiotest.Status, 1) != 0; {
		}
		<-done
		w.arrive()
		d.Start(t, everything)
		if len(frame) >= headerSize {
			d.Request(t, transmitQueue, frame[:min(len(frame), 4096)], 0, 1000)
		}
		offer(d, 4, 1000)
		w.arrive(Frame{Parts: [][]byte{bytesOf(100)}})
		if _, size := d.Take(t, receiveQueue); size != 100+headerSize {
			t.Errorf("after a reset, %d bytes", size)
		}
	})
}
