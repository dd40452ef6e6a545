package interp

import (
	"testing"

	"ring3/internal/cpu"
	"ring3/internal/x86"
	"ring3/internal/x86/insn"
)

func fastRig(r *rig) {
	// Linux's layout: kernel CS, SS, user CS32, SS, CS64.
	r.STAR = selCode64<<32 | uint64(0x23)<<48
	r.LSTAR, r.CSTAR = 0xffffffff81000000, 0xffffffff82000000
	r.SFMASK = x86.FlagIF | x86.FlagTF | x86.FlagDF | x86.FlagAC
	r.SysenterCS, r.SysenterESP, r.SysenterEIP = selCode64, 0xffff888000001000, 0xffffffff83000000
}

func amdThen(f func(*rig)) func(*rig) {
	return func(r *rig) {
		r.env.amd = true
		fastRig(r)
		if f != nil {
			f(r)
		}
	}
}

func TestFastCallFaults(t *testing.T) {
	noSCE := func(r *rig) { r.EFER &^= x86.EFERSCE }
	user := userThen(nil)
	syscall := func(r *rig) bool { return r.syscallOp() }
	sysret := func(size int) func(*rig) bool { return func(r *rig) bool { return r.sysret(size) } }
	sysenter := func(r *rig) bool { return r.sysenter() }
	sysexit := func(size int) func(*rig) bool { return func(r *rig) bool { return r.sysexit(size) } }
	swapgs := func(r *rig) bool { return r.swapgs() }
	runFaults(t, []faultCase{
		{"SYSCALL without SCE", long, noSCE, syscall, x86.VecUD, 0},
		{"SYSCALL, Intel", compat, nil, syscall, x86.VecUD, 0},
		{"SYSRET without SCE", long, noSCE, sysret(64), x86.VecUD, 0},
		{"SYSRET, Intel", compat, nil, sysret(32), x86.VecUD, 0},
		{"SYSRET at CPL 3", long, user, sysret(64), x86.VecGP, 0},
		{"SYSRET, RCX not canonical, Intel", long, func(r *rig) { r.GPR[x86.RCX] = 1 << 47 }, sysret(64), x86.VecGP, 0},
		{"SYSENTER, CS null", long, nil, sysenter, x86.VecGP, 0},
		{"SYSENTER", real, func(r *rig) { r.SysenterCS = 8 }, sysenter, x86.VecGP, 0},
		{"SYSENTER, AMD", long, amdThen(nil), sysenter, x86.VecUD, 0},
		{"SYSENTER, AMD", compat, amdThen(nil), sysenter, x86.VecUD, 0},
		{"SYSEXIT, AMD", long, amdThen(nil), sysexit(64), x86.VecUD, 0},
		{"SYSEXIT, CS null", long, nil, sysexit(64), x86.VecGP, 0},
		{"SYSEXIT at CPL 3", long, func(r *rig) { fastRig(r); r.user() }, sysexit(64), x86.VecGP, 0},
		{"SYSEXIT, RIP", long, func(r *rig) { fastRig(r); r.GPR[x86.RDX] = 1 << 50 }, sysexit(64), x86.VecGP, 0},
		{"SYSEXIT, RSP", long, func(r *rig) { fastRig(r); r.GPR[x86.RCX] = 1 << 50 }, sysexit(64), x86.VecGP, 0},
		{"SWAPGS", compat, nil, swapgs, x86.VecUD, 0},
		{"SWAPGS at CPL 3", long, user, swapgs, x86.VecGP, 0},
		{"RDFSBASE off", long, nil, func(r *rig) bool { return r.fsgsbase(insn.OpRDFSBASE, 0, 64) }, x86.VecUD, 0},
		{"WRGSBASE", compat, func(r *rig) { r.CR4 |= x86.CR4FSGSBASE },
			func(r *rig) bool { return r.fsgsbase(insn.OpWRGSBASE, 0, 32) }, x86.VecUD, 0},
		{"WRGSBASE, not canonical", long, func(r *rig) { r.CR4 |= x86.CR4FSGSBASE; r.GPR[0] = 1 << 47 },
			func(r *rig) bool { return r.fsgsbase(insn.OpWRGSBASE, 0, 64) }, x86.VecGP, 0},
	})
}

func TestSyscallSysret(t *testing.T) {
	for _, amd := range []bool{false, true} {
		r := newRig(t, long).user()
		r.env.amd = amd
		fastRig(r)
		r.setFlags(x86.FlagIF | x86.FlagDF | x86.FlagCF | x86.FlagRF)
		r.wantOK(r.syscallOp())
		if r.CPL != 0 || r.RIP != r.LSTAR || r.GPR[x86.RCX] != rigCode || r.Seg[x86.CS].Sel != selCode64 || r.Seg[x86.SS].Sel != selData {
			t.Fatalf("CPL %d RIP %#x RCX %#x", r.CPL, r.RIP, r.GPR[x86.RCX])
		}
		if r.GPR[x86.R11] != x86.FlagFixed|x86.FlagIF|x86.FlagDF|x86.FlagCF || r.flags() != x86.FlagFixed|x86.FlagCF {
			t.Errorf("R11 %#x flags %#x", r.GPR[x86.R11], r.flags())
		}
		if !r.Code64() || r.Seg[x86.CS].DPL() != 0 || r.Seg[x86.SS].Limit != 0xffffffff || r.GPR[x86.RSP] != rigUser {
			t.Errorf("CS %+v SS %+v", r.Seg[x86.CS], r.Seg[x86.SS])
		}
		r.GPR[x86.R11] = ^uint64(0)
		r.wantOK(r.sysret(64))
		if r.CPL != 3 || r.RIP != rigCode || r.Seg[x86.CS].Sel != 0x33 || r.Seg[x86.SS].Sel != 0x2b || !r.Code64() {
			t.Errorf("back: CPL %d RIP %#x CS %#x SS %#x", r.CPL, r.RIP, r.Seg[x86.CS].Sel, r.Seg[x86.SS].Sel)
		}
		if f := r.flags(); f != x86.FlagsAll&^(x86.FlagRF|x86.FlagVM) {
			t.Errorf("flags %#x", f)
		}
		if s := r.Seg[x86.SS]; s.DPL() != 3 || s.Unusable {
			t.Errorf("SS %+v", s)
		}
	}
	// To compatibility mode, with the null SS of an interrupt: AMD keeps it.
	for _, amd := range []bool{false, true} {
		r := newRig(t, long)
		r.env.amd = amd
		fastRig(r)
		r.Seg[x86.SS] = cpu.NullSS(0, 0)
		r.GPR[x86.RCX] = 0xffff000012345678
		r.wantOK(r.sysret(32))
		if r.RIP != 0x12345678 || r.Seg[x86.CS].Sel != 0x23 || r.Code64() || r.Seg[x86.SS].Sel != 0x2b {
			t.Errorf("RIP %#x CS %+v", r.RIP, r.Seg[x86.CS])
		}
		if r.Seg[x86.SS].Unusable != amd {
			t.Errorf("AMD %v: SS %+v", amd, r.Seg[x86.SS])
		}
	}
	// AMD returns to a non-canonical address and faults there.
	r := newRig(t, long)
	amdThen(nil)(r)
	r.GPR[x86.RCX] = 1 << 47
	r.wantOK(r.sysret(64))
	if r.CPL != 3 || r.RIP != 1<<47 {
		t.Errorf("AMD: CPL %d RIP %#x", r.CPL, r.RIP)
	}
	// AMD has SYSCALL in compatibility mode.
	r = newRig(t, compat)
	amdThen(func(r *rig) { r.user() })(r)
	r.wantOK(r.syscallOp())
	if r.RIP != r.CSTAR || !r.Code64() {
		t.Errorf("CSTAR: RIP %#x", r.RIP)
	}
}

func TestSysenterSysexit(t *testing.T) {
	r := newRig(t, long).user()
	fastRig(r)
	r.setFlags(x86.FlagIF | x86.FlagCF)
	r.wantOK(r.sysenter())
	if r.CPL != 0 || r.RIP != r.SysenterEIP || r.GPR[x86.RSP] != r.SysenterESP || r.flags() != x86.FlagFixed|x86.FlagCF ||
		r.Seg[x86.CS].Sel != selCode64 || r.Seg[x86.SS].Sel != selData || !r.Code64() {
		t.Errorf("RIP %#x RSP %#x CS %+v", r.RIP, r.GPR[x86.RSP], r.Seg[x86.CS])
	}
	r.GPR[x86.RDX], r.GPR[x86.RCX] = 0x7f0000001000, 0x7f0000002000
	r.wantOK(r.sysexit(64))
	if r.CPL != 3 || r.RIP != 0x7f0000001000 || r.GPR[x86.RSP] != 0x7f0000002000 || r.Seg[x86.CS].Sel != selCode64+32|3 || r.Seg[x86.SS].Sel != selCode64+40|3 {
		t.Errorf("back: RIP %#x CS %#x SS %#x", r.RIP, r.Seg[x86.CS].Sel, r.Seg[x86.SS].Sel)
	}
	r = newRig(t, prot).user()
	fastRig(r)
	r.wantOK(r.sysenter())
	if r.CPL != 0 || r.RIP != 0x83000000 || r.GPR[x86.RSP] != 0x1000 || r.Seg[x86.CS].Attr&cpu.AttrDB == 0 {
		t.Errorf("32-bit: RIP %#x RSP %#x", r.RIP, r.GPR[x86.RSP])
	}
	r.GPR[x86.RDX], r.GPR[x86.RCX] = 0x1000, 0x2000
	r.wantOK(r.sysexit(32))
	if r.CPL != 3 || r.RIP != 0x1000 || r.Seg[x86.CS].Sel != selCode64+16|3 || r.Seg[x86.SS].Sel != selCode64+24|3 {
		t.Errorf("32-bit back: CS %#x", r.Seg[x86.CS].Sel)
	}
}

func TestBases(t *testing.T) {
	r := newRig(t, long)
	r.Seg[x86.GS].Base, r.KernelGSBase = 1, 2
	r.wantOK(r.swapgs())
	if r.Seg[x86.GS].Base != 2 || r.KernelGSBase != 1 {
		t.Error("SWAPGS did not swap")
	}
	r.CR4 |= x86.CR4FSGSBASE
	r.GPR[x86.RBX] = 0xffff888012345678
	r.wantOK(r.fsgsbase(insn.OpWRFSBASE, x86.RBX, 64))
	r.wantOK(r.fsgsbase(insn.OpRDFSBASE, x86.RCX, 64))
	if r.GPR[x86.RCX] != 0xffff888012345678 {
		t.Errorf("RDFSBASE %#x", r.GPR[x86.RCX])
	}
	r.wantOK(r.fsgsbase(insn.OpRDFSBASE, x86.RCX, 32))
	r.wantOK(r.fsgsbase(insn.OpWRGSBASE, x86.RBX, 32))
	if r.GPR[x86.RCX] != 0x12345678 || r.Seg[x86.GS].Base != 0x12345678 {
		t.Errorf("32-bit forms: %#x %#x", r.GPR[x86.RCX], r.Seg[x86.GS].Base)
	}
}
