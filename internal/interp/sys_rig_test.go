package interp

import (
	"encoding/binary"
	"fmt"
	"testing"

	"ring3/internal/bus"
	"ring3/internal/cpu"
	"ring3/internal/guestmem"
	"ring3/internal/x86"
	"ring3/internal/x86/cpuid"
)

// Where the rig has things, all mapped one to one.
const (
	rigPML4 = 0x1000
	rigPDPT = 0x2000
	rigPD   = 0x3000
	rigPT   = 0x4000 // for the first 2 MiB
	rigGDT  = 0x10000
	rigLDT  = 0x12000
	rigIDT  = 0x14000
	rigTSS  = 0x16000
	rigCode = 0x20000
	rigSP0  = 0x40000
	rigSP1  = 0x44000
	rigIST1 = 0x48000
	rigUser = 0x50000 // stack of CPL 3
	rigData = 0x60000
)

// Selectors of the rig's GDT.
const (
	selCode64    = 0x08
	selData      = 0x10
	selCode32    = 0x18
	selUserData  = 0x20 | 3
	selUser32    = 0x28 | 3
	selUser64    = 0x30 | 3
	selTSS       = 0x40 // 16 bytes
	selConform   = 0x50 // conforming, DPL 0, 32-bit
	selConform64 = 0x58
	selAbsent    = 0x60 // data, not present
	selAbsentCS  = 0x68
	selRO        = 0x70 // read-only data
	selExecOnly  = 0x78
	selCode1     = 0x80 | 1 // DPL 1, 32-bit
	selData1     = 0x88 | 1
	selBadLD     = 0x90 // L and D both set
	selDown      = 0x98 // expand-down data, limit 0xfff
	selLDT       = 0xa0 // 16 bytes
	selCode16    = 0xb0
	selCode641   = 0xb8 | 1 // 64-bit, DPL 1
	selGate      = 0xc0     // free, 16 bytes
	selSmall     = 0xd0     // 32-bit code, limit 0xfff
	selUserCf    = 0xd8 | 3 // conforming, DPL 3
	selTSS2      = 0xe0     // 16 bytes
	selGate2     = 0xf0     // free
	rigGDTLimit  = 0xff
	selBeyond    = 0x100
)

// segDesc makes a code or data descriptor; attr is in the layout of
// cpu.Segment.Attr.
func segDesc(base, limit uint32, attr uint16) uint64 {
	return uint64(limit&0xffff) | uint64(base&0xffffff)<<16 | uint64(attr)<<40 |
		uint64(limit>>16&0xf)<<48 | uint64(base>>24)<<56
}

// gateDesc makes a gate; attr is P, DPL and type.
func gateDesc(sel uint16, off uint64, attr uint8, low uint8) (uint64, uint64) {
	return off&0xffff | uint64(sel)<<16 | uint64(low)<<32 | uint64(attr)<<40 | off&0xffff0000<<32, off >> 32
}

const (
	dCode64 = 0xa09b
	dCode32 = 0xc09b
	dData   = 0xc093
	dUser   = 3 << 5
)

type rigEnv struct {
	amd     bool
	tables  map[bool]*cpuid.Table
	msr     map[uint32]uint64
	flushes []Flush
	cr8     uint64
	fpu     *cpu.FPU
	cpu     *CPU
}

// rigXCR0 is x87, SSE, AVX and AVX-512.
const rigXCR0 = 0xe7

func rigHost(amd bool) cpuid.Host {
	return cpuid.Host{XCR0: rigXCR0, FSGSBASE: true, CPUID: func(leaf, sub uint32) cpuid.Regs {
		switch {
		case leaf == 0 && amd:
			return cpuid.Regs{A: 0x10, B: 0x68747541, C: 0x444d4163, D: 0x69746e65}
		case leaf == 0:
			return cpuid.Regs{A: 0x16, B: 0x756e6547, C: 0x6c65746e, D: 0x49656e69}
		case leaf == 0xd && sub > 1:
			return map[uint32]cpuid.Regs{
				2: {A: 256, B: 576}, 5: {A: 64, B: 1088, C: 2}, 6: {A: 512, B: 1152}, 7: {A: 1024, B: 1664},
			}[sub]
		case leaf == 0x80000000:
			return cpuid.Regs{A: 0x80000021}
		case leaf == 0x80000021:
			return cpuid.Regs{}
		}
		return cpuid.Regs{A: ^uint32(0), B: ^uint32(0), C: ^uint32(0), D: ^uint32(0)}
	}}
}

func (e *rigEnv) ReadMSR(n uint32) (uint64, bool) { v, ok := e.msr[n]; return v, ok }
func (e *rigEnv) WriteMSR(n uint32, v uint64) bool {
	_, ok := e.msr[n]
	if ok {
		e.msr[n] = v
	}
	return ok
}

func (e *rigEnv) CPUID(leaf, sub uint32) (a, b, c, d uint32) {
	t := e.tables[e.amd]
	if t == nil {
		t = cpuid.New(rigHost(e.amd), cpuid.Options{CPUs: 1, TSCkHz: 2000000})
		e.tables[e.amd] = t
	}
	r := t.Lookup(leaf, sub, cpuid.Context{XCR0: e.cpu.XCR0, OSXSAVE: e.cpu.CR4&x86.CR4OSXSAVE != 0})
	return r.A, r.B, r.C, r.D
}

func (e *rigEnv) TSC() uint64       { return 0x123456789abc }
func (e *rigEnv) Flushed(f Flush)   { e.flushes = append(e.flushes, f) }
func (e *rigEnv) SyncFPU() *cpu.FPU { return e.fpu }
func (e *rigEnv) SetCR8(v uint64)   { e.cr8 = v }

// rig is a CPU with descriptor tables, stacks and identity paging.
type rig struct {
	*CPU
	t   *testing.T
	env *rigEnv
}

type rigMode int

const (
	long   rigMode = iota // 64-bit mode
	compat                // compatibility mode
	prot                  // 32-bit protected mode, no paging
	real                  // real mode
)

func (m rigMode) String() string { return [...]string{"long", "compat", "prot", "real"}[m] }

func newRig(t *testing.T, mode rigMode) *rig {
	t.Helper()
	mem, err := guestmem.New(2 << 20)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { mem.Close() })
	env := &rigEnv{tables: map[bool]*cpuid.Table{}, msr: map[uint32]uint64{}, fpu: new(cpu.FPU)}
	c := New(mem, &bus.Bus{}, &bus.Bus{}, env)
	env.cpu = c
	r := &rig{CPU: c, t: t, env: env}
	if mode == real {
		r.Seg[x86.CS] = cpu.Segment{Limit: 0xffff, Attr: cpu.AttrP | cpu.AttrS | cpu.AttrCode | cpu.AttrWritable | cpu.AttrAccessed}
		r.GPR[x86.RSP], r.RIP = 0x8000, 0x100
		r.IDTR = cpu.Table{Limit: 0x3ff}
		r.start()
		return r
	}
	r.tables(mode)
	r.CR0 = x86.CR0PE | x86.CR0ET | x86.CR0NE | x86.CR0WP
	r.CR4 = x86.CR4OSFXSR
	if mode != prot {
		r.page(rigPML4, rigPDPT|7)
		r.page(rigPDPT, rigPD|7)
		r.page(rigPD, rigPT|7)
		for i := range uint64(512) {
			r.page(rigPT+i*8, i<<12|7)
		}
		r.CR3 = rigPML4
		r.CR4 |= x86.CR4PAE | x86.CR4PGE
		r.CR0 |= x86.CR0PG
		r.EFER = x86.EFERLME | x86.EFERLMA | x86.EFERNX | x86.EFERSCE
	}
	switch mode {
	case long:
		r.Seg[x86.CS] = r.load(selCode64)
	default:
		r.Seg[x86.CS] = r.load(selCode32)
	}
	for _, s := range []int{x86.SS, x86.DS, x86.ES} {
		r.Seg[s] = r.load(selData)
	}
	for _, s := range []int{x86.FS, x86.GS} {
		r.Seg[s] = cpu.Segment{Unusable: true}
	}
	r.GPR[x86.RSP], r.RIP = rigSP0-0x800, rigCode
	r.start()
	return r
}

// start recomputes what depends on the state after a test changed it.
func (r *rig) start() {
	r.setFlags(r.RFLAGS)
	r.modeChanged()
}

// tables fills GDT, IDT and TSS.
func (r *rig) tables(mode rigMode) {
	for sel, d := range map[uint16]uint64{
		selCode64: segDesc(0, 0xfffff, dCode64), selData: segDesc(0, 0xfffff, dData),
		selCode32: segDesc(0, 0xfffff, dCode32), selUserData: segDesc(0, 0xfffff, dData|dUser),
		selUser32: segDesc(0, 0xfffff, dCode32|dUser), selUser64: segDesc(0, 0xfffff, dCode64|dUser),
		selConform: segDesc(0, 0xfffff, dCode32|4), selConform64: segDesc(0, 0xfffff, dCode64|4),
		selAbsent: segDesc(0, 0xfffff, dData&^cpu.AttrP), selAbsentCS: segDesc(0, 0xfffff, dCode32&^cpu.AttrP),
		selRO: segDesc(0, 0xfffff, dData&^2), selExecOnly: segDesc(0, 0xfffff, dCode32&^2),
		selCode1: segDesc(0, 0xfffff, dCode32|1<<5), selData1: segDesc(0, 0xfffff, dData|1<<5),
		selBadLD: segDesc(0, 0xfffff, dCode64|cpu.AttrDB), selDown: segDesc(0, 0xfff, dData&^cpu.AttrG|4),
		selCode16: segDesc(0, 0xffff, 0x9b), selCode641: segDesc(0, 0xfffff, dCode64|1<<5),
		selSmall: segDesc(0, 0xfff, dCode32&^cpu.AttrG), selUserCf: segDesc(0, 0xfffff, dCode32|dUser|4),
		selTSS: segDesc(rigTSS, 0x2067, 0x8b), selTSS2: segDesc(rigData, 0x67, 0x89),
		selLDT: segDesc(rigLDT, 0xf, 0x82),
	} {
		r.gdt(sel, d)
	}
	r.GDTR = cpu.Table{Base: rigGDT, Limit: rigGDTLimit}
	r.TR = cpu.Segment{Sel: selTSS, Base: rigTSS, Limit: 0x2067, Attr: 0x8b}
	r.LDTR = cpu.Segment{Base: rigLDT, Limit: 0xf, Attr: 0x82, Sel: selLDT}
	r.put(rigLDT+8, 8, segDesc(0, 0xfffff, dData))
	if mode == prot {
		r.IDTR = cpu.Table{Base: rigIDT, Limit: 256*8 - 1}
		r.put(rigTSS+4, 4, rigSP0)
		r.put(rigTSS+8, 4, selData)
		r.put(rigTSS+12, 4, rigSP1)
		r.put(rigTSS+16, 4, selData1)
	} else {
		r.IDTR = cpu.Table{Base: rigIDT, Limit: 256*16 - 1}
		r.put(rigTSS+4, 8, rigSP0)
		r.put(rigTSS+12, 8, rigSP1)
		r.put(rigTSS+36, 8, rigIST1)
	}
	for v := range 256 {
		r.gate(uint8(v), defaultCS(mode), handlerAt(uint8(v)), 0x8e, 0)
	}
}

func defaultCS(mode rigMode) uint16 {
	if mode == prot {
		return selCode32
	}
	return selCode64
}

// handlerAt is the address of the rig's handler of a vector.
func handlerAt(vec uint8) uint64 { return rigCode + 0x1000 + uint64(vec)*16 }

// gate fills an IDT entry in the format that the IDT limit tells.
func (r *rig) gate(vec uint8, sel uint16, off uint64, attr, ist uint8) {
	lo, hi := gateDesc(sel, off, attr, ist)
	if r.IDTR.Limit == 256*8-1 {
		r.put(rigIDT+uint64(vec)*8, 8, lo)
		return
	}
	r.put(rigIDT+uint64(vec)*16, 8, lo)
	r.put(rigIDT+uint64(vec)*16+8, 8, hi)
}

// put writes physical memory.
func (r *rig) put(gpa uint64, size int, v uint64) {
	var b [8]byte
	binary.LittleEndian.PutUint64(b[:], v)
	if err := r.Mem.WriteAt(b[:size], gpa); err != nil {
		r.t.Fatal(err)
	}
}

// get reads physical memory.
func (r *rig) get(gpa uint64, size int) uint64 {
	var b [8]byte
	if err := r.Mem.ReadAt(b[:size], gpa); err != nil {
		r.t.Fatal(err)
	}
	return binary.LittleEndian.Uint64(b[:])
}

func (r *rig) page(at, entry uint64) { r.put(at, 8, entry) }

// map4k sets the page-table entry of lin and forgets old translations.
func (r *rig) map4k(lin, bits uint64) {
	r.page(rigPT+lin>>12*8, lin&^0xfff|bits)
	r.flushTLB(Flush{Kind: FlushAll})
}

func (r *rig) gdt(sel uint16, d uint64) { r.put(rigGDT+uint64(sel&^7), 8, d) }

// load is the contents of a segment register loaded from the GDT.
func (r *rig) load(sel uint16) cpu.Segment {
	return descriptor{raw: r.get(rigGDT+uint64(sel&^7), 8)}.segment(sel)
}

// user puts the CPU at CPL 3, in 64-bit code or in 32-bit code.
func (r *rig) user() *rig {
	cs := uint16(selUser32)
	if r.Code64() {
		cs = selUser64
	}
	return r.at(3, cs, selUserData)
}

// at puts the CPU at a privilege level.
func (r *rig) at(cpl uint8, cs, ss uint16) *rig {
	r.Seg[x86.CS], r.Seg[x86.SS], r.CPL = r.load(cs), r.load(ss), cpl
	r.GPR[x86.RSP] = rigUser
	r.start()
	return r
}

// stackPut writes a frame at RSP, lowest address first.
func (r *rig) stackPut(size int, v ...uint64) {
	for i, x := range v {
		r.put(r.GPR[x86.RSP]+uint64(i*size), size, x)
	}
}

// frame reads n items at RSP.
func (r *rig) frame(size, n int) (v []uint64) {
	for i := range n {
		v = append(v, r.get(r.GPR[x86.RSP]+uint64(i*size), size))
	}
	return v
}

// wantFault checks that an instruction raised exactly this fault and changed
// nothing.
func (r *rig) wantFault(ok bool, vec uint8, err uint32) {
	r.t.Helper()
	if ok || !r.fault.pending {
		r.t.Errorf("no fault, want vector %d error %#x", vec, err)
		return
	}
	if r.fault.vector != vec || x86.VectorHasErrorCode(vec) && r.fault.err != err {
		r.t.Errorf("vector %d error %#x, want vector %d error %#x", r.fault.vector, r.fault.err, vec, err)
	}
	r.fault = fault{}
}

func (r *rig) wantOK(ok bool) {
	r.t.Helper()
	if !ok || r.fault.pending {
		r.t.Fatalf("vector %d error %#x, want no fault", r.fault.vector, r.fault.err)
	}
}

// faultCase is one fault of one instruction.
type faultCase struct {
	name string
	mode rigMode
	prep func(r *rig)
	do   func(r *rig) bool
	vec  uint8
	err  uint32
}

func runFaults(t *testing.T, cases []faultCase) {
	for _, tc := range cases {
		t.Run(fmt.Sprintf("%s/%s", tc.mode, tc.name), func(t *testing.T) {
			r := newRig(t, tc.mode)
			if tc.prep != nil {
				tc.prep(r)
			}
			r.start()
			rip, rsp, cs, ss, cpl := r.RIP, r.GPR[x86.RSP], r.Seg[x86.CS], r.Seg[x86.SS], r.CPL
			r.wantFault(tc.do(r), tc.vec, tc.err)
			if r.RIP != rip || r.GPR[x86.RSP] != rsp || r.Seg[x86.CS] != cs || r.Seg[x86.SS] != ss || r.CPL != cpl {
				t.Errorf("state changed: RIP %#x RSP %#x CS %+v SS %+v CPL %d", r.RIP, r.GPR[x86.RSP], r.Seg[x86.CS], r.Seg[x86.SS], r.CPL)
			}
		})
	}
}
