package interp

import (
	"ring3/internal/guestmem"
	"ring3/internal/mmu"
	"ring3/internal/x86"
)

// Watch makes execution undoable: it keeps the pages of RAM that were accessed
// as they were before. Those that were only read are among them so that a
// comparison finds writes that should not have been. An instruction that does
// more than change registers and RAM (devices, memory that holds code, faults)
// is not executed under it.
type Watch struct {
	// Pages are those accessed since Reset.
	Pages []*WatchedPage
	// Long is set when the instruction that was not executed is a string
	// instruction with too many rounds.
	Long  bool
	spare []*WatchedPage
}

// WatchedPage is a page before its first access.
type WatchedPage struct {
	GPA uint64
	Old [x86.PageSize]byte
}

// Reset forgets the pages.
func (w *Watch) Reset() {
	w.spare = append(w.spare, w.Pages...)
	w.Pages, w.Long = w.Pages[:0], false
}

// maxWatchedRounds bounds the rounds of a string instruction: without the TLB
// each costs as much as an instruction.
const maxWatchedRounds = 4096

// access is told of each access before it is made; false forbids it.
func (w *Watch) access(m *guestmem.Memory, gpa uint64, acc mmu.Access) bool {
	gpa &^= pageMask
	if acc&mmu.Fetch != 0 {
		return true
	}
	page, err := m.Slice(gpa, x86.PageSize)
	if err != nil || acc&mmu.Write != 0 && m.Flags(gpa)&guestmem.PageCode != 0 {
		return false
	}
	for i := len(w.Pages) - 1; i >= 0; i-- { // the last is the likeliest
		if w.Pages[i].GPA == gpa {
			return true
		}
	}
	p := &WatchedPage{}
	if n := len(w.spare); n > 0 {
		p, w.spare = w.spare[n-1], w.spare[:n-1]
	}
	p.GPA = gpa
	copy(p.Old[:], page)
	w.Pages = append(w.Pages, p)
	return true
}

// RunWatched executes up to n instructions under w and calls at with the
// number of those completed, RIP being behind them. It stops before one that
// faults or that w forbids; State is then as if that one had not been tried,
// but for rounds of a repeated string instruction.
func (c *CPU) RunWatched(n int, w *Watch, at func(done int)) {
	c.watch = w
	// A kick would interrupt string instructions after each round.
	kicked := c.kick.Swap(false)
	c.enter()
	for i := range n {
		if !c.watched() {
			break
		}
		at(i + 1)
	}
	c.watch = nil
	c.exit()
	if kicked {
		c.kick.Store(true)
	}
}

// watched executes one instruction, all rounds of it.
func (c *CPU) watched() bool {
	start := c.RIP
	for {
		c.RFLAGS &^= x86.FlagRF
		c.InterruptShadow = false
		if ce, ok := c.fetchPage(start); !ok || ce.page == nil {
			c.fault = fault{}
			return false
		}
		b := c.buildOne()
		if b == nil {
			return false
		}
		o := &b.ops[0]
		_, str := stringKind[o.inst.Op]
		repeated := str && (o.inst.Rep || o.inst.Repne)
		if repeated && c.GPR[x86.RCX] > maxWatchedRounds {
			c.watch.Long = true
			return false
		}
		c.RIP, c.cur = c.RIP+b.len, b
		if !o.fn(c, o) && c.fault.pending {
			c.fault, c.RIP = fault{}, start
			return false
		}
		if !repeated || c.RIP != start {
			return true
		}
	}
}
