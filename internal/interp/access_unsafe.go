package interp

import (
	"encoding/binary"
	"unsafe"

	"ring3/internal/guestmem"
	"ring3/internal/mmu"
	"ring3/internal/x86"
)

// checkLin checks that the linear address is canonical where that matters. The
// run loop turns the #GP into #SS when the segment of the operand is SS
// (SDM vol. 1, section 3.3.7.1).
func (c *CPU) checkLin(a, size uint64) bool {
	if c.mode.linMask != ^uint64(0) || x86.Canonical(a) && x86.Canonical(a+size-1) {
		return true
	}
	c.raise(x86.VecGP, 0)
	c.fault.nonCan = true
	return false
}

// translate walks the page tables for an access of the current privilege.
func (c *CPU) translate(lin uint64, acc mmu.Access) (tr mmu.Translation, ok bool) {
	tr, code, ok := c.Walk.Walk(&c.State, lin, acc)
	if !ok {
		return tr, c.raisePF(lin, code)
	}
	if c.watch != nil && !c.watch.access(c.Mem, tr.GPA, acc) {
		return tr, c.raise(x86.VecGP, 0) // nobody will see it
	}
	return tr, true
}

// checkAlign raises #AC where alignment is checked (SDM vol. 3A, table 7-7).
func (c *CPU) checkAlign(a, size uint64) bool {
	if !c.mode.alignCheck || a&(size-1) == 0 {
		return true
	}
	return c.raise(x86.VecAC, 0)
}

// readSlow serves loads that the TLB does not know: misses, page crossings,
// devices, and all loads while alignment or breakpoints are checked.
func (c *CPU) readSlow(a, size uint64) (uint64, bool) {
	c.stat.SlowLoads++
	if !c.checkLin(a, size) {
		return 0, false
	}
	a &= c.mode.linMask
	tr, ok := c.translate(a, c.mode.acc|mmu.Read)
	if !ok {
		return 0, false
	}
	if a&pageMask+size > x86.PageSize {
		return c.readCrossing(a, size, tr.GPA)
	}
	if !c.checkAlign(a, size) {
		return 0, false
	}
	c.dbg.access(c, a, size, false)
	c.fill(a, &tr, false)
	return c.readPhys(tr.GPA, size), true
}

func (c *CPU) readCrossing(a, size, gpa uint64) (v uint64, ok bool) {
	n := x86.PageSize - a&pageMask
	tr, ok := c.translate((a+n)&c.mode.linMask, c.mode.acc|mmu.Read)
	if !ok || !c.checkAlign(a, size) {
		return 0, false
	}
	c.dbg.access(c, a, size, false)
	for i := uint64(0); i < size; i++ {
		g := gpa + i
		if i >= n {
			g = tr.GPA + i - n
		}
		v |= c.readPhys(g, 1) << (8 * i)
	}
	return v, true
}

// readPhys reads guest-physical memory: RAM, or a device.
func (c *CPU) readPhys(gpa, size uint64) uint64 {
	if p := c.at(gpa); p != nil {
		return hostGet(p, uint8(size))
	}
	c.stat.MMIO++
	c.io = [8]byte{}
	c.MMIO.Read(gpa, c.io[:size])
	return binary.LittleEndian.Uint64(c.io[:])
}

// writePhys writes guest-physical memory and tells code users.
func (c *CPU) writePhys(gpa, size, v uint64) {
	if p := c.at(gpa); p != nil {
		hostPut(p, uint8(size), v)
		c.wrote(gpa, int(size))
		return
	}
	c.stat.MMIO++
	binary.LittleEndian.PutUint64(c.io[:], v)
	c.MMIO.Write(gpa, c.io[:size])
}

func (c *CPU) wrote(gpa uint64, n int) {
	if c.Mem.Flags(gpa)&guestmem.PageCode != 0 {
		c.Mem.Changed(gpa, n)
	}
}

func (c *CPU) writeSlow(a, size, v uint64) bool {
	c.stat.SlowStores++
	if !c.checkLin(a, size) {
		return false
	}
	a &= c.mode.linMask
	tr, ok := c.translate(a, c.mode.acc|mmu.Write)
	if !ok {
		return false
	}
	if a&pageMask+size > x86.PageSize {
		return c.writeCrossing(a, size, v, tr.GPA)
	}
	if !c.checkAlign(a, size) {
		return false
	}
	c.dbg.access(c, a, size, true)
	c.fill(a, &tr, true)
	c.writePhys(tr.GPA, size, v)
	return true
}

func (c *CPU) writeCrossing(a, size, v, gpa uint64) bool {
	n := x86.PageSize - a&pageMask
	tr, ok := c.translate((a+n)&c.mode.linMask, c.mode.acc|mmu.Write)
	if !ok || !c.checkAlign(a, size) {
		return false
	}
	c.dbg.access(c, a, size, true)
	for i := uint64(0); i < size; i++ {
		g := gpa + i
		if i >= n {
			g = tr.GPA + i - n
		}
		c.writePhys(g, 1, v>>(8*i))
	}
	return true
}

// checkWrite raises the fault that a write of n bytes at a would raise.
func (c *CPU) checkWrite(a, n uint64) bool {
	return c.checkRange(a, n, mmu.Write)
}

func (c *CPU) checkRange(a, n uint64, acc mmu.Access) bool {
	if n == 0 {
		return true
	}
	if !c.checkLin(a, n) {
		return false
	}
	for off := uint64(0); off < n; off = (a+off)&^pageMask + x86.PageSize - a {
		if _, ok := c.translate((a+off)&c.mode.linMask, c.mode.acc|acc); !ok {
			return false
		}
	}
	return true
}

// rmwState is a read-modify-write operand between its read and its write.
type rmwState struct {
	p    unsafe.Pointer // nil: not plain RAM within a page
	lin  uint64
	code uint64 // guest-physical address to report after the write, or noCode
	old  uint64
}

const noCode = ^uint64(0)

// rmw reads the operand at a for modification. The access is a write from the
// start: a fault says so, and no fault can come after it.
func (c *CPU) rmw(a uint64, size uint8) (uint64, bool) {
	e := &c.tlb.w[a>>12%tlbSize]
	if e.tag == (a+uint64(size)-1)&^pageMask {
		p := unsafe.Add(e.page, a&pageMask)
		v := hostGet(p, size)
		c.rm = rmwState{p: p, code: noCode, old: v}
		return v, true
	}
	return c.rmwSlow(a, uint64(size))
}

func (c *CPU) rmwSlow(a, size uint64) (uint64, bool) {
	c.stat.SlowStores++
	if !c.checkLin(a, size) {
		return 0, false
	}
	a &= c.mode.linMask
	tr, ok := c.translate(a, c.mode.acc|mmu.Write)
	if !ok {
		return 0, false
	}
	if a&pageMask+size > x86.PageSize {
		if !c.checkWrite(a, size) || !c.checkAlign(a, size) {
			return 0, false
		}
		c.rm = rmwState{lin: a, code: noCode}
		return c.readCrossing(a, size, tr.GPA)
	}
	if !c.checkAlign(a, size) {
		return 0, false
	}
	c.dbg.access(c, a, size, true)
	c.fill(a, &tr, true)
	p := c.at(tr.GPA)
	if p == nil {
		c.rm = rmwState{lin: a, code: noCode}
		return c.readPhys(tr.GPA, size), true
	}
	v := hostGet(p, uint8(size))
	c.rm = rmwState{p: p, code: noCode, old: v}
	if c.Mem.Flags(tr.GPA)&guestmem.PageCode != 0 {
		c.rm.code = tr.GPA
	}
	return v, true
}

// rmwPut writes the operand that rmw read. With lock it fails when another CPU
// has changed it since; the caller then starts over.
func (c *CPU) rmwPut(size uint8, v uint64, lock bool) bool {
	p := c.rm.p
	if p == nil {
		return c.store(c.rm.lin, size, v) || true // cannot fault: rmw has checked
	}
	if lock {
		if !casHost(p, size, c.rm.old, v) {
			return false
		}
	} else {
		hostPut(p, size, v)
	}
	if c.rm.code != noCode {
		c.Mem.Changed(c.rm.code, int(size))
	}
	return true
}

// readLin reads with the privileges of the current CPL.
func (c *CPU) readLin(addr uint64, size int) (v uint64, ok bool) {
	return c.load(addr, uint8(size))
}

// writeLin writes with the privileges of the current CPL.
func (c *CPU) writeLin(addr uint64, size int, v uint64) bool {
	return c.store(addr, uint8(size), v)
}

// readSys is an implicit supervisor access: SMAP applies to it whatever AC
// says, and CPL does not matter (SDM vol. 3A, section 4.6).
func (c *CPU) readSys(addr uint64, size int) (v uint64, ok bool) {
	addr &= c.mode.linMask
	if e := &c.tlb.read[classSuper][tlbIndex(addr)]; e.tag == (addr+uint64(size)-1)&^pageMask {
		return hostGet(unsafe.Add(e.page, addr&pageMask), uint8(size)), true
	}
	if !c.checkLin(addr, uint64(size)) {
		return 0, false
	}
	g, g2, ok := c.sysPages(addr, uint64(size), mmu.Implicit)
	if !ok {
		return 0, false
	}
	n := x86.PageSize - addr&pageMask
	if uint64(size) <= n {
		return c.readPhys(g, uint64(size)), true
	}
	for i := uint64(0); i < uint64(size); i++ {
		if i < n {
			v |= c.readPhys(g+i, 1) << (8 * i)
		} else {
			v |= c.readPhys(g2+i-n, 1) << (8 * i)
		}
	}
	return v, true
}

// sysPages translates the first and the last byte of an implicit access.
func (c *CPU) sysPages(addr, size uint64, acc mmu.Access) (g, g2 uint64, ok bool) {
	tr, ok := c.translate(addr, acc)
	if !ok {
		return 0, 0, false
	}
	g, g2 = tr.GPA, tr.GPA
	if n := x86.PageSize - addr&pageMask; size > n {
		tr, ok = c.translate((addr+n)&c.mode.linMask, acc)
		g2 = tr.GPA
	}
	return g, g2, ok
}

// writeSys is the same for writing.
func (c *CPU) writeSys(addr uint64, size int, v uint64) bool {
	addr &= c.mode.linMask
	if e := &c.tlb.write[classSuper][tlbIndex(addr)]; e.tag == (addr+uint64(size)-1)&^pageMask {
		hostPut(unsafe.Add(e.page, addr&pageMask), uint8(size), v)
		return true
	}
	if !c.checkLin(addr, uint64(size)) {
		return false
	}
	g, g2, ok := c.sysPages(addr, uint64(size), mmu.Implicit|mmu.Write)
	if !ok {
		return false
	}
	n := x86.PageSize - addr&pageMask
	if uint64(size) <= n {
		c.writePhys(g, uint64(size), v)
		return true
	}
	for i := uint64(0); i < uint64(size); i++ {
		if i < n {
			c.writePhys(g+i, 1, v>>(8*i))
		} else {
			c.writePhys(g2+i-n, 1, v>>(8*i))
		}
	}
	return true
}

// readBytes reads len(p) bytes with the current privileges. It faults before
// anything is read from a device.
func (c *CPU) readBytes(addr uint64, p []byte) bool {
	if q, n := c.readable(addr); q != nil && n >= uint64(len(p)) {
		copy(p, bytesAt(q, uint64(len(p))))
		return true
	}
	if !c.checkRange(addr, uint64(len(p)), mmu.Read) {
		return false
	}
	c.dbg.access(c, addr, uint64(len(p)), false)
	for i := uint64(0); i < uint64(len(p)); {
		a := (addr + i) & c.mode.linMask
		tr, ok := c.translate(a, c.mode.acc|mmu.Read)
		if !ok {
			return false
		}
		n := min(x86.PageSize-a&pageMask, uint64(len(p))-i)
		if q := c.at(tr.GPA); q != nil {
			c.fill(a, &tr, false)
			copy(p[i:i+n], bytesAt(q, n))
		} else {
			c.deviceBytes(tr.GPA, p[i:i+n], false)
		}
		i += n
	}
	return true
}

// writeBytes writes p with the current privileges. It faults before anything
// is written.
func (c *CPU) writeBytes(addr uint64, p []byte) bool {
	if q, n := c.writable(addr); q != nil && n >= uint64(len(p)) {
		copy(bytesAt(q, uint64(len(p))), p)
		return true
	}
	if !c.checkRange(addr, uint64(len(p)), mmu.Write) {
		return false
	}
	c.dbg.access(c, addr, uint64(len(p)), true)
	for i := uint64(0); i < uint64(len(p)); {
		a := (addr + i) & c.mode.linMask
		tr, ok := c.translate(a, c.mode.acc|mmu.Write)
		if !ok {
			return false
		}
		n := min(x86.PageSize-a&pageMask, uint64(len(p))-i)
		if q := c.at(tr.GPA); q != nil {
			c.fill(a, &tr, true)
			copy(bytesAt(q, n), p[i:i+n])
			c.wrote(tr.GPA, int(n))
		} else {
			c.deviceBytes(tr.GPA, p[i:i+n], true)
		}
		i += n
	}
	return true
}

// deviceBytes moves p from or to a device in the largest aligned pieces.
func (c *CPU) deviceBytes(gpa uint64, p []byte, write bool) {
	c.stat.MMIO++
	for len(p) > 0 {
		n := 8
		for n > len(p) || gpa&uint64(n-1) != 0 {
			n /= 2
		}
		if write {
			copy(c.io[:n], p)
			c.MMIO.Write(gpa, c.io[:n])
		} else {
			c.MMIO.Read(gpa, c.io[:n])
			copy(p[:n], c.io[:n])
		}
		p = p[n:]
		gpa += uint64(n)
	}
}
