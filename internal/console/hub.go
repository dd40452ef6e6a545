package console

import (
	"io"
	"sync"
)

// hubBuffer is how far, in bytes, somebody who watches a console may be behind.
const hubBuffer = 1 << 20

// Hub shows a console to all who are attached. A write to it never waits: who is
// too far behind is left out. The zero value is ready.
type Hub struct {
	mu  sync.Mutex
	all map[*viewer]bool
}

// viewer is somebody who is attached.
type viewer struct {
	more *sync.Cond // buf or end
	buf  []byte
	end  bool
}

// Write implements io.Writer and never fails.
func (h *Hub) Write(p []byte) (int, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for v := range h.all {
		if len(v.buf)+len(p) > hubBuffer {
			h.leave(v)
			continue
		}
		v.buf = append(v.buf, p...)
		v.more.Signal()
	}
	return len(p), nil
}

// leave detaches v. h.mu is held.
func (h *Hub) leave(v *viewer) {
	v.end = true
	delete(h.all, v)
	v.more.Signal()
}

// Attach shows the console on conn, and gives input what comes from there. It
// returns when either end of conn is closed, or was too slow; the caller closes
// it.
func (h *Hub) Attach(conn io.ReadWriteCloser, input io.Writer) {
	v := &viewer{more: sync.NewCond(&h.mu)}
	h.mu.Lock()
	if h.all == nil {
		h.all = map[*viewer]bool{}
	}
	h.all[v] = true
	h.mu.Unlock()
	go func() {
		io.Copy(input, conn)
		h.mu.Lock()
		defer h.mu.Unlock()
		h.leave(v)
	}()
	for {
		h.mu.Lock()
		for len(v.buf) == 0 && !v.end {
			v.more.Wait()
		}
		b := v.buf
		v.buf = nil
		h.mu.Unlock()
		if len(b) == 0 {
			break
		}
		if _, err := conn.Write(b); err != nil {
			break
		}
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	h.leave(v)
}
