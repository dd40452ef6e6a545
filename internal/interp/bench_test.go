package interp

import (
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"ring3/internal/x86"
)

// kernelLoop is a mix of what kernel code does: loads and stores with
// displacement and index, ALU on registers and memory, calls, compare and
// branch.
var kernelLoop = []byte{
	// loop:
	0x48, 0x8b, 0x06, // mov rax, [rsi]
	0x48, 0x83, 0xc0, 0x01, // add rax, 1
	0x48, 0x89, 0x47, 0x08, // mov [rdi+8], rax
	0x0f, 0xb6, 0x56, 0x10, // movzx edx, byte [rsi+16]
	0x85, 0xd2, // test edx, edx
	0x74, 0x03, // jz +3
	0x83, 0xe2, 0x0f, // and edx, 15
	0x4c, 0x8b, 0x04, 0xd6, // mov r8, [rsi+rdx*8]
	0x4d, 0x31, 0xc1, // xor r9, r8
	0xe8, 0x0b, 0x00, 0x00, 0x00, // call f
	0x48, 0x83, 0xe9, 0x01, // sub rcx, 1
	0x75, 0xd8, // jnz loop
	0xf4,             // hlt
	0x90, 0x90, 0x90, // padding
	0x90,
	// f:
	0x55,             // push rbp
	0x48, 0x89, 0xe5, // mov rbp, rsp
	0x53,             // push rbx
	0x8b, 0x46, 0x20, // mov eax, [rsi+32]
	0x39, 0x47, 0x20, // cmp [rdi+32], eax
	0x77, 0x05, // ja +5
	0x48, 0x8d, 0x5c, 0x08, 0x10, // lea rbx, [rax+rcx+16]
	0x48, 0xc1, 0xeb, 0x03, // shr rbx, 3
	0xff, 0x47, 0x28, // inc dword [rdi+40]
	0x5b, // pop rbx
	0x5d, // pop rbp
	0xc3, // ret
}

func BenchmarkKernelLoop(b *testing.B) {
	c := newMachine(b)
	load(b, c, kernelLoop...)
	c.GPR[x86.RSI] = testData
	c.GPR[x86.RDI] = testData + 0x1000
	c.GPR[x86.RCX] = uint64(b.N)
	before := c.Counters().Instructions
	cpu := cpuTime()
	b.ResetTimer()
	for !c.Halted {
		if e := c.Run(1 << 20); e != ExitBudget && e != ExitHalt {
			b.Fatal(e)
		}
	}
	b.StopTimer()
	n := c.Counters().Instructions - before
	if c.GPR[x86.RCX] != 0 {
		b.Fatalf("stopped at %#x with %d rounds to go", c.RIP, c.GPR[x86.RCX])
	}
	b.ReportMetric(float64(n)/(cpuTime()-cpu).Seconds()/1e6, "MIPS")
}

// cpuTime is the processor time used so far: unlike the time of day it does
// not depend on what else the host does.
func cpuTime() time.Duration {
	var u unix.Rusage
	if unix.Getrusage(unix.RUSAGE_SELF, &u) != nil {
		return 0
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}
