package interp

import (
	"testing"

	"ring3/internal/x86"
)

// task prepares the TSS at rigData for a task at entry point eip.
func (r *rig) task(eip uint64) {
	r.put(rigData+0x20, 4, eip)
	r.put(rigData+0x24, 4, x86.FlagFixed|x86.FlagCF)
	for i := range uint64(8) {
		r.put(rigData+0x28+i*4, 4, 0x1000+i)
	}
	r.put(rigData+0x38, 4, rigSP1)
	for i := range uint64(6) {
		r.put(rigData+0x48+i*4, 2, selData)
	}
	r.put(rigData+0x4c, 2, selCode32)
	r.put(rigData+0x60, 2, 0)
}

// SDM vol. 3A, section 8.3.
func TestTaskSwitchFaults(t *testing.T) {
	jump, call := jump(selTSS2, 0, 32), call(selTSS2, 0, 32)
	runFaults(t, []faultCase{
		{"TSS limit", prot, func(r *rig) { r.gdt(selTSS2, segDesc(rigData, 0x66, 0x89)) }, jump, x86.VecTS, selTSS2},
		{"TSS absent", prot, func(r *rig) { r.gdt(selTSS2, segDesc(rigData, 0x67, 0x09)) }, call, x86.VecNP, selTSS2},
		{"TSS DPL", prot, userThen(nil), call, x86.VecGP, selTSS2},
		{"return to available TSS", prot, func(r *rig) { r.RFLAGS |= x86.FlagNT; r.put(rigTSS, 2, selTSS2) },
			func(r *rig) bool { return r.iret(32) }, x86.VecTS, selTSS2},
		{"task gate to busy TSS", prot, func(r *rig) { r.gate(0x30, selTSS, 0, 0x85, 0) }, intN(0x30), x86.VecGP, selTSS},
	})
}

func TestTaskSwitch(t *testing.T) {
	r := newRig(t, prot)
	r.task(rigCode + 0x500)
	rip := r.RIP
	r.wantOK(r.farCall(selTSS2, 0, 32))
	if r.RIP != rigCode+0x500 || r.GPR[x86.RBX] != 0x1003 || r.GPR[x86.RSP] != rigSP1 || r.TR.Sel != selTSS2 ||
		r.flags() != x86.FlagFixed|x86.FlagCF|x86.FlagNT || r.CR0&x86.CR0TS == 0 {
		t.Fatalf("RIP %#x RBX %#x TR %#x flags %#x", r.RIP, r.GPR[x86.RBX], r.TR.Sel, r.flags())
	}
	if r.get(rigData, 2) != selTSS || r.get(rigGDT+selTSS2+5, 1) != 0x8b || r.get(rigGDT+selTSS+5, 1) != 0x8b {
		t.Error("link or busy bits")
	}
	r.GPR[x86.RBX] = 77
	r.wantOK(r.iret(32))
	if r.RIP != rip || r.TR.Sel != selTSS || r.flags()&x86.FlagNT != 0 || r.get(rigData+0x34, 4) != 77 ||
		r.get(rigGDT+selTSS2+5, 1) != 0x89 {
		t.Errorf("back: RIP %#x TR %#x", r.RIP, r.TR.Sel)
	}
	// An exception with an error code through a task gate.
	r.task(rigCode + 0x600)
	r.gate(x86.VecGP, selTSS2, 0, 0x85, 0)
	r.wantOK(r.deliver(x86.VecGP, true, 0x1234, eventFault))
	if r.RIP != rigCode+0x600 || r.GPR[x86.RSP] != rigSP1-4 || r.frame(4, 1)[0] != 0x1234 {
		t.Errorf("gate: RIP %#x RSP %#x", r.RIP, r.GPR[x86.RSP])
	}
	// A bad segment in the new task faults in the new task.
	r = newRig(t, prot)
	r.task(rigCode + 0x500)
	r.put(rigData+0x54, 2, selAbsent) // DS
	r.wantOK(r.farJump(selTSS2, 0, 32))
	if r.RIP != handlerAt(x86.VecNP) || r.frame(4, 2)[1] != rigCode+0x500 || r.frame(4, 1)[0] != selAbsent {
		t.Errorf("RIP %#x frame %#x", r.RIP, r.frame(4, 2))
	}
}
