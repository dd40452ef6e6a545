package interp

import (
	"encoding/binary"
	"testing"

	"ring3/internal/x86"
	"ring3/internal/x86/insn"
)

func xs(op insn.Op, rex uint8, lin uint64) func(*rig) bool {
	return func(r *rig) bool {
		mode := insn.Mode32
		if r.Code64() {
			mode = insn.Mode64
		}
		return r.xsaveOp(&insn.Inst{Op: op, Mode: mode, Rex: rex}, lin)
	}
}

const rexW = 0x48

func xsOn(r *rig) {
	r.CR4 |= x86.CR4OSXSAVE
	r.XCR0 = rigXCR0
	r.GPR[x86.RAX], r.GPR[x86.RDX] = 0xffffffff, 0xffffffff
}

// header writes an XSAVE header at the rig's data.
func header(bv, comp uint64) func(*rig) {
	return func(r *rig) {
		xsOn(r)
		r.put(rigData+xsMXCSR, 4, mxcsrInit)
		r.put(rigData+xsBV, 8, bv)
		r.put(rigData+xsCompBV, 8, comp)
	}
}

// The exceptions of SDM vol. 2, FXSAVE, FXRSTOR, XSAVE and XRSTOR.
func TestXSaveFaults(t *testing.T) {
	then := func(f, g func(*rig)) func(*rig) { return func(r *rig) { f(r); g(r) } }
	ts := func(r *rig) { r.CR0 |= x86.CR0TS }
	poke := func(off uint64, size int, v uint64) func(*rig) {
		return func(r *rig) { r.put(rigData+off, size, v) }
	}
	const comp = uint64(xsCompacted)
	runFaults(t, []faultCase{
		{"XSAVE off", long, nil, xs(insn.OpXSAVE, 0, rigData), x86.VecUD, 0},
		{"XSAVES", long, xsOn, xs(insn.OpXSAVES, 0, rigData), x86.VecUD, 0},
		{"XRSTORS", long, xsOn, xs(insn.OpXRSTORS, 0, rigData), x86.VecUD, 0},
		{"XSAVE, TS", long, then(xsOn, ts), xs(insn.OpXSAVE, 0, rigData), x86.VecNM, 0},
		{"FXSAVE, TS", long, ts, xs(insn.OpFXSAVE, 0, rigData), x86.VecNM, 0},
		{"FXRSTOR, EM", long, func(r *rig) { r.CR0 |= x86.CR0EM }, xs(insn.OpFXRSTOR, 0, rigData), x86.VecNM, 0},
		{"XSAVE alignment", long, xsOn, xs(insn.OpXSAVE, 0, rigData+32), x86.VecGP, 0},
		{"FXSAVE alignment", long, nil, xs(insn.OpFXSAVE, 0, rigData+8), x86.VecGP, 0},
		{"FXRSTOR, MXCSR", long, poke(xsMXCSR, 4, 1<<16), xs(insn.OpFXRSTOR, 0, rigData), x86.VecGP, 0},
		{"XRSTOR, MXCSR", long, then(header(2, 0), poke(xsMXCSR, 4, 1<<31)), xs(insn.OpXRSTOR, 0, rigData), x86.VecGP, 0},
		{"XRSTOR, component not in XCR0", long, header(1<<9, 0), xs(insn.OpXRSTOR, 0, rigData), x86.VecGP, 0},
		{"XRSTOR, XCOMP_BV", long, header(1, 2), xs(insn.OpXRSTOR, 0, rigData), x86.VecGP, 0},
		{"XRSTOR, reserved header", long, then(header(1, 0), poke(xsCompBV+8, 8, 1)), xs(insn.OpXRSTOR, 0, rigData), x86.VecGP, 0},
		{"compacted, component not in XCR0", long, header(1, comp|1<<9), xs(insn.OpXRSTOR, 0, rigData), x86.VecGP, 0},
		{"compacted, XSTATE_BV not in XCOMP_BV", long, header(4, comp|3), xs(insn.OpXRSTOR, 0, rigData), x86.VecGP, 0},
		{"compacted, reserved header", long, then(header(1, comp|1), poke(xsCompBV+48, 8, 1)), xs(insn.OpXRSTOR, 0, rigData), x86.VecGP, 0},
		{"XSAVE to read-only page", long, func(r *rig) { xsOn(r); r.map4k(rigData, x86.PTEPresent) }, xs(insn.OpXSAVE, 0, rigData), x86.VecPF, x86.PFPresent | x86.PFWrite},
	})
}

// fill gives every component of the image a pattern.
func (r *rig) fillFPU() {
	a := &r.env.fpu.Area
	for i := range a {
		a[i] = byte(i*7 + i>>8)
	}
	clear(a[xsBV : xsLegacy+xsHeader])
	binary.LittleEndian.PutUint32(a[xsMXCSR:], 0x1fa0)
	binary.LittleEndian.PutUint32(a[xsMXCSRMask:], 0xffff)
	setInUse(r.env.fpu, rigXCR0)
}

// same compares the components of two images, and MXCSR.
func (r *rig) same(name string, want []byte) {
	r.t.Helper()
	got := r.env.fpu.Area[:2688]
	for i := range got {
		if i >= xsXMMEnd && i < xsBV || i >= xsBV+8 && i < xsLegacy+xsHeader || i >= 832 && i < 1088 {
			continue
		}
		if got[i] != want[i] {
			r.t.Fatalf("%s: byte %d is %#x, want %#x", name, i, got[i], want[i])
		}
	}
}

func TestXSaveRoundTrip(t *testing.T) {
	for _, op := range []insn.Op{insn.OpXSAVE, insn.OpXSAVEOPT, insn.OpXSAVEC} {
		r := newRig(t, long)
		xsOn(r)
		r.start()
		r.fillFPU()
		want := append([]byte{}, r.env.fpu.Area[:]...)
		r.wantOK(xs(op, rexW, rigData)(r))
		clear(r.env.fpu.Area[:])
		binary.LittleEndian.PutUint32(r.env.fpu.Area[xsMXCSRMask:], 0xffff)
		r.wantOK(xs(insn.OpXRSTOR, rexW, rigData)(r))
		r.same(op.String(), want)
		comp := r.get(rigData+xsCompBV, 8)
		if op == insn.OpXSAVEC && comp != rigXCR0|xsCompacted || op != insn.OpXSAVEC && comp != 0 {
			t.Errorf("%v: XCOMP_BV %#x", op, comp)
		}
		if op == insn.OpXSAVEC {
			// Opmask follows AVX without a gap; it is 64-byte aligned anyway.
			if got := r.get(rigData+832, 8); got != binary.LittleEndian.Uint64(want[1088:]) {
				t.Errorf("XSAVEC: opmask at 832 is %#x", got)
			}
		}
	}
}

func TestXSaveInitAndMask(t *testing.T) {
	r := newRig(t, long)
	xsOn(r)
	r.start()
	r.fillFPU()
	setInUse(r.env.fpu, 1<<compSSE)
	r.put(rigData+xsBV, 8, 0xff<<40) // bits outside RFBM stay
	r.put(rigData+576, 8, ^uint64(0))
	r.GPR[x86.RAX], r.GPR[x86.RDX] = 7, 0
	r.wantOK(xs(insn.OpXSAVEOPT, rexW, rigData)(r))
	if got := r.get(rigData+xsBV, 8); got != 0xff<<40|1<<compSSE {
		t.Errorf("XSTATE_BV %#x", got)
	}
	if r.get(rigData+576, 8) != ^uint64(0) {
		t.Error("XSAVEOPT wrote an initial component")
	}
	r.wantOK(xs(insn.OpXSAVE, rexW, rigData)(r))
	if r.get(rigData+576, 8) != 0 || r.get(rigData, 2) != fcwInit || r.get(rigData+xsST, 8) != 0 {
		t.Error("XSAVE did not write initial components as such")
	}
	// XRSTOR of components whose XSTATE_BV bit is clear makes them initial.
	r.fillFPU()
	r.put(rigData+xsBV, 8, 0)
	r.wantOK(xs(insn.OpXRSTOR, rexW, rigData)(r))
	if got := inUse(r.env.fpu); got != rigXCR0&^7 {
		t.Errorf("XINUSE %#x", got)
	}
	if binary.LittleEndian.Uint32(r.env.fpu.Area[xsMXCSR:]) != 0x1fa0 {
		t.Error("MXCSR is loaded in the standard format whatever XSTATE_BV says")
	}
	// In the compacted format MXCSR belongs to SSE.
	r.put(rigData+xsCompBV, 8, xsCompacted|7)
	r.wantOK(xs(insn.OpXRSTOR, rexW, rigData)(r))
	if binary.LittleEndian.Uint32(r.env.fpu.Area[xsMXCSR:]) != mxcsrInit {
		t.Error("MXCSR is not initial")
	}
	r.GPR[x86.RCX] = 1
	r.wantOK(r.xgetbv())
	if r.GPR[x86.RAX] != rigXCR0&^7 {
		t.Errorf("XGETBV 1: %#x", r.GPR[x86.RAX])
	}
}

func TestXRstorFaultKeepsState(t *testing.T) {
	r := newRig(t, long)
	xsOn(r)
	r.start()
	r.fillFPU()
	want := append([]byte{}, r.env.fpu.Area[:]...)
	r.wantOK(xs(insn.OpXSAVE, rexW, rigData+0xc00)(r)) // crosses into the next page behind AVX
	r.map4k(rigData+0x1000, 0)
	clear(r.env.fpu.Area[xsXMM:xsXMMEnd])
	clear(want[xsXMM:xsXMMEnd])
	r.wantFault(xs(insn.OpXRSTOR, rexW, rigData+0xc00)(r), x86.VecPF, 0)
	r.same("after fault", want)
}

func TestFXSave(t *testing.T) {
	r := newRig(t, long)
	r.fillFPU()
	want := append([]byte{}, r.env.fpu.Area[:]...)
	r.put(rigData+464, 8, 0x1122334455667788) // for software, never written
	r.wantOK(xs(insn.OpFXSAVE, rexW, rigData)(r))
	if r.get(rigData+464, 8) != 0x1122334455667788 {
		t.Error("FXSAVE wrote bytes 464 and up")
	}
	clear(r.env.fpu.Area[:xsXMMEnd])
	binary.LittleEndian.PutUint32(r.env.fpu.Area[xsMXCSRMask:], 0xffff)
	r.wantOK(xs(insn.OpFXRSTOR, rexW, rigData)(r))
	r.same("FXRSTOR", want)
	// Without REX.W pointers have 32 bits.
	r.wantOK(xs(insn.OpFXSAVE, 0, rigData)(r))
	if r.get(rigData+12, 4) != 0 || r.get(rigData+8, 4) != uint64(binary.LittleEndian.Uint32(want[8:])) {
		t.Error("FXSAVE without REX.W")
	}
	// FFXSR leaves the XMM registers out.
	r.EFER |= x86.EFERFFXSR
	r.put(rigData+xsXMM, 8, 0)
	r.wantOK(xs(insn.OpFXSAVE, rexW, rigData)(r))
	if r.get(rigData+xsXMM, 8) != 0 {
		t.Error("FFXSR: XMM0 was saved")
	}
	// Outside 64-bit mode XMM8 and up are not touched.
	r = newRig(t, compat)
	r.fillFPU()
	r.wantOK(xs(insn.OpFXSAVE, 0, rigData)(r))
	if r.get(rigData+xsXMM+128, 8) != 0 {
		t.Error("XMM8 saved outside 64-bit mode")
	}
	x8 := binary.LittleEndian.Uint64(r.env.fpu.Area[xsXMM+128:])
	r.wantOK(xs(insn.OpFXRSTOR, 0, rigData)(r))
	if binary.LittleEndian.Uint64(r.env.fpu.Area[xsXMM+128:]) != x8 {
		t.Error("XMM8 loaded outside 64-bit mode")
	}
}

func TestXSETBV(t *testing.T) {
	r := newRig(t, long)
	xsOn(r)
	r.start()
	for _, v := range []uint64{0, 2, 5, 0x27, 0x67, 0xe3, 0x207, 1 << 63, 0x60007} {
		r.GPR[x86.RAX], r.GPR[x86.RDX], r.GPR[x86.RCX] = v&0xffffffff, v>>32, 0
		r.wantFault(r.xsetbv(), x86.VecGP, 0)
	}
	for _, v := range []uint64{1, 3, 7, 0xe7} {
		r.GPR[x86.RAX], r.GPR[x86.RDX] = v, 0
		r.wantOK(r.xsetbv())
		r.wantOK(r.xgetbv())
		if r.XCR0 != v || r.GPR[x86.RAX] != v {
			t.Errorf("XCR0 %#x, want %#x", r.XCR0, v)
		}
	}
	r.GPR[x86.RCX] = 1
	r.wantFault(r.xsetbv(), x86.VecGP, 0)
	r.GPR[x86.RCX] = 2
	r.wantFault(r.xgetbv(), x86.VecGP, 0)
	r.GPR[x86.RCX] = 0
	r.user()
	r.wantFault(r.xsetbv(), x86.VecGP, 0)
}
