package interp

import (
	"testing"

	"ring3/internal/cpu"
	"ring3/internal/x86"
)

func loadSeg(seg uint8, sel uint16) func(*rig) bool {
	return func(r *rig) bool { return r.loadSegment(seg, sel) }
}

// The exceptions of SDM vol. 2B, MOV, for segment registers.
func TestLoadSegmentFaults(t *testing.T) {
	user := userThen(nil)
	runFaults(t, []faultCase{
		{"CS", long, nil, loadSeg(x86.CS, selCode64), x86.VecUD, 0},
		{"seventh register", long, nil, loadSeg(6, selData), x86.VecUD, 0},
		{"null SS at CPL 3", long, user, loadSeg(x86.SS, 3), x86.VecGP, 0},
		{"null SS, RPL", long, nil, loadSeg(x86.SS, 1), x86.VecGP, 0},
		{"null SS", compat, nil, loadSeg(x86.SS, 0), x86.VecGP, 0},
		{"null SS", prot, nil, loadSeg(x86.SS, 0), x86.VecGP, 0},
		{"SS behind GDT", long, nil, loadSeg(x86.SS, selBeyond), x86.VecGP, selBeyond},
		{"SS RPL", long, nil, loadSeg(x86.SS, selData|3), x86.VecGP, selData},
		{"SS DPL", long, nil, loadSeg(x86.SS, selData1&^3), x86.VecGP, selData1 &^ 3},
		{"SS read-only", long, nil, loadSeg(x86.SS, selRO), x86.VecGP, selRO},
		{"SS code", long, nil, loadSeg(x86.SS, selCode32), x86.VecGP, selCode32},
		{"SS system", long, nil, loadSeg(x86.SS, selTSS), x86.VecGP, selTSS},
		{"SS absent", long, nil, loadSeg(x86.SS, selAbsent), x86.VecSS, selAbsent},
		{"DS behind GDT", long, nil, loadSeg(x86.DS, selBeyond), x86.VecGP, selBeyond},
		{"DS behind LDT", long, nil, loadSeg(x86.DS, 0x14), x86.VecGP, 0x14},
		{"DS without LDT", long, func(r *rig) { r.LDTR = cpu.Segment{Unusable: true} }, loadSeg(x86.DS, 0xc), x86.VecGP, 0xc},
		{"DS system", long, nil, loadSeg(x86.DS, selTSS), x86.VecGP, selTSS},
		{"DS execute-only", long, nil, loadSeg(x86.DS, selExecOnly), x86.VecGP, selExecOnly},
		{"DS CPL above DPL", long, user, loadSeg(x86.DS, selData), x86.VecGP, selData},
		{"DS RPL above DPL", long, nil, loadSeg(x86.DS, selData|3), x86.VecGP, selData},
		{"DS absent", long, nil, loadSeg(x86.DS, selAbsent), x86.VecNP, selAbsent},
		{"GDT not mapped", long, func(r *rig) { r.map4k(rigGDT, 0) }, loadSeg(x86.DS, selData), x86.VecPF, 0},
	})
}

func TestLoadSegment(t *testing.T) {
	r := newRig(t, long)
	r.wantOK(r.loadSegment(x86.SS, 0))
	if !r.Seg[x86.SS].Unusable || !r.InterruptShadow {
		t.Errorf("null SS: %+v shadow %v", r.Seg[x86.SS], r.InterruptShadow)
	}
	r.gdt(selUserData, segDesc(0x12345678, 0xfffff, (dData|dUser)&^1))
	r.wantOK(r.loadSegment(x86.FS, selUserData))
	if s := r.Seg[x86.FS]; s.Base != 0x12345678 || s.Limit != 0xffffffff || s.DPL() != 3 || s.Attr&1 == 0 {
		t.Errorf("FS = %+v", s)
	}
	if r.get(rigGDT+selUserData&^7+5, 1)&1 == 0 {
		t.Error("accessed bit is not set in memory")
	}
	r.wantOK(r.loadSegment(x86.DS, 0xc))
	if r.Seg[x86.DS].Sel != 0xc {
		t.Error("LDT descriptor is not loaded")
	}
	r.user()
	r.wantOK(r.loadSegment(x86.DS, selConform|3)) // conforming code has no privilege
	r.wantOK(r.loadSegment(x86.DS, 3))
	if !r.Seg[x86.DS].Unusable || r.Seg[x86.DS].Sel != 3 {
		t.Errorf("null DS = %+v", r.Seg[x86.DS])
	}

	// Null selectors clear the base on Intel, not on AMD without the CPUID bit.
	for _, amd := range []bool{false, true} {
		r := newRig(t, long)
		r.env.amd = amd
		r.Seg[x86.GS].Base = 0x1000
		r.wantOK(r.loadSegment(x86.GS, 0))
		if got := r.Seg[x86.GS].Base != 0; got != amd {
			t.Errorf("AMD %v: base %#x after null load", amd, r.Seg[x86.GS].Base)
		}
	}

	// Read-only descriptor tables with the accessed bit set must not be written.
	r = newRig(t, long)
	r.map4k(rigGDT, x86.PTEPresent)
	r.wantOK(r.loadSegment(x86.DS, selData))

	r = newRig(t, real)
	r.Seg[x86.ES].Limit = 0xffffffff
	r.wantOK(r.loadSegment(x86.ES, 0x1234))
	if s := r.Seg[x86.ES]; s.Base != 0x12340 || s.Limit != 0xffffffff {
		t.Errorf("real mode: %+v: the limit must stay", s)
	}
}

func TestSystemSegments(t *testing.T) {
	user := userThen(nil)
	lldt := func(sel uint16) func(*rig) bool { return func(r *rig) bool { return r.lldt(sel) } }
	ltr := func(sel uint16) func(*rig) bool { return func(r *rig) bool { return r.ltr(sel) } }
	runFaults(t, []faultCase{
		{"LLDT", real, nil, lldt(0), x86.VecUD, 0},
		{"LLDT CPL", long, user, lldt(selLDT), x86.VecGP, 0},
		{"LLDT in LDT", long, nil, lldt(selLDT | 4), x86.VecGP, selLDT | 4},
		{"LLDT behind GDT", long, nil, lldt(selBeyond), x86.VecGP, selBeyond},
		{"LLDT of data", long, nil, lldt(selData), x86.VecGP, selData},
		{"LLDT absent", long, func(r *rig) { r.gdt(selLDT, segDesc(0, 0, 2)) }, lldt(selLDT), x86.VecNP, selLDT},
		{"LLDT base", long, func(r *rig) { r.gdt(selLDT+8, 1<<30) }, lldt(selLDT), x86.VecGP, selLDT},
		{"LTR", real, nil, ltr(selTSS), x86.VecUD, 0},
		{"LTR CPL", long, user, ltr(selTSS2), x86.VecGP, 0},
		{"LTR null", long, nil, ltr(0), x86.VecGP, 0},
		{"LTR busy", long, nil, ltr(selTSS), x86.VecGP, selTSS},
		{"LTR of LDT", long, nil, ltr(selLDT), x86.VecGP, selLDT},
		{"LTR absent", long, func(r *rig) { r.gdt(selTSS2, segDesc(0, 0x67, 9)) }, ltr(selTSS2), x86.VecNP, selTSS2},
		{"LTR 16-bit", long, func(r *rig) { r.gdt(selTSS2, segDesc(0, 0x67, 0x81)) }, ltr(selTSS2), x86.VecGP, selTSS2},
	})
	r := newRig(t, long)
	r.gdt(selTSS2+8, 0xffff8000)
	r.wantOK(r.ltr(selTSS2))
	if r.TR.Base != 0xffff8000_00000000|rigData || r.get(rigGDT+selTSS2+5, 1) != 0x8b || r.TR.Attr&0xf != sysTSSBusy {
		t.Errorf("TR = %+v", r.TR)
	}
	r.wantOK(r.lldt(0))
	if !r.LDTR.Unusable {
		t.Error("null LDT is usable")
	}
	r.wantOK(r.lldt(selLDT))
	if r.LDTR.Base != rigLDT || r.LDTR.Limit != 0xf {
		t.Errorf("LDTR = %+v", r.LDTR)
	}
}

// SDM vol. 2A, LAR and LSL: the table of types, and privilege.
func TestLARAndLSL(t *testing.T) {
	const none = 0xffffffff
	for _, tc := range []struct {
		name     string
		mode     rigMode
		cpl      uint8
		sel      uint16
		lar, lsl uint32
	}{
		{"null", long, 0, 3, none, none},
		{"behind GDT", long, 0, selBeyond, none, none},
		{"data", long, 0, selData, 0xc09300, 0xffffffff},
		{"busy TSS", long, 0, selTSS, 0x008b00, 0x2067},
		{"LDT", long, 0, selLDT, 0x008200, 0xf},
		{"kernel data at CPL 3", long, 3, selData, none, none},
		{"RPL", long, 0, selData | 3, none, none},
		{"conforming", compat, 3, selConform | 3, 0xc09f00, 0xffffffff},
		{"small", prot, 0, selSmall, 0x409b00, 0xfff},
	} {
		r := newRig(t, tc.mode)
		if tc.cpl == 3 {
			r.user()
		}
		v, ok := r.lar(tc.sel)
		if ok != (tc.lar != none) || ok && v != tc.lar || r.flags()&x86.FlagZF != 0 != ok || r.fault.pending {
			t.Errorf("LAR %s: %#x %v", tc.name, v, ok)
		}
		v, ok = r.lsl(tc.sel)
		if ok != (tc.lar != none) || ok && v != tc.lsl || r.flags()&x86.FlagZF != 0 != ok {
			t.Errorf("LSL %s: %#x %v", tc.name, v, ok)
		}
	}
	// Types that only one of them knows, and only outside long mode.
	r := newRig(t, prot)
	callGateTo(selCode32, 0, 0x84, 0)(r)
	if _, ok := r.lar(selGate); !ok {
		t.Error("LAR of a 16-bit call gate in protected mode")
	}
	if _, ok := r.lsl(selGate); ok {
		t.Error("LSL of a call gate")
	}
	r = newRig(t, long)
	callGateTo(selCode64, 0, 0x84, 0)(r)
	if _, ok := r.lar(selGate); ok {
		t.Error("LAR of a 16-bit call gate in long mode")
	}
	runFaults(t, []faultCase{
		{"LAR", real, nil, func(r *rig) bool { _, ok := r.lar(8); return ok }, x86.VecUD, 0},
		{"VERR", real, nil, func(r *rig) bool { return r.verr(8, false) }, x86.VecUD, 0},
	})
}

func TestVERR(t *testing.T) {
	for _, tc := range []struct {
		name        string
		cpl         uint8
		sel         uint16
		read, write bool
	}{
		{"null", 0, 0, false, false},
		{"data", 0, selData, true, true},
		{"read-only", 0, selRO, true, false},
		{"code", 0, selCode32, true, false},
		{"execute-only", 0, selExecOnly, false, false},
		{"system", 0, selTSS, false, false},
		{"behind", 0, selBeyond, false, false},
		{"kernel data at CPL 3", 3, selData, false, false},
		{"user data at CPL 3", 3, selUserData, true, true},
		{"conforming at CPL 3", 3, selConform, true, false},
		{"RPL", 0, selData | 1, false, false},
	} {
		r := newRig(t, compat)
		if tc.cpl == 3 {
			r.user()
		}
		r.wantOK(r.verr(tc.sel, false))
		if got := r.flags()&x86.FlagZF != 0; got != tc.read {
			t.Errorf("VERR %s: %v", tc.name, got)
		}
		r.wantOK(r.verr(tc.sel, true))
		if got := r.flags()&x86.FlagZF != 0; got != tc.write {
			t.Errorf("VERW %s: %v", tc.name, got)
		}
	}
}
