package interp

import (
	"testing"

	"ring3/internal/cpu"
	"ring3/internal/x86"
)

func jump(sel uint16, off uint64, size int) func(*rig) bool {
	return func(r *rig) bool { return r.farJump(sel, off, size) }
}

func call(sel uint16, off uint64, size int) func(*rig) bool {
	return func(r *rig) bool { return r.farCall(sel, off, size) }
}

// callGate fills selGate.
func callGateTo(sel uint16, off uint64, attr, params uint8) func(*rig) {
	return func(r *rig) {
		lo, hi := gateDesc(sel, off, attr, params)
		r.gdt(selGate, lo)
		if r.LongMode() {
			r.gdt(selGate+8, hi)
		}
	}
}

func userThen(f func(*rig)) func(*rig) {
	return func(r *rig) {
		r.user()
		if f != nil {
			f(r)
		}
	}
}

// The exceptions of SDM vol. 2A, JMP and CALL.
func TestFarFaults(t *testing.T) {
	var cases []faultCase
	// Both instructions, same fault.
	both := func(name string, mode rigMode, prep func(*rig), sel uint16, off uint64, vec uint8, err uint32) {
		size := 32
		if mode == long {
			size = 64
		}
		cases = append(cases,
			faultCase{"JMP " + name, mode, prep, jump(sel, off, size), vec, err},
			faultCase{"CALL " + name, mode, prep, call(sel, off, size), vec, err})
	}
	both("null", long, nil, 3, 0, x86.VecGP, 0)
	both("behind GDT", long, nil, selBeyond, 0, x86.VecGP, selBeyond)
	both("data", long, nil, selData, 0, x86.VecGP, selData)
	both("nonconforming DPL", long, nil, selUser64, 0, x86.VecGP, selUser64&^3)
	both("RPL above CPL", long, nil, selCode64|1, 0, x86.VecGP, selCode64)
	both("conforming DPL above CPL", prot, nil, selUserCf, 0, x86.VecGP, selUserCf&^3)
	both("user to kernel", compat, userThen(nil), selCode64, 0, x86.VecGP, selCode64)
	both("not present", long, nil, selAbsentCS, 0, x86.VecNP, selAbsentCS)
	both("L and D", long, nil, selBadLD, 0, x86.VecGP, selBadLD)
	both("not canonical", long, nil, selCode64, 1<<47, x86.VecGP, 0)
	both("behind limit", prot, nil, selSmall, 0x1000, x86.VecGP, 0)
	both("LDT descriptor", long, nil, selLDT, 0, x86.VecGP, selLDT)
	both("TSS in long mode", long, func(r *rig) { r.gdt(selTSS2, segDesc(rigData, 0x67, 0x89)) }, selTSS2, 0, x86.VecGP, selTSS2)
	both("busy TSS", prot, nil, selTSS, 0, x86.VecGP, selTSS)
	both("16-bit call gate in long mode", long, callGateTo(selCode64, rigCode, 0x84, 0), selGate, 0, x86.VecGP, selGate)

	both("gate DPL below CPL", prot, userThen(callGateTo(selCode32, rigCode, 0x8c, 0)), selGate, 0, x86.VecGP, selGate)
	both("gate DPL below RPL", prot, callGateTo(selCode32, rigCode, 0x8c, 0), selGate|3, 0, x86.VecGP, selGate)
	both("gate not present", prot, callGateTo(selCode32, rigCode, 0x0c, 0), selGate, 0, x86.VecNP, selGate)
	both("gate to null", prot, callGateTo(0, rigCode, 0x8c, 0), selGate, 0, x86.VecGP, 0)
	both("gate behind GDT", prot, callGateTo(selBeyond, rigCode, 0x8c, 0), selGate, 0, x86.VecGP, selBeyond)
	both("gate to data", prot, callGateTo(selData, rigCode, 0x8c, 0), selGate, 0, x86.VecGP, selData)
	both("gate to lower privilege", prot, callGateTo(selUser32, rigCode, 0x8c, 0), selGate, 0, x86.VecGP, selUser32&^3)
	both("gate to absent code", prot, callGateTo(selAbsentCS, rigCode, 0x8c, 0), selGate, 0, x86.VecNP, selAbsentCS)
	both("gate behind limit", prot, callGateTo(selSmall, 0x2000, 0x8c, 0), selGate, 0, x86.VecGP, 0)
	both("gate to 32-bit code in long mode", long, callGateTo(selCode32, rigCode, 0x8c, 0), selGate, 0, x86.VecGP, selCode32)
	both("gate, type in upper half", long, func(r *rig) {
		callGateTo(selCode64, rigCode, 0x8c, 0)(r)
		r.put(rigGDT+selGate+13, 1, 0xc)
	}, selGate, 0, x86.VecGP, selGate)
	both("gate not canonical", long, callGateTo(selCode64, 1<<50, 0x8c, 0), selGate, 0, x86.VecGP, 0)
	both("gate cut by the limit", long, func(r *rig) {
		lo, _ := gateDesc(selCode64, rigCode, 0x8c, 0)
		r.gdt(selGate, lo)
		r.GDTR.Limit = selGate + 7
	}, selGate, 0, x86.VecGP, selGate)

	toKernel := userThen(callGateTo(selCode32, rigCode, 0xec, 2))
	inner := func(name string, prep func(*rig), vec uint8, err uint32) {
		cases = append(cases, faultCase{"CALL inner, " + name, prot, func(r *rig) { toKernel(r); prep(r) }, call(selGate, 0, 32), vec, err})
	}
	inner("TSS too small", func(r *rig) { r.TR.Limit = 8 }, x86.VecTS, selTSS)
	inner("null SS", func(r *rig) { r.put(rigTSS+8, 2, 0) }, x86.VecTS, 0)
	inner("SS behind GDT", func(r *rig) { r.put(rigTSS+8, 2, selBeyond) }, x86.VecTS, selBeyond)
	inner("SS RPL", func(r *rig) { r.put(rigTSS+8, 2, selData|1) }, x86.VecTS, selData)
	inner("SS DPL", func(r *rig) { r.put(rigTSS+8, 2, selData1&^3) }, x86.VecTS, selData1&^3)
	inner("SS read-only", func(r *rig) { r.put(rigTSS+8, 2, selRO) }, x86.VecTS, selRO)
	inner("SS not present", func(r *rig) { r.put(rigTSS+8, 2, selAbsent) }, x86.VecSS, selAbsent)
	inner("no room", func(r *rig) {
		r.gdt(selGate2, segDesc(0, 0xfff, dData&^cpu.AttrG))
		r.put(rigTSS+8, 2, selGate2)
		r.put(rigTSS+4, 4, 0x1100)
	}, x86.VecSS, selGate2)
	cases = append(cases,
		faultCase{"CALL inner, RSP not canonical", long, func(r *rig) {
			r.user()
			callGateTo(selCode64, rigCode, 0xec, 0)(r)
			r.put(rigTSS+4, 8, 1<<50)
		}, call(selGate, 0, 64), x86.VecSS, 0},
		faultCase{"JMP gate to inner", prot, toKernel, jump(selGate, 0, 32), x86.VecGP, selCode32},
		faultCase{"CALL, stack limit", prot, func(r *rig) {
			r.gdt(selGate, segDesc(0, 0xfff, dData&^cpu.AttrG))
			r.Seg[x86.SS] = r.load(selGate)
			r.GPR[x86.RSP] = 0x2000
		}, call(selCode32, rigCode, 32), x86.VecSS, 0},
		faultCase{"JMP behind limit", real, nil, jump(0x100, 0x12345, 32), x86.VecGP, 0},
	)
	runFaults(t, cases)
}

func TestFarJumps(t *testing.T) {
	r := newRig(t, long)
	r.wantOK(r.farJump(selCode32, rigCode+4, 32))
	if r.Code64() || r.RIP != rigCode+4 || r.Seg[x86.CS].Sel != selCode32 {
		t.Errorf("to compatibility mode: %#x %+v", r.RIP, r.Seg[x86.CS])
	}
	r.wantOK(r.farJump(selCode64, rigCode+8, 32))
	if !r.Code64() {
		t.Error("not back in 64-bit mode")
	}
	r = newRig(t, compat)
	r.user()
	r.wantOK(r.farJump(selConform, rigCode, 32))
	if r.CPL != 3 || r.Seg[x86.CS].Sel != selConform|3 {
		t.Errorf("conforming code changed CPL: %d, CS %#x", r.CPL, r.Seg[x86.CS].Sel)
	}
	r = newRig(t, long)
	r.gdt(selCode32, segDesc(0, 0xfffff, dCode32&^1))
	r.wantOK(r.farJump(selCode32, 0, 32))
	if r.get(rigGDT+selCode32+5, 1)&1 == 0 {
		t.Error("accessed bit is not set")
	}
	r = newRig(t, real)
	r.wantOK(r.farJump(0x1234, 0x5678, 16))
	if r.Seg[x86.CS].Base != 0x12340 || r.RIP != 0x5678 {
		t.Errorf("real mode: %+v %#x", r.Seg[x86.CS], r.RIP)
	}
	r = newRig(t, prot)
	callGateTo(selCode32, rigCode+0x40, 0x8c, 0)(r)
	r.wantOK(r.farJump(selGate, 0xdead, 32))
	if r.RIP != rigCode+0x40 {
		t.Errorf("gate: RIP %#x", r.RIP)
	}
}

func TestFarCallAndReturn(t *testing.T) {
	for _, tc := range []struct {
		mode rigMode
		sel  uint16
		size int
	}{{long, selCode64, 8}, {long, selCode32, 4}, {compat, selCode32, 4}, {compat, selCode64, 4}, {prot, selCode32, 4}, {prot, selCode16, 2}, {real, 0x200, 2}} {
		r := newRig(t, tc.mode)
		rip, cs, rsp := r.RIP, r.Seg[x86.CS].Sel, r.GPR[x86.RSP]
		r.wantOK(r.farCall(tc.sel, 0x1234, tc.size*8))
		f := r.frame(tc.size, 2)
		if r.RIP != 0x1234 || f[0] != rip&opMask(tc.size*8) || f[1] != uint64(cs) || r.GPR[x86.RSP] != rsp-2*uint64(tc.size) {
			t.Errorf("%v %#x: RIP %#x frame %#x", tc.mode, tc.sel, r.RIP, f)
			continue
		}
		r.wantOK(r.farRet(tc.size*8, 6))
		if r.RIP != rip&opMask(tc.size*8) || r.Seg[x86.CS].Sel != cs || r.GPR[x86.RSP] != rsp+6 {
			t.Errorf("%v %#x: back at %#x:%#x RSP %#x", tc.mode, tc.sel, r.Seg[x86.CS].Sel, r.RIP, r.GPR[x86.RSP])
		}
	}
}

func TestCallGateInner(t *testing.T) {
	r := newRig(t, prot).user()
	callGateTo(selCode32, rigCode+0x80, 0xec, 3)(r)
	r.stackPut(4, 11, 22, 33)
	rip := r.RIP
	r.wantOK(r.farCall(selGate|3, 0, 32))
	if r.CPL != 0 || r.RIP != rigCode+0x80 || r.Seg[x86.SS].Sel != selData || r.GPR[x86.RSP] != rigSP0-7*4 {
		t.Fatalf("CPL %d RIP %#x RSP %#x", r.CPL, r.RIP, r.GPR[x86.RSP])
	}
	want := []uint64{rip, selUser32, 11, 22, 33, rigUser, selUserData}
	for i, v := range r.frame(4, 7) {
		if v != want[i] {
			t.Errorf("stack[%d] = %#x, want %#x", i, v, want[i])
		}
	}
	r.wantOK(r.farRet(32, 12))
	if r.CPL != 3 || r.GPR[x86.RSP] != rigUser+12 || r.RIP != rip {
		t.Errorf("back: CPL %d RSP %#x RIP %#x", r.CPL, r.GPR[x86.RSP], r.RIP)
	}
}

func TestCallGate64(t *testing.T) {
	for _, mode := range []rigMode{long, compat} {
		r := newRig(t, mode).user()
		callGateTo(selCode64, rigCode+0x80, 0xec, 5)(r)
		rip, cs := r.RIP, r.Seg[x86.CS].Sel
		r.wantOK(r.farCall(selGate, 0, 32))
		want := []uint64{rip, uint64(cs), rigUser, selUserData}
		if r.CPL != 0 || !r.Code64() || !r.Seg[x86.SS].Unusable || r.Seg[x86.SS].Sel != 0 || r.GPR[x86.RSP] != rigSP0-32 {
			t.Fatalf("%v: CPL %d SS %+v RSP %#x", mode, r.CPL, r.Seg[x86.SS], r.GPR[x86.RSP])
		}
		for i, v := range r.frame(8, 4) {
			if v != want[i] {
				t.Errorf("%v: stack[%d] = %#x, want %#x", mode, i, v, want[i])
			}
		}
	}
	// To DPL 1 the null SS carries RPL 1.
	r := newRig(t, long).user()
	callGateTo(selCode641, rigCode, 0xec, 0)(r)
	r.wantOK(r.farCall(selGate, 0, 64))
	if r.CPL != 1 || r.Seg[x86.SS].Sel != 1 || r.GPR[x86.RSP] != rigSP1-32 {
		t.Errorf("CPL %d SS %+v", r.CPL, r.Seg[x86.SS])
	}
}

// The exceptions of SDM vol. 2B, RET.
func TestFarRetFaults(t *testing.T) {
	var cases []faultCase
	add := func(name string, mode rigMode, vec uint8, err uint32, v ...uint64) {
		size := 8
		if mode != long {
			size = 4
		}
		cases = append(cases, faultCase{name, mode, func(r *rig) { r.stackPut(size, v...) },
			func(r *rig) bool { return r.farRet(size*8, 0) }, vec, err})
	}
	add("null", long, x86.VecGP, 0, rigCode, 0)
	add("behind GDT", long, x86.VecGP, selBeyond, rigCode, selBeyond)
	add("data", long, x86.VecGP, selData, rigCode, selData)
	add("DPL is not RPL", long, x86.VecGP, selUser64&^3, rigCode, selUser64&^3)
	add("conforming DPL above RPL", prot, x86.VecGP, selUserCf&^3, rigCode, selUserCf&^3)
	add("not present", long, x86.VecNP, selAbsentCS, rigCode, selAbsentCS)
	add("not canonical", long, x86.VecGP, 0, 1<<60, selCode64)
	add("behind limit", prot, x86.VecGP, 0, 0x1000, selSmall)
	add("outer, null SS", long, x86.VecGP, 0, rigCode, selUser64, rigUser, 0)
	add("outer, SS RPL", long, x86.VecGP, selUserData&^3, rigCode, selUser64, rigUser, selUserData&^3)
	add("outer, SS DPL", prot, x86.VecGP, selData, rigCode, selUser32, rigUser, selData|3)
	cases = append(cases, faultCase{"RPL below CPL", compat, func(r *rig) { r.user(); r.stackPut(4, rigCode, selCode32) },
		func(r *rig) bool { return r.farRet(32, 0) }, x86.VecGP, selCode32})
	runFaults(t, cases)
}
