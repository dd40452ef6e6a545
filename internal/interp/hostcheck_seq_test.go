package interp

import (
	"bytes"
	"encoding/binary"
	"flag"
	"fmt"
	"math/rand/v2"
	"testing"

	"ring3/internal/x86"
	"ring3/internal/x86/insn"
)

var hostcheckSeqs = flag.Int("hostcheck.seqs", 60000, "random sequences of instructions")

// TestHostCPUSequences compares sequences of instructions with the host CPU.
// They run as blocks, twice, so that what blocks do beyond single instructions
// is compared: lazy flags, fused pairs, batches of vector instructions.
func TestHostCPUSequences(t *testing.T) {
	m := newCheckMachine(t)
	g := &generator{mode: insn.Mode64, m: m, skels: enumerate(insn.Mode64), ripOnly: true}
	g.rng = rand.New(rand.NewPCG(*hostcheckSeed, 1000))
	m.start(t, insn.Mode64)
	var pools [3][]*insn.Encoding // integer, vector, branches
	for i := range insn.Table() {
		e := &insn.Table()[i]
		if notCompared(e) != "" || len(g.skels[e]) == 0 {
			continue
		}
		switch {
		case e.Op >= insn.OpJO && e.Op <= insn.OpJG:
			pools[2] = append(pools[2], e)
		case e.Class == insn.Innocuous && e.Group == insn.GroupInt && !usesStack(e):
			pools[0] = append(pools[0], e)
		case e.Class == insn.Innocuous && isVector(e.Group) && g.hostHas(e):
			pools[1] = append(pools[1], e)
		}
	}
	n := *hostcheckSeqs
	if testing.Short() {
		n /= 10
	}
	t.Logf("seed %d, %d sequences of %d integer and %d vector entries", *hostcheckSeed, n, len(pools[0]), len(pools[1]))
	bad := 0
	for range n {
		if msg := g.sequence(pools); msg != "" {
			if bad++; bad <= 5 {
				t.Error(msg)
			}
		}
	}
	if bad > 0 {
		t.Errorf("%d of %d differ", bad, n)
	}
}

func usesStack(e *insn.Encoding) bool {
	switch e.Op {
	case insn.OpPUSH, insn.OpPOP, insn.OpPUSHA, insn.OpPOPA, insn.OpENTER, insn.OpLEAVE, insn.OpXLAT:
		return true
	}
	return false
}

// hostHas reports whether the host executes one sample of e.
func (g *generator) hostHas(e *insn.Encoding) bool {
	g.at = g.m.code
	for range 20 {
		s, ok := g.instance(e)
		if !ok {
			continue
		}
		if _, fault, ok := g.compare(&s); ok {
			return fault != x86.VecUD
		}
	}
	return false
}

// appendInstance appends an instruction of e that has no effect on RSP and no
// memory operand but a RIP-relative one.
func (g *generator) appendInstance(seq []byte, e *insn.Encoding) (sample, bool) {
	g.at = g.m.code + uint64(len(seq))
	s, ok := g.instance(e)
	if !ok {
		return s, false
	}
	in := &s.in
	mem := false
	for _, a := range in.Args[:in.NArg] {
		switch a.Kind {
		case insn.ArgGPR:
			if a.Reg == x86.RSP && !a.High {
				return s, false
			}
		case insn.ArgMem:
			mem = true
			if in.Mem.Base != insn.RIPReg || bitOperand(in) >= 0 {
				return s, false
			}
			size := uint64(max(a.Size/8, 1))
			lin := g.m.data + g.rng.Uint64N(512)&^63
			if g.rng.IntN(3) == 0 {
				lin += g.rng.Uint64N(64)
			}
			if g.rng.IntN(50) == 0 {
				lin = g.target(size)
			}
			if !g.setDisp(&s, lin-g.at-uint64(in.Len)) && in.Mem.Seg != x86.FS {
				return s, false
			}
			if in.Mem.Seg == x86.FS || in.AddrSize == 32 && lin>>32 != 0 {
				return s, false
			}
		case insn.ArgMoffs:
			return s, false
		}
	}
	switch in.Op {
	case insn.OpMASKMOVQ, insn.OpMASKMOVDQU, insn.OpVMASKMOVDQU:
		return s, false
	case insn.OpFNSTENV, insn.OpFNSAVE, insn.OpFLDENV, insn.OpFRSTOR:
		return s, false // the x87 pointers differ, and the part that is accessed first
	}
	if in.Mem.VSIB && mem {
		return s, false
	}
	return s, true
}

// sequence makes one and runs it. It returns a description of a difference.
func (g *generator) sequence(pools [3][]*insn.Encoding) string {
	r := g.rng
	var code []byte
	var undef uint64
	vector := r.IntN(2) == 0
	length := 2 + r.IntN(7)
	var last *insn.Encoding
	for i := 0; i < length; {
		pool := pools[0]
		if vector && r.IntN(8) != 0 {
			pool = pools[1]
		}
		if i == length-1 && r.IntN(2) == 0 {
			pool = pools[2]
		}
		e := pool[r.IntN(len(pool))]
		if last != nil && r.IntN(4) == 0 && i < length-1 {
			e = last // pairs of the same kind
		}
		s, ok := g.appendInstance(code, e)
		if !ok || uint64(e.FlagsRead)&undef != 0 || len(s.code) == 0 {
			continue
		}
		if undefinedAnyway(&s) {
			continue
		}
		if e.Class == insn.Branch {
			in := &s.in
			if bytes.IndexByte(s.code[:in.OpcodeOff], 0x66) >= 0 {
				continue
			}
			if in.ImmLen >= 4 {
				binary.LittleEndian.PutUint32(s.code[in.ImmOff:], uint32(r.IntN(3000)+100))
			} else {
				s.code[in.ImmOff] = byte(16 + r.IntN(100))
			}
		}
		// Shifts by 0 leave flags alone, so they define none for sure.
		if !isShift(e.Op) {
			undef &^= uint64(e.FlagsWritten &^ e.FlagsUndef)
		}
		undef |= uint64(e.FlagsUndef)
		code = append(code, s.code...)
		last = e
		i++
	}
	return g.runSequence(code, undef)
}

func isShift(op insn.Op) bool {
	switch op {
	case insn.OpROL, insn.OpROR, insn.OpRCL, insn.OpRCR, insn.OpSHL, insn.OpSHR, insn.OpSAR, insn.OpSHLD, insn.OpSHRD:
		return true
	}
	return false
}

// undefinedAnyway is undefinedResult for registers with any values.
func undefinedAnyway(s *sample) bool {
	switch s.in.Op {
	case insn.OpSHLD, insn.OpSHRD:
		return s.in.OpSize == 16
	}
	return undefinedResult(s, new([16]uint64))
}

func (g *generator) runSequence(code []byte, undef uint64) string {
	m, r := g.m, g.rng
	var gpr [16]uint64
	for i := range gpr {
		gpr[i] = g.value()
	}
	gpr[x86.RSP] = m.data + 2048
	flags := r.Uint64() & shownFlags &^ x86.FlagDF
	for i := 0; i < 4; i++ {
		binary.LittleEndian.PutUint64(m.hmem[r.IntN(dataRW/8)*8:], g.value())
	}
	g.randomFPU(m.fpu)
	start := *m.fpu
	copy(m.gmem, m.hmem)
	m.ctx.GPR, m.ctx.RFLAGS, m.ctx.FPU = gpr, flags, m.fpu
	memory := bytes.Clone(m.hmem)
	want := m.runHost(code)
	want.flags &^= undef
	m.setCode(code)
	defer m.clearCode(len(code))
	defer copy(m.hmem, m.gmem)
	for round := range 2 {
		copy(m.gmem, memory)
		*m.env.fpu = start
		if msg := m.runGuestSequence(&gpr, flags, undef, want); msg != "" {
			return fmt.Sprintf("round %d, % x at %#x: %s\n\tbefore flags %#x gpr %x", round, code, m.code, msg, flags, gpr)
		}
	}
	return ""
}

func (m *checkMachine) runGuestSequence(gpr *[16]uint64, flags, undef uint64, want outcome) string {
	m.guestState(gpr, flags)
	exit := m.c.Run(1000)
	if exit != ExitHalt {
		return "exit " + exit.String()
	}
	got := m.guestOutcome()
	got.flags &^= undef
	if want.fault && got.fault {
		got.flags = want.flags // undefined flags of the instructions before it
	}
	if got != want {
		return fmt.Sprintf("differs\n\thost  %v %x\n\tguest %v %x", want, want.gpr, got, got.gpr)
	}
	if i := firstDifference(m.gmem, m.hmem); i >= 0 {
		return fmt.Sprintf("memory at %#x is % x, want % x", m.data+uint64(i), m.gmem[i:min(i+16, dataRW)], m.hmem[i:min(i+16, dataRW)])
	}
	return m.fpuDifference(m.fpu, m.env.fpu)
}

func firstDifference(a, b []byte) int {
	if bytes.Equal(a, b) {
		return -1
	}
	i := 0
	for a[i] == b[i] {
		i++
	}
	return i
}
