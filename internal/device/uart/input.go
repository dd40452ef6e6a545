package uart

import "errors"

// maxPending is how much input waits in a port before Receive takes no more,
// in bytes.
const maxPending = 4096

// ErrClosed is the result of a Send to a closed port.
var ErrClosed = errors.New("uart: closed")

// Receive gives the port input from the host. It takes what it has room for,
// returns how many bytes that is, and never blocks.
func (u *UART) Receive(p []byte) int {
	u.mu.Lock()
	defer u.mu.Unlock()
	return u.receive(p)
}

func (u *UART) receive(p []byte) int {
	if u.closed {
		return 0
	}
	n := min(len(p), maxPending-len(u.pending))
	for _, b := range p[:n] {
		u.pending = append(u.pending, item{b: b})
	}
	u.update()
	return n
}

// Send gives the port all of p, and blocks until it has taken it. Not for the
// goroutine of a processor.
func (u *UART) Send(p []byte) error {
	u.mu.Lock()
	defer u.mu.Unlock()
	for {
		p = p[u.receive(p):]
		if len(p) == 0 {
			return nil
		}
		if u.closed {
			return ErrClosed
		}
		u.room.Wait()
	}
}

// Break makes the line send a break, after the input that waits.
func (u *UART) Break() {
	u.mu.Lock()
	if len(u.pending) < maxPending {
		u.pending = append(u.pending, item{errs: lsrBI})
	}
	u.update()
	u.mu.Unlock()
}

// Waiting returns how many bytes of input the guest has not read.
func (u *UART) Waiting() int {
	u.mu.Lock()
	defer u.mu.Unlock()
	return len(u.pending) + len(u.rx)
}

// refill moves input to the receiver while the guest is ready for it.
func (u *UART) refill() {
	if u.mcr&mcrLoop != 0 || u.mcr&mcrRTS == 0 {
		return
	}
	n := min(u.capacity()-len(u.rx), len(u.pending))
	if n <= 0 {
		return
	}
	u.rx = append(u.rx[:len(u.rx):len(u.rx)], u.pending[:n]...)
	u.pending = u.pending[n:]
	u.room.Broadcast()
}
