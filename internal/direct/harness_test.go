package direct

import (
	"encoding/binary"
	"os"
	"strconv"
	"strings"
	"testing"
	"time"

	"ring3/internal/cpu"
	"ring3/internal/guestmem"
	"ring3/internal/x86"
)

// guest is a machine of RAM and page tables, without a kernel.
type guest struct {
	t    testing.TB
	mem  *guestmem.Memory
	st   *cpu.State
	e    *Engine
	next uint64 // next free page of RAM
	pml4 uint64
}

// never is a time at which near does not look whether processors are scarce.
const never = 1<<64 - 1

const (
	codeVA  = 0x400000
	dataVA  = 0x600000
	stackVA = 0x7fff_0000_0000 // end of the stack page
	pteUser = x86.PTEPresent | x86.PTEUser
	pteRW   = pteUser | x86.PTEWrite
)

// newGuest makes a guest with one page of code at codeVA, a page of data, and
// a stack.
func newGuest(t testing.TB, code []byte, cfg Config) *guest {
	t.Helper()
	mem, err := guestmem.New(16 << 20)
	if err != nil {
		t.Fatal(err)
	}
	g := &guest{t: t, mem: mem, st: &cpu.State{}, next: 0x10000}
	cfg.Mem, cfg.State = mem, g.st
	if g.e, err = New(cfg); err != nil {
		t.Fatal(err)
	}
	g.e.near.due = never // what tests do must not depend on other load
	t.Cleanup(func() {
		if err := g.e.Close(); err != nil {
			t.Error(err)
		}
		mem.Close()
	})
	g.st.Reset()
	g.st.CPL = 3
	g.st.CR0 = x86.CR0PE | x86.CR0PG | x86.CR0WP | x86.CR0NE | x86.CR0AM
	g.st.CR4 = x86.CR4PAE | x86.CR4OSFXSR | x86.CR4OSXMMEXCPT | x86.CR4OSXSAVE | x86.CR4FSGSBASE
	g.st.EFER = x86.EFERLME | x86.EFERLMA | x86.EFERNX | x86.EFERSCE
	g.st.RFLAGS = x86.FlagFixed | x86.FlagIF
	g.st.RIP = codeVA
	g.st.GPR[x86.RSP] = stackVA - 256
	g.mode64()
	g.newTables()
	g.mapPage(codeVA, g.page(code), pteUser)
	g.mapPage(dataVA, g.page(nil), pteRW|x86.PTENX)
	g.mapPage(stackVA-4096, g.page(nil), pteRW|x86.PTENX)
	return g
}

func (g *guest) mode64() {
	g.segments(0x33, cpu.AttrL, 0)
}

func (g *guest) mode32() {
	g.segments(0x23, cpu.AttrDB, 0x2b)
}

func (g *guest) segments(cs uint16, attr uint16, data uint16) {
	const flat = cpu.AttrP | cpu.AttrS | cpu.AttrDPL | cpu.AttrWritable | cpu.AttrAccessed | cpu.AttrG
	s := &g.st.Seg
	s[x86.CS] = cpu.Segment{Sel: cs, Limit: 0xffffffff, Attr: flat | cpu.AttrCode | attr}
	s[x86.SS] = cpu.Segment{Sel: 0x2b, Limit: 0xffffffff, Attr: flat | cpu.AttrDB}
	for _, r := range []int{x86.DS, x86.ES} {
		s[r] = cpu.Segment{Sel: data, Limit: 0xffffffff, Attr: flat | cpu.AttrDB, Unusable: data == 0}
	}
	s[x86.FS], s[x86.GS] = cpu.Segment{Unusable: true}, cpu.Segment{Unusable: true}
}

// newTables switches to an empty address space.
func (g *guest) newTables() {
	g.pml4 = g.page(nil)
	g.st.CR3 = g.pml4
}

// page allocates a page of RAM.
func (g *guest) page(content []byte) uint64 {
	gpa := g.next
	g.next += 4096
	if err := g.mem.WriteAt(content, gpa); err != nil {
		g.t.Fatal(err)
	}
	return gpa
}

// pte is the page-table entry for gva in the current address space.
func (g *guest) pte(gva uint64) *uint64 {
	table := g.st.CR3 & x86.CR3Addr
	for shift := 39; shift > 12; shift -= 9 {
		w := g.mem.Word(table + gva>>shift&511*8)
		if *w == 0 {
			*w = g.page(nil) | pteRW
		}
		table = *w & x86.PTEAddr
	}
	return g.mem.Word(table + gva>>12&511*8)
}

func (g *guest) mapPage(gva, gpa, flags uint64) { *g.pte(gva) = gpa | flags }

func (g *guest) gpa(gva uint64) uint64 { return *g.pte(gva)&x86.PTEAddr | gva&0xfff }

// poke writes code or data without telling anyone, as for a fresh page.
func (g *guest) poke(gva uint64, b []byte) {
	g.t.Helper()
	if err := g.mem.WriteAt(b, g.gpa(gva)); err != nil {
		g.t.Fatal(err)
	}
}

func (g *guest) word(gva uint64) uint64 {
	var b [8]byte
	if err := g.mem.ReadAt(b[:], g.gpa(gva)); err != nil {
		g.t.Fatal(err)
	}
	return binary.LittleEndian.Uint64(b[:])
}

// want runs and demands an exit kind.
func (g *guest) want(k ExitKind) Exit {
	g.t.Helper()
	x := g.e.Run()
	if x.Kind != k {
		g.t.Fatalf("exit %v %+v at rip %#x, want %v", x.Kind, x, g.st.RIP, k)
	}
	return x
}

func (g *guest) wantException(vec uint8) Exit {
	g.t.Helper()
	x := g.want(ExitException)
	if x.Vector != vec {
		g.t.Fatalf("vector %d (%+v) at rip %#x, want %d", x.Vector, x, g.st.RIP, vec)
	}
	return x
}

func (g *guest) wantRIP(rip uint64) {
	g.t.Helper()
	if g.st.RIP != rip {
		g.t.Fatalf("rip %#x, want %#x", g.st.RIP, rip)
	}
}

// TestMain checks that no test leaves a process behind.
func TestMain(m *testing.M) {
	code := m.Run()
	if n := children(nil); n != 0 {
		println("child processes left:", n)
		code = 1
	}
	os.Exit(code)
}

// children counts the child processes of this process.
func children(t testing.TB) int {
	n := 0
	tasks, err := os.ReadDir("/proc/self/task")
	if err != nil {
		t.Fatal(err)
	}
	for _, task := range tasks {
		b, err := os.ReadFile("/proc/self/task/" + task.Name() + "/children")
		if err == nil {
			n += len(strings.Fields(string(b)))
		}
	}
	return n
}

func kickAfter(e *Engine, d time.Duration) { time.AfterFunc(d, e.Kick) }

// cat joins pieces of code.
func cat(parts ...[]byte) []byte {
	var b []byte
	for _, p := range parts {
		b = append(b, p...)
	}
	return b
}

func imm64(v uint64) []byte { return binary.LittleEndian.AppendUint64(nil, v) }
func imm32(v uint32) []byte { return binary.LittleEndian.AppendUint32(nil, v) }

var insnSyscall = []byte{0x0f, 0x05}

func itoa(n int) string { return strconv.Itoa(n) }

// mapsOfPID counts the mappings of a process, vsyscall page not included. It
// needs root: stubs are not dumpable.
func mapsOfPID(t testing.TB, pid int) int {
	b, err := os.ReadFile("/proc/" + itoa(pid) + "/maps")
	if err != nil {
		t.Skip("cannot read a stub's maps: ", err)
	}
	n := 0
	for line := range strings.Lines(string(b)) {
		if !strings.Contains(line, "[vsyscall]") {
			n++
		}
	}
	return n
}
