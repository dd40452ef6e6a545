package vcpu

import (
	"encoding/binary"
	"log/slog"
	"testing"
	"time"

	"ring3/internal/bus"
	"ring3/internal/direct"
	"ring3/internal/guestmem"
	"ring3/internal/interp"
	"ring3/internal/irqchip"
	"ring3/internal/timer/timertest"
	"ring3/internal/x86"
)

// apicEnv is a machine whose MSRs are those of a local APIC.
type apicEnv struct {
	env
	apic *irqchip.LocalAPIC
}

func (e *apicEnv) ReadMSR(msr uint32) (uint64, bool)  { return e.apic.ReadMSR(msr) }
func (e *apicEnv) WriteMSR(msr uint32, v uint64) bool { return e.apic.WriteMSR(msr, v) }
func (e *apicEnv) SetCR8(v uint64)                    { e.apic.SetCR8(v) }

// several is virtual CPUs in real mode with their local APICs in x2APIC mode. The
// first one starts at 0000:1000; the time stands still.
type several struct {
	*Group
	t     *testing.T
	mem   *guestmem.Memory
	chip  *irqchip.Chip
	clock *timertest.Clock
	done  <-chan End
}

// newSeveral puts code at the given addresses; interrupt vectors are words.
func newSeveral(t *testing.T, cpus int, code map[uint64][]byte, vectors map[uint8]uint16) *several {
	t.Helper()
	mem, err := guestmem.New(1 << 20)
	if err != nil {
		t.Fatal(err)
	}
	s := &several{t: t, mem: mem, clock: timertest.New(1e9)}
	s.chip = irqchip.New(irqchip.Config{CPUs: cpus, Clock: s.clock})
	var pio, mmio bus.Bus
	var all []*VCPU
	var beside *direct.Engine
	t.Cleanup(func() { mem.Close() })
	for n := range cpus {
		e := &apicEnv{apic: s.chip.CPU(n)}
		c := interp.New(mem, &pio, &mmio, e)
		user, err := direct.New(direct.Config{Mem: mem, State: &c.State, CPU: n, Beside: beside, MaxStubs: 1})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { user.Close() })
		beside = user
		base, _ := e.apic.ReadMSR(x86.MSRAPICBase)
		if !e.apic.WriteMSR(x86.MSRAPICBase, base|1<<10) || !e.apic.WriteMSR(0x80f, 0x1ff) {
			t.Fatal("no x2APIC")
		}
		v := New(c, user, e.apic, true, slog.New(slog.DiscardHandler))
		if n > 0 {
			v.AwaitStartUp()
		}
		all = append(all, v)
	}
	for at, b := range code {
		if err := mem.WriteAt(b, at); err != nil {
			t.Fatal(err)
		}
	}
	for vec, at := range vectors {
		if err := mem.WriteAt(binary.LittleEndian.AppendUint32(nil, uint32(at)), 4*uint64(vec)); err != nil {
			t.Fatal(err)
		}
	}
	c := all[0].cpu
	c.Seg[x86.CS].Sel, c.Seg[x86.CS].Base = 0, 0
	c.RIP, c.GPR[x86.RSP] = 0x1000, 0x8000
	s.Group = NewGroup(s.clock, all...)
	s.chip.Notify = s.Notify
	s.done = run(t, s.Group)
	return s
}

// stop ends the machine.
func (s *several) stop() {
	s.t.Helper()
	s.End(Stopped)
	wait(s.t, s.done, Stopped)
}

// until waits until a byte of RAM has a value. With tick, time goes on meanwhile,
// in steps of it.
func (s *several) until(gpa uint64, want byte, tick time.Duration) {
	s.t.Helper()
	for end := time.Now().Add(20 * time.Second); ; time.Sleep(50 * time.Microsecond) {
		var got byte
		s.Do(func() { got = byteAt(s.t, s.mem, gpa) })
		if got == want {
			return
		}
		if time.Now().After(end) {
			s.t.Fatalf("%#x has %d, not %d", gpa, got, want)
		}
		s.clock.Advance(int64(tick))
	}
}

func (s *several) set(gpa uint64, v byte) {
	s.Do(func() {
		if err := s.mem.WriteAt([]byte{v}, gpa); err != nil {
			s.t.Error(err)
		}
	})
}

func (s *several) byte(gpa uint64) (b byte) {
	s.Do(func() { b = byteAt(s.t, s.mem, gpa) })
	return b
}

// Pieces of real-mode code.
func wrmsr(msr, dest, v uint32) []byte {
	b := binary.LittleEndian.AppendUint32([]byte{0x66, 0xb9}, msr)
	b = binary.LittleEndian.AppendUint32(append(b, 0x66, 0xb8), v)
	b = binary.LittleEndian.AppendUint32(append(b, 0x66, 0xba), dest)
	return append(b, 0x0f, 0x30)
}

func ipi(dest, v uint32) []byte { return wrmsr(0x830, dest, v) }

func inc(at uint16) []byte { return []byte{0xfe, 0x06, byte(at), byte(at >> 8)} }

func spinWhile0(at uint16) []byte { // cmp byte [at], 0; je .-7
	return []byte{0x80, 0x3e, byte(at), byte(at >> 8), 0, 0x74, 0xf9}
}

func code(parts ...[]byte) (all []byte) {
	for _, p := range parts {
		all = append(all, p...)
	}
	return all
}

var (
	halt    = []byte{0xfa, 0xf4, 0xeb, 0xfd} // cli; hlt; jmp to hlt
	forever = []byte{0xeb, 0xfe}
	sti     = []byte{0xfb}
	iret    = []byte{0xcf}
	eoi     = wrmsr(0x80b, 0, 0)
)

const (
	icrINIT = 0x4500
	icrSIPI = 0x4600
	icrNMI  = 0x4400
)

// TestStartUp: INIT and start-up IPIs, to a CPU that waits, that runs, and that
// runs without listening.
func TestStartUp(t *testing.T) {
	s := newSeveral(t, 2, map[uint64][]byte{
		0x1000: code(ipi(1, icrINIT), ipi(1, icrSIPI|2), spinWhile0(0x3000),
			ipi(1, icrSIPI|4), inc(0x3002), spinWhile0(0x3003),
			ipi(1, icrINIT), ipi(1, icrSIPI|4), halt),
		0x2000: code(inc(0x3000), forever),
		0x4000: code(inc(0x3001), halt),
	}, nil)
	s.until(0x3000, 1, slice)
	s.until(0x3002, 1, slice)
	for range 10 {
		s.clock.Advance(int64(slice))
		s.Do(func() {})
	}
	if s.byte(0x3001) != 0 {
		t.Error("a start-up IPI restarted a CPU that did not wait for one")
	}
	s.set(0x3003, 1)
	s.until(0x3001, 1, slice)
	s.Do(func() {
		c := s.cpus[1].cpu
		if cs := c.Seg[x86.CS]; cs.Sel != 0x400 || cs.Base != 0x4000 || c.CR0&x86.CR0PE != 0 {
			t.Errorf("CS is %#x at %#x, CR0 %#x", cs.Sel, cs.Base, c.CR0)
		}
	})
	if n := s.byte(0x3000); n != 1 {
		t.Errorf("the first code ran %d times", n)
	}
	s.stop()
}

// TestINITOfBootProcessor: there is no firmware that it could start.
func TestINITOfBootProcessor(t *testing.T) {
	s := newSeveral(t, 2, map[uint64][]byte{0x1000: code(ipi(0, icrINIT), forever)}, nil)
	wait(t, s.done, Reset)
}

// TestTurns: CPUs that never halt all get on.
func TestTurns(t *testing.T) {
	all := map[uint64][]byte{0x1000: code(ipi(1, icrSIPI|2), ipi(2, icrSIPI|4), ipi(3, icrSIPI|5), inc(0x3000), []byte{0xeb, 0xfa})}
	for i, page := range []uint64{2, 4, 5} {
		all[page<<12] = code(inc(0x3001+uint16(i)), []byte{0xeb, 0xfa})
	}
	s := newSeveral(t, 4, all, nil)
	for n := range uint64(4) {
		s.set(0x3000+n, 0)
	}
	for n := range uint64(4) {
		for end := time.Now().Add(20 * time.Second); s.byte(0x3000+n) == 0; s.clock.Advance(int64(slice)) {
			if time.Now().After(end) {
				t.Fatalf("CPU %d has no turn", n)
			}
		}
	}
	s.stop()
}

// TestCalled: a CPU that another one interrupts has its turn at once, also when
// something else is pending for it, and then the turn goes back.
func TestCalled(t *testing.T) {
	s := newSeveral(t, 2, map[uint64][]byte{
		0x1000: code(ipi(1, icrSIPI|2), spinWhile0(0x3000),
			ipi(1, 0x41), spinWhile0(0x3001), inc(0x3002), forever),
		0x2000: code(inc(0x3000), []byte{0xbc, 0, 0x70}, spinWhile0(0x3003), sti, forever), // mov sp, 0x7000
		0x2800: code(inc(0x3001), eoi, iret),
		0x2900: code(inc(0x3004), eoi, iret),
	}, map[uint8]uint16{0x41: 0x2800, 0x42: 0x2900})
	// The start-up IPI gives CPU 1 the turn, and it keeps it: time stands still.
	s.until(0x3000, 1, 0)
	s.chip.SendMSI(irqchip.LAPICBase+1<<12, 0x42)
	s.set(0x3003, 1)
	s.until(0x3004, 1, 0)
	s.chip.CPU(1).SetCR8(4) // 0x42 cannot be delivered
	s.chip.SendMSI(irqchip.LAPICBase+1<<12, 0x42)
	s.Do(func() {
		if s.Turn() != 1 {
			t.Error("CPU 1 has lost its turn")
		}
	})
	s.chip.CPU(1).SetCR8(0)
	s.until(0x3004, 2, 0)
	s.clock.Advance(int64(slice)) // now CPU 0 may go on, which sends an IPI
	s.until(0x3001, 1, 0)
	if s.byte(0x3002) != 0 {
		t.Error("CPU 0 runs in the turn of CPU 1")
	}
	s.clock.Advance(int64(called))
	s.until(0x3002, 1, 0)
	s.stop()
}

// TestHaltedCPUsWake: what comes for a halted CPU wakes that one, and one that
// runs has to give way.
func TestHaltedCPUsWake(t *testing.T) {
	s := newSeveral(t, 3, map[uint64][]byte{
		0x1000: code(ipi(1, icrSIPI|2), ipi(2, icrSIPI|4), sti, []byte{0xf4, 0xeb, 0xfd}),
		0x2000: code([]byte{0xbc, 0, 0x70}, sti, []byte{0xf4}, inc(0x3001), []byte{0xeb, 0xf9}),
		0x4000: code([]byte{0xbc, 0, 0x60}, sti, []byte{0xf4}, inc(0x3002), forever),
		0x2800: code(eoi, iret),
	}, map[uint8]uint16{0x41: 0x2800})
	halted := func(n int) {
		t.Helper()
		for end := time.Now().Add(20 * time.Second); ; time.Sleep(50 * time.Microsecond) {
			is := false
			s.Do(func() { is = s.cpus[n].cpu.Halted })
			if is {
				return
			}
			if time.Now().After(end) {
				t.Fatalf("CPU %d does not halt", n)
			}
		}
	}
	for n := range 3 {
		halted(n)
	}
	for i := byte(1); i <= 20; i++ {
		s.chip.SendMSI(irqchip.LAPICBase+1<<12, 0x41)
		s.until(0x3001, i, 0)
		halted(1)
	}
	s.chip.SendMSI(irqchip.LAPICBase+2<<12, 0x41)
	s.until(0x3002, 1, 0) // and runs on
	s.chip.SendMSI(irqchip.LAPICBase+1<<12, 0x41)
	s.until(0x3001, 21, 0)
	s.stop()
}

// TestNMI: an NMI ends HLT with interrupts masked; the next one waits for IRET.
func TestNMI(t *testing.T) {
	s := newSeveral(t, 2, map[uint64][]byte{
		0x1000: code(ipi(1, icrSIPI|2), spinWhile0(0x3000), ipi(1, icrNMI), spinWhile0(0x3001),
			ipi(1, icrNMI), inc(0x3003), forever),
		0x2000: code([]byte{0xbc, 0, 0x70}, inc(0x3000), halt),
		0x2800: code(inc(0x3001), spinWhile0(0x3002), iret),
	}, map[uint8]uint16{x86.VecNMI: 0x2800})
	s.until(0x3003, 1, slice)
	for range 10 {
		s.clock.Advance(int64(slice))
		s.Do(func() {})
	}
	if n := s.byte(0x3001); n != 1 {
		t.Errorf("%d NMIs were delivered before IRET", n)
	}
	s.set(0x3002, 1)
	s.until(0x3001, 2, slice)
	s.stop()
}
