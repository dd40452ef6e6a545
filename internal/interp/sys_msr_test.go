package interp

import (
	"testing"

	"ring3/internal/x86"
)

func writeMSR(msr uint32, v uint64) func(*rig) bool {
	return func(r *rig) bool {
		r.GPR[x86.RCX] = 0xffffffff_00000000 | uint64(msr) // the upper half does not count
		r.GPR[x86.RAX], r.GPR[x86.RDX] = 0xdead<<32|v&0xffffffff, v>>32
		return r.wrmsr()
	}
}

func readMSR(msr uint32) func(*rig) bool {
	return func(r *rig) bool {
		r.GPR[x86.RCX] = uint64(msr)
		return r.rdmsr()
	}
}

func TestMSRFaults(t *testing.T) {
	user := userThen(nil)
	const bad = 1 << 47
	cases := []faultCase{
		{"RDMSR at CPL 3", long, user, readMSR(x86.MSREFER), x86.VecGP, 0},
		{"WRMSR at CPL 3", long, user, writeMSR(x86.MSREFER, 0), x86.VecGP, 0},
		{"RDMSR unknown", long, nil, readMSR(0x12345), x86.VecGP, 0},
		{"WRMSR unknown", long, nil, writeMSR(0x12345, 0), x86.VecGP, 0},
		{"EFER reserved", long, nil, writeMSR(x86.MSREFER, x86.EFERLME|1<<1), x86.VecGP, 0},
		{"EFER.SVME", long, nil, writeMSR(x86.MSREFER, x86.EFERLME|x86.EFERSVME), x86.VecGP, 0},
		{"EFER.LME with paging", long, nil, writeMSR(x86.MSREFER, 0), x86.VecGP, 0},
		{"PAT type 2", long, nil, writeMSR(x86.MSRPAT, 0x0007040600070402), x86.VecGP, 0},
		{"PAT type 8", long, nil, writeMSR(x86.MSRPAT, 8<<56), x86.VecGP, 0},
		{"TSC_AUX high half", long, nil, writeMSR(x86.MSRTSCAux, 1<<32), x86.VecGP, 0},
		{"RDTSC with TSD", long, func(r *rig) { r.user(); r.CR4 |= x86.CR4TSD }, func(r *rig) bool { return r.rdtsc() }, x86.VecGP, 0},
		{"RDTSCP with TSD", long, func(r *rig) { r.user(); r.CR4 |= x86.CR4TSD }, func(r *rig) bool { return r.rdtscp() }, x86.VecGP, 0},
		{"RDPMC", long, nil, func(r *rig) bool { return r.rdpmc() }, x86.VecGP, 0},
	}
	for _, msr := range []uint32{x86.MSRFSBase, x86.MSRGSBase, x86.MSRKernelGSBase, x86.MSRLSTAR, x86.MSRCSTAR,
		x86.MSRSysenterESP, x86.MSRSysenterEIP} {
		cases = append(cases, faultCase{"not canonical", long, nil, writeMSR(msr, bad), x86.VecGP, 0})
	}
	runFaults(t, cases)
}

func TestMSRs(t *testing.T) {
	r := newRig(t, long)
	r.env.msr[0x1a0] = 5
	for msr, v := range map[uint32]uint64{
		x86.MSRFSBase: 0xffff888000000000, x86.MSRGSBase: 0x1000, x86.MSRKernelGSBase: 0x2000,
		x86.MSRSTAR: 0x0023001000000000, x86.MSRLSTAR: 0xffffffff81000000, x86.MSRCSTAR: 0x1234,
		x86.MSRSFMASK: 0x47700, x86.MSRSysenterCS: 0x10, x86.MSRSysenterESP: 0x3000, x86.MSRSysenterEIP: 0x4000,
		x86.MSRTSCAux: 7, x86.MSRPAT: 0x0007010600070106, 0x1a0: 9,
	} {
		r.wantOK(writeMSR(msr, v)(r))
		r.wantOK(readMSR(msr)(r))
		if got := r.GPR[x86.RDX]<<32 | r.GPR[x86.RAX]; got != v {
			t.Errorf("MSR %#x: %#x, want %#x", msr, got, v)
		}
	}
	if r.Seg[x86.FS].Base != 0xffff888000000000 || r.Seg[x86.GS].Base != 0x1000 {
		t.Error("bases are not those of the segment registers")
	}
	r.wantOK(readMSR(x86.MSRTSC)(r))
	if r.GPR[x86.RDX] != 0x1234 || r.GPR[x86.RAX] != 0x56789abc {
		t.Errorf("TSC %#x %#x", r.GPR[x86.RDX], r.GPR[x86.RAX])
	}
	r.wantOK(r.rdtscp())
	r.wantOK(r.rdpid(x86.RBX))
	if r.GPR[x86.RCX] != 7 || r.GPR[x86.RBX] != 7 {
		t.Errorf("TSC_AUX by RDTSCP %d, by RDPID %d", r.GPR[x86.RCX], r.GPR[x86.RBX])
	}
	// LMA cannot be written, NX can, and changing it flushes.
	r.env.flushes = nil
	r.wantOK(writeMSR(x86.MSREFER, x86.EFERLME|x86.EFERSCE)(r))
	if r.EFER != x86.EFERLME|x86.EFERLMA|x86.EFERSCE || len(r.env.flushes) != 1 {
		t.Errorf("EFER %#x flushes %v", r.EFER, r.env.flushes)
	}
	r.env.amd = true
	r.wantOK(writeMSR(x86.MSREFER, x86.EFERLME|x86.EFERSCE|x86.EFERFFXSR|eferAutoIBRS)(r))
	r.wantOK(writeMSR(x86.MSRTSCAux, 1<<32|3)(r))
	if r.TSCAux != 3 {
		t.Errorf("TSC_AUX %#x", r.TSCAux)
	}
	r.GPR[x86.RAX], r.GPR[x86.RCX] = 0xffffffff_00000000, 0
	r.wantOK(r.cpuidOp())
	if r.GPR[x86.RAX] != 0x10 || r.GPR[x86.RBX] != 0x68747541 {
		t.Errorf("CPUID 0: %#x %#x", r.GPR[x86.RAX], r.GPR[x86.RBX])
	}
}
