package vcpu

import (
	"context"
	"log/slog"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"ring3/internal/bus"
	"ring3/internal/cpu"
	"ring3/internal/direct"
	"ring3/internal/guestmem"
	"ring3/internal/interp"
	"ring3/internal/irqchip"
	"ring3/internal/stats"
	"ring3/internal/x86"
)

// env is a machine without any MSRs or CPUID.
type env struct{ fpu cpu.FPU }

func (*env) ReadMSR(uint32) (uint64, bool)            { return 0, false }
func (*env) WriteMSR(uint32, uint64) bool             { return false }
func (*env) CPUID(uint32, uint32) (a, b, c, d uint32) { return }
func (*env) TSC() uint64                              { return 0 }
func (*env) Flushed(interp.Flush)                     {}
func (e *env) SyncFPU() *cpu.FPU                      { return &e.fpu }
func (*env) SetCR8(uint64)                            {}

// intr is an interrupt controller with one input.
type intr struct {
	vector  uint8
	pending atomic.Bool
}

func (i *intr) PendingInterrupt() bool { return i.pending.Load() }
func (i *intr) Pending() (e irqchip.Events) {
	if i.pending.Load() {
		e = irqchip.EventInterrupt
	}
	return e
}
func (*intr) TakeNMI() bool           { return false }
func (*intr) TakeINIT() bool          { return false }
func (*intr) TakeSIPI() (uint8, bool) { return 0, false }
func (i *intr) TimerVector() uint8    { return i.vector }
func (i *intr) Acknowledge() (uint8, bool) {
	return i.vector, i.pending.Swap(false)
}

// start runs real-mode code at 0000:1000 with the stack at 0000:8000. Vector
// 0x20 points at 0000:2000.
func start(t *testing.T, code, handler []byte) (*Group, *intr, *guestmem.Memory) {
	t.Helper()
	mem, err := guestmem.New(1 << 20)
	if err != nil {
		t.Fatal(err)
	}
	var pio, mmio bus.Bus
	c := interp.New(mem, &pio, &mmio, &env{})
	user, err := direct.New(direct.Config{Mem: mem, State: &c.State, MaxStubs: 1})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { user.Close(); mem.Close() })
	for at, b := range map[uint64][]byte{0x1000: code, 0x2000: handler, 0x20 * 4: {0x00, 0x20, 0, 0}} {
		if err := mem.WriteAt(b, at); err != nil {
			t.Fatal(err)
		}
	}
	c.Seg[x86.CS].Sel, c.Seg[x86.CS].Base = 0, 0
	c.RIP, c.GPR[x86.RSP] = 0x1000, 0x8000
	i := &intr{vector: 0x20}
	return NewGroup(nil, New(c, user, i, true, slog.New(slog.DiscardHandler))), i, mem
}

func run(t *testing.T, v *Group) <-chan End {
	done := make(chan End, 1)
	go func() {
		e, err := v.Run(t.Context())
		if err != nil {
			t.Error(err)
		}
		done <- e
	}()
	return done
}

func wait(t *testing.T, done <-chan End, want End) {
	t.Helper()
	select {
	case e := <-done:
		if e != want {
			t.Errorf("ended with %v, want %v", e, want)
		}
	case <-time.After(20 * time.Second):
		t.Fatalf("did not end")
	}
}

func byteAt(t *testing.T, m *guestmem.Memory, gpa uint64) byte {
	t.Helper()
	var b [1]byte
	if err := m.ReadAt(b[:], gpa); err != nil {
		t.Fatal(err)
	}
	return b[0]
}

// TestHaltAndInterrupt: HLT sleeps until an interrupt comes, which runs its
// handler and goes on behind HLT.
func TestHaltAndInterrupt(t *testing.T) {
	// sti; hlt; inc byte [0x3000]; jmp to sti
	v, i, mem := start(t,
		[]byte{0xfb, 0xf4, 0xfe, 0x06, 0x00, 0x30, 0xeb, 0xf8},
		[]byte{0xfe, 0x06, 0x01, 0x30, 0xcf}) // inc byte [0x3001]; iret
	done := run(t, v)
	for n := byte(1); n <= 50; n++ {
		i.pending.Store(true)
		v.Kick()
		for end := time.Now().Add(10 * time.Second); ; time.Sleep(50 * time.Microsecond) {
			var loops, handled byte
			v.Do(func() { loops, handled = byteAt(t, mem, 0x3000), byteAt(t, mem, 0x3001) })
			if loops == n && handled == n {
				break
			}
			if time.Now().After(end) {
				t.Fatalf("after interrupt %d: %d loops, %d handled", n, loops, handled)
			}
		}
	}
	v.End(PowerOff)
	v.End(Reset) // the first reason wins
	wait(t, done, PowerOff)
}

// TestInterruptWindow: an interrupt that comes while IF is clear waits for
// STI, and for the instruction behind it.
func TestInterruptWindow(t *testing.T) {
	// wait: cmp byte [0x3000], 0; je wait; sti; inc byte [0x3002]; jmp $
	v, i, mem := start(t,
		[]byte{0x80, 0x3e, 0x00, 0x30, 0x00, 0x74, 0xf9, 0xfb, 0xfe, 0x06, 0x02, 0x30, 0xeb, 0xfe},
		// mov al, [0x3002]; mov [0x3003], al; iret
		[]byte{0xa0, 0x02, 0x30, 0xa2, 0x03, 0x30, 0xcf})
	done := run(t, v)
	i.pending.Store(true)
	v.Kick()
	v.Do(func() {})
	if !i.PendingInterrupt() {
		t.Error("an interrupt was taken with IF clear")
	}
	v.Do(func() { mem.WriteAt([]byte{1}, 0x3000) })
	for end := time.Now().Add(10 * time.Second); i.PendingInterrupt(); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("the interrupt is never taken")
		}
	}
	v.Do(func() {})
	if got := byteAt(t, mem, 0x3003); got != 1 {
		t.Errorf("the handler ran before the instruction behind STI: saw %d", got)
	}
	v.End(Stopped)
	wait(t, done, Stopped)
}

// TestTripleFault: an exception that cannot be delivered, twice.
func TestTripleFault(t *testing.T) {
	// lidt [0x1008] (limit 0, so that no vector fits); ud2
	v, _, _ := start(t, []byte{0x0f, 0x01, 0x1e, 0x08, 0x10, 0x0f, 0x0b, 0x90, 0, 0, 0, 0, 0, 0}, nil)
	wait(t, run(t, v), TripleFault)
}

// TestCancelAndReport: a computing guest is stopped by its context, and
// reports while it runs and afterwards.
func TestCancelAndReport(t *testing.T) {
	v, _, _ := start(t, []byte{0xeb, 0xfe}, nil) // jmp $
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan End, 1)
	go func() {
		e, _ := v.Run(ctx)
		done <- e
	}()
	report := func() string {
		var tab stats.Table
		v.Do(func() { v.AddStats(&tab) })
		var b strings.Builder
		if err := tab.Write(&b); err != nil {
			t.Error(err)
		}
		return b.String()
	}
	if r := report(); !strings.Contains(r, "wall time") {
		t.Errorf("report of a running CPU:\n%s", r)
	}
	cancel()
	wait(t, done, Stopped)
	if r := report(); !strings.Contains(r, "instructions") {
		t.Errorf("report of a stopped CPU:\n%s", r)
	}
}
