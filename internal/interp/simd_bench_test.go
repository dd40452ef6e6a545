package interp

import (
	"testing"

	"ring3/internal/x86/insn"
)

// benchLoop runs code, which jumps back to its start, in user mode.
func benchLoop(b *testing.B, per int, code []byte) {
	m := newCheckMachine(b)
	m.start(b, insn.Mode64)
	m.setCode(code)
	var gpr [16]uint64
	gpr[7] = m.data // rdi
	m.guestState(&gpr, 0)
	start := m.c.Counters().Instructions
	b.ResetTimer()
	m.c.Run(b.N * per)
	b.StopTimer()
	n := m.c.Counters().Instructions - start
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(n), "ns/instruction")
}

// BenchmarkVector measures vector instructions alone and in runs of 8 and 24.
func BenchmarkVector(b *testing.B) {
	loop := func(unit []byte, n int) (code []byte) {
		for range n {
			code = append(code, unit...)
		}
		if n := len(code) + 2; n <= 128 {
			return append(code, 0xeb, byte(-n))
		}
		n = -len(code) - 5
		return append(code, 0xe9, byte(n), byte(n>>8), 0xff, 0xff)
	}
	paddd := []byte{0xc5, 0xe9, 0xfe, 0xd3} // vpaddd xmm2, xmm2, xmm3
	load := []byte{0xc5, 0xe9, 0xfe, 0x17}  // vpaddd xmm2, xmm2, [rdi]
	fadd := []byte{0xd8, 0xc1}              // fadd st, st(1)
	mixed := []byte{0x48, 0xff, 0xc0}       // inc rax
	mixed = append(mixed, paddd...)
	b.Run("alone", func(b *testing.B) { benchLoop(b, 1, loop(mixed, 8)) })
	b.Run("run8", func(b *testing.B) { benchLoop(b, 1, loop(paddd, 8)) })
	b.Run("run24", func(b *testing.B) { benchLoop(b, 1, loop(paddd, 24)) })
	b.Run("load24", func(b *testing.B) { benchLoop(b, 1, loop(load, 24)) })
	b.Run("x87", func(b *testing.B) { benchLoop(b, 1, loop(fadd, 24)) })
}
