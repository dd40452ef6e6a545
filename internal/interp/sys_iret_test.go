package interp

import (
	"testing"

	"ring3/internal/cpu"
	"ring3/internal/x86"
)

// frame64 is an IRET frame that works, for tests to spoil.
func frame64(cs, ss uint16) []uint64 {
	return []uint64{rigCode + 0x100, uint64(cs), x86.FlagFixed | x86.FlagIF, rigUser - 0x100, uint64(ss)}
}

func iretWith(size int, v ...uint64) (prep func(*rig), do func(*rig) bool) {
	return func(r *rig) { r.stackPut(size, v...) }, func(r *rig) bool { return r.iret(size * 8) }
}

// The exceptions of SDM vol. 2A, IRET.
func TestIRETFaults(t *testing.T) {
	var cases []faultCase
	add := func(name string, mode rigMode, vec uint8, err uint32, v ...uint64) {
		size := 8
		if mode != long {
			size = 4
		}
		prep, do := iretWith(size, v...)
		cases = append(cases, faultCase{name, mode, prep, do, vec, err})
	}
	f := func(i int, v uint64) []uint64 {
		x := frame64(selUser64, selUserData)
		x[i] = v
		return x
	}
	add("null CS", long, x86.VecGP, 0, f(1, 3)...)
	add("CS behind GDT", long, x86.VecGP, selBeyond, f(1, selBeyond|3)...)
	add("CS behind LDT", long, x86.VecGP, 0x14, f(1, 0x14|3)...)
	add("CS is data", long, x86.VecGP, selUserData&^3, f(1, selUserData)...)
	add("CS is system", long, x86.VecGP, selTSS, f(1, selTSS|3)...)
	add("CS DPL is not RPL", long, x86.VecGP, selUser64&^3, f(1, selUser64&^3)...)
	add("conforming DPL above RPL", long, x86.VecGP, selUserCf&^3, f(1, selUserCf&^3)...)
	add("CS not present", long, x86.VecNP, selAbsentCS, f(1, selAbsentCS)...)
	add("L and D", long, x86.VecGP, selBadLD, f(1, selBadLD)...)
	add("RIP not canonical", long, x86.VecGP, 0, f(0, 1<<47)...)
	add("null SS at CPL 3", long, x86.VecGP, 0, f(4, 3)...)
	add("null SS, 32-bit target", long, x86.VecGP, 0, rigCode, selCode32, 2, rigSP0, 0)
	add("SS behind GDT", long, x86.VecGP, selBeyond, f(4, selBeyond|3)...)
	add("SS RPL", long, x86.VecGP, selUserData&^3, f(4, selUserData&^3|2)...)
	add("SS DPL", long, x86.VecGP, selData, f(4, selData|3)...)
	add("SS read-only", long, x86.VecGP, selRO, rigCode, selCode64, 2, rigSP0, selRO)
	add("SS is code", long, x86.VecGP, selCode64, rigCode, selCode64, 2, rigSP0, selCode64)
	add("SS not present", long, x86.VecSS, selAbsent, rigCode, selCode64, 2, rigSP0, selAbsent)
	add("EIP behind limit", long, x86.VecGP, 0, 0x1000, selSmall, 2, rigSP0, selData)
	add("EIP behind limit", prot, x86.VecGP, 0, 0x1000, selSmall, 2)
	add("null CS", prot, x86.VecGP, 0, rigCode, 0, 2)
	add("virtual-8086 mode", prot, x86.VecGP, 0, rigCode, selCode32, 2|x86.FlagVM)
	add("outer, SS DPL", prot, x86.VecGP, selData, rigCode, selUser32, 2, rigUser, selData|3)
	add("outer, null SS", prot, x86.VecGP, 0, rigCode, selUser32, 2, rigUser, 0)
	cases = append(cases,
		faultCase{"RPL below CPL", compat, func(r *rig) {
			r.user()
			r.stackPut(4, rigCode, selCode32, 2)
		}, func(r *rig) bool { return r.iret(32) }, x86.VecGP, selCode32},
		faultCase{"NT in long mode", long, func(r *rig) { r.RFLAGS |= x86.FlagNT },
			func(r *rig) bool { return r.iret(64) }, x86.VecGP, 0},
		faultCase{"RSP not canonical", long, func(r *rig) { r.GPR[x86.RSP] = 1 << 47 },
			func(r *rig) bool { return r.iret(64) }, x86.VecSS, 0},
		faultCase{"stack behind limit", prot, func(r *rig) {
			r.gdt(selGate, segDesc(0, 0x7ff, dData&^cpu.AttrG))
			r.Seg[x86.SS] = r.load(selGate)
			r.GPR[x86.RSP] = 0x7f8
			r.stackPut(4, rigCode, selCode32)
		}, func(r *rig) bool { return r.iret(32) }, x86.VecSS, 0},
		faultCase{"stack not mapped", long, func(r *rig) { r.map4k(0x3f000, 0) },
			func(r *rig) bool { return r.iret(64) }, x86.VecPF, 0},
		faultCase{"IP behind limit", real, func(r *rig) { r.stackPut(4, 0x10000, 0, 2) },
			func(r *rig) bool { return r.iret(32) }, x86.VecGP, 0},
	)
	runFaults(t, cases)
}

func TestIRETToUser64(t *testing.T) {
	r := newRig(t, long)
	r.NMIBlocked = true
	r.Seg[x86.DS], r.Seg[x86.ES] = r.load(selData), r.load(selUserData)
	v := frame64(selUser64, selUserData)
	v[2] = x86.FlagFixed | x86.FlagIF | x86.FlagCF | x86.FlagRF | x86.FlagTF | 3<<12
	r.stackPut(8, v...)
	r.wantOK(r.iret(64))
	if r.RIP != v[0] || r.CPL != 3 || r.Seg[x86.CS].Sel != selUser64 || r.Seg[x86.SS].Sel != selUserData ||
		r.GPR[x86.RSP] != v[3] || r.flags() != v[2] {
		t.Errorf("RIP %#x CPL %d RSP %#x flags %#x", r.RIP, r.CPL, r.GPR[x86.RSP], r.flags())
	}
	if !r.Code64() || r.NMIBlocked {
		t.Error("not 64-bit code, or NMIs still blocked")
	}
	if !r.Seg[x86.DS].Unusable || r.Seg[x86.DS].Sel != 0 {
		t.Error("DS of the kernel survives the return to CPL 3")
	}
	if r.Seg[x86.ES].Unusable {
		t.Error("user ES was dropped")
	}
}

func TestIRETSamePrivilege64(t *testing.T) {
	r := newRig(t, long)
	// SS and RSP are popped even without a change of privilege, and SS may be null.
	r.stackPut(8, rigCode+8, selCode64, 2, 0x12345678, 0)
	r.wantOK(r.iret(64))
	if r.GPR[x86.RSP] != 0x12345678 || !r.Seg[x86.SS].Unusable || r.CPL != 0 || r.RIP != rigCode+8 {
		t.Errorf("RSP %#x SS %+v", r.GPR[x86.RSP], r.Seg[x86.SS])
	}
}

func TestIRETToCompat(t *testing.T) {
	r := newRig(t, long)
	r.stackPut(8, rigCode, selUser32, 2|x86.FlagIF, 0xffff_0000_0005_0000, selUserData)
	r.wantOK(r.iret(64))
	if r.Code64() || r.CPL != 3 || r.GPR[x86.RSP] != 0x50000 {
		t.Errorf("code64 %v CPL %d RSP %#x", r.Code64(), r.CPL, r.GPR[x86.RSP])
	}
}

func TestIRETTo16BitStack(t *testing.T) {
	r := newRig(t, long)
	r.gdt(selGate, segDesc(0, 0xffff, 0x93|dUser))
	rsp := r.GPR[x86.RSP]
	r.stackPut(8, rigCode, selUser32, 2, 0xabcd1234, selGate|3)
	r.wantOK(r.iret(64))
	if want := rsp&0xffff0000 | 0x1234; r.GPR[x86.RSP] != want {
		t.Errorf("RSP %#x, want %#x: only SP is loaded", r.GPR[x86.RSP], want)
	}
}

func TestIRETFlags(t *testing.T) {
	for _, tc := range []struct {
		cpl    uint8
		iopl   uint64
		opsize int
		set    uint64 // bits that come from the frame, of all bits set there
	}{
		{0, 0, 32, flagsUser | x86.FlagRF | x86.FlagIF | x86.FlagIOPL | x86.FlagVIF | x86.FlagVIP},
		{0, 0, 16, flagsUser&0xffff | x86.FlagIF | x86.FlagIOPL},
		{3, 0, 32, flagsUser | x86.FlagRF},
		{3, 3, 32, flagsUser | x86.FlagRF | x86.FlagIF},
	} {
		r := newRig(t, compat)
		cs := uint64(selCode32)
		if tc.cpl == 3 {
			r.user()
			cs = selUser32
		}
		r.setFlags(tc.iopl << 12)
		r.stackPut(tc.opsize/8, rigCode&0xffff, cs, uint64(x86.FlagsAll&^x86.FlagVM))
		r.wantOK(r.iret(tc.opsize))
		if got := r.flags() &^ (tc.iopl << 12) &^ x86.FlagFixed; got != tc.set&^(tc.iopl<<12) {
			t.Errorf("CPL %d IOPL %d size %d: flags %#x, want %#x", tc.cpl, tc.iopl, tc.opsize, got, tc.set)
		}
	}
}

func TestIRETReal(t *testing.T) {
	r := newRig(t, real)
	r.stackPut(2, 0x1234, 0xf000, 0xffff)
	r.wantOK(r.iret(16))
	if r.RIP != 0x1234 || r.Seg[x86.CS].Base != 0xf0000 || r.Seg[x86.CS].Sel != 0xf000 ||
		r.GPR[x86.RSP] != 0x8006 || r.flags()&x86.FlagIF == 0 {
		t.Errorf("RIP %#x CS %+v RSP %#x", r.RIP, r.Seg[x86.CS], r.GPR[x86.RSP])
	}
}

func TestIRETProtOuter(t *testing.T) {
	r := newRig(t, prot)
	r.stackPut(4, rigCode, selUser32, 2|x86.FlagIF, rigUser, selUserData)
	r.wantOK(r.iret(32))
	if r.CPL != 3 || r.GPR[x86.RSP] != rigUser || r.Seg[x86.SS].Sel != selUserData {
		t.Errorf("CPL %d RSP %#x", r.CPL, r.GPR[x86.RSP])
	}
	r = newRig(t, prot)
	rsp := r.GPR[x86.RSP]
	r.stackPut(4, rigCode, selCode32, 2)
	r.wantOK(r.iret(32))
	if r.GPR[x86.RSP] != rsp+12 {
		t.Error("same privilege: the stack pointer is not popped")
	}
}
