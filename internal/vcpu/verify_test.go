package vcpu

import (
	"bytes"
	"errors"
	"log/slog"
	"strings"
	"testing"
	"time"

	"ring3/internal/bus"
	"ring3/internal/cpu"
	"ring3/internal/direct"
	"ring3/internal/guestmem"
	"ring3/internal/interp"
	"ring3/internal/x86"
)

// Where the kernel guest has what.
const (
	kernelCode = 0xffffffff81000000
	kernelData = 0xffff888000200000
)

// kernelGuest is a virtual CPU in 64-bit kernel code, all of it compared.
type kernelGuest struct {
	*VCPU
	*Group
	mem  *guestmem.Memory
	next uint64 // free page of RAM
}

func newKernelGuest(t *testing.T, code []byte, spoil func([]byte)) *kernelGuest {
	t.Helper()
	mem, err := guestmem.New(16 << 20)
	if err != nil {
		t.Fatal(err)
	}
	c := interp.New(mem, &bus.Bus{}, &bus.Bus{}, &env{})
	user, err := direct.New(direct.Config{Mem: mem, State: &c.State, MaxStubs: 1})
	if err != nil {
		t.Fatal(err)
	}
	var ks [2]*direct.Kernel
	for i := range ks {
		if ks[i], err = direct.NewKernel(direct.Config{Mem: mem, State: &c.State}); err != nil {
			t.Fatal(err)
		}
	}
	t.Cleanup(func() { ks[0].Close(); ks[1].Close(); user.Close(); mem.Close() })
	if spoil != nil {
		ks[1].Spoil = func(_ uint64, code []byte) { spoil(code) }
	}
	v := New(c, user, &intr{}, true, slog.New(slog.DiscardHandler))
	g := &kernelGuest{VCPU: v, Group: NewGroup(nil, v), mem: mem, next: 0x10000}
	g.Translate(ks[0])
	g.Verify(ks[1], mem, 1)
	c.CR0 = x86.CR0PE | x86.CR0PG | x86.CR0WP | x86.CR0NE
	c.CR4 = x86.CR4PAE | x86.CR4PGE | x86.CR4SMAP
	c.EFER = x86.EFERLME | x86.EFERLMA | x86.EFERNX
	c.RFLAGS, c.RIP = x86.FlagFixed, kernelCode
	const flat = cpu.AttrP | cpu.AttrS | cpu.AttrWritable | cpu.AttrAccessed | cpu.AttrG
	c.Seg[x86.CS] = cpu.Segment{Sel: 0x10, Limit: 0xffffffff, Attr: flat | cpu.AttrCode | cpu.AttrL}
	for _, r := range []int{x86.SS, x86.DS, x86.ES} {
		c.Seg[r] = cpu.Segment{Sel: 0x18, Limit: 0xffffffff, Attr: flat | cpu.AttrDB}
	}
	c.Seg[x86.GS].Base = kernelData
	c.GPR[x86.RSI], c.GPR[x86.RDI] = kernelData+0x100, kernelData+0x200
	c.GPR[x86.RSP] = kernelData + 0x1000
	c.CR3 = g.page()
	g.maps(t, kernelCode, code)
	g.maps(t, kernelData, nil)
	g.maps(t, kernelData+0x1000, nil)
	return g
}

func (g *kernelGuest) page() uint64 {
	g.next += x86.PageSize
	return g.next - x86.PageSize
}

// maps makes a page at gva.
func (g *kernelGuest) maps(t *testing.T, gva uint64, content []byte) {
	t.Helper()
	const rw = x86.PTEPresent | x86.PTEWrite
	table := g.cpu.CR3
	for shift := 39; shift >= 12; shift -= 9 {
		w := g.mem.Word(table + gva>>shift&511*8)
		if *w == 0 {
			*w = g.page() | rw
		}
		table = *w & x86.PTEAddr
	}
	if err := g.mem.WriteAt(content, table); err != nil {
		t.Fatal(err)
	}
}

// runToHalt runs until HLT or an error.
func (g *kernelGuest) runToHalt(t *testing.T) error {
	t.Helper()
	done := make(chan error, 1)
	go func() {
		_, err := g.Run(t.Context())
		done <- err
	}()
	for end := time.Now().Add(20 * time.Second); ; time.Sleep(time.Millisecond) {
		select {
		case err := <-done:
			return err
		default:
		}
		halted := false
		g.Do(func() { halted = g.cpu.Halted })
		if halted {
			g.End(Stopped)
			return <-done
		}
		if time.Now().After(end) {
			t.Fatal("the guest does not halt")
		}
	}
}

// verifiedProgram: stores, the stack, string instructions, the time-stamp
// counter, a write to the page of the code, a loop.
var verifiedProgram = []byte{
	0xbb, 0x64, 0, 0, 0, // mov $100, %ebx
	0x48, 0x01, 0xd8, // loop: add %rbx, %rax
	0x48, 0x89, 0x46, 0x20, // mov %rax, 0x20(%rsi)
	0x50, 0x9c, 0x5a, 0x59, // push %rax; pushf; pop %rdx; pop %rcx
	0x0f, 0x31, // rdtsc
	0x57, 0x56, // push %rdi; push %rsi
	0xb9, 0x40, 0, 0, 0, // mov $64, %ecx
	0xf3, 0x48, 0xa5, // rep movsq
	0x5e, 0x5f, // pop %rsi; pop %rdi
	0xc6, 0x05, 0x00, 0x01, 0, 0, 7, // movb $7, 0x100(%rip)
	0x53,                                     // push %rbx
	0x48, 0x8b, 0x9e, 0x00, 0x10, 0x00, 0x00, // mov 0x1000(%rsi), %rbx
	0x5b,       // pop %rbx
	0xf7, 0xe3, // mul %ebx
	0xff, 0xcb, // dec %ebx
	0x75, 0xd1, // jne loop
	0xf4, // hlt
}

func TestVerifyAgrees(t *testing.T) {
	g := newKernelGuest(t, verifiedProgram, nil)
	if err := g.runToHalt(t); err != nil {
		t.Fatal(err)
	}
	if g.cpu.GPR[x86.RBX] != 0 || g.cpu.RIP != kernelCode+uint64(len(verifiedProgram)) {
		t.Errorf("the guest came to rip %#x with rbx %d", g.cpu.RIP, g.cpu.GPR[x86.RBX])
	}
	if c := g.verify.c; c.blocks < 200 || c.insts < 1000 {
		t.Errorf("only %d blocks and %d instructions were compared", c.blocks, c.insts)
	}
}

// TestVerifyFinds breaks translations in several ways.
func TestVerifyFinds(t *testing.T) {
	for _, c := range []struct {
		name, report string
		from, to     []byte
	}{
		{"register", "rax ", []byte{0x48, 0x01, 0xd8}, []byte{0x48, 0x29, 0xd8}},
		{"operation", "rbx ", []byte{0xff, 0xcb, 0x0f}, []byte{0xff, 0xc3, 0x0f}},
		{"flags", "rflags ", []byte{0x48, 0x89, 0x46, 0x20}, []byte{0x48, 0x39, 0x46, 0x20}},
		{"memory", "memory at ", []byte{0x48, 0x89, 0x46, 0x20}, []byte{0x48, 0x89, 0x46, 0x28}},
		{"memory, size", "memory at ", []byte{0x48, 0x89, 0x46, 0x20}, []byte{0x40, 0x89, 0x46, 0x20}},
		{"memory, in a page only read", "memory at ", []byte{0x48, 0x8b, 0x9e, 0, 0x10}, []byte{0x48, 0x89, 0x9e, 0, 0x10}},
		{"stack", "rcx ", []byte{0x5a, 0x59}, []byte{0x59, 0x5a}},
		{"branch", "rip ", []byte{0x0f, 0x85}, []byte{0x0f, 0x84}},
	} {
		t.Run(c.name, func(t *testing.T) {
			g := newKernelGuest(t, verifiedProgram, func(code []byte) {
				if i := bytes.Index(code, c.from); i >= 0 {
					copy(code[i:], c.to)
				}
			})
			g.cpu.GPR[x86.RAX] = 1<<40 + 1 // so that halves differ
			d, ok := errors.AsType[*Difference](g.runToHalt(t))
			if !ok {
				t.Fatal("the difference was not found")
			}
			report := d.Report()
			found := false
			for line := range strings.Lines(report) {
				found = found || strings.HasPrefix(strings.TrimSpace(line), c.report) &&
					(strings.Contains(line, "<--") || strings.HasPrefix(c.report, "memory"))
			}
			if !found || !strings.Contains(report, "emitted code:") {
				t.Errorf("the report does not name it:\n%v\n%s", d, report)
			}
		})
	}
}
