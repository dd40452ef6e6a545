package console

import (
	"strings"
	"sync"
)

// Tail is a writer that remembers the last bytes written to it, for the report
// of an abnormal end. It is safe for concurrent use.
type Tail struct {
	mu   sync.Mutex
	ring []byte
	next int  // where the next byte goes
	full bool // the ring has wrapped
}

// NewTail returns a Tail that keeps size bytes.
func NewTail(size int) *Tail { return &Tail{ring: make([]byte, size)} }

// Write implements io.Writer and never fails.
func (t *Tail) Write(p []byte) (int, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	n := len(p)
	if len(p) > len(t.ring) {
		p = p[len(p)-len(t.ring):]
	}
	for len(p) > 0 {
		c := copy(t.ring[t.next:], p)
		p = p[c:]
		if t.next += c; t.next == len(t.ring) {
			t.next, t.full = 0, true
		}
	}
	return n, nil
}

// Lines returns up to n last lines that are not empty, oldest first, fit to be
// printed on any terminal: without control characters and escape sequences.
func (t *Tail) Lines(n int) []string {
	var lines []string
	all := strings.Split(Printable(t.bytes()), "\n")
	for i := len(all) - 1; i >= 0 && len(lines) < n; i-- {
		if l := strings.TrimRight(all[i], " "); l != "" {
			lines = append(lines, l)
		}
	}
	for i, j := 0, len(lines)-1; i < j; i, j = i+1, j-1 {
		lines[i], lines[j] = lines[j], lines[i]
	}
	return lines
}

func (t *Tail) bytes() []byte {
	t.mu.Lock()
	defer t.mu.Unlock()
	if !t.full {
		return append([]byte(nil), t.ring[:t.next]...)
	}
	return append(append([]byte(nil), t.ring[t.next:]...), t.ring[:t.next]...)
}
