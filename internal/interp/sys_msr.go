package interp

import "ring3/internal/x86"

const (
	eferAutoIBRS = 1 << 21 // AMD automatic IBRS; no effect here
)

// rdmsr is RDMSR. What the CPU acts on is in State, the rest the machine has.
func (c *CPU) rdmsr() bool {
	if !c.supervisor() {
		return false
	}
	var v uint64
	switch msr := uint32(c.GPR[x86.RCX]); msr {
	case x86.MSRTSC:
		v = c.Env.TSC()
	case x86.MSREFER:
		v = c.EFER
	case x86.MSRPAT:
		v = c.PAT
	case x86.MSRFSBase:
		v = c.Seg[x86.FS].Base
	case x86.MSRGSBase:
		v = c.Seg[x86.GS].Base
	default:
		p := c.plainMSR(msr)
		if p == nil {
			var ok bool
			if v, ok = c.Env.ReadMSR(msr); !ok {
				return c.raise(x86.VecGP, 0)
			}
			break
		}
		v = *p
	}
	c.GPR[x86.RAX] = v & 0xffffffff
	c.GPR[x86.RDX] = v >> 32
	return true
}

// plainMSR is the place of an MSR that reads as it was written.
func (c *CPU) plainMSR(msr uint32) *uint64 {
	switch msr {
	case x86.MSRSTAR:
		return &c.STAR
	case x86.MSRLSTAR:
		return &c.LSTAR
	case x86.MSRCSTAR:
		return &c.CSTAR
	case x86.MSRSFMASK:
		return &c.SFMASK
	case x86.MSRKernelGSBase:
		return &c.KernelGSBase
	case x86.MSRSysenterCS:
		return &c.SysenterCS
	case x86.MSRSysenterESP:
		return &c.SysenterESP
	case x86.MSRSysenterEIP:
		return &c.SysenterEIP
	case x86.MSRTSCAux:
		return &c.TSCAux
	}
	return nil
}

// wrmsr is WRMSR.
func (c *CPU) wrmsr() bool {
	if !c.supervisor() {
		return false
	}
	msr := uint32(c.GPR[x86.RCX])
	v := c.GPR[x86.RAX]&0xffffffff | c.GPR[x86.RDX]<<32
	switch msr {
	case x86.MSRLSTAR, x86.MSRCSTAR, x86.MSRFSBase, x86.MSRGSBase, x86.MSRKernelGSBase,
		x86.MSRSysenterESP, x86.MSRSysenterEIP:
		if !x86.Canonical(v) {
			return c.raise(x86.VecGP, 0)
		}
	case x86.MSRSFMASK, x86.MSRSysenterCS:
		v &= 0xffffffff
	case x86.MSRTSCAux:
		if v>>32 != 0 && !c.amd() {
			return c.raise(x86.VecGP, 0)
		}
		v &= 0xffffffff
	}
	switch msr {
	case x86.MSREFER:
		return c.writeEFER(v)
	case x86.MSRPAT:
		if !validPAT(v) {
			return c.raise(x86.VecGP, 0)
		}
		c.PAT = v
	case x86.MSRFSBase:
		c.Seg[x86.FS].Base = v
	case x86.MSRGSBase:
		c.Seg[x86.GS].Base = v
	default:
		if p := c.plainMSR(msr); p != nil {
			*p = v
		} else if !c.Env.WriteMSR(msr, v) {
			return c.raise(x86.VecGP, 0)
		}
	}
	return true
}

// validPAT checks the eight memory types (SDM vol. 3A, table 12-10).
func validPAT(v uint64) bool {
	for ; v != 0; v >>= 8 {
		switch uint8(v) {
		case 0, 1, 4, 5, 6, 7:
		default:
			return false
		}
	}
	return true
}

// writeEFER (SDM vol. 3A, section 2.2.1; AMD APM vol. 2, section 3.1.7). LMA is
// read-only; LME cannot change while paging is on.
func (c *CPU) writeEFER(v uint64) bool {
	allowed := uint64(x86.EFERSCE | x86.EFERLME | x86.EFERLMA | x86.EFERNX)
	if _, _, _, d := c.Env.CPUID(0x80000001, 0); d>>25&1 != 0 {
		allowed |= x86.EFERFFXSR
	}
	if top, _, _, _ := c.Env.CPUID(0x80000000, 0); top >= 0x80000021 {
		if a, _, _, _ := c.Env.CPUID(0x80000021, 0); a>>8&1 != 0 {
			allowed |= eferAutoIBRS
		}
	}
	v = v&^x86.EFERLMA | c.EFER&x86.EFERLMA
	if v&^allowed != 0 || c.Paging() && (v^c.EFER)&x86.EFERLME != 0 {
		return c.raise(x86.VecGP, 0)
	}
	changed := v ^ c.EFER
	c.EFER = v
	c.modeChanged()
	if changed&x86.EFERNX != 0 {
		c.Env.Flushed(Flush{Kind: FlushAll})
	}
	return true
}

// rdtsc is RDTSC.
func (c *CPU) rdtsc() bool {
	if c.CR4&x86.CR4TSD != 0 && c.CPL != 0 && c.protected() {
		return c.raise(x86.VecGP, 0)
	}
	v := c.Env.TSC()
	c.GPR[x86.RAX] = v & 0xffffffff
	c.GPR[x86.RDX] = v >> 32
	return true
}

// rdtscp is RDTSCP.
func (c *CPU) rdtscp() bool {
	if !c.rdtsc() {
		return false
	}
	c.GPR[x86.RCX] = c.TSCAux & 0xffffffff
	return true
}

// rdpid is RDPID.
func (c *CPU) rdpid(reg uint8) bool {
	c.GPR[reg] = c.TSCAux & 0xffffffff
	return true
}

// rdpmc is RDPMC: there are no counters.
func (c *CPU) rdpmc() bool { return c.raise(x86.VecGP, 0) }

// cpuidOp is CPUID.
func (c *CPU) cpuidOp() bool {
	a, b, cx, d := c.Env.CPUID(uint32(c.GPR[x86.RAX]), uint32(c.GPR[x86.RCX]))
	c.GPR[x86.RAX], c.GPR[x86.RBX] = uint64(a), uint64(b)
	c.GPR[x86.RCX], c.GPR[x86.RDX] = uint64(cx), uint64(d)
	return true
}
