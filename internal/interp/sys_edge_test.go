package interp

import (
	"encoding/binary"
	"testing"

	"ring3/internal/cpu"
	"ring3/internal/x86"
	"ring3/internal/x86/insn"
)

// The last address that is still allowed, and the first that is not.

func TestLimitEdges(t *testing.T) {
	for _, mode := range []rigMode{prot, real} {
		sel, limit := uint16(selSmall), uint64(0xfff)
		if mode == real {
			sel, limit = 0, 0xffff
		}
		r := newRig(t, mode)
		r.wantOK(r.farJump(sel, limit, 32))
		r = newRig(t, mode)
		r.wantOK(r.farCall(sel, limit, 32))
		r = newRig(t, mode)
		r.stackPut(4, limit, uint64(sel), 2)
		r.wantOK(r.iret(32))
		r = newRig(t, mode)
		r.stackPut(4, limit, uint64(sel))
		r.wantOK(r.farRet(32, 0))
		if mode == prot {
			r.gate(0x30, sel, limit, 0x8e, 0)
			r.Seg[x86.CS] = r.load(selCode32)
			r.start()
			r.wantOK(r.softInt(0x30))
		}
	}
	runFaults(t, []faultCase{
		{"RETF behind limit", real, func(r *rig) { r.stackPut(4, 0x10000, 0) }, func(r *rig) bool { return r.farRet(32, 0) }, x86.VecGP, 0},
		{"CALL behind limit", real, nil, call(0, 0x10000, 32), x86.VecGP, 0},
		{"RETF outer, behind limit", prot, func(r *rig) {
			r.gdt(selGate, segDesc(0, 0xfff, dCode32&^cpu.AttrG|dUser))
			r.stackPut(4, 0x1000, selGate|3, rigUser, selUserData)
		}, func(r *rig) bool { return r.farRet(32, 0) }, x86.VecGP, 0},
	})
}

// An expand-down stack holds the offsets above its limit (SDM vol. 3A, 5.3).
func TestExpandDownStack(t *testing.T) {
	for _, tc := range []struct {
		attr uint16
		sp   uint64
		ok   bool
	}{
		{dData&^cpu.AttrG | 4, 0x1008, true},
		{dData&^cpu.AttrG | 4, 0x1007, false}, // the last of two pushes reaches the limit
		{dData&^cpu.AttrG | 4, 0xffff_fffe, false},
		{dData&^cpu.AttrG&^cpu.AttrDB | 4, 0xfffc, true},
		{dData &^ cpu.AttrG, 0x1000, true}, // expand-up, for comparison
		{dData &^ cpu.AttrG, 0x1001, false},
	} {
		r := newRig(t, prot)
		r.gdt(selGate, segDesc(0, 0xfff, tc.attr))
		r.Seg[x86.SS] = r.load(selGate)
		r.GPR[x86.RSP] = tc.sp
		r.start()
		ok := r.farCall(selCode32, rigCode, 32)
		if tc.ok {
			r.wantOK(ok)
		} else if tc.sp < 0xffff0000 {
			r.wantFault(ok, x86.VecSS, 0)
		} else if r.fault.pending {
			r.wantFault(ok, x86.VecSS, 0)
		}
	}
}

func TestCallGateSamePrivilege(t *testing.T) {
	for _, mode := range []rigMode{prot, long} {
		r := newRig(t, mode)
		size := 8
		if mode == prot {
			size = 4
		}
		callGateTo(defaultCS(mode), rigCode+0x40, 0x8c, 3)(r) // parameters stay where they are
		rip, rsp, cs := r.RIP, r.GPR[x86.RSP], r.Seg[x86.CS].Sel
		r.wantOK(r.farCall(selGate, 0, 32))
		f := r.frame(size, 2)
		if r.CPL != 0 || r.GPR[x86.RSP] != rsp-2*uint64(size) || f[0] != rip || f[1] != uint64(cs) || r.Seg[x86.SS].Sel != selData {
			t.Errorf("%v: RSP %#x frame %#x", mode, r.GPR[x86.RSP], f)
		}
	}
}

// Returning to CPL 3 leaves null selectors and what CPL 3 may use alone.
func TestDropInner(t *testing.T) {
	r := newRig(t, long)
	r.Seg[x86.DS] = cpu.Segment{Sel: 1, Unusable: true}
	r.Seg[x86.ES] = r.load(selConform)
	r.Seg[x86.FS] = cpu.Segment{Sel: 2, Base: 0x1234000, Unusable: true}
	r.Seg[x86.GS] = r.load(selCode32)
	r.stackPut(8, frame64(selUser64, selUserData)...)
	r.wantOK(r.iret(64))
	if r.Seg[x86.DS].Sel != 1 || r.Seg[x86.ES].Sel != selConform || r.Seg[x86.FS].Sel != 2 || r.Seg[x86.FS].Base != 0x1234000 {
		t.Errorf("DS %+v ES %+v FS %+v", r.Seg[x86.DS], r.Seg[x86.ES], r.Seg[x86.FS])
	}
	if !r.Seg[x86.GS].Unusable || r.Seg[x86.GS].Sel != 0 {
		t.Errorf("GS %+v", r.Seg[x86.GS])
	}
}

func TestMoreSystemFaults(t *testing.T) {
	runFaults(t, []faultCase{
		{"LLDT, type in upper half", long, func(r *rig) { r.put(rigGDT+selLDT+13, 1, 2) }, func(r *rig) bool { return r.lldt(selLDT) }, x86.VecGP, selLDT},
		{"LLDT cut by the limit", long, func(r *rig) { r.GDTR.Limit = selLDT + 7 }, func(r *rig) bool { return r.lldt(selLDT) }, x86.VecGP, selLDT},
		{"LTR base", long, func(r *rig) { r.gdt(selTSS2+8, 1<<20) }, func(r *rig) bool { return r.ltr(selTSS2) }, x86.VecGP, selTSS2},
		{"task return to absent TSS", prot, func(r *rig) {
			r.gdt(selTSS2, segDesc(rigData, 0x67, 0x0b))
			r.put(rigTSS, 2, selTSS2)
			r.RFLAGS |= x86.FlagNT
		}, func(r *rig) bool { return r.iret(32) }, x86.VecNP, selTSS2},
		{"task return to LDT selector", prot, func(r *rig) {
			r.put(rigTSS, 2, selTSS2|4)
			r.RFLAGS |= x86.FlagNT
		}, func(r *rig) bool { return r.iret(32) }, x86.VecTS, selTSS2 | 4},
	})
	r := newRig(t, long)
	r.put(rigData, 8, 7) // kinds 2 and 3 do not look at the PCID
	r.wantOK(r.invpcid(2, rigData))
	r.wantOK(r.invpcid(3, rigData))
	// CR0: only PG, PE and WP matter to translations.
	for bit, n := range map[uint64]int{x86.CR0TS: 0, x86.CR0MP: 0, x86.CR0WP: 1} {
		r.env.flushes = nil
		r.wantOK(r.writeCR(0, r.CR0^bit))
		if len(r.env.flushes) != n {
			t.Errorf("CR0 bit %#x: %d flushes, want %d", bit, len(r.env.flushes), n)
		}
	}
}

// The compacted format leaves room for components of XCOMP_BV that are not in
// XSTATE_BV.
func TestXRstorCompactedGap(t *testing.T) {
	r := newRig(t, long)
	xsOn(r)
	r.start()
	r.fillFPU()
	setInUse(r.env.fpu, 1<<compOpmask)
	mask := binary.LittleEndian.Uint64(r.env.fpu.Area[1088:])
	r.wantOK(xs(insn.OpXSAVEC, rexW, rigData)(r))
	// MXCSR is not initial, so SSE counts as in use.
	if bv := r.get(rigData+xsBV, 8); bv != 1<<compOpmask|1<<compSSE {
		t.Errorf("XSTATE_BV %#x", bv)
	}
	if got := r.get(rigData+832, 8); got != mask {
		t.Errorf("opmask at 832 is %#x, want %#x: AVX keeps its place", got, mask)
	}
	clear(r.env.fpu.Area[:])
	r.wantOK(xs(insn.OpXRSTOR, rexW, rigData)(r))
	if got := binary.LittleEndian.Uint64(r.env.fpu.Area[1088:]); got != mask {
		t.Errorf("opmask %#x, want %#x", got, mask)
	}
	// With no mask known, DAZ (bit 6) is reserved.
	r.put(rigData+xsMXCSR, 4, 1<<6)
	r.wantFault(xs(insn.OpFXRSTOR, rexW, rigData)(r), x86.VecGP, 0)
	binary.LittleEndian.PutUint32(r.env.fpu.Area[xsMXCSRMask:], 0xffff)
	r.wantOK(xs(insn.OpFXRSTOR, rexW, rigData)(r))
}

// Instructions that reach the system part through the decoder and the run loop.
func TestThroughRunLoop(t *testing.T) {
	for _, tc := range []struct {
		name string
		code []byte
		prep func(r *rig)
		vec  uint8 // 0xff: falls through to the next instruction
	}{
		{"INT 0x30", []byte{0xcd, 0x30}, nil, 0x30},
		{"IRETQ", []byte{0x48, 0xcf}, func(r *rig) { r.stackPut(8, handlerAt(0x77), selCode64, 2, rigSP0, 0) }, 0x77},
		{"IRETQ to bad CS", []byte{0x48, 0xcf}, func(r *rig) { r.stackPut(8, handlerAt(0x77), selData, 2, rigSP0, 0) }, x86.VecGP},
		{"LRETQ", []byte{0x48, 0xcb}, func(r *rig) { r.stackPut(8, handlerAt(0x66), selCode64) }, 0x66},
		{"MOV SS, null", []byte{0x8e, 0xd0}, nil, 0xff},
		{"MOV CS", []byte{0x8e, 0xc8}, nil, x86.VecUD},
		{"MOV CR8", []byte{0x44, 0x0f, 0x22, 0xc0}, nil, 0xff},
		{"MOV CR4", []byte{0x0f, 0x22, 0xe0}, nil, x86.VecGP},
		{"WRMSR", []byte{0x0f, 0x30}, nil, x86.VecGP},
		{"MONITOR", []byte{0x0f, 0x01, 0xc8}, nil, x86.VecUD},
		{"XGETBV", []byte{0x0f, 0x01, 0xd0}, nil, x86.VecUD},
		{"INVLPG", []byte{0x0f, 0x01, 0x38}, nil, 0xff},
		{"UD2", []byte{0x0f, 0x0b}, nil, x86.VecUD},
	} {
		r := newRig(t, long)
		r.GPR[x86.RAX] = 0
		if tc.prep != nil {
			tc.prep(r)
		}
		if err := r.Mem.WriteAt(tc.code, rigCode); err != nil {
			t.Fatal(err)
		}
		r.Step()
		want := uint64(rigCode + len(tc.code))
		if tc.vec != 0xff {
			want = handlerAt(tc.vec)
		}
		if r.RIP != want {
			t.Errorf("%s: RIP %#x, want %#x", tc.name, r.RIP, want)
			continue
		}
		if tc.vec == x86.VecGP {
			if f := r.frame(8, 2); f[1] != rigCode {
				t.Errorf("%s: saved RIP %#x", tc.name, f[1])
			}
		}
	}
}
