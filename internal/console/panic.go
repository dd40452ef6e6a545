package console

import (
	"bytes"
	"regexp"
	"sync"
)

// The lines of a Linux kernel that tell how it ended. All are printed at the
// highest level, so "quiet" does not hide them; the time stamp may be absent.
var (
	panicLine   = regexp.MustCompile(`^(?:<\d+>)?(?:\[[^\]]*\])* *Kernel panic - not syncing: *(.*)$`)
	orderlyLine = regexp.MustCompile(`^(?:<\d+>)?(?:\[[^\]]*\])* *reboot: (?:Restarting system|Power down|System halted)`)
)

// maxLine bounds what PanicWatch keeps of an unfinished line.
const maxLine = 1024

// PanicWatch is a writer that looks for the kernel's panic message in what the
// guest writes to its console. ring3 boots kernels with panic=-1, so that a
// panic ends in a reset at once, and the console is the only witness of the
// difference. A message that was merely shown (a log file, say) is told apart
// by the orderly end that follows it. It is safe for concurrent use.
type PanicWatch struct {
	mu      sync.Mutex
	line    []byte // the unfinished line
	message string
	seen    bool
}

// Write implements io.Writer and never fails.
func (w *PanicWatch) Write(p []byte) (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	n := len(p)
	for len(p) > 0 {
		i := bytes.IndexByte(p, '\n')
		if i < 0 {
			w.add(p)
			break
		}
		w.add(p[:i])
		w.inspect()
		w.line = w.line[:0]
		p = p[i+1:]
	}
	return n, nil
}

func (w *PanicWatch) add(p []byte) {
	if room := maxLine - len(w.line); len(p) > room {
		p = p[:room]
	}
	w.line = append(w.line, p...)
}

// inspect judges the line at hand.
func (w *PanicWatch) inspect() {
	if !bytes.Contains(w.line, []byte("Kernel panic")) && !bytes.Contains(w.line, []byte("reboot:")) {
		return // nearly every line
	}
	line := []byte(Printable(w.line))
	if m := panicLine.FindSubmatch(line); m != nil {
		w.seen, w.message = true, string(bytes.TrimSpace(m[1]))
	} else if orderlyLine.Match(line) {
		w.seen, w.message = false, ""
	}
}

// Panicked reports whether the guest kernel panicked, and its message.
func (w *PanicWatch) Panicked() (message string, ok bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.inspect() // a reset may cut the last line short
	return w.message, w.seen
}
