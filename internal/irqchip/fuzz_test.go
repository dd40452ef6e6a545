package irqchip

import (
	"runtime"
	"sync"
	"testing"

	"ring3/internal/timer"
	"ring3/internal/timer/timertest"
	"ring3/internal/x86"
)

// act applies fuzz input to a Chip: 12 bytes are one action.
func act(c *Chip, clock *timertest.Clock, in []byte) {
	master, slave, elcr := c.PIC()
	io := c.IOAPIC()
	var lines [Pins]Line
	for i := range lines {
		if i != cascadeIRQ {
			lines[i] = c.Line(i)
		}
	}
	for ; len(in) >= 12; in = in[12:] {
		cpu := c.CPU(int(in[1]) % len(c.lapics))
		off, v, n := uint64(in[2])|uint64(in[3]&0xf)<<8, get(in[4:12]), 1<<(in[1]>>6)
		b := make([]byte, n)
		copy(b, in[4:12])
		switch in[0] % 16 {
		case 0:
			master.Write(off&3, b)
			master.Read(off&3, b)
		case 1:
			slave.Write(off&3, b)
			slave.Read(off&3, b)
		case 2:
			elcr.Write(off&3, b)
			elcr.Read(off&3, b)
		case 3:
			io.Write(off, b)
			io.Read(off, b)
		case 4:
			io.Write(ioregsel, []byte{in[2]})
			io.Write(iowin, in[4:8])
		case 5, 6:
			cpu.Write(off&^0xf, in[4:8])
		case 7:
			cpu.Write(off, b)
			cpu.Read(off, b)
		case 8:
			cpu.WriteMSR(x2First+uint32(in[2]), v)
			cpu.ReadMSR(x2First + uint32(in[2]))
		case 9:
			cpu.WriteMSR(x86.MSRAPICBase, v&0xffff|LAPICBase)
		case 10:
			cpu.WriteMSR(x86.MSRTSCDeadline, clock.TSC()+v%1e9)
			cpu.ReadMSR(x86.MSRTSCDeadline)
		case 11:
			if l := lines[in[2]%Pins]; l != nil {
				l.Set(in[3]&1 != 0)
			}
		case 12:
			c.SendMSI(LAPICBase|v&0xfffff, uint32(v>>32))
		case 13:
			cpu.SetCR8(v)
			cpu.CR8()
		case 14:
			clock.Advance(int64(v % 1e6))
		case 15:
			cpu.TakeINIT()
			cpu.TakeNMI()
			cpu.TakeSIPI()
			pending := cpu.PendingInterrupt()
			if _, ok := cpu.Acknowledge(); ok != pending {
				panic("PendingInterrupt and Acknowledge disagree")
			}
		}
	}
}

func FuzzAccess(f *testing.F) {
	f.Add([]byte{5, 0x80, 0xf0, 0, 0xff, 1, 0, 0, 0, 0, 0, 0, 12, 0, 0, 0, 0, 0, 0, 0, 0x40, 0, 0, 0, 15, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0})
	f.Add(make([]byte, 240))
	f.Fuzz(func(t *testing.T, in []byte) {
		clock := timertest.New(tscHz)
		act(New(Config{CPUs: 3, Clock: clock}), clock, in[:min(len(in), 12*200)])
	})
}

// Devices, processors and timers use a Chip at the same time.
func TestConcurrent(t *testing.T) {
	clock, err := timer.NewHost()
	if err != nil {
		t.Fatal(err)
	}
	defer clock.Close()
	c := New(Config{CPUs: 2, Clock: clock})
	wake := [2]chan bool{make(chan bool, 1), make(chan bool, 1)}
	c.Notify = func(cpu int, _ bool) {
		select {
		case wake[cpu] <- true:
		default:
		}
	}
	const total = 200
	var wg sync.WaitGroup
	for i := range 2 {
		l := c.CPU(i)
		l.WriteMSR(x86.MSRAPICBase, LAPICBase|baseEnable|baseX2)
		l.WriteMSR(x2First+regSVR, svrEnable|0xff)
		l.WriteMSR(x2First+regTimer, timerDeadline<<17|0xec)
		l.WriteMSR(x86.MSRTSCDeadline, clock.TSC()+1000)
		wg.Add(1)
		go func() {
			defer wg.Done()
			for ticks := 0; ticks < total; {
				for {
					v, ok := l.Acknowledge()
					if !ok {
						break
					}
					l.WriteMSR(x2First+regEOI, 0)
					if v == 0xec {
						ticks++
						l.WriteMSR(x86.MSRTSCDeadline, clock.TSC()+10_000)
						l.WriteMSR(x2First+regICR, uint64(1-i)<<32|0x50)
					}
				}
				<-wake[i]
			}
		}()
	}
	stop := make(chan bool)
	for i := range 2 {
		line := c.Line(5 + i)
		go func() {
			for level := false; ; level = !level {
				select {
				case <-stop:
					return
				default:
					line.Set(level)
					runtime.Gosched()
				}
			}
		}()
	}
	wg.Wait()
	close(stop)
}

func BenchmarkDeadlineAndEOI(b *testing.B) {
	clock, err := timer.NewHost()
	if err != nil {
		b.Fatal(err)
	}
	defer clock.Close()
	c := New(Config{CPUs: 1, Clock: clock})
	l := c.CPU(0)
	l.WriteMSR(x86.MSRAPICBase, LAPICBase|baseEnable|baseX2)
	l.WriteMSR(x2First+regSVR, svrEnable|0xff)
	l.WriteMSR(x2First+regTimer, timerDeadline<<17|0xec)
	for b.Loop() {
		l.WriteMSR(x86.MSRTSCDeadline, clock.TSC()+clock.Hz())
		l.WriteMSR(x2First+regSelfIPI, 0x50)
		l.Acknowledge()
		l.WriteMSR(x2First+regEOI, 0)
	}
}
