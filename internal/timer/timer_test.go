package timer

import (
	"math"
	"slices"
	"sync"
	"testing"
	"time"
)

func newHost(t testing.TB) *Host {
	h, err := NewHost()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { h.Close() })
	return h
}

func TestScale(t *testing.T) {
	for _, c := range []struct{ v, mul, div, want uint64 }{
		{3e9, 1e9, 3e9, 1e9},
		{math.MaxUint64, 10, 10, math.MaxUint64},
		{math.MaxUint64, 10, 3, math.MaxUint64}, // saturates
		{7, 1, 2, 3},
	} {
		if got := Scale(c.v, c.mul, c.div); got != c.want {
			t.Errorf("Scale(%d, %d, %d) = %d, want %d", c.v, c.mul, c.div, got, c.want)
		}
	}
}

func TestCalibration(t *testing.T) {
	h := newHost(t)
	if h.Hz() < 500e6 || h.Hz() > 10e9 {
		t.Fatalf("TSC at %d Hz", h.Hz())
	}
	first := h.Hz()
	time.Sleep(200 * time.Millisecond)
	ppm := math.Abs(float64(first)/float64(h.measure())-1) * 1e6
	t.Logf("TSC at %d Hz (stated by CPUID: %v), first estimate off by %.1f ppm", first, h.fixed, ppm)
	if ppm > 500 {
		t.Errorf("first estimate off by %.0f ppm", ppm)
	}
	h.refine(int64(2 * time.Second))
}

func TestTimerOrder(t *testing.T) {
	h := newHost(t)
	ch := make(chan int, 4)
	now := h.Nanos()
	var ts []Timer
	for i, ms := range []int64{30, 10, 20, 15} {
		tm := h.NewTimer(func() { ch <- i })
		tm.Set(now + ms*1e6)
		ts = append(ts, tm)
	}
	ts[3].Stop()
	for _, want := range []int{1, 2, 0} {
		if got := <-ch; got != want {
			t.Fatalf("timer %d expired, want %d", got, want)
		}
	}
	if h.Nanos() < now+30e6 {
		t.Error("expired early")
	}
	// Set again, into the past and to never.
	ts[0].Set(0)
	<-ch
	ts[1].Set(Never)
	ts[2].Set(h.Nanos() + 1e6)
	if got := <-ch; got != 2 {
		t.Errorf("timer %d expired, want 2", got)
	}
}

func TestTimerConcurrent(t *testing.T) {
	h := newHost(t)
	var wg sync.WaitGroup
	for range 4 {
		wg.Add(1)
		go func() {
			defer wg.Done()
			done := make(chan bool, 1000)
			tm := h.NewTimer(func() { done <- true })
			for i := range 200 {
				tm.Set(h.Nanos() + int64(i*1000))
				if i%3 == 0 {
					tm.Stop()
				}
			}
			tm.Set(h.Nanos())
			<-done
		}()
	}
	wg.Wait()
}

func TestClosed(t *testing.T) {
	h, err := NewHost()
	if err != nil {
		t.Fatal(err)
	}
	tm := h.NewTimer(func() { t.Error("expired after Close") })
	h.Close()
	h.Close()
	tm.Set(h.Nanos())
	tm.Stop()
	time.Sleep(5 * time.Millisecond)
}

func TestNanosAt(t *testing.T) {
	h := newHost(t)
	if got := NanosAt(h, math.MaxUint64); got < int64(365*24*time.Hour) {
		t.Errorf("the far future is at %d", got)
	}
	if got := NanosAt(h, 1); got > h.Nanos() {
		t.Errorf("the past is at %d", got)
	}
	now := h.Nanos()
	got := NanosAt(h, h.TSC()+h.Hz())
	if d := got - now; d < 1e9-1000 || d > 1e9+50e6 { // the rate is an estimate
		t.Errorf("a second of ticks is %d ns", d)
	}
}

// BenchmarkLatency reports how late timers are, host thread against the Go
// runtime's, in the idle process of a test.
func BenchmarkLatency(b *testing.B) {
	h := newHost(b)
	report := func(b *testing.B, late []int64) {
		slices.Sort(late)
		b.ReportMetric(float64(late[len(late)/2])/1e3, "p50-us")
		b.ReportMetric(float64(late[len(late)*99/100])/1e3, "p99-us")
		b.ReportMetric(0, "ns/op")
	}
	b.Run("host", func(b *testing.B) {
		var late []int64
		ch := make(chan int64)
		tm := h.NewTimer(func() { ch <- h.Nanos() })
		for i := range b.N {
			at := h.Nanos() + 500_000 + int64(i%1000)*1000
			tm.Set(at)
			late = append(late, <-ch-at)
		}
		report(b, late)
	})
	b.Run("go", func(b *testing.B) {
		var late []int64
		ch := make(chan int64)
		for i := range b.N {
			at := h.Nanos() + 500_000 + int64(i%1000)*1000
			time.AfterFunc(time.Duration(at-h.Nanos()), func() { ch <- h.Nanos() })
			late = append(late, <-ch-at)
		}
		report(b, late)
	})
}

func BenchmarkTSC(b *testing.B) {
	h := newHost(b)
	for b.Loop() {
		h.TSC()
	}
}

func BenchmarkSet(b *testing.B) {
	h := newHost(b)
	tm := h.NewTimer(func() {})
	for b.Loop() {
		tm.Set(h.Nanos() + 1e9)
	}
}
