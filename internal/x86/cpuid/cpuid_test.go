package cpuid

import (
	"fmt"
	"math/bits"
	"testing"

	"ring3/internal/x86"
)

// recorded makes a host from leaves: {leaf, sub} to registers.
func recorded(xcr0 uint64, leaves map[[2]uint32]Regs) Host {
	return Host{XCR0: xcr0, FSGSBASE: true, CPUID: func(leaf, sub uint32) Regs {
		return leaves[[2]uint32{leaf, sub}]
	}}
}

// Hosts of different ages, after what such processors return.
var (
	zen3 = recorded(0x207, map[[2]uint32]Regs{
		{0, 0}:          {0x10, 0x68747541, 0x444d4163, 0x69746e65},
		{1, 0}:          {0x00a00f11, 0x00100800, 0x7efa320b, 0x178bfbff},
		{7, 0}:          {0, 0x219c97a9, 0x0040069c, 0x00000010},
		{0xa, 0}:        {0x07300402, 0, 0, 0x603},
		{0xb, 0}:        {1, 2, 0x100, 0},
		{0xd, 0}:        {0x207, 0x988, 0x988, 0},
		{0xd, 1}:        {0xf, 0x348, 0x1800, 0},
		{0xd, 2}:        {0x100, 0x240, 0, 0},
		{0xd, 9}:        {8, 0x980, 0, 0},
		{0x80000000, 0}: {0x80000023, 0x68747541, 0x444d4163, 0x69746e65},
		{0x80000001, 0}: {0x00a00f11, 0x40000000, 0x75c237ff, 0x2fd3fbff},
		{0x80000002, 0}: {0x20444d41, 0x43595045, 0, 0},
		{0x80000006, 0}: {0x48002200, 0x68004200, 0x02006140, 0x08009140},
		{0x80000007, 0}: {0, 0x3b, 0, 0x6799},
		{0x80000008, 0}: {0x3030, 0x791ef257, 0xa01f, 0x10007},
		{0x8000001d, 0}: {0x4121, 0x01c0003f, 0x3f, 0},
		{0x8000001d, 2}: {0x4143, 0x01c0003f, 0x3ff, 2},
		{0x8000001d, 3}: {0x3c163, 0x03c0003f, 0x7fff, 1},
		{0x8000001e, 0}: {0, 0x100, 0, 0},
		{0x8000001f, 0}: {0x1f, 0x173, 0x1fd, 1},
		{0x80000021, 0}: {0x4d, 0, 0, 0},
	})
	skylake = recorded(0x2ff, map[[2]uint32]Regs{
		{0, 0}:          {0x16, 0x756e6547, 0x6c65746e, 0x49656e69},
		{1, 0}:          {0x00050654, 0x00400800, 0x7ffefbff, 0xbfebfbff},
		{4, 0}:          {0x7c004121, 0x01c0003f, 0x3f, 0},
		{4, 3}:          {0x7c0fc163, 0x0280003f, 0x9fff, 4},
		{7, 0}:          {0, 0xd39ffffb, 0x8, 0xbc000400},
		{0xa, 0}:        {0x07300404, 0, 0, 0x603},
		{0xd, 0}:        {0x2ff, 0xa88, 0xa88, 0},
		{0xd, 1}:        {0xf, 0xa08, 0x100, 0},
		{0xd, 2}:        {0x100, 0x240, 0, 0},
		{0xd, 3}:        {0x40, 0x3c0, 0, 0},
		{0xd, 4}:        {0x40, 0x400, 0, 0},
		{0xd, 5}:        {0x40, 0x440, 0, 0},
		{0xd, 6}:        {0x200, 0x480, 0, 0},
		{0xd, 7}:        {0x400, 0x680, 0, 0},
		{0xd, 9}:        {8, 0xa80, 0, 0},
		{0x80000000, 0}: {0x80000008, 0, 0, 0},
		{0x80000001, 0}: {0, 0, 0x121, 0x2c100800},
		{0x80000008, 0}: {0x302e, 0, 0, 0},
	})
	sapphire = recorded(0x602e7, map[[2]uint32]Regs{
		{0, 0}:          {0x20, 0x756e6547, 0x6c65746e, 0x49656e69},
		{1, 0}:          {0x000806f8, 0x00800800, 0x7ffefbff, 0xbfebfbff},
		{4, 3}:          {0xfc1fc163, 0x0380003f, 0x1bfff, 4},
		{7, 0}:          {2, 0xf3bfbfff, 0xfb417ffe, 0xffdd4432},
		{7, 1}:          {0x1c30, 0, 0, 0},
		{0xd, 0}:        {0x602e7, 0x2b00, 0x2b00, 0},
		{0xd, 1}:        {0x1f, 0x2b00, 0x1900, 0},
		{0xd, 2}:        {0x100, 0x240, 0, 0},
		{0xd, 5}:        {0x40, 0x440, 0, 0},
		{0xd, 6}:        {0x200, 0x480, 0, 0},
		{0xd, 7}:        {0x400, 0x680, 0, 0},
		{0xd, 9}:        {8, 0xa80, 0, 0},
		{0xd, 17}:       {0x40, 0xac0, 2, 0},
		{0xd, 18}:       {0x2000, 0xb00, 6, 0},
		{0x80000000, 0}: {0x80000008, 0, 0, 0},
		{0x80000001, 0}: {0, 0, 0x121, 0x2c100800},
		{0x80000008, 0}: {0x3934, 0x200, 0, 0},
	})
)

func hosts() map[string]Host {
	return map[string]Host{"this": ReadHost(), "zen3": zen3, "skylake": skylake, "sapphire": sapphire}
}

// each runs f on every host with every number of CPUs.
func each(t *testing.T, f func(t *testing.T, h Host, tab *Table, cpus int)) {
	for name, h := range hosts() {
		for cpus := 1; cpus <= 8; cpus++ {
			t.Run(fmt.Sprintf("%s/%d", name, cpus), func(t *testing.T) {
				f(t, h, New(h, Options{CPUs: cpus, TSCkHz: 2445404}), cpus)
			})
		}
	}
}

func reg(r Regs, n byte) uint32 {
	switch n {
	case 'a':
		return r.A
	case 'b':
		return r.B
	case 'c':
		return r.C
	}
	return r.D
}

// flag is a CPUID bit.
type flag struct {
	name string
	leaf uint32
	reg  byte
	bit  uint8
}

func (f flag) in(tab *Table) bool {
	return reg(tab.Lookup(f.leaf, 0, Context{}), f.reg)>>f.bit&1 != 0
}

func TestHidden(t *testing.T) {
	flags := []flag{
		{"MONITOR", 1, 'c', 3}, {"VMX", 1, 'c', 5}, {"SMX", 1, 'c', 6}, {"EIST", 1, 'c', 7},
		{"PDCM", 1, 'c', 15}, {"VME", 1, 'd', 1}, {"DS", 1, 'd', 21},
		{"SGX", 7, 'b', 2}, {"PQM", 7, 'b', 12}, {"MPX", 7, 'b', 14},
		{"RDT-A", 7, 'b', 15}, {"PT", 7, 'b', 25},
		{"UMIP", 7, 'c', 2}, {"PKU", 7, 'c', 3}, {"OSPKE", 7, 'c', 4}, {"WAITPKG", 7, 'c', 5},
		{"CET_SS", 7, 'c', 7}, {"TME", 7, 'c', 13}, {"LA57", 7, 'c', 16}, {"KL", 7, 'c', 23},
		{"BUS_LOCK", 7, 'c', 24}, {"ENQCMD", 7, 'c', 29}, {"SGX_LC", 7, 'c', 30}, {"PKS", 7, 'c', 31},
		{"UINTR", 7, 'd', 5}, {"SRBDS_CTRL", 7, 'd', 9}, {"MD_CLEAR", 7, 'd', 10}, {"HYBRID", 7, 'd', 15},
		{"CET_IBT", 7, 'd', 20}, {"AMX_BF16", 7, 'd', 22}, {"AMX_TILE", 7, 'd', 24}, {"AMX_INT8", 7, 'd', 25},
		{"SSBD", 7, 'd', 31}, {"CORE_CAPS", 7, 'd', 30},
		{"SVM", 0x80000001, 'c', 2}, {"IBS", 0x80000001, 'c', 10}, {"LWP", 0x80000001, 'c', 15},
		{"PERFCTR_CORE", 0x80000001, 'c', 23}, {"PERFCTR_NB", 0x80000001, 'c', 24},
		{"BPEXT", 0x80000001, 'c', 26}, {"MWAITX", 0x80000001, 'c', 29}, {"OSVW", 0x80000001, 'c', 9},
		{"IBPB", 0x80000008, 'b', 12}, {"IBRS", 0x80000008, 'b', 14}, {"STIBP", 0x80000008, 'b', 15},
		{"INVLPGB", 0x80000008, 'b', 3}, {"RDPRU", 0x80000008, 'b', 4}, {"VIRT_SSBD", 0x80000008, 'b', 25},
	}
	each(t, func(t *testing.T, _ Host, tab *Table, _ int) {
		for _, f := range flags {
			if f.in(tab) {
				t.Errorf("%s is shown", f.name)
			}
		}
		for _, leaf := range []uint32{5, 0xa, 0xf, 0x10, 0x12, 0x14, 0x8000000a, 0x8000001b, 0x8000001c, 0x8000001f} {
			if leaf > tab.max && leaf < 0x80000000 && !tab.amd {
				continue
			}
			if r := tab.Lookup(leaf, 0, Context{}); r != (Regs{}) && (tab.amd || leaf < 0x80000000) {
				t.Errorf("leaf %#x is %#x, want zero", leaf, r)
			}
		}
		if a := tab.Lookup(0xd, 1, Context{}).A; a&^7 != 0 {
			t.Errorf("leaf 0xd.1 EAX = %#x: XSAVES or XFD is shown", a)
		}
	})
}

func TestShown(t *testing.T) {
	flags := []flag{
		{"x2APIC", 1, 'c', 21}, {"PCID", 1, 'c', 17}, {"TSC deadline", 1, 'c', 24}, {"hypervisor", 1, 'c', 31},
		{"APIC", 1, 'd', 9}, {"MTRR", 1, 'd', 12}, {"PAT", 1, 'd', 16},
		{"SMEP", 7, 'b', 7}, {"SMAP", 7, 'b', 20}, {"INVPCID", 7, 'b', 10}, {"ERMS", 7, 'b', 9},
		{"FSRM", 7, 'd', 4}, {"TSC_ADJUST", 7, 'b', 1}, {"SERIALIZE", 7, 'd', 14}, {"ARAT", 6, 'a', 2},
		{"SYSCALL", 0x80000001, 'd', 11}, {"NX", 0x80000001, 'd', 20}, {"1 GiB pages", 0x80000001, 'd', 26},
		{"long mode", 0x80000001, 'd', 29}, {"invariant TSC", 0x80000007, 'd', 8},
	}
	each(t, func(t *testing.T, h Host, tab *Table, _ int) {
		for _, f := range flags {
			if !f.in(tab) {
				t.Errorf("%s is not shown", f.name)
			}
		}
		// What user code can use is shown exactly when the host has it.
		for _, f := range []flag{
			{"SSE4.2", 1, 'c', 20}, {"AVX", 1, 'c', 28}, {"RDRAND", 1, 'c', 30}, {"AVX2", 7, 'b', 5},
			{"AVX512F", 7, 'b', 16}, {"AVX512BW", 7, 'b', 30}, {"SHA", 7, 'b', 29}, {"RDPID", 7, 'c', 22},
			{"VAES", 7, 'c', 9}, {"AVX512_FP16", 7, 'd', 23}, {"RDTSCP", 0x80000001, 'd', 27}, {"LZCNT", 0x80000001, 'c', 5},
		} {
			if host := reg(h.CPUID(f.leaf, 0), f.reg)>>f.bit&1 != 0; host != f.in(tab) {
				t.Errorf("%s: host %v, guest %v", f.name, host, f.in(tab))
			}
		}
		if v, w := tab.Lookup(0, 0, Context{}), h.CPUID(0, 0); v.B != w.B || v.C != w.C || v.D != w.D {
			t.Errorf("vendor %#x, want the host's %#x", v, w)
		}
		if got := (flag{"FSGSBASE", 7, 'b', 0}).in(tab); got != (h.FSGSBASE && h.CPUID(7, 0).B&1 != 0) {
			t.Errorf("FSGSBASE shown: %v", got)
		}
	})
	h := zen3
	h.FSGSBASE = false
	if (flag{"FSGSBASE", 7, 'b', 0}).in(New(h, Options{CPUs: 1})) {
		t.Error("FSGSBASE is shown though the host's kernel forbids it")
	}
}

func TestOSXSAVEAndAPICID(t *testing.T) {
	tab := New(zen3, Options{CPUs: 4, TSCkHz: 2000000})
	if r := tab.Lookup(1, 0, Context{APICID: 3}); r.C>>27&1 != 0 || r.B>>24 != 3 {
		t.Errorf("leaf 1 = %#x", r)
	}
	if r := tab.Lookup(1, 0, Context{OSXSAVE: true}); r.C>>27&1 == 0 {
		t.Error("OSXSAVE does not follow CR4")
	}
}

func TestXSaveLeaf(t *testing.T) {
	each(t, func(t *testing.T, h Host, tab *Table, _ int) {
		want := h.XCR0 & 0xe7
		r := tab.Lookup(0xd, 0, Context{XCR0: want})
		if got := uint64(r.A) | uint64(r.D)<<32; got != want {
			t.Fatalf("XCR0 = %#x, want %#x", got, want)
		}
		size := uint32(576)
		for i := uint32(2); i < 63; i++ {
			c, host := tab.Lookup(0xd, i, Context{}), h.CPUID(0xd, i)
			if want>>i&1 == 0 {
				if c != (Regs{}) {
					t.Errorf("component %d is shown: %#x", i, c)
				}
				continue
			}
			if c.A != host.A || c.B != host.B {
				t.Errorf("component %d is %#x, the host's %#x", i, c, host)
			}
			size = max(size, c.A+c.B)
		}
		if r.C != size || r.B != size {
			t.Errorf("sizes %#x and %#x, want %#x", r.B, r.C, size)
		}
		if b := tab.Lookup(0xd, 0, Context{XCR0: 1}).B; b != 576 {
			t.Errorf("size with x87 only = %d", b)
		}
		if b := tab.Lookup(0xd, 0, Context{XCR0: 7}).B; want&4 != 0 && b != 832 {
			t.Errorf("size with AVX = %d", b)
		}
	})
}

// TestCompactedSize: the size of a compacted area follows XCR0, also where
// XSAVES is hidden. A kernel that found 0 there switched XSAVE off.
func TestCompactedSize(t *testing.T) {
	for name, h := range hosts() {
		tab := New(h, Options{CPUs: 1, TSCkHz: 2000000})
		for _, xcr0 := range []uint64{1, 3, 7, tab.XCR0()} {
			xcr0 &= tab.XCR0()
			r := tab.Lookup(0xd, 1, Context{XCR0: xcr0})
			want := uint32(576)
			for i := uint32(2); i < 63; i++ {
				if xcr0>>i&1 == 0 {
					continue
				}
				c := tab.Lookup(0xd, i, Context{XCR0: xcr0})
				if c.C&2 != 0 {
					want = (want + 63) / 64 * 64
				}
				want += c.A
			}
			if r.B != want {
				t.Errorf("%s: XCR0 %#x: compacted size %d, want %d", name, xcr0, r.B, want)
			}
		}
	}
}

func TestTopology(t *testing.T) {
	each(t, func(t *testing.T, _ Host, tab *Table, cpus int) {
		shift := uint32(bits.Len(uint(cpus - 1)))
		ctx := Context{APICID: uint32(cpus - 1)}
		if r := tab.Lookup(0xb, 0, ctx); r.A != 0 || r.B != 1 || r.C != 0x100 || r.D != ctx.APICID {
			t.Errorf("leaf 0xb.0 = %#x", r)
		}
		if r := tab.Lookup(0xb, 1, ctx); r.A != shift || r.B != uint32(cpus) || r.C != 0x201 || r.D != ctx.APICID {
			t.Errorf("leaf 0xb.1 = %#x", r)
		}
		if r := tab.Lookup(0xb, 2, ctx); r.B != 0 || r.C != 2 || r.D != ctx.APICID {
			t.Errorf("leaf 0xb.2 = %#x", r)
		}
		if got := tab.Lookup(1, 0, ctx); got.B>>16&0xff != uint32(cpus) || got.D>>28&1 != 0 != (cpus > 1) {
			t.Errorf("leaf 1 = %#x", got)
		}
		if tab.AMD() {
			if c := tab.Lookup(0x80000008, 0, ctx).C; c&0xff != uint32(cpus-1) || c>>12&0xf != shift {
				t.Errorf("leaf 0x80000008 ECX = %#x", c)
			}
			if r := tab.Lookup(0x8000001e, 0, ctx); r.A != ctx.APICID || r.B != ctx.APICID || r.C != 0 {
				t.Errorf("leaf 0x8000001e = %#x", r)
			}
			for i := uint32(0); i < 4; i++ {
				checkCache(t, tab.Lookup(0x8000001d, i, ctx), shift)
			}
			return
		}
		for i := uint32(0); i < 4; i++ {
			r := tab.Lookup(4, i, ctx)
			checkCache(t, r, shift)
			if r.A != 0 && r.A>>26 != 1<<shift-1 {
				t.Errorf("leaf 4.%d: cores field %#x", i, r.A>>26)
			}
		}
	})
}

func checkCache(t *testing.T, r Regs, shift uint32) {
	if r.A&0x1f == 0 {
		return
	}
	want := uint32(0)
	if r.A>>5&7 == 3 {
		want = 1<<shift - 1
	}
	if got := r.A >> 14 & 0xfff; got != want {
		t.Errorf("level %d cache: shared by %d ids, want %d", r.A>>5&7, got+1, want+1)
	}
}

func TestVulnerabilities(t *testing.T) {
	each(t, func(t *testing.T, _ Host, tab *Table, _ int) {
		file := NewFile(tab.MSRs())
		caps, ok := file.Read(0x10a)
		if tab.AMD() {
			if ok {
				t.Error("AMD CPU with IA32_ARCH_CAPABILITIES")
			}
			for _, f := range []flag{
				{"AutoIBRS", 0x80000021, 'a', 8}, {"SRSO_NO", 0x80000021, 'a', 29}, {"LFENCE", 0x80000021, 'a', 2},
				{"TSA_SQ_NO", 0x80000021, 'c', 1}, {"TSA_L1_NO", 0x80000021, 'c', 2},
				{"SSB_NO", 0x80000008, 'b', 26}, {"BTC_NO", 0x80000008, 'b', 29},
			} {
				if !f.in(tab) {
					t.Errorf("%s is not shown", f.name)
				}
			}
			return
		}
		if !ok || !(flag{"ARCH_CAPABILITIES", 7, 'd', 29}).in(tab) {
			t.Fatal("no IA32_ARCH_CAPABILITIES")
		}
		for _, bit := range []uint8{0, 1, 4, 5, 6, 8, 13, 14, 15, 20, 24, 26, 27, 62} {
			if caps>>bit&1 == 0 {
				t.Errorf("IA32_ARCH_CAPABILITIES bit %d is clear", bit)
			}
		}
		for _, bit := range []uint8{2, 7, 17, 19} { // RSBA, TSX_CTRL, FB_CLEAR, RRSBA
			if caps>>bit&1 != 0 {
				t.Errorf("IA32_ARCH_CAPABILITIES bit %d is set", bit)
			}
		}
	})
}

func TestKVMAndTSC(t *testing.T) {
	each(t, func(t *testing.T, _ Host, tab *Table, _ int) {
		if r := tab.Lookup(0x40000000, 0, Context{}); r != (Regs{0x40000010, 0x4b4d564b, 0x564b4d56, 0x4d}) {
			t.Errorf("KVM signature %#x", r)
		}
		if r := tab.Lookup(0x40000001, 0, Context{}); r.A != 1<<1|1<<3|1<<24 || r.D != 0 {
			t.Errorf("KVM features %#x", r)
		}
		if r := tab.Lookup(0x40000010, 0, Context{}); r.A != 2445404 || r.B != 1000000 {
			t.Errorf("frequencies %#x", r)
		}
		if tab.AMD() {
			return
		}
		r := tab.Lookup(0x15, 0, Context{})
		crystal := r.C / 1000
		if hi, _ := bits.Mul32(crystal, r.B); hi != 0 {
			t.Fatalf("leaf 0x15 %#x: crystal in kHz times EBX needs more than 32 bits", r)
		}
		khz := crystal * r.B / r.A
		if d := int64(khz) - 2445404; d < -3 || d > 3 {
			t.Errorf("TSC by leaf 0x15: %d kHz", khz)
		}
		if r := tab.Lookup(0x16, 0, Context{}); r.A != 2445 {
			t.Errorf("leaf 0x16 = %#x", r)
		}
	})
}

func TestRatio(t *testing.T) {
	for _, khz := range []uint64{800000, 1000000, 2000000, 2445404, 2999999, 3187201, 4299999} {
		num, den := ratio(khz, 1000000, 4294)
		if num > 4294 || den == 0 {
			t.Errorf("%d: %d/%d", khz, num, den)
			continue
		}
		got := float64(num) / float64(den) * 1e6
		if ppm := (got - float64(khz)) / float64(khz) * 1e6; ppm > 2 || ppm < -2 {
			t.Errorf("%d kHz: %d/%d is off by %.1f ppm", khz, num, den, ppm)
		}
	}
}

func TestLimits(t *testing.T) {
	amd, intel := New(zen3, Options{CPUs: 1}), New(skylake, Options{CPUs: 1, TSCkHz: 2000000})
	if r := amd.Lookup(0x77, 0, Context{}); r != (Regs{}) {
		t.Errorf("AMD, behind the last leaf: %#x", r)
	}
	if r, w := intel.Lookup(0x77, 0, Context{}), intel.Lookup(0x16, 0, Context{}); r != w {
		t.Errorf("Intel, behind the last leaf: %#x, want %#x", r, w)
	}
	if r := amd.Lookup(0x80000008, 0, Context{}); r.A != 0x302e {
		t.Errorf("address sizes %#x", r.A)
	}
	if r := amd.Lookup(0x80000000, 0, Context{}); r.A != 0x80000021 {
		t.Errorf("highest extended leaf %#x", r.A)
	}
}

func TestMSRFile(t *testing.T) {
	for name, h := range hosts() {
		tab := New(h, Options{CPUs: 2, TSCkHz: 2445404})
		list := tab.MSRs()
		seen := map[uint32]bool{}
		for _, m := range list {
			if seen[m.Num] {
				t.Errorf("%s: MSR %#x is there twice", name, m.Num)
			}
			seen[m.Num] = true
			if m.Write == Store && m.Value&^m.Mask != 0 {
				t.Errorf("%s: MSR %#x starts with bits %#x that cannot be written", name, m.Num, m.Value&^m.Mask)
			}
		}
		f := NewFile(list)
		if v, ok := f.Read(x86.MSRMTRRCap); !ok || v&0xff != 8 {
			t.Errorf("%s: MTRRCAP %#x", name, v)
		}
		if f.Write(x86.MSRMTRRCap, 0) {
			t.Errorf("%s: MTRRCAP can be written", name)
		}
		if f.Write(x86.MSRMTRRDefType, 1<<20) || !f.Write(x86.MSRMTRRDefType, 0xc00) {
			t.Errorf("%s: reserved bits of MTRR_DEF_TYPE", name)
		}
		if !f.Write(x86.MSRPredCmd, 1) {
			t.Errorf("%s: PRED_CMD cannot be written", name)
		}
		if _, ok := f.Read(0xdeadbeef); ok || f.Write(0xdeadbeef, 0) {
			t.Errorf("%s: an unknown MSR is served", name)
		}
		if tab.AMD() {
			if v, _ := f.Read(0xc0011029); v&2 == 0 {
				t.Errorf("%s: LFENCE is not serializing", name)
			}
		}
	}
}

// Answers are what Lookup says, for every subleaf where they say so.
func TestAnswers(t *testing.T) {
	for _, h := range []Host{zen3, skylake} {
		tab := New(h, Options{CPUs: 4, TSCkHz: 2_000_000})
		ctx := Context{XCR0: 3, OSXSAVE: true}
		list := tab.Answers(ctx)
		for _, a := range list {
			subs := []uint32{a.Sub}
			if a.AnySub {
				subs = []uint32{0, 1, 2, 3, 100, 1 << 31}
			}
			for _, sub := range subs {
				if r := tab.Lookup(a.Leaf, sub, ctx); r != a.Regs {
					t.Errorf("leaf %#x, %d: listed %#x, looked up %#x", a.Leaf, sub, a.Regs, r)
				}
			}
		}
		if len(list) < 100 || len(list) > 255 {
			t.Errorf("%d answers", len(list))
		}
	}
}
