package timer

import (
	"container/heap"
	"fmt"
	"math"
	"runtime"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

// Calibration of the TSC against CLOCK_MONOTONIC.
const (
	firstCalibration = 20 * time.Millisecond // before the first guest runs
	refineUntil      = 60 * time.Second      // then the estimate is final
	samples          = 16                    // bracketed readings for one sample
)

// Host is the Clock of a real machine. Its timers are run by one thread that
// sleeps on a timerfd: timers of the Go runtime sleep in whole milliseconds
// when the process is idle.
type Host struct {
	start      time.Time
	tsc0       uint64 // reading of both clocks at the start
	ns0        int64
	hz         atomic.Uint64
	fixed      bool         // the processor states its frequency
	nextRefine atomic.Int64 // Nanos of the next refinement

	fd     int
	mu     sync.Mutex
	queue  queue
	armed  int64 // what the timerfd is set to; Never when it is not
	closed bool
	done   chan struct{}
}

// NewHost starts a clock; it takes about 20 ms to measure the TSC. Close it.
func NewHost() (*Host, error) {
	fd, err := unix.TimerfdCreate(unix.CLOCK_MONOTONIC, unix.TFD_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("timer: timerfd_create: %w", err)
	}
	h := &Host{start: time.Now(), fd: fd, armed: Never, done: make(chan struct{})}
	h.tsc0, h.ns0 = h.sample()
	for h.Nanos()-h.ns0 < int64(firstCalibration) {
		time.Sleep(firstCalibration)
	}
	measured := h.measure()
	h.hz.Store(measured)
	// CPUID wins when it is plausible: it is exact. Under a hypervisor it may
	// be about another machine.
	if stated := cpuidHz(); stated != 0 && math.Abs(float64(stated)/float64(measured)-1) < 500e-6 {
		h.hz.Store(stated)
		h.fixed = true
	}
	h.nextRefine.Store(h.Nanos() + int64(time.Second))
	go h.run()
	return h, nil
}

// TSC implements Clock.
func (h *Host) TSC() uint64 { return rdtsc() }

// Hz implements Clock.
func (h *Host) Hz() uint64 { return h.hz.Load() }

// Nanos implements Clock.
func (h *Host) Nanos() int64 { return int64(time.Since(h.start)) }

// sample reads both clocks at the same moment, as nearly as several tries
// get: the reading whose bracket of two TSC reads was the narrowest.
func (h *Host) sample() (tsc uint64, ns int64) {
	best := uint64(math.MaxUint64)
	for range samples {
		a := rdtsc()
		n := h.Nanos()
		b := rdtsc()
		if w := b - a; w < best {
			best, tsc, ns = w, a+w/2, n
		}
	}
	return tsc, ns
}

// measure returns the TSC frequency since the start.
func (h *Host) measure() uint64 {
	tsc, ns := h.sample()
	return Scale(tsc-h.tsc0, 1e9, uint64(ns-h.ns0))
}

// refine improves the estimate at intervals that double.
func (h *Host) refine(now int64) {
	due := h.nextRefine.Load()
	if h.fixed || now < due {
		return
	}
	h.hz.Store(h.measure())
	next := 2 * now
	if now > int64(refineUntil) {
		next = Never
	}
	h.nextRefine.Store(next)
}

// Close ends the clock; no timer expires after it, except one whose function
// is being called.
func (h *Host) Close() error {
	h.mu.Lock()
	was := h.closed
	h.closed = true
	h.arm(0)
	h.mu.Unlock()
	if !was {
		<-h.done
		return unix.Close(h.fd)
	}
	return nil
}

// arm sets the timerfd to expire at the given time of Nanos. h.mu is held. The
// descriptor counts CLOCK_MONOTONIC, Nanos counts from h.start; only the
// difference is used.
func (h *Host) arm(at int64) {
	h.armed = at
	var spec unix.ItimerSpec
	spec.Value = unix.NsecToTimespec(max(at-h.Nanos(), 1)) // 0 would disarm
	// It cannot fail with a valid descriptor and a normalized time.
	_ = unix.TimerfdSettime(h.fd, 0, &spec, nil)
}

// run waits for the timerfd and calls what has expired.
func (h *Host) run() {
	runtime.LockOSThread()
	defer close(h.done)
	var buf [8]byte
	var due []*hostTimer
	for {
		if _, err := unix.Read(h.fd, buf[:]); err != nil && err != unix.EINTR && err != unix.EAGAIN {
			return
		}
		now := h.Nanos()
		h.refine(now)
		h.mu.Lock()
		if h.closed {
			h.mu.Unlock()
			return
		}
		h.armed = Never
		due = due[:0]
		for len(h.queue) > 0 && h.queue[0].at <= now {
			due = append(due, heap.Pop(&h.queue).(*hostTimer))
		}
		h.rearm()
		h.mu.Unlock()
		for _, t := range due {
			t.fn()
		}
	}
}

// rearm arms for the first timer. h.mu is held. With none the timerfd stays as
// it is: one wake-up for nothing is cheaper than a system call for every timer
// that a guest takes back.
func (h *Host) rearm() {
	if h.closed || len(h.queue) == 0 || h.queue[0].at == h.armed {
		return
	}
	h.arm(h.queue[0].at)
}

// hostTimer is a Timer of a Host.
type hostTimer struct {
	h     *Host
	fn    func()
	at    int64
	index int // in the queue, -1 when stopped
}

// NewTimer implements Clock.
func (h *Host) NewTimer(fn func()) Timer { return &hostTimer{h: h, fn: fn, index: -1} }

// Set implements Timer.
func (t *hostTimer) Set(at int64) {
	h := t.h
	h.mu.Lock()
	defer h.mu.Unlock()
	if at == Never {
		t.remove()
	} else if t.at = at; t.index >= 0 {
		heap.Fix(&h.queue, t.index)
	} else {
		heap.Push(&h.queue, t)
	}
	h.rearm()
}

// Stop implements Timer.
func (t *hostTimer) Stop() {
	t.h.mu.Lock()
	t.remove()
	t.h.mu.Unlock()
}

func (t *hostTimer) remove() {
	if t.index >= 0 {
		heap.Remove(&t.h.queue, t.index)
	}
}

// queue is a heap of armed timers, the first to expire on top.
type queue []*hostTimer

func (q queue) Len() int           { return len(q) }
func (q queue) Less(i, j int) bool { return q[i].at < q[j].at }
func (q queue) Swap(i, j int) {
	q[i], q[j] = q[j], q[i]
	q[i].index, q[j].index = i, j
}

// Push implements heap.Interface.
func (q *queue) Push(x any) {
	t := x.(*hostTimer)
	t.index = len(*q)
	*q = append(*q, t)
}

// Pop implements heap.Interface.
func (q *queue) Pop() any {
	old := *q
	t := old[len(old)-1]
	old[len(old)-1] = nil
	*q = old[:len(old)-1]
	t.index = -1
	return t
}
