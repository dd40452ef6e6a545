package interp

import (
	"ring3/internal/cpu"
	"ring3/internal/x86"
	"ring3/internal/x86/insn"
)

// syscallOp is SYSCALL (SDM vol. 2B; AMD APM vol. 3, which also has it in
// compatibility and legacy mode).
func (c *CPU) syscallOp() bool {
	code64 := c.Code64()
	if c.EFER&x86.EFERSCE == 0 || !c.protected() || !code64 && !c.amd() {
		return c.raise(x86.VecUD, 0)
	}
	sel := uint16(c.STAR>>32) &^ 3
	flags := c.flags() &^ x86.FlagRF
	cs := cpu.FlatCode(sel, 0, cpu.AttrL)
	if c.LongMode() {
		c.GPR[x86.RCX] = c.RIP
		c.GPR[x86.R11] = flags
		c.RIP = c.LSTAR
		if !code64 {
			c.RIP = c.CSTAR
		}
		flags &^= c.SFMASK
	} else {
		c.GPR[x86.RCX] = c.RIP & 0xffffffff
		c.RIP = c.STAR & 0xffffffff
		cs = cpu.FlatCode(sel, 0, cpu.AttrDB)
		flags &^= x86.FlagIF | x86.FlagVM
	}
	c.Seg[x86.CS] = cs
	c.Seg[x86.SS] = cpu.FlatData(sel+8, 0)
	c.CPL = 0
	c.setFlags(flags)
	c.modeChanged()
	return true
}

// sysret is SYSRET. Intel checks RCX for being canonical while still at CPL 0
// and loads all of SS; AMD does neither: a bad address faults at its first
// fetch, and SS keeps base, limit and attributes, so that after an interrupt
// it may stay the null segment.
func (c *CPU) sysret(opsize int) bool {
	if c.EFER&x86.EFERSCE == 0 || !c.Code64() && !c.amd() {
		return c.raise(x86.VecUD, 0)
	}
	if !c.protected() || c.CPL != 0 {
		return c.raise(x86.VecGP, 0)
	}
	sel := uint16(c.STAR>>48) | 3
	rip := c.GPR[x86.RCX]
	if opsize == 64 && !x86.Canonical(rip) && !c.amd() {
		return c.raise(x86.VecGP, 0)
	}
	if opsize == 64 {
		c.Seg[x86.CS] = cpu.FlatCode(sel+16, 3, cpu.AttrL)
	} else {
		c.Seg[x86.CS] = cpu.FlatCode(sel, 3, cpu.AttrDB)
		rip &= 0xffffffff
	}
	ss := cpu.FlatData(sel+8, 3)
	if old := &c.Seg[x86.SS]; (old.Unusable || old.Attr|cpu.AttrDPL != ss.Attr || old.Base != 0 || old.Limit != ss.Limit) && c.amd() {
		ss.Base, ss.Limit, ss.Unusable = old.Base, old.Limit, old.Unusable
		ss.Attr = old.Attr | cpu.AttrDPL
	}
	c.Seg[x86.SS] = ss
	c.RIP = rip
	c.CPL = 3
	if c.LongMode() {
		c.setFlags(c.GPR[x86.R11] &^ (x86.FlagRF | x86.FlagVM))
	} else {
		c.setFlags(c.flags() | x86.FlagIF)
	}
	c.modeChanged()
	return true
}

// sysenter is SYSENTER; AMD does not have it in long mode.
func (c *CPU) sysenter() bool {
	long := c.LongMode()
	if long && c.amd() {
		return c.raise(x86.VecUD, 0)
	}
	if !c.protected() || c.SysenterCS&0xfffc == 0 {
		return c.raise(x86.VecGP, 0)
	}
	sel := uint16(c.SysenterCS) &^ 3
	c.setFlags(c.flags() &^ (x86.FlagIF | x86.FlagVM | x86.FlagRF))
	if long {
		c.GPR[x86.RSP], c.RIP = c.SysenterESP, c.SysenterEIP
		c.Seg[x86.CS] = cpu.FlatCode(sel, 0, cpu.AttrL)
	} else {
		c.GPR[x86.RSP], c.RIP = c.SysenterESP&0xffffffff, c.SysenterEIP&0xffffffff
		c.Seg[x86.CS] = cpu.FlatCode(sel, 0, cpu.AttrDB)
	}
	c.Seg[x86.SS] = cpu.FlatData(sel+8, 0)
	c.CPL = 0
	c.modeChanged()
	return true
}

// sysexit is SYSEXIT; AMD does not have it in long mode.
func (c *CPU) sysexit(opsize int) bool {
	if c.LongMode() && c.amd() {
		return c.raise(x86.VecUD, 0)
	}
	if !c.protected() || c.CPL != 0 || c.SysenterCS&0xfffc == 0 {
		return c.raise(x86.VecGP, 0)
	}
	rip, rsp := c.GPR[x86.RDX], c.GPR[x86.RCX]
	sel := uint16(c.SysenterCS) | 3
	if opsize == 64 {
		if !x86.Canonical(rip) || !x86.Canonical(rsp) {
			return c.raise(x86.VecGP, 0)
		}
		c.Seg[x86.CS] = cpu.FlatCode(sel+32, 3, cpu.AttrL)
		c.Seg[x86.SS] = cpu.FlatData(sel+40, 3)
	} else {
		rip, rsp = rip&0xffffffff, rsp&0xffffffff
		c.Seg[x86.CS] = cpu.FlatCode(sel+16, 3, cpu.AttrDB)
		c.Seg[x86.SS] = cpu.FlatData(sel+24, 3)
	}
	c.RIP, c.GPR[x86.RSP] = rip, rsp
	c.CPL = 3
	c.modeChanged()
	return true
}

// swapgs exchanges the GS base with IA32_KERNEL_GS_BASE.
func (c *CPU) swapgs() bool {
	if !c.Code64() {
		return c.raise(x86.VecUD, 0)
	}
	if c.CPL != 0 {
		return c.raise(x86.VecGP, 0)
	}
	c.Seg[x86.GS].Base, c.KernelGSBase = c.KernelGSBase, c.Seg[x86.GS].Base
	return true
}

// fsgsbase is RDFSBASE, RDGSBASE, WRFSBASE and WRGSBASE; size is 32 or 64.
func (c *CPU) fsgsbase(op insn.Op, reg uint8, size int) bool {
	if !c.Code64() || c.CR4&x86.CR4FSGSBASE == 0 {
		return c.raise(x86.VecUD, 0)
	}
	seg := &c.Seg[x86.FS]
	if op == insn.OpRDGSBASE || op == insn.OpWRGSBASE {
		seg = &c.Seg[x86.GS]
	}
	if op == insn.OpRDFSBASE || op == insn.OpRDGSBASE {
		c.GPR[reg] = seg.Base & opMask(size)
		return true
	}
	v := c.GPR[reg] & opMask(size)
	if !x86.Canonical(v) {
		return c.raise(x86.VecGP, 0)
	}
	seg.Base = v
	return true
}
