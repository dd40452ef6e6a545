package uart

import (
	"bytes"
	"errors"
	"strings"
	"sync"
	"testing"
	"time"
)

// irqLine records an interrupt line.
type irqLine struct {
	mu    sync.Mutex
	level bool
	edges int // rising
}

func (l *irqLine) Set(level bool) {
	l.mu.Lock()
	if level && !l.level {
		l.edges++
	}
	l.level = level
	l.mu.Unlock()
}

func (l *irqLine) high() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.level
}

// sink is a writer that can block.
type sink struct {
	mu     sync.Mutex
	buf    bytes.Buffer
	writes int
	gate   chan struct{} // when set, each Write takes one
}

func (s *sink) Write(p []byte) (int, error) {
	if s.gate != nil {
		<-s.gate
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.writes++
	return s.buf.Write(p)
}

type rig struct {
	*UART
	t    *testing.T
	irq  irqLine
	sink sink
}

func newRig(t *testing.T) *rig {
	r := &rig{t: t}
	r.UART = New(&r.irq, &r.sink)
	t.Cleanup(func() { r.Close() })
	return r
}

func (r *rig) out(reg uint64, v byte) { r.Write(reg, []byte{v}) }

func (r *rig) in(reg uint64) byte {
	var b [1]byte
	r.Read(reg, b[:])
	return b[0]
}

func (r *rig) want(reg uint64, want byte, what string) {
	r.t.Helper()
	if got := r.in(reg); got != want {
		r.t.Errorf("%s: register %d is %#02x, want %#02x", what, reg, got, want)
	}
}

// open is what a driver does: FIFOs on, RTS, DTR and interrupts enabled.
func (r *rig) open(ier byte) {
	r.out(regIIR, 0x07)
	r.out(regMCR, mcrDTR|mcrRTS|mcrOUT2)
	r.out(regIER, ier)
}

func TestResetValues(t *testing.T) {
	r := newRig(t)
	r.want(regIER, 0, "reset")
	r.want(regIIR, iirNone, "reset")
	r.want(regLCR, 0, "reset")
	r.want(regMCR, 0, "reset")
	r.want(regLSR, lsrTHRE|lsrTEMT, "reset")
	r.want(regMSR, msrCTS|msrDSR|msrDCD, "reset")
}

func TestRegisters(t *testing.T) {
	r := newRig(t)
	r.out(regIER, 0xff)
	r.want(regIER, 0x0f, "IER has four bits")
	r.out(regLCR, lcrDLAB|3)
	r.out(0, 0x34)
	r.out(1, 0x12)
	r.want(0, 0x34, "divisor")
	r.want(1, 0x12, "divisor")
	r.out(regLCR, 3)
	r.want(regIER, 0x0f, "IER behind DLAB")
	r.out(regSCR, 0xa5)
	r.want(regSCR, 0xa5, "scratch")
	r.out(regMCR, 0xff)
	r.want(regMCR, 0x1f, "MCR has five bits")
	r.out(regIIR, fcrEnable)
	if r.in(regIIR)&0xc0 != 0xc0 {
		t.Error("FIFO bits clear")
	}
	r.out(regIIR, fcrEnable|1<<5)
	if r.in(regIIR)&0x20 != 0 {
		t.Error("a 64-byte FIFO is claimed")
	}
}

// The existence and type tests of Linux's 8250 driver.
func TestAutodetect(t *testing.T) {
	r := newRig(t)
	r.out(regIER, 0)
	r.want(regIER, 0, "IER test")
	r.out(regIER, 0x0f)
	r.want(regIER, 0x0f, "IER test")
	r.out(regIER, 0)
	r.out(regMCR, mcrLoop|0x0a)
	if got := r.in(regMSR) & 0xf0; got != 0x90 {
		t.Errorf("loopback: MSR %#x, want 0x90", got)
	}
	// Bytes in the FIFO, counted in loopback mode.
	r.out(regIIR, 0x07)
	r.out(regMCR, mcrLoop)
	for i := range 256 {
		r.out(regData, byte(i))
	}
	n := 0
	for ; r.in(regLSR)&lsrDR != 0; n++ {
		if got := r.in(regData); got != byte(n) {
			t.Errorf("byte %d is %d", n, got)
		}
	}
	if n != fifoSize {
		t.Errorf("%d bytes in the FIFO", n)
	}
	r.Close()
	if r.sink.buf.Len() != 0 {
		t.Error("loopback leaked")
	}
}

// Toggling the interrupt enable raises the interrupt of an empty transmitter
// each time: Linux tests for chips that do not.
func TestTHREInterrupt(t *testing.T) {
	r := newRig(t)
	r.open(ierTHRE)
	r.want(regIIR, iirFIFO|iirTHRE, "enabled")
	r.want(regIIR, iirFIFO|iirNone, "reading ends it")
	r.out(regIER, 0)
	r.out(regIER, ierTHRE)
	if !r.irq.high() {
		t.Error("line low")
	}
	r.want(regIIR, iirFIFO|iirTHRE, "enabled again")
	if r.irq.high() {
		t.Error("line high")
	}
	r.out(regData, 'x')
	if !r.irq.high() {
		t.Error("line low after a byte")
	}
	r.out(regMCR, mcrRTS|mcrDTR)
	if r.irq.high() {
		t.Error("line high without OUT2")
	}
}

func TestReceiveInterrupts(t *testing.T) {
	r := newRig(t)
	r.open(ierRDA)
	r.out(regIIR, 0x81) // trigger at 8
	r.Receive([]byte("12345"))
	if !r.irq.high() {
		t.Error("line low")
	}
	r.want(regIIR, iirFIFO|iirTimeout, "below the trigger")
	r.Receive([]byte("678"))
	r.want(regIIR, iirFIFO|iirRDA, "at the trigger")
	for i := range 8 {
		r.want(regLSR, lsrDR|lsrTHRE|lsrTEMT, "data")
		r.want(regData, byte('1'+i), "data")
	}
	r.want(regIIR, iirFIFO|iirNone, "read")
	if r.irq.high() {
		t.Error("line high")
	}
}

func TestFlowControl(t *testing.T) {
	r := newRig(t)
	r.Receive([]byte("early"))
	r.want(regLSR, lsrTHRE|lsrTEMT, "RTS is off")
	r.out(regIIR, 0x07) // a driver clears the FIFOs and the data register
	r.in(regData)
	r.out(regMCR, mcrRTS)
	for _, c := range []byte("early") {
		r.want(regData, c, "RTS is on")
	}
}

func TestBackPressure(t *testing.T) {
	r := newRig(t)
	r.open(0)
	in := make([]byte, 3*maxPending)
	for i := range in {
		in[i] = byte(i * 7)
	}
	if n := r.Receive(in); n != maxPending {
		t.Errorf("Receive took %d", n)
	}
	sent := make(chan error)
	go func() { sent <- r.Send(in[maxPending:]) }()
	var got []byte
	for len(got) < len(in) {
		if r.in(regLSR)&lsrDR != 0 {
			got = append(got, r.in(regData))
		}
	}
	if !bytes.Equal(got, in) {
		t.Error("input differs")
	}
	if err := <-sent; err != nil {
		t.Error(err)
	}
	if r.Waiting() != 0 {
		t.Errorf("%d bytes wait", r.Waiting())
	}
	go func() { sent <- r.Send(in) }()
	for r.Waiting() == 0 {
		time.Sleep(time.Millisecond)
	}
	r.Close()
	if err := <-sent; !errors.Is(err, ErrClosed) {
		t.Errorf("Send after Close: %v", err)
	}
}

func TestBreak(t *testing.T) {
	r := newRig(t)
	r.open(ierRDA | ierRLS)
	r.Receive([]byte("a"))
	r.Break()
	r.Receive([]byte("h"))
	r.want(regLSR, lsrDR|lsrTHRE|lsrTEMT|lsrErr, "byte before the break")
	r.want(regData, 'a', "")
	r.want(regIIR, iirFIFO|iirRLS, "break")
	r.want(regLSR, lsrDR|lsrBI|lsrTHRE|lsrTEMT|lsrErr, "break")
	r.want(regData, 0, "break")
	r.want(regData, 'h', "after the break")
}

func TestModemStatusChange(t *testing.T) {
	r := newRig(t)
	r.out(regIER, ierMS)
	r.out(regMCR, mcrLoop|mcrOUT1)
	r.want(regMSR, msrRI|1<<0|1<<1|1<<3, "CTS, DSR and DCD fell")
	r.out(regMCR, mcrLoop)
	r.want(regIIR, iirMS, "change pending")
	r.want(regMSR, msrTERI, "RI fell")
	r.want(regIIR, iirNone, "reading ends it")
}

func TestOutput(t *testing.T) {
	r := newRig(t)
	want := strings.Repeat("ring3 boots\r\n", 1000)
	for i := range len(want) {
		r.out(regData, want[i])
	}
	if err := r.Close(); err != nil {
		t.Fatal(err)
	}
	if r.sink.buf.String() != want {
		t.Errorf("%d bytes came out of %d", r.sink.buf.Len(), len(want))
	}
	if r.sink.writes > len(want)/20 {
		t.Errorf("%d writes for %d bytes", r.sink.writes, len(want))
	}
}

func TestOutputPrompt(t *testing.T) {
	r := newRig(t)
	r.out(regData, '$')
	deadline := time.Now().Add(5 * time.Second)
	for time.Now().Before(deadline) {
		r.sink.mu.Lock()
		n := r.sink.buf.Len()
		r.sink.mu.Unlock()
		if n == 1 {
			return
		}
		time.Sleep(time.Millisecond)
	}
	t.Error("a single byte never came out")
}

// A writer that blocks makes the transmitter busy and loses nothing of a guest
// that looks at the LSR.
func TestOutputBlocked(t *testing.T) {
	r := &rig{t: t}
	r.sink.gate = make(chan struct{}, 100)
	r.UART = New(&r.irq, &r.sink)
	r.open(ierTHRE)
	n := 0
	for ; r.in(regLSR)&lsrTHRE != 0; n++ {
		if n > 3*maxOutput {
			t.Fatal("the transmitter is never busy")
		}
		r.out(regData, byte(n))
	}
	r.want(regIIR, iirFIFO|iirNone, "busy")
	r.sink.gate <- struct{}{}
	for !r.irq.high() {
		time.Sleep(time.Millisecond)
	}
	r.want(regIIR, iirFIFO|iirTHRE, "no longer busy")
	close(r.sink.gate)
	if err := r.Close(); err != nil {
		t.Fatal(err)
	}
	if r.sink.buf.Len() != n {
		t.Errorf("%d bytes came out of %d", r.sink.buf.Len(), n)
	}
	for i, b := range r.sink.buf.Bytes() {
		if b != byte(i) {
			t.Fatalf("byte %d is %#x", i, b)
		}
	}
}

type broken struct{}

func (broken) Write([]byte) (int, error) { return 0, errors.New("gone") }

func TestOutputFails(t *testing.T) {
	u := New(&irqLine{}, broken{})
	for range 3 * maxOutput {
		u.Write(regData, []byte{'x'})
	}
	if err := u.Close(); err == nil || err.Error() != "gone" {
		t.Errorf("Close: %v", err)
	}
}

func TestConcurrent(t *testing.T) {
	r := newRig(t)
	r.open(0x0f)
	var wg sync.WaitGroup
	wg.Add(2)
	go func() {
		defer wg.Done()
		for range 500 {
			r.Receive([]byte("abcdefghij"))
			r.Break()
		}
	}()
	go func() {
		defer wg.Done()
		for i := range 5000 {
			r.in(uint64(i % 8))
			r.out(regData, 'x')
		}
	}()
	wg.Wait()
}

func FuzzAccess(f *testing.F) {
	f.Add([]byte{0x04, 0x0b, 0x01, 0x0f, 0x02, 0x81, 0x10, 'x', 0x20, 'y', 0x00, 'z'})
	u := New(&irqLine{}, &sink{})
	f.Fuzz(func(t *testing.T, in []byte) {
		u.Reset()
		for ; len(in) >= 2; in = in[2:] {
			reg, v := uint64(in[0]&7), in[1]
			switch in[0] >> 4 {
			case 1:
				u.Receive([]byte{v, v})
			case 2:
				u.Break()
			case 3:
				u.Read(reg, make([]byte, 1<<(v&3)))
			case 4:
				u.Write(reg, bytes.Repeat([]byte{v}, 1<<(v&3)))
			case 5:
				u.Read(reg, make([]byte, 1))
			default:
				u.Write(reg, []byte{v})
			}
		}
		u.mu.Lock()
		if len(u.rx) > fifoSize || len(u.pending) > maxPending {
			t.Errorf("%d bytes in the FIFO, %d wait", len(u.rx), len(u.pending))
		}
		u.mu.Unlock()
	})
}
