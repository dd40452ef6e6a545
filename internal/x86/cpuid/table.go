// Package cpuid makes the CPUID view of the virtual CPU: the host's, with what
// is not virtualized taken out and what the interpreter adds put in
// (bits.go says which and why), and the values of the model-specific registers
// that belong to it (msr.go).
//
// User code runs on the host CPU, and where CPUID cannot be made to fault it
// sees the host's. So features of user code are never invented nor, if they
// bring register state with them, hidden: XCR0 and leaf 0xD are the host's.
package cpuid

import "math/bits"

const (
	// PhysBits is MAXPHYADDR of the virtual CPU, the one that package mmu
	// checks reserved bits against.
	PhysBits = 46
	virtBits = 48

	// APICBusHz is the rate of the local APIC's timer.
	APICBusHz = 1_000_000_000

	maxIntel    = 0x16
	maxExtIntel = 0x80000008
	maxExtAMD   = 0x80000021
	maxKVM      = 0x40000010
	kvmBase     = 0x40000000
)

// Options are what a table depends on beside the host.
type Options struct {
	CPUs   int    // number of virtual CPUs, one socket, one thread a core
	TSCkHz uint32 // rate of the TSC
}

// Context is the state of the CPU that executes CPUID.
type Context struct {
	XCR0    uint64
	OSXSAVE bool // CR4.OSXSAVE
	APICID  uint32
}

// Table is the CPUID view of one machine. It is read-only after New.
type Table struct {
	opt    Options
	amd    bool
	max    uint32
	maxExt uint32
	xcr0   uint64
	leaf   map[uint64]Regs
	comp   [64]Regs // leaf 0xD by component
}

func key(leaf, sub uint32) uint64 { return uint64(leaf)<<32 | uint64(sub) }

// New makes the table for a host. Options.CPUs is 1 to 255.
func New(h Host, o Options) *Table {
	t := &Table{opt: o, amd: isAMD(h), leaf: map[uint64]Regs{}}
	t.opt.CPUs = min(max(o.CPUs, 1), 255)
	t.xcr0 = h.XCR0 & shownXCR0
	if t.xcr0 == 0 {
		t.xcr0 = 1
	}
	t.basic(h)
	t.extended(h)
	t.kvm()
	return t
}

// AMD reports whether the virtual CPU is AMD-like.
func (t *Table) AMD() bool { return t.amd }

// XCR0 is the set of state components the guest can enable.
func (t *Table) XCR0() uint64 { return t.xcr0 }

func (t *Table) set(leaf, sub uint32, r Regs) { t.leaf[key(leaf, sub)] = r }

func (t *Table) basic(h Host) {
	r0 := h.CPUID(0, 0)
	t.max = r0.A
	if !t.amd {
		t.max = maxIntel
	}
	t.max = max(t.max, 0xd)
	t.set(0, 0, Regs{t.max, r0.B, r0.C, r0.D})

	r1 := h.CPUID(1, 0)
	r1.B = r1.B&0xff00 | uint32(t.opt.CPUs)<<16
	r1.C = r1.C&f1cHost | f1cAlways
	r1.D = f1dAlways
	if t.opt.CPUs > 1 {
		r1.D |= f1dHTT
	}
	t.set(1, 0, r1)
	t.set(2, 0, h.CPUID(2, 0))
	if !t.amd {
		t.caches(h, 4)
	}
	t.set(6, 0, Regs{A: f6aARAT})
	t.features7(h)
	t.topology()
	t.xsave(h)
	if !t.amd {
		t.tscLeaves(h)
	}
}

func (t *Table) features7(h Host) {
	r := h.CPUID(7, 0)
	top := min(r.A, 1)
	out := Regs{
		A: top,
		B: r.B&f7bHost | f7bAlways,
		C: r.C & f7cHost,
		D: r.D&f7dHost | f7dAlways,
	}
	if h.FSGSBASE {
		out.B |= r.B & f7bFSGSBASE
	}
	if !t.amd {
		out.D |= f7dIntel
	}
	t.set(7, 0, out)
	if top == 1 {
		r := h.CPUID(7, 1)
		t.set(7, 1, Regs{A: r.A & f71aHost, D: r.D & f71dHost})
	}
}

// idBits is the number of APIC id bits below the socket.
func (t *Table) idBits() uint32 { return uint32(bits.Len(uint(t.opt.CPUs - 1))) }

// caches copies a cache enumeration leaf (4, or AMD's 0x8000001D): the last
// level is shared by all CPUs, the others are each CPU's own.
func (t *Table) caches(h Host, leaf uint32) {
	for sub := uint32(0); sub < 8; sub++ {
		r := h.CPUID(leaf, sub)
		if r.A&0x1f == 0 {
			return
		}
		r.A &= 0x3fff
		share := uint32(0)
		if r.A>>5&7 >= 3 {
			share = 1<<t.idBits() - 1
		}
		r.A |= share << 14
		if !t.amd {
			r.A |= (1<<t.idBits() - 1) << 26
		}
		t.set(leaf, sub, r)
	}
}

// topology is leaf 0xB: one thread a core, then all cores of the socket. The
// x2APIC id in EDX is put in by Lookup.
func (t *Table) topology() {
	const smt, core = 1, 2
	t.set(0xb, 0, Regs{A: 0, B: 1, C: smt << 8})
	t.set(0xb, 1, Regs{A: t.idBits(), B: uint32(t.opt.CPUs), C: core<<8 | 1})
}

// xsave is leaf 0xD. Subleaf 0 EBX is put in by Lookup.
func (t *Table) xsave(h Host) {
	size := uint32(512 + 64)
	for i := 2; i < 63; i++ {
		if t.xcr0>>i&1 == 0 {
			continue
		}
		r := h.CPUID(0xd, uint32(i))
		t.comp[i] = Regs{A: r.A, B: r.B, C: r.C & 2}
		size = max(size, r.A+r.B)
		t.set(0xd, uint32(i), t.comp[i])
	}
	t.set(0xd, 0, Regs{A: uint32(t.xcr0), C: size, D: uint32(t.xcr0 >> 32)})
	t.set(0xd, 1, Regs{A: h.CPUID(0xd, 1).A & fd1aHost})
}

// areaSize is the size of the XSAVE area in standard format for xcr0.
func (t *Table) areaSize(xcr0 uint64) uint32 {
	size := uint32(512 + 64)
	for i := 2; i < 63; i++ {
		if xcr0>>i&1 != 0 {
			size = max(size, t.comp[i].A+t.comp[i].B)
		}
	}
	return size
}

// tscLeaves are 0x15 and 0x16 (Intel): TSC rate = crystal * EBX / EAX. The
// crystal is also what the local APIC timer counts.
func (t *Table) tscLeaves(h Host) {
	if t.opt.TSCkHz == 0 {
		return
	}
	// Linux multiplies the crystal in kHz by EBX in 32 bits.
	const most = 0xffffffff / (APICBusHz / 1000)
	num, den := ratio(uint64(t.opt.TSCkHz), APICBusHz/1000, most)
	t.set(0x15, 0, Regs{A: den, B: num, C: APICBusHz})
	mhz := (t.opt.TSCkHz + 500) / 1000
	t.set(0x16, 0, Regs{A: mhz, B: mhz, C: 100})
}

// ratio is the best approximation of a/b whose numerator is at most limit, by
// continued fractions.
func ratio(a, b, limit uint64) (num, den uint32) {
	p0, q0, p1, q1 := uint64(0), uint64(1), uint64(1), uint64(0)
	for b != 0 {
		k := a / b
		p2, q2 := k*p1+p0, k*q1+q0
		if p2 > limit {
			break
		}
		p0, q0, p1, q1 = p1, q1, p2, q2
		a, b = b, a%b
	}
	return uint32(p1), uint32(q1)
}

func (t *Table) extended(h Host) {
	top := h.CPUID(0x80000000, 0)
	t.maxExt = maxExtIntel
	if t.amd {
		t.maxExt = maxExtAMD
	}
	t.set(0x80000000, 0, Regs{t.maxExt, top.B, top.C, top.D})
	host := func(leaf, sub uint32) Regs {
		if leaf > top.A {
			return Regs{}
		}
		return h.CPUID(leaf, sub)
	}

	r := host(0x80000001, 0)
	r.C &= fx1cHost
	r.D = r.D&fx1dHost | fx1dAlways
	if t.amd {
		r.D |= f1dAlways & fx1dRepeat
		if t.opt.CPUs > 1 {
			r.C |= fx1cCmpLegacy
		}
	} else {
		r.A, r.B = 0, 0
		r.C &^= 1 << 22
	}
	t.set(0x80000001, 0, r)
	for leaf := uint32(0x80000002); leaf <= 0x80000006; leaf++ {
		t.set(leaf, 0, host(leaf, 0)) // brand string, L1, L2 and TLBs
	}
	t.set(0x80000007, 0, Regs{D: fx7dAlways})
	r8 := Regs{A: PhysBits | virtBits<<8}
	if t.amd {
		r8.B = host(0x80000008, 0).B&fx8bHost | fx8bAlways
		r8.C = uint32(t.opt.CPUs-1) | t.idBits()<<12
		t.amdOnly(host)
	}
	t.set(0x80000008, 0, r8)
}

func (t *Table) amdOnly(host func(leaf, sub uint32) Regs) {
	t.set(0x80000019, 0, host(0x80000019, 0)) // TLBs for 1 GiB pages
	t.set(0x8000001a, 0, host(0x8000001a, 0)) // width of the FP units
	if t.leaf[key(0x80000001, 0)].C>>22&1 != 0 {
		t.caches(Host{CPUID: host}, 0x8000001d)
		t.set(0x8000001e, 0, Regs{}) // ids are put in by Lookup
	}
	r := host(0x80000021, 0)
	t.set(0x80000021, 0, Regs{A: r.A&fx21aHost | fx21aAlways, C: fx21cAlways})
}

func (t *Table) kvm() {
	t.set(kvmBase, 0, Regs{maxKVM, 0x4b4d564b, 0x564b4d56, 0x4d}) // KVMKVMKVM
	t.set(kvmBase+1, 0, Regs{A: kvmFeatures})
	t.set(maxKVM, 0, Regs{A: t.opt.TSCkHz, B: APICBusHz / 1000})
}

// compactedSize is the size in bytes of the area that XSAVEC writes for all
// components in xcr0: each follows the one before it, on a 64-byte boundary
// where bit 1 of ECX of its subleaf says so (SDM vol. 1, section 13.4.3). A
// kernel that uses XSAVEC takes it from here, also without XSAVES.
func (t *Table) compactedSize(xcr0 uint64) uint32 {
	size := uint32(512 + 64)
	for i := 2; i < 63; i++ {
		if xcr0>>i&1 != 0 {
			if t.comp[i].C&2 != 0 {
				size = (size + 63) &^ 63
			}
			size += t.comp[i].A
		}
	}
	return size
}

// Answer is what CPUID answers for a leaf and one subleaf, or all of them.
type Answer struct {
	Leaf, Sub uint32
	AnySub    bool
	Regs
}

// listedSubs is how many subleaves Answers has of a leaf with any: more than a
// processor has, as programs look for the first that is empty.
const listedSubs = 16

// Answers lists what CPUID answers for all leaves in the three ranges that the
// virtual CPU has.
func (t *Table) Answers(ctx Context) []Answer {
	var list []Answer
	for _, r := range [][2]uint32{{0, t.max}, {0x80000000, t.maxExt}, {kvmBase, maxKVM}} {
		for leaf := r[0]; leaf <= r[1]; leaf++ {
			switch leaf {
			case 4, 7, 0xb, 0xd, 0x8000001d:
				for sub := range uint32(listedSubs) {
					list = append(list, Answer{leaf, sub, false, t.Lookup(leaf, sub, ctx)})
				}
			default:
				list = append(list, Answer{leaf, 0, true, t.Lookup(leaf, 0, ctx)})
			}
		}
	}
	return list
}

// Lookup executes CPUID.
func (t *Table) Lookup(leaf, sub uint32, ctx Context) Regs {
	switch {
	case leaf <= t.max, leaf >= kvmBase && leaf <= maxKVM, leaf >= 0x80000000 && leaf <= t.maxExt:
	case t.amd:
		return Regs{}
	default:
		// Intel answers with the highest basic leaf.
		leaf = t.max
	}
	switch leaf {
	case 1:
		r := t.leaf[key(1, 0)]
		r.B |= ctx.APICID << 24
		if ctx.OSXSAVE {
			r.C |= f1cOSXSAVE
		}
		return r
	case 4, 7, 0x8000001d:
		return t.leaf[key(leaf, sub)]
	case 0xb:
		r, ok := t.leaf[key(leaf, sub)]
		if !ok {
			r.C = sub & 0xff
		}
		r.D = ctx.APICID
		return r
	case 0xd:
		r := t.leaf[key(leaf, sub)]
		switch sub {
		case 0:
			r.B = t.areaSize(ctx.XCR0)
		case 1:
			r.B = t.compactedSize(ctx.XCR0)
		}
		return r
	case 0x8000001e:
		if _, ok := t.leaf[key(leaf, 0)]; !ok {
			return Regs{}
		}
		return Regs{A: ctx.APICID, B: ctx.APICID & (1<<t.idBits() - 1)}
	}
	return t.leaf[key(leaf, 0)]
}
