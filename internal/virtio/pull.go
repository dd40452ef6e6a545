package virtio

import (
	"errors"
	"fmt"
)

// Puller is a Device with queues whose requests it takes itself, when it has
// something for them: a network device cannot say when the next frame comes,
// and a driver that has to notify for every buffer it offers is slow.
//
// Its methods are called on a vCPU's thread and must neither block nor call the
// transport.
type Puller interface {
	Device
	// Pulls says whether a queue is of this kind. Begin never sees its requests.
	Pulls(queue int) bool
	// Defers says whether Begin's device interrupts for a queue by itself, with
	// PCI.Interrupt, when it is worth it. Once half the queue has come back
	// unnoticed there is an interrupt all the same.
	Defers(queue int) bool
	// Start tells that the driver is ready (DRIVER_OK), and which features it
	// has accepted. t is where to pull from.
	Start(t *PCI, features uint64)
	// Available tells that there are requests, after an Arm; spurious calls
	// happen.
	Available(queue int)
	// Stop tells that the driver resets the device. What was pulled must be
	// completed soon: the reset waits for it.
	Stop()
}

// Reasons why Pull gives nothing.
var (
	// ErrTooFew: the driver must offer more first; see Arm.
	ErrTooFew = errors.New("virtio: the driver has not offered enough")
	// ErrNoRoom: what the driver can offer at once will never do.
	ErrNoRoom = errors.New("virtio: more than the driver has room for")
	// ErrStopped: there is no driver that waits for anything.
	ErrStopped = errors.New("virtio: the device is not in use")
)

// Pull takes requests of a queue until they have room bytes to write to, at
// most most of them, or none at all. need tells both for the features that the
// driver has accepted; most is 0 if it cannot be given this. It may be called
// on any goroutine, while the guest runs. The requests must be given back, by
// Complete or CompleteAll.
func (t *PCI) Pull(n int, need func(features uint64) (room int64, most int)) ([]*Chain, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	q := t.queues[n]
	if !t.working() || !q.enabled {
		return nil, ErrStopped
	}
	room, most := need(t.features)
	if most == 0 {
		return nil, ErrNoRoom
	}
	// Nothing is taken unless all is there: the driver gets no notice of what
	// happens here, so going back is as if nothing had.
	next, busy := q.next, q.busy
	var chains []*Chain
	for room > 0 {
		if len(chains) == most || len(chains) == int(q.size) {
			q.next, q.busy = next, busy
			return nil, ErrNoRoom
		}
		c, err := q.pop()
		if err == nil && c != nil && len(c.Writable) == 0 {
			err = errors.New("a request to be filled has no room")
		}
		if err != nil {
			t.broken(fmt.Sprintf("queue %d: %v", n, err))
			q.next, q.busy = next, busy
			return nil, ErrStopped
		}
		if c == nil {
			q.short = q.next
			q.next, q.busy = next, busy
			return nil, ErrTooFew
		}
		c.dev = t
		room -= c.Writable.Len()
		chains = append(chains, c)
	}
	t.busy += len(chains)
	return chains, nil
}

// Arm, after ErrTooFew, asks the driver for a notification when it offers more
// than there was, and reports whether it did before it could see that. It blocks
// until the guest stands still.
func (t *PCI) Arm(n int) (more bool) {
	t.p.Sync(func() {
		t.mu.Lock()
		defer t.mu.Unlock()
		q := t.queues[n]
		more = t.working() && q.enabled && q.arm(q.short)
	})
	return more
}

// Interrupt interrupts for what has come back of a queue that the device defers
// interrupts of, unless the driver does not want that. It blocks until the guest
// stands still.
func (t *PCI) Interrupt(n int) {
	t.p.Sync(func() {
		t.mu.Lock()
		defer t.mu.Unlock()
		t.interrupt(t.queues[n])
	})
}

// CompleteAll gives back requests of one device, written[i] bytes having been
// written to chains[i], so that the driver sees all of them at once. It blocks
// until the guest stands still.
func CompleteAll(chains []*Chain, written []uint32) {
	if len(chains) == 0 {
		return
	}
	for i, c := range chains {
		c.written = written[i]
	}
	chains[0].dev.complete(chains...)
}
