package direct

import (
	"fmt"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"ring3/internal/direct/stub"
	"ring3/internal/host"
	"ring3/internal/x86"
)

// The monitor's side of package stub, maps.go: what the kernel stub has the
// user stub map and unmap while the monitor sleeps.

// setMaps prepares the kernel stub for that, with the user stub of s, whose
// books are up to date.
func (h *pair) setMaps(s *space) {
	e, c := h.u, h.k.s.p.ctl
	c.Listens, c.NGone, c.NChanges, c.MapGive = 0, 0, 0, 0
	c.MapRoom = uint32(max(0, e.room(s)))
	if c.FaultTake == 0 || e.near.scarce { // asking needs both stubs awake
		return
	}
	k := &s.p.z.secrets
	c.PageCall = [3]uint64{uint64(k.Page[0]) << 32, mapFlags | uint64(k.Page[1])<<32, stub.FDRAM | uint64(k.Page[2])<<32}
	c.DropCall = k.Drop
	c.StubHigh = s.p.base >> 32
	c.MapGive = 1
}

// room is how many pages may be mapped before something must be evicted.
func (e *Engine) room(s *space) int {
	return min((e.cfg.MaxMaps-4-s.maps)/2, e.maxPages-s.pages, e.maxLeaves-len(s.leaves))
}

// takeChanges enters in the books what the kernel stub has had done since
// setMaps. The list is the guest kernel's to write: a wrong one harms the guest.
func (h *pair) takeChanges(s *space, kernel *proc) {
	e, c := h.u, kernel.ctl
	n := min(atomic.SwapUint32(&c.NChanges, 0), stub.MaxChanges)
	for i := range n {
		x := &changes(kernel.slot)[i]
		va, ent := atomic.LoadUint64(&x.VA), entry(atomic.LoadUint64(&x.Entry))
		if va%x86.PageSize != 0 || !s.p.outside(va) || e.sites.beside(va) {
			continue
		}
		if ent &= entAddr | entPresent | entWrite; ent != 0 {
			if _, ram := e.mem.Offset(ent.gpa()); !ram {
				continue
			}
			ent |= entPresent
			e.stats.PagesMapped++
			e.stats.Maps++
		} else {
			e.stats.Unmaps++
		}
		e.stats.Changes++
		if ent != 0 && e.room(s) <= 0 { // unmapping has split mappings since setMaps
			ent = 0
			s.gone = append(s.gone, va)
		}
		e.set(s, va, ent)
		h.invalidated(va)
	}
	// What was invalidated since user code last ran is still mapped. The user
	// stub has proved that it listens.
	for i := range min(atomic.SwapUint32(&c.NGone, 0), stub.MaxGone) {
		va := atomic.LoadUint64(&c.Gone[i]) &^ (x86.PageSize - 1)
		if va >= userTop {
			continue
		}
		if len(s.stalePages) < maxStalePages {
			s.stalePages = append(s.stalePages, va)
		} else {
			s.stale = true
		}
		h.invalidated(va)
	}
}

func (h *pair) invalidated(va uint64) {
	if f := h.u.cfg.Invalidated; f != nil {
		f(va)
	}
}

// checkTables bounds the page tables that the host keeps for a user stub. The
// books do so for what the monitor maps, but a guest kernel that gives away what
// it is told can have its programs map RAM in as many places as the host allows.
func (h *pair) checkTables(s *space) error {
	now := time.Now()
	if now.Sub(h.checked) < tablesEvery {
		return nil
	}
	h.checked = now
	limit := uint64(tablesSlack + 3*x86.PageSize*h.u.maxLeaves)
	if size, err := host.PageTables(s.p.pid); err == nil && size > limit {
		return fmt.Errorf("%w: its page tables have %d bytes", errDied, size)
	}
	return nil
}

const (
	tablesEvery = 250 * time.Millisecond
	tablesSlack = 16 << 20
	// With MAP_POPULATE the host does not fault again for the page.
	mapFlags = unix.MAP_SHARED | unix.MAP_FIXED | unix.MAP_POPULATE
)
