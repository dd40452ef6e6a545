package direct

import (
	"bytes"
	"fmt"
	"testing"
	"time"

	"ring3/internal/host"
	"ring3/internal/x86"
)

// Where a kernel that switches extended states has them: two images.
const (
	kImages = 0xffff888000700000
	kImage2 = kImages + 0xc00
)

// swapState saves the extended state to the image at gs:60 and loads that at
// gs:68; then the two words are exchanged. It keeps RAX at gs:70.
//
//	swapgs; mov [gs:30], rax; ... mov rsi, [gs:60]; mov rdi, [gs:68]
//	mov eax, -1; mov edx, -1; xsavec64 [rsi]; xrstor64 [rdi]
//	mov [gs:60], rdi; mov [gs:68], rsi; mov [gs:70], rax; mov rax, [gs:30]; ...
//	inc qword [gs:20]; swapgs
func swapState() []byte {
	regs := []int{x86.RAX, x86.RDX, x86.RSI, x86.RDI}
	b := []byte{0x0f, 0x01, 0xf8}
	for i, r := range regs {
		b = cat(b, gsWord(0x89, r, uint32(0x30+8*i)))
	}
	b = cat(b, gsWord(0x8b, x86.RSI, 0x60), gsWord(0x8b, x86.RDI, 0x68),
		[]byte{0xb8, 0xff, 0xff, 0xff, 0xff, 0xba, 0xff, 0xff, 0xff, 0xff},
		[]byte{0x48, 0x0f, 0xc7, 0x26, 0x48, 0x0f, 0xae, 0x2f},
		gsWord(0x89, x86.RDI, 0x60), gsWord(0x89, x86.RSI, 0x68), gsWord(0x89, x86.RAX, 0x70))
	for i, r := range regs {
		b = cat(b, gsWord(0x8b, r, uint32(0x30+8*i)))
	}
	return cat(b, gsWord(0xff, 0, 0x20), []byte{0x0f, 0x01, 0xf8})
}

// stateProgram enters the kernel n times by the instruction enter, RBX counting
// down in XMM5 and both halves of YMM6, and wants those of the time before to
// come back; anything else is INT3.
//
//	    mov ebx, n
//	1:  movq xmm5, rbx; vpbroadcastq ymm6, xmm5; enter; mov r10d, 1
//	    vextracti128 xmm7, ymm6, 1; movq rcx, xmm7; dec rcx; cmp rcx, rbx; jne bad
//	    movq rcx, xmm5; dec rcx; cmp rcx, rbx; jne bad
//	    dec ebx; jnz 1b
//	    hlt
//	bad:int3
func stateProgram(n uint32, enter []byte) (code []byte, end uint64) {
	check := []byte{0x48, 0xff, 0xc9, 0x48, 0x39, 0xd9, 0x75}
	body := cat([]byte{0x66, 0x48, 0x0f, 0x6e, 0xeb, 0xc4, 0xe2, 0x7d, 0x59, 0xf5}, enter, []byte{0x41, 0xba, 1, 0, 0, 0},
		[]byte{0xc4, 0xe3, 0x7d, 0x39, 0xf7, 1, 0x66, 0x48, 0x0f, 0x7e, 0xf9}, check, []byte{18},
		[]byte{0x66, 0x48, 0x0f, 0x7e, 0xe9}, check, []byte{5})
	back := 256 - len(body) - 4
	code = cat([]byte{0xbb}, imm32(n), body, []byte{0xff, 0xcb, 0x75, byte(back)})
	end = codeVA + uint64(len(code))
	// A patched SYSCALL needs padding behind a RET, up to a multiple of 16.
	code = append(code, 0xf4, 0xcc)
	code = append(code, bytes.Repeat([]byte{0xcc}, 16-len(code)%16)...)
	return cat(code, []byte{0xc3}, bytes.Repeat([]byte{0x90}, 15)), end
}

// TestPairXState has a kernel save and load the extended state of user code
// that waits in a system call, and after a page fault.
func TestPairXState(t *testing.T) {
	for name, enter := range map[string][]byte{"syscall": insnSyscall, "fault": {0x48, 0x8b, 0x07}} {
		for _, every := range []time.Duration{0, 300 * time.Microsecond, 30 * time.Microsecond} {
			t.Run(fmt.Sprint(name, " kicks ", every), func(t *testing.T) {
				const n = 4000
				code, end := stateProgram(n, enter)
				g := newFaultGuest(t, code, true)
				g.env.cpuid, g.env.syncFPU = host.CPUID, g.u.FPU
				if name == "syscall" {
					g.poke(kCode, cat(swapState(), []byte{0x48, 0x0f, 0x07}))
				} else { // add qword [rsp+8], 3; add rsp, 8; iretq
					g.poke(kFault, cat(swapState(), []byte{0x48, 0x83, 0x44, 0x24, 8, 3, 0x48, 0x83, 0xc4, 8, 0x48, 0xcf}))
				}
				g.mapPage(kImages, g.page(nil), kernelRW)
				g.mapPage(kImages+4096, g.page(nil), kernelRW)
				// The state before the first: XMM5 and YMM6 are n+1.
				image := make([]byte, 0x400)
				copy(image[24:], imm32(0x1f80))
				copy(image[512:], imm64(6))
				for _, off := range []int{160 + 16*5, 160 + 16*6, 576 + 16*6} {
					copy(image[off:], imm64(n+1))
				}
				g.poke(kImage2, image)
				g.poke(kCPU+0x60, cat(imm64(kImages), imm64(kImage2)))
				g.st.XCR0 = g.u.xmask
				g.st.GPR[x86.RDI], g.st.GPR[x86.RDX] = areaVA, 0x1234_5678_9abc
				if every != 0 {
					ticker(t, g.u, every)
				}
				g.runTo(end)
				if c := g.word(kCPU + 0x20); c != n || g.st.GPR[x86.RBX] != 0 || g.st.GPR[x86.RDX] != 0x1234_5678_9abc {
					t.Errorf("the kernel was entered %d times, want %d; rbx %d, rdx %#x", c, n, g.st.GPR[x86.RBX], g.st.GPR[x86.RDX])
				}
				if v := g.word(kCPU + 0x70); v != 0xffff_ffff {
					t.Errorf("RAX is %#x behind XRSTOR", v)
				}
				if v := g.word(kImages + 520); v != g.u.xmask|1<<63 {
					t.Errorf("XCOMP_BV is %#x", v)
				}
				moves := g.u.stats.FPUMoves
				t.Logf("the monitor moved the state %d times", moves)
				if every == 0 && !shareOne && moves > n/10 {
					t.Errorf("the monitor moved the state %d times", moves)
				}
				for _, b := range g.u.pair.h.XState {
					if b != 0 {
						t.Fatal("the hand-over page keeps extended state")
					}
				}
			})
		}
	}
}
