package interp

import (
	"fmt"
	"testing"

	"ring3/internal/x86"
)

// SDM vol. 2B, POPF, table 4-17.
func TestPOPF(t *testing.T) {
	const rf = x86.FlagRF
	for _, tc := range []struct {
		mode   rigMode
		cpl    uint8
		iopl   uint64
		opsize int
		set    uint64 // changes when all ones are popped
	}{
		{real, 0, 0, 16, flagsUser&0xffff | x86.FlagIF | x86.FlagIOPL},
		{real, 0, 0, 32, flagsUser | x86.FlagIF | x86.FlagIOPL},
		{long, 0, 0, 64, flagsUser | x86.FlagIF | x86.FlagIOPL},
		{long, 0, 0, 16, flagsUser&0xffff | x86.FlagIF | x86.FlagIOPL},
		{long, 3, 0, 64, flagsUser},
		{long, 3, 3, 64, flagsUser | x86.FlagIF},
		{prot, 3, 2, 32, flagsUser},
		{prot, 3, 0, 16, flagsUser & 0xffff},
	} {
		t.Run(fmt.Sprintf("%v/%d/%d/%d", tc.mode, tc.cpl, tc.iopl, tc.opsize), func(t *testing.T) {
			r := newRig(t, tc.mode)
			if tc.cpl == 3 {
				r.user()
			}
			r.setFlags(tc.iopl<<12 | rf)
			r.wantOK(r.popf(^uint64(0), tc.opsize))
			want := x86.FlagFixed | tc.set | tc.iopl<<12
			if tc.opsize == 16 {
				want |= rf
			}
			if got := r.flags(); got != want {
				t.Errorf("all ones: %#x, want %#x", got, want)
			}
			r.setFlags(x86.FlagsAll&^x86.FlagVM&^x86.FlagIOPL | tc.iopl<<12)
			r.wantOK(r.popf(0, tc.opsize))
			want = x86.FlagsAll &^ x86.FlagVM &^ x86.FlagIOPL &^ tc.set
			if tc.set&x86.FlagIOPL == 0 {
				want |= tc.iopl << 12
			}
			if tc.opsize != 16 {
				want &^= rf | x86.FlagVIF | x86.FlagVIP
			}
			if got := r.flags(); got != want {
				t.Errorf("zero: %#x, want %#x", got, want)
			}
		})
	}
}

func TestPrivileged(t *testing.T) {
	user := userThen(nil)
	runFaults(t, []faultCase{
		{"CLI", long, user, func(r *rig) bool { return r.cli() }, x86.VecGP, 0},
		{"STI", compat, user, func(r *rig) bool { return r.sti() }, x86.VecGP, 0},
		{"HLT", long, user, func(r *rig) bool { return r.hlt() }, x86.VecGP, 0},
		{"WBINVD", long, user, func(r *rig) bool { return r.wbinvd() }, x86.VecGP, 0},
		{"MONITOR", long, nil, func(r *rig) bool { return r.monitorOp(nil) }, x86.VecUD, 0},
		{"LGDT", long, user, func(r *rig) bool { return r.lgdt(0, 0) }, x86.VecGP, 0},
		{"LIDT", long, user, func(r *rig) bool { return r.lidt(0, 0) }, x86.VecGP, 0},
		{"LGDT, not canonical", long, nil, func(r *rig) bool { return r.lgdt(1<<50, 0) }, x86.VecGP, 0},
		{"UMIP", long, func(r *rig) { r.user(); r.CR4 |= x86.CR4UMIP }, func(r *rig) bool { return r.umip() }, x86.VecGP, 0},
		{"XGETBV off", long, nil, func(r *rig) bool { return r.xgetbv() }, x86.VecUD, 0},
		{"XSETBV off", long, nil, func(r *rig) bool { return r.xsetbv() }, x86.VecUD, 0},
	})
	r := newRig(t, long).user()
	r.setFlags(3 << 12)
	r.wantOK(r.sti())
	if r.flags()&x86.FlagIF == 0 || !r.InterruptShadow {
		t.Error("STI: no IF, or no shadow")
	}
	r.InterruptShadow = false
	r.wantOK(r.sti())
	if r.InterruptShadow {
		t.Error("STI with interrupts on has a shadow")
	}
	r.wantOK(r.cli())
	r = newRig(t, long)
	r.wantOK(r.hlt())
	if !r.Halted {
		t.Error("HLT does not halt")
	}
	r.wantOK(r.lidt(0xffff800000000000, 0xfff))
	if r.IDTR.Base != 0xffff800000000000 || r.IDTR.Limit != 0xfff {
		t.Errorf("IDTR %+v", r.IDTR)
	}
	r.wantOK(r.vmcall())
	if int64(r.GPR[x86.RAX]) != -1000 {
		t.Errorf("hypercall returns %d", int64(r.GPR[x86.RAX]))
	}
	r.user()
	r.wantOK(r.vmcall())
	if int64(r.GPR[x86.RAX]) != -1 {
		t.Errorf("hypercall at CPL 3 returns %d", int64(r.GPR[x86.RAX]))
	}
}

// SDM vol. 1, section 19.5.2.
func TestIOBitmap(t *testing.T) {
	r := newRig(t, long).user()
	r.put(rigTSS+0x66, 2, 0x68)
	for i := range uint64(0x2000) {
		r.put(rigTSS+0x68+i, 1, 0)
	}
	r.put(rigTSS+0x68+0x70/8, 2, 0x0102) // ports 0x71 and 0x78
	r.TR.Limit = 0x2068
	for _, tc := range []struct {
		port uint16
		size int
		ok   bool
	}{
		{0x70, 1, true}, {0x71, 1, false}, {0x70, 2, false}, {0x6e, 4, false}, {0x72, 2, true},
		{0x77, 1, true}, {0x77, 2, false}, {0x78, 1, false}, {0x79, 4, true}, {0xffff, 1, true},
	} {
		ok := r.ioAllowed(tc.port, tc.size)
		if tc.ok {
			r.wantOK(ok)
		} else {
			r.wantFault(ok, x86.VecGP, 0)
		}
	}
	r.TR.Limit = 0x68 + 0x70/8
	r.wantFault(r.ioAllowed(0x70, 1), x86.VecGP, 0) // the byte behind is needed too
	r.put(rigTSS+0x66, 2, 0xffff)
	r.wantFault(r.ioAllowed(0, 1), x86.VecGP, 0)
	r.setFlags(3 << 12)
	r.wantOK(r.ioAllowed(0x71, 1))
	r.setFlags(0)
	r.TR.Limit = 0x60
	r.wantFault(r.ioAllowed(0, 1), x86.VecGP, 0)
	r.TR.Limit, r.TR.Attr = 0x2068, 0x83
	r.wantFault(r.ioAllowed(0, 1), x86.VecGP, 0)
	if r = newRig(t, long); !r.ioAllowed(0x60, 4) {
		t.Error("CPL 0 may not use ports")
	}
}
