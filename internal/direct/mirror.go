package direct

import (
	"encoding/binary"

	"ring3/internal/cpu"
	"ring3/internal/direct/stub"
	"ring3/internal/x86"
)

// mirrors reports whether the host processor, with the host kernel's GDT, can
// run user code in exactly this state. If not, it is interpreted.
func (e *Engine) mirrors() bool {
	st := e.state
	cs := &st.Seg[x86.CS]
	switch {
	case cs.Sel == selCS64 && cs.Attr&cpu.AttrL != 0:
	case cs.Sel == selCS32 && cs.Attr&(cpu.AttrL|cpu.AttrDB) == cpu.AttrDB && cs.Base == 0 && cs.Limit == 0xffffffff:
	default:
		return false
	}
	if st.RFLAGS&(x86.FlagIF|x86.FlagIOPL|x86.FlagVM) != x86.FlagIF {
		return false // POPF and PUSHF would show it
	}
	if st.DR[7]&0xff != 0 {
		return false // breakpoints
	}
	if st.CR0&(x86.CR0TS|x86.CR0EM) != 0 || st.CR4&x86.CR4TSD != 0 {
		return false // #NM, or RDTSC faults
	}
	ss := &st.Seg[x86.SS]
	if ss.Sel != selData || ss.Base != 0 || ss.Limit != 0xffffffff {
		return false
	}
	for _, r := range [4]int{x86.DS, x86.ES, x86.FS, x86.GS} {
		sel := st.Seg[r].Sel
		if sel > 3 && sel != selData && (sel&7 != 3 || sel < selTLS || sel > selTLS+16) {
			return false
		}
	}
	return true
}

// usesTLS reports whether a segment register refers to one of the three GDT
// entries that an operating system lets programs choose.
func (e *Engine) usesTLS() bool {
	for _, r := range [4]int{x86.DS, x86.ES, x86.FS, x86.GS} {
		if e.state.Seg[r].Sel >= selTLS {
			return true
		}
	}
	return false
}

// mirrorTLS copies the guest's GDT entries 12 to 14 to the stub's when code
// can load them: in compatibility mode (thread libraries load GS natively),
// or when one is loaded.
func (e *Engine) mirrorTLS(s *space) error {
	p := s.p
	if e.state.Seg[x86.CS].Sel != selCS32 && !e.usesTLS() && p.tls == [3]uint64{} {
		return nil
	}
	for i := range p.tls {
		d, ok := e.descriptor(uint16(selTLS>>3 + i))
		// Present data segments of privilege level 3 only (SDM vol. 3A,
		// section 3.4.5): the host refuses others.
		if !ok || d>>40&(cpu.AttrP|cpu.AttrS|cpu.AttrDPL|cpu.AttrCode) != cpu.AttrP|cpu.AttrS|cpu.AttrDPL {
			d = 0
		}
		if d&^(1<<40) == p.tls[i]&^(1<<40) {
			continue
		}
		if err := p.setTLS(i, d, s.unused()); err != nil {
			return err
		}
		// The loaded registers hold the old descriptor.
		p.sel = [4]uint16{^uint16(0)}
	}
	return nil
}

// unused is a page below 2 GiB where nothing is mapped.
func (s *space) unused() uint64 {
	for gva := uint64(minMap); ; gva += x86.PageSize {
		if s.get(gva) == 0 {
			return gva
		}
	}
}

// setTLS sets GDT entry 12+i of the stub to a descriptor, 0 to clear it. Only
// the 32-bit ABI has a call for that, and it takes a 32-bit pointer: the
// control page is mapped at the unused address low meanwhile.
func (p *proc) setTLS(i int, d, low uint64) error {
	if err := p.execute(); err != nil { // Desc is shared by the staged calls
		return err
	}
	le := binary.LittleEndian
	c := p.ctl
	// struct user_desc: entry number, base, limit, and a bit field.
	flags := uint32(0x28) // read_exec_only, seg_not_present: together an empty entry
	var base, limit uint32
	if d != 0 {
		base = uint32(d>>16&0xffffff | d>>56<<24)
		limit = uint32(d&0xffff | d>>32&0xf0000)
		flags = uint32(d>>54&1) | // seg_32bit: D/B
			uint32(d>>42&1)<<1 | // contents: expand-down
			uint32(^d>>41&1)<<3 | // read_exec_only
			uint32(d>>55&1)<<4 | // limit_in_pages
			uint32(d>>52&1)<<6 // useable
	}
	le.PutUint32(c.Desc[0:], uint32(12+i))
	le.PutUint32(c.Desc[4:], base)
	le.PutUint32(c.Desc[8:], limit)
	le.PutUint32(c.Desc[12:], flags)
	p.tls[i] = d
	p.e.stats.TLSLoads++
	if err := p.mmap(low, x86.PageSize, protRead, stub.FDControl, uint64(p.index*stub.SlotSize)); err != nil {
		return err
	}
	k := p.z.secrets.Compat
	if err := p.stage(stub.CompatCall|sysSetThreadArea32, low+stub.DescOff-stub.ControlOff,
		uint64(k[0]), uint64(k[1]), uint64(k[2]), uint64(k[3]), uint64(k[4])); err != nil {
		return err
	}
	if err := p.munmap(low, x86.PageSize); err != nil {
		return err
	}
	return p.execute()
}

const sysSetThreadArea32 = 243 // arch/x86/entry/syscalls/syscall_32.tbl
