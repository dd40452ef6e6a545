package interp

import (
	"ring3/internal/cpu"
	"ring3/internal/x86"
)

// Hardware task switching exists outside long mode only (SDM vol. 3A,
// chapter 8).

type taskWhy uint8

const (
	taskJump taskWhy = iota
	taskCall
	taskIret
	taskEvent // interrupt or exception through a task gate
)

// tssLayout gives the offsets of the two TSS formats (SDM vol. 3A, figures 8-2
// and 8-10).
type tssLayout struct {
	limit             uint32 // smallest that holds the static part
	size              int    // of a register
	ip, flags, gpr    uint64
	seg, segStep, ldt uint64
	numSeg            int
	cr3               uint64 // 0: none
}

var (
	tss32 = tssLayout{limit: 0x67, size: 4, ip: 0x20, flags: 0x24, gpr: 0x28, seg: 0x48, segStep: 4, ldt: 0x60, numSeg: 6, cr3: 0x1c}
	tss16 = tssLayout{limit: 0x2b, size: 2, ip: 0x0e, flags: 0x10, gpr: 0x12, seg: 0x22, segStep: 2, ldt: 0x2a, numSeg: 4}
)

func layoutOf(typ uint8) *tssLayout {
	if typ&^2 == sysTSS16Avail {
		return &tss16
	}
	return &tss32
}

// taskState is what a TSS holds of a task.
type taskState struct {
	ip, flags uint64
	gpr       [8]uint64
	seg       [6]uint16
	ldt       uint16
	cr3       uint64
}

// taskReturn is IRET with NT set: back to the task that the link names.
func (c *CPU) taskReturn() bool {
	link, ok := c.readSys(c.wrap(c.TR.Base), 2)
	if !ok {
		return false
	}
	return c.taskSwitch(uint16(link), taskIret, 0, false)
}

// taskGateEvent delivers an event to a task of its own.
func (c *CPU) taskGateEvent(gate descriptor, hasErr bool, err uint32, kind eventKind) bool {
	if !c.taskSwitch(gate.gateSel(), taskEvent, kind.ext(), true) {
		return false
	}
	if !hasErr {
		return true
	}
	s := c.currentStack()
	size := layoutOf(uint8(c.TR.Attr) & 0xf).size
	if !s.push(uint64(err), size) {
		return c.faultInTask()
	}
	s.commit()
	return true
}

// faultInTask delivers a fault that belongs to the new task: its state is
// loaded already.
func (c *CPU) faultInTask() bool {
	f := c.fault
	c.fault.pending = false
	if f.vector == x86.VecPF {
		c.CR2 = f.cr2
	}
	c.deliver(f.vector, f.hasErr, f.err, eventFault)
	return true
}

// taskSwitch switches to the task whose TSS descriptor sel names. gate tells
// that sel comes from a task gate, whose DPL was checked instead.
func (c *CPU) taskSwitch(sel uint16, why taskWhy, ext uint32, gate bool) bool {
	vec := uint8(x86.VecGP)
	if why == taskIret {
		vec = x86.VecTS
	}
	if null(sel) || sel&4 != 0 {
		return c.raise(vec, errSel(sel, ext))
	}
	d, ok := c.fetchDescriptor(sel, vec, ext)
	if !ok {
		return false
	}
	want := uint8(0)
	if why == taskIret {
		want = 2
	}
	if !d.system() || d.typ()&^2 != sysTSSAvail && d.typ()&^2 != sysTSS16Avail || d.typ()&2 != want {
		return c.raise(vec, errSel(sel, ext))
	}
	if !d.present() {
		return c.raise(x86.VecNP, errSel(sel, ext))
	}
	lay := layoutOf(d.typ())
	if d.limit() < lay.limit {
		return c.raise(x86.VecTS, errSel(sel, ext))
	}
	next, ok := c.readTask(d.base(), lay)
	if !ok || !c.saveTask(why) {
		return false
	}
	if why == taskJump || why == taskIret {
		old, found, ok := c.readDescriptor(c.TR.Sel)
		if !ok || found && !c.setBusy(&old, false) {
			return false
		}
	}
	if why == taskCall || why == taskEvent {
		if !c.writeSys(c.wrap(d.base()), 2, uint64(c.TR.Sel)) {
			return false
		}
		next.flags |= x86.FlagNT
	}
	if why != taskIret && !c.setBusy(&d, true) {
		return false
	}
	c.TR = d.segment(sel)
	c.TR.Attr |= 2
	return c.loadTask(&next, lay)
}

func (c *CPU) readTask(base uint64, lay *tssLayout) (t taskState, ok bool) {
	get := func(off uint64, size int) uint64 {
		if !ok {
			return 0
		}
		var v uint64
		v, ok = c.readSys(c.wrap(base+off), size)
		return v
	}
	ok = true
	t.ip = get(lay.ip, lay.size)
	t.flags = get(lay.flags, lay.size)
	for i := range t.gpr {
		t.gpr[i] = get(lay.gpr+uint64(i*lay.size), lay.size)
	}
	for i := range lay.numSeg {
		t.seg[i] = uint16(get(lay.seg+uint64(i)*lay.segStep, 2))
	}
	t.ldt = uint16(get(lay.ldt, 2))
	if lay.cr3 != 0 {
		t.cr3 = get(lay.cr3, 4)
	}
	return t, ok
}

// saveTask writes the state of the current task to its TSS.
func (c *CPU) saveTask(why taskWhy) bool {
	lay := layoutOf(uint8(c.TR.Attr) & 0xf)
	flags := c.flags()
	if why == taskIret {
		flags &^= x86.FlagNT
	}
	put := func(off uint64, size int, v uint64) bool {
		return c.writeSys(c.wrap(c.TR.Base+off), size, v)
	}
	if !put(lay.ip, lay.size, c.RIP) || !put(lay.flags, lay.size, flags) {
		return false
	}
	for i := range 8 {
		if !put(lay.gpr+uint64(i*lay.size), lay.size, c.GPR[i]) {
			return false
		}
	}
	for i := range lay.numSeg {
		if !put(lay.seg+uint64(i)*lay.segStep, 2, uint64(c.Seg[i].Sel)) {
			return false
		}
	}
	return true
}

// loadTask makes t the current task. Faults from here on are the new task's.
func (c *CPU) loadTask(t *taskState, lay *tssLayout) bool {
	if lay.cr3 != 0 && c.CR0&x86.CR0PG != 0 && t.cr3 != c.CR3 {
		if c.CR4&x86.CR4PAE != 0 && !c.loadPDPTEs(t.cr3) {
			return c.faultInTask()
		}
		c.CR3 = t.cr3
		c.flush(Flush{Kind: FlushNonGlobal})
	}
	c.CR0 |= x86.CR0TS
	c.RIP = t.ip
	for i, v := range t.gpr {
		if lay.size == 2 {
			v |= 0xffff0000
		}
		c.GPR[i] = v
	}
	cpl := uint8(t.seg[x86.CS]) & 3
	for i := range c.Seg {
		c.Seg[i] = cpu.Segment{Sel: t.seg[i], Unusable: true}
	}
	c.CPL = cpl
	c.LDTR = cpu.Segment{Sel: t.ldt, Unusable: true}
	c.setFlags(t.flags)
	c.DR[7] &^= 0x155 // local breakpoints
	ok := c.loadTaskLDT(t.ldt) && c.loadTaskSegments(t, cpl)
	c.modeChanged()
	if !ok {
		return c.faultInTask()
	}
	if c.RIP > uint64(c.Seg[x86.CS].Limit) {
		c.raise(x86.VecGP, 0)
		return c.faultInTask()
	}
	return true
}

func (c *CPU) loadTaskLDT(sel uint16) bool {
	if null(sel) {
		return true
	}
	if sel&4 != 0 {
		return c.raise(x86.VecTS, errSel(sel, 0))
	}
	d, ok := c.fetchDescriptor(sel, x86.VecTS, 0)
	if !ok {
		return false
	}
	if !d.system() || d.typ() != sysLDT || !d.present() {
		return c.raise(x86.VecTS, errSel(sel, 0))
	}
	c.LDTR = d.segment(sel)
	return true
}

func (c *CPU) loadTaskSegments(t *taskState, cpl uint8) bool {
	sel := t.seg[x86.CS]
	if null(sel) {
		return c.raise(x86.VecTS, 0)
	}
	d, ok := c.fetchDescriptor(sel, x86.VecTS, 0)
	if !ok {
		return false
	}
	switch {
	case d.system() || !d.code(),
		d.conforming() && d.dpl() > cpl,
		!d.conforming() && d.dpl() != cpl:
		return c.raise(x86.VecTS, errSel(sel, 0))
	case !d.present():
		return c.raise(x86.VecNP, errSel(sel, 0))
	}
	if !c.setAccessed(&d) {
		return false
	}
	c.Seg[x86.CS] = d.segment(sel)
	ss, ok := c.checkSS(t.seg[x86.SS], cpl, x86.VecTS, 0, false)
	if !ok {
		return false
	}
	c.Seg[x86.SS] = ss
	for _, seg := range [...]uint8{x86.ES, x86.DS, x86.FS, x86.GS} {
		if null(t.seg[seg]) {
			continue
		}
		if !c.loadSegment(seg, t.seg[seg]) {
			if c.fault.vector == x86.VecGP {
				c.fault.vector = x86.VecTS
			}
			return false
		}
	}
	return true
}
