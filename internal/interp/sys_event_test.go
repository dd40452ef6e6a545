package interp

import (
	"testing"
	"time"

	"ring3/internal/cpu"
	"ring3/internal/x86"
)

func intN(vec uint8) func(*rig) bool { return func(r *rig) bool { return r.softInt(vec) } }

func once(vec uint8, kind eventKind) func(*rig) bool {
	return func(r *rig) bool { return r.deliverOnce(vec, false, 0, kind) }
}

// The exceptions of SDM vol. 2A, INT n, with the error codes of vol. 3A,
// section 6.13: EXT is set for everything but software interrupts.
func TestEventFaults(t *testing.T) {
	var cases []faultCase
	both := func(name string, mode rigMode, prep func(*rig), vec uint8, err uint32) {
		cases = append(cases,
			faultCase{"INT " + name, mode, prep, intN(0x30), vec, err},
			faultCase{"external " + name, mode, prep, once(0x30, eventExternal), vec, err | errEXT},
			faultCase{"fault " + name, mode, prep, once(0x30, eventFault), vec, err | errEXT})
	}
	gate := func(sel uint16, off uint64, attr, ist uint8) func(*rig) {
		return func(r *rig) { r.gate(0x30, sel, off, attr, ist) }
	}
	const idt = 0x30*8 + errIDT
	both("behind limit", long, func(r *rig) { r.IDTR.Limit = 0x30*16 + 14 }, x86.VecGP, idt)
	both("behind limit", prot, func(r *rig) { r.IDTR.Limit = 0x30*8 + 6 }, x86.VecGP, idt)
	both("not a gate", long, gate(selCode64, 0, 0x8c, 0), x86.VecGP, idt)
	both("16-bit gate in long mode", long, gate(selCode64, 0, 0x86, 0), x86.VecGP, idt)
	both("task gate in long mode", long, gate(selTSS2, 0, 0x85, 0), x86.VecGP, idt)
	both("not present", long, gate(selCode64, 0, 0x0e, 0), x86.VecNP, idt)
	both("null CS", long, gate(0, 0, 0x8e, 0), x86.VecGP, 0)
	both("CS behind GDT", long, gate(selBeyond, 0, 0x8e, 0), x86.VecGP, selBeyond)
	both("CS data", long, gate(selData, 0, 0x8e, 0), x86.VecGP, selData)
	both("CS DPL above CPL", long, gate(selUser64, 0, 0x8e, 0), x86.VecGP, selUser64&^3)
	both("CS 32-bit", long, gate(selCode32, 0, 0x8e, 0), x86.VecGP, selCode32)
	both("CS absent", prot, gate(selAbsentCS, 0, 0x8e, 0), x86.VecNP, selAbsentCS)
	both("offset not canonical", long, gate(selCode64, 1<<47, 0x8e, 0), x86.VecGP, 0)
	both("offset behind limit", prot, gate(selSmall, 0x1000, 0x8e, 0), x86.VecGP, 0)
	both("IST not canonical", long, func(r *rig) { gate(selCode64, 0, 0x8e, 1)(r); r.put(rigTSS+36, 8, 1<<50) }, x86.VecSS, 0)
	both("IST behind TSS limit", long, func(r *rig) { gate(selCode64, 0, 0x8e, 7)(r); r.TR.Limit = 0x5a }, x86.VecTS, selTSS)
	both("RSP not canonical", long, func(r *rig) { r.GPR[x86.RSP] = 1 << 50 }, x86.VecSS, 0)
	both("stack limit", prot, func(r *rig) {
		r.gdt(selGate, segDesc(0, 0xfff, dData&^cpu.AttrG))
		r.Seg[x86.SS] = r.load(selGate)
		r.GPR[x86.RSP] = 0x1010
	}, x86.VecSS, 0)
	user := func(f func(*rig)) func(*rig) {
		return func(r *rig) { r.user(); gate(defaultCS(prot), handlerAt(0x30), 0xee, 0)(r); f(r) }
	}
	both("inner, TSS limit", prot, user(func(r *rig) { r.TR.Limit = 8 }), x86.VecTS, selTSS)
	both("inner, null SS", prot, user(func(r *rig) { r.put(rigTSS+8, 2, 0) }), x86.VecTS, 0)
	both("inner, SS behind GDT", prot, user(func(r *rig) { r.put(rigTSS+8, 2, selBeyond) }), x86.VecTS, selBeyond)
	both("inner, SS RPL", prot, user(func(r *rig) { r.put(rigTSS+8, 2, selData|2) }), x86.VecTS, selData)
	both("inner, SS DPL", prot, user(func(r *rig) { r.put(rigTSS+8, 2, selData1&^3) }), x86.VecTS, selData1&^3)
	both("inner, SS code", prot, user(func(r *rig) { r.put(rigTSS+8, 2, selCode32) }), x86.VecTS, selCode32)
	both("inner, SS absent", prot, user(func(r *rig) { r.put(rigTSS+8, 2, selAbsent) }), x86.VecSS, selAbsent)
	both("inner, no room", prot, user(func(r *rig) {
		r.gdt(selGate2, segDesc(0, 0xfff, dData&^cpu.AttrG))
		r.put(rigTSS+8, 2, selGate2)
		r.put(rigTSS+4, 4, 0x1010)
	}), x86.VecSS, selGate2)
	cases = append(cases,
		faultCase{"INT, DPL below CPL", long, userThen(nil), intN(0x30), x86.VecGP, idt},
		faultCase{"INT3, DPL below CPL", long, userThen(nil), func(r *rig) bool { return r.softInt3() }, x86.VecGP, 3*8 + errIDT},
		faultCase{"inner, TSS limit", long, func(r *rig) { r.user(); r.TR.Limit = 10 }, once(0x30, eventExternal), x86.VecTS, selTSS | errEXT},
		faultCase{"IDT not mapped", long, func(r *rig) { r.map4k(rigIDT, 0) }, intN(0x30), x86.VecPF, 0},
		faultCase{"stack not mapped", long, func(r *rig) { r.map4k(0x3f000, 0) }, intN(0x30), x86.VecPF, x86.PFWrite},
		faultCase{"behind IVT", real, func(r *rig) { r.IDTR.Limit = 0x30*4 + 2 }, intN(0x30), x86.VecGP, idt},
	)
	runFaults(t, cases)
}

// wantFrame checks the frame of an event in 64-bit format.
func (r *rig) wantFrame64(want ...uint64) {
	r.t.Helper()
	for i, v := range r.frame(8, len(want)) {
		if v != want[i] {
			r.t.Errorf("frame[%d] = %#x, want %#x", i, v, want[i])
		}
	}
}

func TestEventLong(t *testing.T) {
	// From CPL 3: stack from the TSS, null SS, interrupts off.
	r := newRig(t, long).user()
	r.setFlags(x86.FlagIF | x86.FlagTF | x86.FlagNT | x86.FlagCF | x86.FlagAC)
	r.InterruptShadow = true
	flags := r.flags()
	r.wantOK(r.deliverOnce(x86.VecPF, true, 7, eventFault))
	if r.CPL != 0 || r.RIP != handlerAt(14) || !r.Seg[x86.SS].Unusable || r.Seg[x86.SS].Sel != 0 || r.GPR[x86.RSP] != rigSP0-48 {
		t.Fatalf("CPL %d RIP %#x RSP %#x", r.CPL, r.RIP, r.GPR[x86.RSP])
	}
	r.wantFrame64(7, rigCode, selUser64, flags|x86.FlagRF, rigUser, selUserData)
	if f := r.flags(); f != x86.FlagFixed|x86.FlagCF|x86.FlagAC || r.InterruptShadow {
		t.Errorf("flags %#x in the handler", f)
	}

	// Same privilege: the stack is aligned, SS stays; a trap gate leaves IF on.
	r = newRig(t, long)
	r.GPR[x86.RSP] = rigSP0 - 0x803
	r.gate(0x30, selCode64, handlerAt(0x30), 0x8f, 0)
	r.setFlags(x86.FlagIF)
	r.wantOK(r.softInt(0x30))
	if r.GPR[x86.RSP] != rigSP0-0x810-40 || r.flags()&x86.FlagIF == 0 || r.Seg[x86.SS].Sel != selData {
		t.Errorf("RSP %#x flags %#x", r.GPR[x86.RSP], r.flags())
	}
	r.wantFrame64(rigCode, selCode64, x86.FlagFixed|x86.FlagIF, rigSP0-0x803, selData)

	// IST, also without change of privilege.
	r = newRig(t, long)
	r.gate(2, selCode64, handlerAt(2), 0x8e, 1)
	r.wantOK(r.deliverOnce(x86.VecNMI, false, 0, eventNMI))
	if r.GPR[x86.RSP] != rigIST1-40 || !r.NMIBlocked {
		t.Errorf("RSP %#x, NMI blocked %v", r.GPR[x86.RSP], r.NMIBlocked)
	}
	if r.NMI() {
		t.Error("NMI in an NMI handler")
	}

	// Conforming code runs at the old privilege, on the old stack.
	r = newRig(t, long).user()
	r.gate(0x30, selConform64, handlerAt(0x30), 0xee, 0)
	r.wantOK(r.softInt(0x30))
	if r.CPL != 3 || r.GPR[x86.RSP] != rigUser-40 || r.Seg[x86.CS].Sel != selConform64|3 {
		t.Errorf("conforming: CPL %d RSP %#x CS %#x", r.CPL, r.GPR[x86.RSP], r.Seg[x86.CS].Sel)
	}

	// Compatibility mode, exceptions leave to 64-bit mode.
	r = newRig(t, compat).user()
	r.wantOK(r.deliverOnce(0x40, false, 0, eventExternal))
	if !r.Code64() || r.CPL != 0 || r.GPR[x86.RSP] != rigSP0-40 {
		t.Errorf("from compatibility mode: RSP %#x", r.GPR[x86.RSP])
	}
	r.wantFrame64(rigCode, selUser32, r.frame(8, 3)[2], rigUser, selUserData)
}

func TestEventICEBPAndDR7(t *testing.T) {
	r := newRig(t, long).user()
	r.DR[7] |= dr7GD
	dr6 := r.DR[6]
	r.wantOK(r.icebp()) // no DPL check
	if r.CPL != 0 || r.RIP != handlerAt(1) || r.DR[7]&dr7GD != 0 || r.DR[6] != dr6 {
		t.Errorf("CPL %d RIP %#x DR7 %#x DR6 %#x", r.CPL, r.RIP, r.DR[7], r.DR[6])
	}
	// The flags of #DB have RF as it was.
	r = newRig(t, long)
	r.wantOK(r.deliverOnce(x86.VecDB, false, 0, eventFault))
	if r.frame(8, 3)[2]&x86.FlagRF != 0 {
		t.Error("#DB of an instruction breakpoint pushes RF")
	}
}

func TestEventProtected(t *testing.T) {
	r := newRig(t, prot).user()
	r.setFlags(x86.FlagIF)
	r.wantOK(r.deliverOnce(x86.VecGP, true, 0x50, eventFault))
	want := []uint64{0x50, rigCode, selUser32, 2 | x86.FlagIF | x86.FlagRF, rigUser, selUserData}
	if r.CPL != 0 || r.GPR[x86.RSP] != rigSP0-24 || r.Seg[x86.SS].Sel != selData {
		t.Fatalf("CPL %d RSP %#x", r.CPL, r.GPR[x86.RSP])
	}
	for i, v := range r.frame(4, 6) {
		if v != want[i] {
			t.Errorf("frame[%d] = %#x, want %#x", i, v, want[i])
		}
	}
	r = newRig(t, prot)
	r.gate(0x30, selCode32, 0x1234, 0x86, 0) // 16-bit interrupt gate
	rsp := r.GPR[x86.RSP]
	r.wantOK(r.softInt(0x30))
	if r.RIP != 0x1234 || r.GPR[x86.RSP] != rsp-6 {
		t.Errorf("16-bit gate: RIP %#x RSP %#x", r.RIP, r.GPR[x86.RSP])
	}
}

func TestEventReal(t *testing.T) {
	r := newRig(t, real)
	r.put(0x21*4, 4, 0xf000_1234)
	r.setFlags(x86.FlagIF | x86.FlagTF | x86.FlagCF)
	r.wantOK(r.softInt(0x21))
	if r.RIP != 0x1234 || r.Seg[x86.CS].Base != 0xf0000 || r.flags() != x86.FlagFixed|x86.FlagCF || r.GPR[x86.RSP] != 0x7ffa {
		t.Errorf("RIP %#x flags %#x RSP %#x", r.RIP, r.flags(), r.GPR[x86.RSP])
	}
	f := r.frame(2, 3)
	if f[0] != 0x100 || f[1] != 0 || f[2] != x86.FlagFixed|x86.FlagCF|x86.FlagIF|x86.FlagTF {
		t.Errorf("frame %#x", f)
	}
}

// SDM vol. 3A, table 6-5.
func TestDoubleFault(t *testing.T) {
	// absent makes the gate of a vector raise #NP.
	absent := func(r *rig, vec uint8) { r.gate(vec, selCode64, handlerAt(vec), 0x0e, 0) }
	for _, tc := range []struct {
		name  string
		vec   uint8
		kind  eventKind
		spoil func(*rig, uint8)
		end   uint8 // vector that is delivered at last
	}{
		{"benign, contributory", x86.VecUD, eventFault, absent, x86.VecNP},
		{"contributory, contributory", x86.VecGP, eventFault, absent, x86.VecDF},
		{"#DE, contributory", x86.VecDE, eventFault, absent, x86.VecDF},
		{"#PF, contributory", x86.VecPF, eventFault, absent, x86.VecDF},
		{"external, contributory", 0x30, eventExternal, absent, x86.VecNP},
		{"INT 13, contributory", x86.VecGP, eventSoft, absent, x86.VecNP},
		{"NMI, contributory", x86.VecNMI, eventNMI, absent, x86.VecNP},
	} {
		r := newRig(t, long)
		tc.spoil(r, tc.vec)
		r.wantOK(r.deliver(tc.vec, x86.VectorHasErrorCode(tc.vec), 0, tc.kind))
		if r.RIP != handlerAt(tc.end) || r.shutdown {
			t.Errorf("%s: at %#x, want handler of %d", tc.name, r.RIP, tc.end)
			continue
		}
		want := uint64(tc.vec)*8 + errIDT + errEXT
		if tc.end == x86.VecDF {
			want = 0
		} else if tc.kind == eventSoft {
			want &^= errEXT
		}
		if got := r.frame(8, 1)[0]; got != want {
			t.Errorf("%s: error code %#x, want %#x", tc.name, got, want)
		}
	}
	// Page faults while delivering: the IDT entries of #PF and #DF are on
	// different pages here.
	for _, tc := range []struct {
		name string
		vec  uint8
		end  uint8
	}{{"#GP, #PF", x86.VecGP, x86.VecPF}, {"#PF, #PF", x86.VecPF, x86.VecDF}} {
		r := newRig(t, long)
		// The page with the stack is away; #PF and #DF have an interrupt stack
		// unless the fault itself is #PF.
		r.map4k(0x3f000, 0)
		r.gate(x86.VecDF, selCode64, handlerAt(x86.VecDF), 0x8e, 1)
		if tc.vec != x86.VecPF {
			r.gate(x86.VecPF, selCode64, handlerAt(x86.VecPF), 0x8e, 1)
		}
		r.wantOK(r.deliver(tc.vec, true, 0, eventFault))
		if r.RIP != handlerAt(tc.end) {
			t.Errorf("%s: at %#x, want handler of %d", tc.name, r.RIP, tc.end)
		}
		if want := uint64(rigSP0 - 0x808); r.CR2 != want {
			t.Errorf("%s: CR2 %#x, want %#x", tc.name, r.CR2, want)
		}
	}
}

func TestTripleFault(t *testing.T) {
	for _, mode := range []rigMode{long, prot} {
		r := newRig(t, mode)
		r.IDTR.Limit = 0
		if r.deliver(x86.VecGP, true, 0, eventFault) || !r.shutdown {
			t.Errorf("%v: no shutdown", mode)
		}
	}
	// #DF with a page fault on its stack.
	r := newRig(t, long)
	r.map4k(0x3f000, 0)
	if r.deliver(x86.VecPF, true, 0, eventFault) || !r.shutdown {
		t.Error("no shutdown on a page fault in #DF delivery")
	}
	// Two benign ones after each other are not a double fault: here #NP ends up
	// in its own handler though it came while delivering #UD.
	r = newRig(t, real)
	r.IDTR.Limit = 0
	if r.deliver(x86.VecUD, false, 0, eventFault) || !r.shutdown {
		t.Error("real mode without IVT does not shut down")
	}
}

func TestInterruptExported(t *testing.T) {
	r := newRig(t, long)
	r.RFLAGS = x86.FlagFixed | x86.FlagIF | x86.FlagZF
	r.Halted = true
	r.Interrupt(0x40)
	if r.RIP != handlerAt(0x40) || r.Halted || r.RFLAGS != x86.FlagFixed|x86.FlagZF {
		t.Errorf("RIP %#x halted %v flags %#x", r.RIP, r.Halted, r.RFLAGS)
	}
	if f := r.frame(8, 3)[2]; f != x86.FlagFixed|x86.FlagIF|x86.FlagZF {
		t.Errorf("saved flags %#x", f)
	}
	if !r.NMI() || r.NMI() {
		t.Error("NMI blocking")
	}
}

// #AC in the delivery of #AC is no double fault, and does not end by itself.
func TestEndlessAlignmentCheck(t *testing.T) {
	c := newMachine(t)
	c.EFER, c.CR4, c.CR0 = 0, 0, x86.CR0PE|x86.CR0ET|x86.CR0NE|x86.CR0AM
	for v := uint64(0); v < 32; v++ { // interrupt gates to CPL 3
		*c.Mem.Word(testIDT + 8*v) = testStubs | 0x1b<<16 | 0xee00<<32
	}
	for i := range c.Seg {
		c.Seg[i] = cpu.Segment{Sel: 0x23, Limit: 0xffffffff, Attr: 0xc0f3}
	}
	c.Seg[x86.CS] = cpu.Segment{Sel: 0x1b, Limit: 0xffffffff, Attr: 0xc0fb}
	c.CPL = 3
	c.GPR[x86.RSP], c.RIP = testStack-1, testCode
	c.RFLAGS = x86.FlagFixed | x86.FlagAC
	done := make(chan Exit)
	go func() { done <- c.Inject(x86.VecUD, false, 0, 0) }()
	select {
	case e := <-done:
		if e != ExitShutdown {
			t.Errorf("exit %v", e)
		}
	case <-time.After(10 * time.Second):
		t.Fatal("it does not end")
	}
}
