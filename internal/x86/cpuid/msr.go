package cpuid

import "ring3/internal/x86"

// Policy says what WRMSR does.
type Policy uint8

// Policies.
const (
	Store    Policy = iota // bits in MSR.Mask may be set, others raise #GP
	Ignore                 // accepted, no effect
	ReadOnly               // #GP
)

// MSR is a model-specific register with no effect of its own, as the machine
// serves it. RDMSR and WRMSR of registers that are neither here nor served by
// a device nor in cpu.State raise #GP.
type MSR struct {
	Num    uint32
	Name   string
	Value  uint64 // after RESET
	Write  Policy
	Mask   uint64 // Store: the bits that may be set
	Reason string
}

const all = ^uint64(0)

// physMask are the address bits of an MTRR.
const physMask = (1<<PhysBits - 1) &^ 0xfff

// Memory types in MTRRs, for each of the eight parts of a fixed register
// (SDM vol. 3A, table 12-8).
const (
	eightUC = 0
	eightWP = 0x0505050505050505
	eightWB = 0x0606060606060606
)

// archCapabilities is IA32_ARCH_CAPABILITIES (SDM vol. 4, table 2-2): the bits
// that say what the CPU is not vulnerable to, so that a kernel turns on no
// costly mitigation against a CPU that it does not drive.
const archCapabilities = 1<<0 | // RDCL_NO: no Meltdown, so no page-table isolation
	1<<1 | // IBRS_ALL: enhanced IBRS, so no retpolines
	1<<3 | // SKIP_L1DFL_VMENTRY
	1<<4 | // SSB_NO
	1<<5 | // MDS_NO
	1<<6 | // IF_PSCHANGE_MC_NO
	1<<8 | // TAA_NO
	1<<13 | 1<<14 | 1<<15 | // SBDR_SSDP_NO, FBSDP_NO, PSDP_NO
	1<<20 | // BHI_NO
	1<<24 | // PBRSB_NO
	1<<26 | // GDS_NO
	1<<27 | // RFDS_NO
	1<<62 // ITS_NO

// MSRs lists the registers that go with the table. Both vendors' kernels read
// the common ones.
func (t *Table) MSRs() []MSR {
	list := append([]MSR{}, commonMSRs...)
	for i := uint32(0); i < mtrrCount; i++ {
		base, mask := uint64(0), uint64(0)
		if i == 0 {
			base, mask = 3<<30, physMask&^(1<<30-1)|1<<11
		}
		n := uint32(x86.MSRMTRRPhysBase0) + 2*i
		list = append(list,
			MSR{n, "IA32_MTRR_PHYSBASE", base, Store, physMask | 0xff, "the hole for devices below 4 GiB is uncacheable"},
			MSR{n + 1, "IA32_MTRR_PHYSMASK", mask, Store, physMask | 1<<11, ""})
	}
	for i := uint32(0); i < 8; i++ {
		list = append(list, MSR{x86.MSRMTRRFix4K0 + i, "IA32_MTRR_FIX4K", eightWP, Store, all, "ROMs from 0xc0000"})
	}
	if t.amd {
		return append(list, amdMSRs...)
	}
	list = append(list, intelMSRs...)
	return append(list, MSR{0xce, "MSR_PLATFORM_INFO", uint64(t.opt.TSCkHz/100000) << 8, ReadOnly, 0,
		"base ratio to 100 MHz; no CPUID faulting"})
}

const mtrrCount = 8

var commonMSRs = []MSR{
	{x86.MSRTSC, "IA32_TIME_STAMP_COUNTER", 0, Ignore, 0, "reads come from the clock; the TSC cannot be set, user code reads the host's"},
	{x86.MSRTSCAdjust, "IA32_TSC_ADJUST", 0, Store, 0, "the TSC cannot be moved: 0, and nothing else can be written"},
	{x86.MSRSpecCtrl, "IA32_SPEC_CTRL", 0, Store, 7, "IBRS, STIBP, SSBD: kept, no effect"},
	{x86.MSRPredCmd, "IA32_PRED_CMD", 0, Ignore, 0, "IBPB: the host's own business"},
	{x86.MSRMTRRCap, "IA32_MTRRCAP", mtrrCount | 1<<8 | 1<<10, ReadOnly, 0, "eight variable ranges, fixed ranges, write-combining"},
	{x86.MSRMTRRDefType, "IA32_MTRR_DEF_TYPE", 6 | 1<<10 | 1<<11, Store, 0xcff, "enabled, fixed ranges too, default write-back"},
	{x86.MSRMTRRFix64K, "IA32_MTRR_FIX64K_00000", eightWB, Store, all, "RAM"},
	{x86.MSRMTRRFix16K0, "IA32_MTRR_FIX16K_80000", eightWB, Store, all, "RAM"},
	{x86.MSRMTRRFix16K1, "IA32_MTRR_FIX16K_A0000", eightUC, Store, all, "display memory"},
	{x86.MSRMCGCap, "IA32_MCG_CAP", 0, ReadOnly, 0, "no machine-check banks"},
	{x86.MSRMCGStatus, "IA32_MCG_STATUS", 0, Store, 7, ""},
	{x86.MSRDebugCtl, "IA32_DEBUGCTL", 0, Store, 3, "LBR and BTF: kept, no effect"},
}

var intelMSRs = []MSR{
	{0x17, "IA32_PLATFORM_ID", 0, ReadOnly, 0, "microcode loader"},
	{0x2a, "MSR_EBL_CR_POWERON", 0, Ignore, 0, ""},
	{x86.MSRFeatureCtl, "IA32_FEATURE_CONTROL", 1, ReadOnly, 0, "locked, nothing enabled"},
	{x86.MSRBiosSignID, "IA32_BIOS_SIGN_ID", 1 << 32, Ignore, 0, "microcode revision 1; kernels write 0 before CPUID and read"},
	{0x10a, "IA32_ARCH_CAPABILITIES", archCapabilities, ReadOnly, 0, "see archCapabilities"},
	{0x140, "MSR_MISC_FEATURES_ENABLES", 0, Store, 0, "no CPUID faulting"},
	{x86.MSRMiscEnable, "IA32_MISC_ENABLE", 1 | 1<<11 | 1<<12, Ignore, 0, "fast strings; no branch trace store, no PEBS"},
}

var amdMSRs = []MSR{
	{x86.MSRBiosSignID, "MSR_PATCH_LEVEL", 0x01000065, Ignore, 0, "a microcode revision that no errata check knows"},
	{0xc0010010, "SYSCFG", 0, Store, all, "no memory encryption, no DRAM modification of fixed MTRRs"},
	{0xc0010015, "HWCR", 1 << 24, Ignore, 0, "TscFreqSel: the TSC counts at the P0 rate"},
	{0xc001001f, "NB_CFG", 0, Store, all, "kernels set bit 46 for extended PCI configuration by port"},
	{0xc0010055, "INT_PENDING", 0, Ignore, 0, ""},
	{0xc0011022, "DC_CFG", 0, Ignore, 0, ""},
	{0xc0011029, "DE_CFG", 1 << 1, Ignore, 0, "LFENCE is serializing"},
	{0xc001102a, "BU_CFG2", 0, Store, all, ""},
}

// File holds the values of the registers of a list.
type File struct {
	index map[uint32]int
	regs  []MSR
}

// NewFile makes a file in the state after RESET.
func NewFile(list []MSR) *File {
	f := &File{index: make(map[uint32]int, len(list)), regs: append([]MSR{}, list...)}
	for i, m := range f.regs {
		f.index[m.Num] = i
	}
	return f
}

// Read is RDMSR; !ok is #GP.
func (f *File) Read(msr uint32) (v uint64, ok bool) {
	i, ok := f.index[msr]
	if !ok {
		return 0, false
	}
	return f.regs[i].Value, true
}

// Write is WRMSR; !ok is #GP.
func (f *File) Write(msr uint32, v uint64) (ok bool) {
	i, ok := f.index[msr]
	if !ok {
		return false
	}
	switch m := &f.regs[i]; m.Write {
	case Store:
		if v&^m.Mask != 0 {
			return false
		}
		m.Value = v
	case ReadOnly:
		return false
	}
	return true
}
