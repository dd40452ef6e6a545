package interp

import (
	"bytes"
	"encoding/binary"
	"flag"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	"ring3/internal/native"
	"ring3/internal/x86"
	"ring3/internal/x86/insn"
)

var (
	hostcheckCount = flag.Int("hostcheck.n", 250, "random instructions per entry of the instruction table")
	hostcheckSeed  = flag.Uint64("hostcheck.seed", 1, "seed of the random instructions")
	hostcheckOnly  = flag.String("hostcheck.only", "", "compare only entries whose form contains this")
)

// TestHostCPU compares the interpreter with the host CPU, one instruction at a
// time: every entry of the instruction table that user code can execute in
// 64-bit mode or in compatibility mode, with random operands. Registers, flags
// that the manuals define, memory, extended state and exceptions must be the
// same.
func TestHostCPU(t *testing.T) {
	m := newCheckMachine(t)
	n := *hostcheckCount
	if testing.Short() {
		n = max(n/10, 10)
	}
	t.Logf("seed %d, %d instructions per entry", *hostcheckSeed, n)
	seen := make([]bool, len(insn.Table()))
	t.Run("64", func(t *testing.T) { m.compareTable(t, insn.Mode64, n, seen) })
	t.Run("32", func(t *testing.T) {
		if !m.x.CanRun32() {
			t.Skip("no address space below 4 GiB for 32-bit code")
		}
		m.compareTable(t, insn.Mode32, n/3, seen)
	})
	if *hostcheckOnly != "" {
		return
	}
	for i := range insn.Table() {
		if e := &insn.Table()[i]; !seen[i] && notCompared(e) == "" {
			t.Errorf("%s | %s: neither compared nor listed", e.Form, e.Opcode)
		}
	}
}

// compareTable compares n samples of each entry that exists in a mode, and
// notes which those are.
func (m *checkMachine) compareTable(t *testing.T, mode insn.Mode, n int, seen []bool) {
	g := &generator{mode: mode, m: m, skels: enumerate(mode), at: m.code}
	m.start(t, mode)
	compared, executed, samples := 0, 0, 0
	start := time.Now()
	for i := range insn.Table() {
		e := &insn.Table()[i]
		if !strings.Contains(e.Form, *hostcheckOnly) || notCompared(e) != "" || len(g.skels[e]) == 0 {
			continue
		}
		// An entry's samples do not depend on the other entries.
		g.rng = rand.New(rand.NewPCG(*hostcheckSeed, uint64(i)))
		bad, ran, ud := 0, 0, true
		for tries := 0; ran < n && tries < 8*n+100; tries++ {
			if ud && ran > 20 {
				break // the host does not have it
			}
			s, ok := g.instance(e)
			if !ok {
				continue
			}
			msg, fault, ok := g.compare(&s)
			if !ok {
				continue
			}
			ran++
			ud = ud && fault == x86.VecUD
			if msg != "" {
				if bad++; bad <= 2 {
					t.Errorf("%s | %s: %s", e.Form, e.Opcode, msg)
				}
			}
		}
		if bad > 0 {
			t.Errorf("%s | %s: %d of %d differ", e.Form, e.Opcode, bad, ran)
		}
		if ran == 0 {
			continue
		}
		seen[i] = true
		samples += ran
		compared++
		if !ud {
			executed++
		}
	}
	t.Logf("%d entries compared, %d of them only as #UD, %d instructions in %v",
		compared, compared-executed, samples, time.Since(start).Round(time.Millisecond))
}

// compare runs s both ways. ok is false when it could not be given operands;
// fault is the vector that the host raised, 255 for none.
func (g *generator) compare(s *sample) (msg string, fault uint8, ok bool) {
	m, r := g.m, g.rng
	var gpr [16]uint64
	for i := range gpr {
		gpr[i] = g.value()
	}
	flags := r.Uint64() & shownFlags
	for i := 0; i < 4; i++ { // some fresh data
		binary.LittleEndian.PutUint64(m.hmem[r.IntN(dataRW/8)*8:], g.value())
	}
	vector := isVector(s.in.Enc.Group)
	if vector {
		g.randomFPU(m.fpu)
	}
	gpr[x86.RSP] = m.data + 1024 + r.Uint64N(2*x86.PageSize)&^7
	if g.mode == insn.Mode32 {
		for i := range gpr {
			gpr[i] &= 0xffffffff
		}
		clear(gpr[8:])
	}
	if !g.operands(s, &gpr, &flags) {
		return "", 0, false
	}
	if vector {
		*m.env.fpu = *m.fpu
	}
	copy(m.gmem, m.hmem)
	undefined := uint64(s.in.Enc.FlagsUndef)
	if undefinedResult(s, &gpr) {
		return "", 0, false
	}

	m.ctx.GPR, m.ctx.RFLAGS, m.ctx.FPU = gpr, flags, nil
	if vector {
		m.ctx.FPU = m.fpu
	}
	before := gpr
	want := m.runHost(s.code)
	m.guestState(&gpr, flags)
	m.setCode(s.code)
	m.c.Step()
	got := m.guestOutcome()
	m.clearCode(len(s.code))
	if want.fault {
		undefined = 0
	}
	switch s.in.Op {
	case insn.OpFRSTOR, insn.OpFNSAVE, insn.OpFLDENV, insn.OpFNSTENV:
		// Processors differ in the part that they access first.
		want.cr2, got.cr2 = want.cr2&^(x86.PageSize-1), got.cr2&^(x86.PageSize-1)
	}
	want.flags &^= undefined
	got.flags &^= undefined

	if g.mode == insn.Mode32 {
		want.visible32()
		got.visible32()
	}
	fault = 255
	if want.fault {
		fault = want.vector
	}
	describe := func(what string) string {
		return fmt.Sprintf("% x at %#x: %s\n\thost  %v\n\tguest %v\n\tbefore flags %#x gpr %x\n\tmem %#x", s.code, m.code, what, want, got, flags, before, s.lin)
	}
	defer copy(m.hmem, m.gmem) // whatever happened, go on from the same memory
	if got != want {
		for i := range want.gpr {
			if got.gpr[i] != want.gpr[i] {
				return describe(fmt.Sprintf("GPR %d is %#x, want %#x", i, got.gpr[i], want.gpr[i])), fault, true
			}
		}
		return describe("differs"), fault, true
	}
	if !bytes.Equal(m.gmem, m.hmem) {
		i := 0
		for m.gmem[i] == m.hmem[i] {
			i++
		}
		return describe(fmt.Sprintf("memory at %#x is % x, want % x", m.data+uint64(i), m.gmem[i:min(i+32, dataRW)], m.hmem[i:min(i+32, dataRW)])), fault, true
	}
	if s.in.Mem.VSIB && want.fault && !m.amd {
		return "", fault, true // see gather
	}
	if vector {
		if d := m.fpuDifference(m.fpu, m.env.fpu); d != "" {
			return describe(d), fault, true
		}
	}
	return "", fault, true
}

func isVector(gr insn.Group) bool {
	switch gr {
	case insn.GroupX87, insn.GroupMMX, insn.GroupSSE, insn.GroupAVX, insn.GroupEVEX, insn.GroupMask:
		return true
	}
	return false
}

// operands gives s registers and memory that it can run with, without harm to
// the test process.
func (g *generator) operands(s *sample, gpr *[16]uint64, flags *uint64) bool {
	in, m, r := &s.in, g.m, g.rng
	inside := func() uint64 { return m.data + 1024 + r.Uint64N(dataRW-4096)&^7 }
	size := uint64(64)
	hasMem := false
	for _, a := range in.Args[:in.NArg] {
		switch a.Kind {
		case insn.ArgMem, insn.ArgMoffs:
			hasMem = true
			size = max(uint64(a.Size)/8, 1)
		case insn.ArgRel:
			if in.ImmLen >= 4 {
				binary.LittleEndian.PutUint32(s.code[in.ImmOff:], uint32(r.IntN(7000)-3500))
				insn.Decode(s.code, g.mode, in)
			}
			if in.Imm < 0 && in.Imm >= -int64(in.Len) {
				return false // into itself: perhaps for ever
			}
		case insn.ArgStrSrc, insn.ArgStrDst:
			return g.strings(s, gpr, flags)
		}
	}
	if in.Enc.Class == insn.Branch && bytes.IndexByte(s.code[:in.OpcodeOff], 0x66) >= 0 {
		return false // AMD processors honour it and jump out of the test
	}
	if (in.Op == insn.OpLOOPE || in.Op == insn.OpLOOPNE) && (in.Rep || in.Repne) {
		return false // AMD processors take these prefixes for the condition
	}
	if g.mode == insn.Mode32 && in.Rex&8 != 0 {
		switch in.Op {
		case insn.OpVPEXTRD, insn.OpVPINSRD:
			return false // #UD on AMD processors, while Intel's ignore W
		}
	}
	switch in.Op {
	case insn.OpPUSH:
		if in.Args[0].Kind == insn.ArgSeg && g.mode == insn.Mode32 && in.OpSize == 32 {
			return false // AMD processors write 32 bits, Intel's 16
		}
	case insn.OpLEAVE:
		gpr[x86.RBP] = inside()
	case insn.OpENTER:
		gpr[x86.RBP] = inside()
		if in.Imm > 512 {
			binary.LittleEndian.PutUint16(s.code[in.ImmOff:], uint16(r.IntN(512)))
		}
	case insn.OpXLAT:
		gpr[x86.RBX] = inside()
		return in.AddrSize != 16 && in.Mem.Seg < x86.FS
	case insn.OpMASKMOVQ, insn.OpMASKMOVDQU, insn.OpVMASKMOVDQU:
		gpr[x86.RDI] = inside()
		return in.AddrSize != 16 && !in.SegOverride
	case insn.OpCLZERO:
		gpr[x86.RAX] = inside() &^ 63
		return in.AddrSize != 16 && in.Mem.Seg < x86.FS
	case insn.OpRET, insn.OpPOPF:
		v := m.code + insn.MaxLen + uint64(r.IntN(4000))
		if in.Op == insn.OpPOPF {
			v = r.Uint64()&shownFlags | x86.FlagFixed | x86.FlagIF
		}
		binary.LittleEndian.PutUint64(m.hmem[gpr[x86.RSP]-m.data:], v)
	}
	if in.Mem.VSIB {
		return g.vsib(s, gpr)
	}
	branch := in.Op == insn.OpCALL || in.Op == insn.OpJMP
	if hasMem {
		s.lin = g.target(size)
		if branch {
			s.lin = inside()
		}
		if g.mode == insn.Mode32 && in.Mem.Seg >= x86.FS || in.AddrSize == 16 {
			return false
		}
		if !g.place(s, gpr, s.lin) {
			return false
		}
		if bit := bitOperand(in); bit >= 0 {
			// The bit offset reaches beyond the operand.
			if in.Mem.Base == uint8(bit) || in.Mem.Index == uint8(bit) || in.Mem.Base == insn.NoReg {
				return false
			}
			s.lin = inside()
			gpr[bit] = uint64(int64(r.IntN(8000) - 4000))
			if g.mode == insn.Mode32 {
				gpr[bit] &= 0xffffffff
			}
			if !g.place(s, gpr, s.lin) {
				return false
			}
		}
		if g.effective(s, gpr) != s.lin {
			return false
		}
		if in.Op == insn.OpPOP && s.lin != s.lin&^7 {
			return false
		}
		if branch {
			binary.LittleEndian.PutUint64(m.hmem[s.lin-m.data:], m.code+insn.MaxLen+uint64(r.IntN(4000)))
		}
	} else if branch && in.Args[0].Kind == insn.ArgGPR {
		gpr[in.Args[0].Reg] = m.code + insn.MaxLen + uint64(r.IntN(4000))
	}
	if in.Op == insn.OpENTER || in.Op == insn.OpPOP || branch || in.Op == insn.OpPUSH {
		// RSP may have become an operand of another kind.
		if sp := gpr[x86.RSP]; sp < m.data+512 || sp > m.data+dataRW-512 {
			return false
		}
	}
	return insn.Decode(s.code, g.mode, in) == nil
}

// bitOperand is the register with the bit offset of BT and its relatives, -1
// for other instructions.
func bitOperand(in *insn.Inst) int {
	switch in.Op {
	case insn.OpBT, insn.OpBTS, insn.OpBTR, insn.OpBTC:
		if in.Args[1].Kind == insn.ArgGPR {
			return int(in.Args[1].Reg)
		}
	}
	return -1
}

// strings sets up string instructions: pointers into the data, small counts.
func (g *generator) strings(s *sample, gpr *[16]uint64, flags *uint64) bool {
	if s.in.SegOverride && s.in.Mem.Seg >= x86.FS || s.in.AddrSize == 16 {
		return false
	}
	m, r := g.m, g.rng
	at := func() uint64 { return m.data + 1024 + r.Uint64N(dataRW-2048) }
	gpr[x86.RSI], gpr[x86.RDI] = at(), at()
	if r.IntN(3) == 0 {
		gpr[x86.RDI] = gpr[x86.RSI] + r.Uint64N(32) - 16 // overlapping
	}
	if r.IntN(10) == 0 {
		gpr[x86.RDI] = m.data + dataRW - r.Uint64N(64)
	}
	gpr[x86.RCX] = uint64(r.IntN(40))
	if s.in.Op == insn.OpINS || s.in.Op == insn.OpOUTS {
		gpr[x86.RCX]++ // processors differ in whether a count of 0 is checked first
	}
	if s.in.AddrSize == 32 && r.IntN(2) == 0 {
		gpr[x86.RCX] |= r.Uint64() << 32
	}
	if r.IntN(2) == 0 { // so that comparisons do not end at once
		copy(m.hmem[gpr[x86.RDI]-m.data:min(gpr[x86.RDI]-m.data+64, dataRW)], bytes.Repeat([]byte{byte(gpr[x86.RAX])}, 64))
	}
	return true
}

// vsib sets up gathers and scatters: the base in the data, small indexes.
func (g *generator) vsib(s *sample, gpr *[16]uint64) bool {
	m, r := g.m, g.rng
	mem := &s.in.Mem
	if mem.Base >= 16 || mem.Base == x86.RSP || mem.Seg >= x86.FS || mem.Index >= 16 && m.x.Host().Offset[native.CompHi16ZMM] == 0 {
		return false
	}
	s.lin = m.data + dataRW/2
	gpr[mem.Base] = s.lin - uint64(mem.Disp)
	if s.in.AddrSize == 32 && gpr[mem.Base]>>32 != 0 {
		return false
	}
	form := gatherFormOf(s.in.Op.String())
	v := vecImage{m.fpu, m.x.Host()}
	reg := v.get(mem.Index)
	for i := 0; i < maxVec; i += max(form.index, 4) {
		x := int64(r.IntN(1000) - 500)
		if r.IntN(40) == 0 {
			x = dataSize // beyond
		}
		if form.index == 8 {
			le.PutUint64(reg[i:], uint64(x))
		} else {
			le.PutUint32(reg[i:], uint32(x))
		}
	}
	v.set(mem.Index, &reg)
	return true
}

// undefinedResult reports operands for which the manuals leave the result
// undefined.
func undefinedResult(s *sample, gpr *[16]uint64) bool {
	in := &s.in
	switch in.Op {
	case insn.OpBSWAP:
		return in.OpSize == 16
	case insn.OpSHLD, insn.OpSHRD:
		count := uint64(in.Imm)
		if in.Args[2].Kind == insn.ArgGPR {
			count = gpr[x86.RCX]
		}
		return in.OpSize == 16 && count&31 > 16
	}
	return false
}

// TestHostCPUList makes sure that the list of exceptions has no dead entries.
func TestHostCPUList(t *testing.T) {
	ops, forms, features := map[string]bool{}, map[string]bool{}, map[string]bool{}
	for i := range insn.Table() {
		e := &insn.Table()[i]
		ops[e.Op.String()], forms[e.Form], features[e.Feature.String()] = true, true, true
	}
	for name, known := range map[string]map[string]bool{"op": ops, "form": forms, "feature": features} {
		list := map[string]map[string]string{"op": notComparedOp, "form": notComparedForm, "feature": notComparedFeature}[name]
		var dead []string
		for k := range list {
			if !known[k] {
				dead = append(dead, k)
			}
		}
		slices.Sort(dead)
		if len(dead) > 0 {
			t.Errorf("listed %s that the table does not have: %v", name, dead)
		}
	}
}
