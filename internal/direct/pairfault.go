package direct

import (
	"encoding/binary"

	"ring3/internal/bt"
	"ring3/internal/cpu"
	"ring3/internal/guestmem"
	"ring3/internal/mmu"
	"ring3/internal/x86"
)

// faultEntry is how page faults of user code enter the guest kernel: what the
// kernel stub needs to deliver one as the processor does, found once and used
// until something changes that it depends on. The gate and RSP0 in the TSS are
// ordinary guest memory: the stub looks whether they are still as they were.
type faultEntry struct {
	known bool // the rest is up to date, for these registers:
	efer  uint64
	idtr  cpu.Table
	gdtr  cpu.Table
	tr    uint64

	ok    bool
	sel   uint32
	block *cached
	cache *cached // of what the cache was when block was made
	// Addresses in the window, and what the stub must find there.
	idtAt, tssAt uint64
	idt          [2]uint64
	rsp0         uint64
	stackAt      uint64 // the end of the frame
	rsp          uint64 // below the frame, a guest address
}

// frameSize is what an exception with an error code pushes in long mode.
const frameSize = 6 * 8

// forget has the fault entry looked up again.
func (h *pair) forget() {
	if h != nil {
		h.entry.known = false
	}
}

// setFault prepares the kernel stub for page faults of user code. It is 0 when
// they must come to the monitor.
func (h *pair) setFault() uint32 {
	k, st, e := h.k, h.u.state, &h.entry
	if !e.known || e.efer != st.EFER || e.idtr != st.IDTR || e.gdtr != st.GDTR || e.tr != st.TR.Base || e.ok && (e.block.dead || e.cache != k.c.lookup) {
		*e = faultEntry{known: true, efer: st.EFER, idtr: st.IDTR, gdtr: st.GDTR, tr: st.TR.Base}
		e.ok = h.findFault(e)
	}
	if !e.ok {
		return 0
	}
	c := k.s.p.ctl
	c.FaultSel, c.FaultTarget, c.FaultRSP = e.sel, e.block.host, bt.Fold(e.rsp)
	c.StackAt, c.IDTAt, c.IDT, c.TSSAt, c.RSP0 = e.stackAt, e.idtAt, e.idt, e.tssAt, e.rsp0
	return 1
}

// findFault fills in a fault entry. It is false when faults are not delivered
// in the ordinary way of a 64-bit kernel.
func (h *pair) findFault(e *faultEntry) bool {
	k, st := h.k, h.u.state
	if !k.c.h.UserTLB || st.EFER&x86.EFERNX == 0 || st.CR4&(x86.CR4LA57|x86.CR4PKE) != 0 {
		return false
	}
	gate, at, ok := k.words(st.IDTR.Base+16*x86.VecPF, 2)
	if !ok || int(st.IDTR.Limit) < 16*x86.VecPF+15 {
		return false
	}
	e.idtAt, e.idt = at, [2]uint64(gate)
	e.sel = uint32(gate[0]) >> 16
	handler := gate[0]&0xffff | gate[0]>>32&0xffff0000 | gate[1]<<32
	const present, interruptGate = 1 << 15, 0xe << 8
	if attr := gate[0] >> 32 & 0xffff; attr&^(3<<13) != present|interruptGate || handler < bt.Lowest {
		return false
	}
	user := uint32(st.STAR>>48) | 3
	for sel, want := range map[uint32]cpu.Segment{
		e.sel:     cpu.FlatCode(uint16(e.sel), 0, cpu.AttrL),
		user + 16: cpu.FlatCode(uint16(user+16), 3, cpu.AttrL),
		user + 8:  cpu.FlatData(uint16(user+8), 3),
	} {
		d, ok := h.u.descriptor(uint16(sel >> 3))
		if !ok || sel&^7 == 0 || !isFlat(d, want) {
			return false
		}
	}
	if e.sel&7 != 0 || user+16 != selCS64 || user+8 != selData {
		return false
	}
	tss, at, ok := k.words(st.TR.Base+4, 1)
	if !ok || st.TR.Limit < 11 {
		return false
	}
	e.tssAt, e.rsp0 = at, tss[0]
	top := tss[0] &^ 15
	e.rsp = top - frameSize
	t, _, ok := k.e.walk.Walk(st, e.rsp, mmu.Write|mmu.Implicit)
	if !ok || t.User || !t.Dirty || e.rsp < bt.Lowest || (top-1)^e.rsp >= x86.PageSize {
		return false
	}
	off, ok := k.e.mem.Offset(t.GPA)
	if page := t.GPA &^ (x86.PageSize - 1); !ok || k.e.mem.Flags(page)&guestmem.PageCode != 0 {
		return false
	} else {
		k.e.mem.AllowStubWrite(page)
	}
	e.stackAt = window + off + frameSize
	b := k.block(handler, false)
	if b == nil || b.N == 0 {
		return false
	}
	e.block, e.cache = b, k.c.lookup
	return true
}

// isFlat reports whether a descriptor gives the segment seg when it is loaded.
func isFlat(d uint64, seg cpu.Segment) bool {
	base := d>>16&0xffffff | d>>56<<24
	limit := d&0xffff | d>>32&0xf0000
	return base == 0 && limit == 0xfffff && uint16(d>>40)&0xf0ff|cpu.AttrAccessed == seg.Attr
}

// words reads n quadwords at an address that the guest kernel can read, which
// lie in one page, and says where in the window they are.
func (k *Kernel) words(addr uint64, n int) (w []uint64, at uint64, ok bool) {
	t, _, ok := k.e.walk.Walk(k.e.state, addr, mmu.Implicit)
	if !ok {
		return nil, 0, false
	}
	off, ok := k.e.mem.Offset(t.GPA)
	b := make([]byte, 8*n)
	if !ok || addr&(x86.PageSize-1) > x86.PageSize-uint64(len(b)) || k.e.mem.ReadAt(b, t.GPA) != nil {
		return nil, 0, false
	}
	for i := range n {
		w = append(w, binary.LittleEndian.Uint64(b[8*i:]))
	}
	return w, window + off, true
}
