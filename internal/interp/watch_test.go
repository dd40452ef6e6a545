package interp

import (
	"bytes"
	"testing"

	"ring3/internal/guestmem"
	"ring3/internal/x86"
)

// TestRunWatched: what was executed can be undone, and what cannot be undone
// is not executed.
func TestRunWatched(t *testing.T) {
	for _, c := range []struct {
		name string
		code []byte
		done int
	}{
		{"all", []byte{0x48, 0x89, 0x03, 0x50, 0xf3, 0xaa}, 3},                             // mov %rax,(%rbx); push %rax; rep stosb
		{"page fault", []byte{0x50, 0x49, 0x89, 0x00}, 1},                                  // push %rax; mov %rax,(%r8)
		{"code", []byte{0x50, 0x48, 0x89, 0x02}, 1},                                        // push %rax; mov %rax,(%rdx)
		{"not canonical", []byte{0x50, 0x49, 0x8b, 0x01}, 1},                               // push %rax; mov (%r9),%rax
		{"half a string instruction", []byte{0x50, 0x49, 0x8d, 0x78, 0xf8, 0xf3, 0xaa}, 2}, // push %rax; lea -8(%r8),%rdi; rep stosb
		{"long string instruction", []byte{0x50, 0xb5, 0xff, 0xf3, 0xaa}, 2},               // push %rax; mov $255,%ch; rep stosb
	} {
		t.Run(c.name, func(t *testing.T) {
			m := newMachine(t)
			if err := m.Mem.WriteAt(c.code, testCode); err != nil {
				t.Fatal(err)
			}
			m.Mem.MarkCode(testCode)
			*m.Mem.Word(testPT + 8*0x40) = 0
			m.RIP = testCode
			m.GPR[x86.RAX], m.GPR[x86.RCX] = 0x1122334455667788, 4000
			m.GPR[x86.RBX], m.GPR[x86.RDI], m.GPR[x86.RDX] = testData, testData+100, testCode+100
			m.GPR[x86.R8], m.GPR[x86.R9] = 0x40000, 1<<63
			whole, _ := m.Mem.Slice(0, testSize)
			before := bytes.Clone(whole)
			var w Watch
			last := 0
			m.RunWatched(3, &w, func(done int) { last = done })
			if last != c.done {
				t.Errorf("%d instructions were executed, want %d", last, c.done)
			}
			if m.fault.pending || m.Mem.Flags(testCode)&guestmem.PageCode == 0 {
				t.Error("the attempt left something behind")
			}
			for _, p := range w.Pages {
				s, err := m.Mem.Slice(p.GPA, x86.PageSize)
				if err != nil {
					t.Fatal(err)
				}
				copy(s, p.Old[:])
			}
			for i := 0x8000; i < testSize; i++ { // page tables have new accessed bits
				if whole[i] != before[i] {
					t.Fatalf("the byte at %#x is not what it was", i)
				}
			}
		})
	}
}
