package interp

import (
	"testing"

	"ring3/internal/cpu"
	"ring3/internal/x86"
)

func setCR(n uint8, v func(*rig) uint64) func(*rig) bool {
	return func(r *rig) bool { return r.writeCR(n, v(r)) }
}

func cr0(set, clear uint64) func(*rig) bool {
	return setCR(0, func(r *rig) uint64 { return r.CR0&^clear | set })
}

func cr4(set, clear uint64) func(*rig) bool {
	return setCR(4, func(r *rig) uint64 { return r.CR4&^clear | set })
}

func value(v uint64) func(*rig) uint64 { return func(*rig) uint64 { return v } }

// startLong is a CPU about to switch long mode on: paging off, LME set.
func startLong(r *rig) {
	r.CR0 &^= x86.CR0PG
	r.EFER = x86.EFERLME
	r.CR4 |= x86.CR4PAE
	r.start()
}

// The exceptions of SDM vol. 2B, MOV to control registers.
func TestControlRegisterFaults(t *testing.T) {
	user := userThen(nil)
	read := func(n uint8) func(*rig) bool {
		return func(r *rig) bool { _, ok := r.readCR(n); return ok }
	}
	runFaults(t, []faultCase{
		{"read CR1", long, nil, read(1), x86.VecUD, 0},
		{"write CR5", long, nil, setCR(5, value(0)), x86.VecUD, 0},
		{"read CR0 at CPL 3", long, user, read(0), x86.VecGP, 0},
		{"write CR2 at CPL 3", long, user, setCR(2, value(0)), x86.VecGP, 0},
		{"CR0 high half", long, nil, cr0(1<<32, 0), x86.VecGP, 0},
		{"PG without PE", prot, nil, setCR(0, value(x86.CR0PG)), x86.VecGP, 0},
		{"NW without CD", long, nil, cr0(x86.CR0NW, 0), x86.VecGP, 0},
		{"PG off in 64-bit mode", long, nil, cr0(0, x86.CR0PG), x86.VecGP, 0},
		{"PG off with PCIDE", compat, func(r *rig) { r.CR4 |= x86.CR4PCIDE }, cr0(0, x86.CR0PG), x86.VecGP, 0},
		{"long mode without PAE", prot, func(r *rig) { r.EFER = x86.EFERLME }, cr0(x86.CR0PG, 0), x86.VecGP, 0},
		{"long mode with CS.L", prot, func(r *rig) { startLong(r); r.Seg[x86.CS] = r.load(selCode64) }, cr0(x86.CR0PG, 0), x86.VecGP, 0},
		{"long mode with 16-bit TSS", prot, func(r *rig) { startLong(r); r.TR.Attr = cpu.AttrP | sysTSS16Busy }, cr0(x86.CR0PG, 0), x86.VecGP, 0},
		{"PDPTE reserved bit", prot, func(r *rig) { r.CR4 |= x86.CR4PAE; r.CR3 = 0x5000; r.put(0x5008, 8, 3) }, cr0(x86.CR0PG, 0), x86.VecGP, 0},
		{"CR3 reserved bit", long, nil, setCR(3, value(1<<46)), x86.VecGP, 0},
		{"CR3 bit 63 without PCIDE", long, nil, setCR(3, value(1<<63|rigPML4)), x86.VecGP, 0},
		{"CR4 PAE off", long, nil, cr4(0, x86.CR4PAE), x86.VecGP, 0},
		{"CR4 LA57", long, nil, cr4(x86.CR4LA57, 0), x86.VecGP, 0},
		{"CR4 VMXE", long, nil, cr4(x86.CR4VMXE, 0), x86.VecGP, 0},
		{"CR4 PKE", long, nil, cr4(x86.CR4PKE, 0), x86.VecGP, 0},
		{"CR4 UMIP", long, nil, cr4(x86.CR4UMIP, 0), x86.VecGP, 0},
		{"CR4 high half", long, nil, cr4(1<<40, 0), x86.VecGP, 0},
		{"PCIDE outside long mode", prot, nil, cr4(x86.CR4PCIDE, 0), x86.VecGP, 0},
		{"PCIDE with a PCID", long, func(r *rig) { r.CR3 |= 1 }, cr4(x86.CR4PCIDE, 0), x86.VecGP, 0},
		{"CR8 too big", long, nil, setCR(8, value(16)), x86.VecGP, 0},
		{"CLTS at CPL 3", long, user, func(r *rig) bool { return r.clts() }, x86.VecGP, 0},
		{"LMSW at CPL 3", long, user, func(r *rig) bool { return r.lmsw(1) }, x86.VecGP, 0},
		{"INVLPG at CPL 3", long, user, func(r *rig) bool { return r.invlpg(0) }, x86.VecGP, 0},
		{"INVPCID at CPL 3", long, user, func(r *rig) bool { return r.invpcid(2, rigData) }, x86.VecGP, 0},
		{"INVPCID type", long, nil, func(r *rig) bool { return r.invpcid(4, rigData) }, x86.VecGP, 0},
		{"INVPCID reserved", long, func(r *rig) { r.put(rigData, 8, 1<<12) }, func(r *rig) bool { return r.invpcid(3, rigData) }, x86.VecGP, 0},
		{"INVPCID PCID without PCIDE", long, func(r *rig) { r.put(rigData, 8, 1) }, func(r *rig) bool { return r.invpcid(1, rigData) }, x86.VecGP, 0},
		{"INVPCID address", long, func(r *rig) { r.put(rigData+8, 8, 1<<50) }, func(r *rig) bool { return r.invpcid(0, rigData) }, x86.VecGP, 0},
		{"INVPCID descriptor not mapped", long, func(r *rig) { r.map4k(rigData, 0) }, func(r *rig) bool { return r.invpcid(2, rigData) }, x86.VecPF, 0},
	})
}

func TestControlRegisters(t *testing.T) {
	r := newRig(t, long)
	r.wantOK(r.writeCR(0, r.CR0|x86.CR0TS|1<<10)) // reserved bits read as zero
	if r.CR0&x86.CR0TS == 0 || r.CR0&(1<<10) != 0 || r.CR0&x86.CR0ET == 0 {
		t.Errorf("CR0 %#x", r.CR0)
	}
	r.wantOK(r.clts())
	r.wantOK(r.lmsw(0xe))
	if r.CR0&0xf != 0xf {
		t.Errorf("LMSW: CR0 %#x: PE must stay", r.CR0)
	}
	r.wantOK(r.writeCR(8, 9))
	if v, ok := r.readCR(8); !ok || v != 9 || r.env.cr8 != 9 {
		t.Errorf("CR8 %d %d", v, r.env.cr8)
	}
	r.wantOK(r.writeCR(4, r.CR4|x86.CR4SMEP|x86.CR4SMAP|x86.CR4FSGSBASE|x86.CR4OSXSAVE|x86.CR4PCIDE))

	r.setFlags(x86.FlagAC) // the rig's pages are user pages

	// Flushes: without NOFLUSH the PCID, with it nothing.
	r.env.flushes = nil
	r.wantOK(r.writeCR(3, rigPML4|5))
	r.wantOK(r.writeCR(3, rigPML4|6|x86.CR3NoFlush))
	if r.CR3 != rigPML4|6 || len(r.env.flushes) != 1 || r.env.flushes[0] != (Flush{Kind: FlushPCID, PCID: 5}) {
		t.Errorf("CR3 %#x flushes %+v", r.CR3, r.env.flushes)
	}
	r.env.flushes = nil
	r.put(rigData, 8, 3)
	r.put(rigData+8, 8, 0x123000)
	for kind := range uint64(4) {
		if kind == 2 {
			r.put(rigData+8, 8, 0)
		}
		r.wantOK(r.invpcid(kind, rigData))
	}
	r.wantOK(r.invlpg(0x7000))
	want := []Flush{{FlushPage, 3, 0x123000}, {FlushPCID, 3, 0}, {Kind: FlushAll}, {Kind: FlushNonGlobal}, {FlushPage, 6, 0x7000}}
	for i, f := range r.env.flushes {
		if f != want[i] {
			t.Errorf("flush %d: %+v, want %+v", i, f, want[i])
		}
	}
	if len(r.env.flushes) != len(want) {
		t.Errorf("%d flushes", len(r.env.flushes))
	}
	r.env.flushes = nil
	r.wantOK(r.writeCR(4, r.CR4^x86.CR4PGE))
	if len(r.env.flushes) != 1 || r.env.flushes[0].Kind != FlushAll {
		t.Errorf("CR4.PGE: flushes %+v", r.env.flushes)
	}
}

func TestLongModeOnAndOff(t *testing.T) {
	r := newRig(t, prot)
	r.page(rigPML4, rigPDPT|7)
	r.page(rigPDPT, rigPD|7)
	r.page(rigPD, 0|7|x86.PTELarge)
	r.wantOK(r.writeCR(4, r.CR4|x86.CR4PAE))
	r.wantOK(r.writeCR(3, rigPML4))
	r.GPR[x86.RCX], r.GPR[x86.RAX], r.GPR[x86.RDX] = x86.MSREFER, x86.EFERLME|x86.EFERNX, 0
	r.wantOK(r.wrmsr())
	r.wantOK(r.writeCR(0, r.CR0|x86.CR0PG))
	if !r.LongMode() || r.Code64() {
		t.Fatal("not in compatibility mode")
	}
	r.wantOK(r.farJump(selCode64, rigCode, 32))
	if !r.Code64() {
		t.Fatal("not in 64-bit mode")
	}
	r.wantOK(r.farJump(selCode32, rigCode, 32))
	r.wantOK(r.writeCR(0, r.CR0&^x86.CR0PG))
	if r.LongMode() || r.EFER&x86.EFERLME == 0 {
		t.Errorf("EFER %#x", r.EFER)
	}
}

func TestPDPTELoads(t *testing.T) {
	r := newRig(t, prot)
	for i := range uint64(4) {
		r.put(0x5000+i*8, 8, 0x6000+i<<12|1)
	}
	r.CR4 |= x86.CR4PAE
	r.start()
	r.wantOK(r.writeCR(3, 0x5000))
	r.wantOK(r.writeCR(0, r.CR0|x86.CR0PG))
	if r.PDPTE[3] != 0x9001 {
		t.Errorf("PDPTE %#x", r.PDPTE)
	}
	r.put(0x5000, 8, 0x7001)
	r.wantOK(r.writeCR(3, 0x5000))
	if r.PDPTE[0] != 0x7001 {
		t.Errorf("MOV to CR3 does not reload the PDPTEs: %#x", r.PDPTE)
	}
	r.put(0x5000, 8, 1<<63|1)
	r.wantFault(r.writeCR(3, 0x5000), x86.VecGP, 0)
}

// SDM vol. 2B, MOV to debug registers, and vol. 3B, section 18.2.
func TestDebugRegisters(t *testing.T) {
	rd := func(n uint8) func(*rig) bool { return func(r *rig) bool { _, ok := r.readDR(n); return ok } }
	wr := func(n uint8, v uint64) func(*rig) bool { return func(r *rig) bool { return r.writeDR(n, v) } }
	runFaults(t, []faultCase{
		{"DR8", long, nil, rd(8), x86.VecUD, 0},
		{"DR4 with DE", long, func(r *rig) { r.CR4 |= x86.CR4DE }, rd(4), x86.VecUD, 0},
		{"CPL 3", long, userThen(nil), rd(0), x86.VecGP, 0},
		{"DR7 high half", long, nil, wr(7, 1<<32), x86.VecGP, 0},
		{"DR6 high half", long, nil, wr(6, 1<<32), x86.VecGP, 0},
		{"GD", long, func(r *rig) { r.DR[7] |= dr7GD }, rd(0), x86.VecDB, 0},
		{"GD, write", long, func(r *rig) { r.DR[7] |= dr7GD }, wr(7, 0), x86.VecDB, 0},
	})
	r := newRig(t, long)
	r.wantOK(r.writeDR(0, ^uint64(0)))
	r.wantOK(r.writeDR(4, 0))
	r.wantOK(r.writeDR(5, 0xffffffff))
	if r.DR[0] != ^uint64(0) || r.DR[6] != 0xffff0ff0 || r.DR[7] != 0xffff27ff {
		t.Errorf("DR0 %#x DR6 %#x DR7 %#x", r.DR[0], r.DR[6], r.DR[7])
	}
	if r.wantFault(rd(3)(r), x86.VecDB, 0); r.DR[6]&dr6BD == 0 {
		t.Error("BD is not set")
	}
}
