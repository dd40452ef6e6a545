package bt

import (
	"ring3/internal/x86"
	"ring3/internal/x86/insn"
)

// MaxInsts bounds the instructions of a block.
const MaxInsts = 48

// MaxCode bounds the bytes of a block's code.
const MaxCode = 16384

// fullCode is where a block ends for its length in bytes.
const fullCode = MaxCode / 2

// Translate translates the guest code at rip, with RFLAGS.AC as ac says, of which code has the bytes up
// to the end of the page, or more when the first instruction crosses it: then
// limit is 1, and MaxInsts otherwise. The result is to be placed at the host address at;
// its exits have the numbers from id on. slow tells which instructions were seen
// to access the lower half. A block whose first instruction cannot be translated has N 0.
func Translate(h *Host, rip uint64, ac bool, code []byte, at uint64, id uint32, limit int, slow func(rip uint64) bool) *Block {
	e := &emitter{h: h, at: at, id: id, ac: ac, b: &Block{RIP: rip, AC: ac}}
	b := e.b
	pc := rip
	var in insn.Inst
	for {
		if b.N == limit || len(e.out) > fullCode {
			e.mark(pc, None)
			e.bytes(0xe9)
			e.chain(pc)
			break
		}
		rest := code[pc-rip:]
		if len(rest) == 0 {
			e.mark(pc, None)
			e.bytes(0xe9)
			e.chain(pc)
			break
		}
		err := insn.Decode(rest, insn.Mode64, &in)
		if err == insn.ErrTruncated && b.N != 0 {
			// It goes on in the next page, as a block of its own.
			e.mark(pc, None)
			e.bytes(0xe9)
			e.chain(pc)
			break
		}
		if err != nil {
			e.step(pc)
			break
		}
		e.mark(pc, None)
		start, exits, marks := len(e.out), len(b.Exits), len(b.Marks)
		if slow(pc) && !(ac && e.mayBeUser(&in)) && !e.guard(&in, pc) {
			e.step(pc)
			break
		}
		e.rest = rest[in.Len:]
		done, end := e.inst(rest[:in.Len], &in, pc)
		if in.Op == insn.OpSTI && !ac && plain(rest[in.Len:]) {
			e.sti(pc)
			done = true
		}
		if !done {
			e.out, b.Exits, b.Marks = e.out[:start], b.Exits[:exits], b.Marks[:marks]
			e.step(pc)
			if in.Enc.Group >= insn.GroupX87 && in.Enc.Group != insn.GroupXSave {
				b.Exits[len(b.Exits)-1].Kind = ExitVector
			}
			break
		}
		pc += uint64(in.Len)
		b.N++
		if end {
			break
		}
	}
	b.Len = max(pc-rip, 1)
	e.finish()
	b.Code = e.out
	return b
}

// usesRSP reports whether RSP is an explicit register operand.
func usesRSP(in *insn.Inst) bool {
	for _, a := range in.Args[:in.NArg] {
		if a.Kind == insn.ArgGPR && a.Reg == x86.RSP && !a.High {
			return true
		}
	}
	return false
}

// top reports whether PUSH imm32 can push the address.
func top(a uint64) bool { return uint64(int64(int32(a))) == a }

// inst emits one instruction. done is false when it must be interpreted; end
// is set when it ends the block.
func (e *emitter) inst(raw []byte, in *insn.Inst, pc uint64) (done, end bool) {
	next := pc + uint64(in.Len)
	c := in.Enc.Class
	if c == insn.Branch {
		return e.branch(raw, in, pc, next), true
	}
	if in.Op == insn.OpIRET && in.OpSize == 64 && !e.ac {
		e.iret(pc)
		return true, true
	}
	switch {
	case in.Op == insn.OpSTAC || in.Op == insn.OpCLAC:
		set := in.Op == insn.OpSTAC
		switch {
		case !e.h.SMAP:
			return false, false // #UD
		case set == e.ac:
			return true, false
		}
		e.bytes(0xe9)
		e.chainTo(next, set, pc)
		return true, true
	case e.ac && (in.Op == insn.OpSYSRET || in.Op == insn.OpPUSHF || in.Op == insn.OpPOPF):
		return false, false
	case in.Op == insn.OpSYSRET && in.OpSize == 64:
		e.sysret(pc)
		return true, true
	case in.Op == insn.OpSWAPGS:
		e.swapgs(pc, next)
		return true, false
	case in.Op == insn.OpCLI:
		e.bytes(0x48, 0xc7, 0x04, 0x25) // mov qword [IF], -FlagIF
		e.imm32(e.h.IF)
		e.imm32(1<<32 - x86.FlagIF)
		return true, false
	case in.Op == insn.OpPUSHF && in.OpSize == 64:
		e.pushf(pc, next)
		return true, false
	case in.Op == insn.OpPOPF && in.OpSize == 64:
		e.popf(pc, next)
		return true, false
	case in.Op == insn.OpRDTSC:
		e.bytes(raw...) // the guest's time-stamp counter is the host's
		return true, false
	case in.Op == insn.OpRDTSCP:
		// LFENCE waits for all earlier loads as RDTSCP does (SDM vol. 2B).
		e.bytes(0x0f, 0xae, 0xe8, 0x0f, 0x31) // lfence; rdtsc
		e.bytes(0x8b, 0x0c, 0x25)             // mov ecx, [TSCAux]
		e.imm32(e.h.TSCAux)
		return true, false
	}
	if c != insn.Innocuous {
		return e.system(in, pc, next), false
	}
	if in.OpSize == 16 && (in.Op == insn.OpPUSH || in.Op == insn.OpPOP) {
		return false, false
	}
	if e.ac && e.mayBeUser(in) {
		return e.user(raw, in, pc, next), false
	}
	switch in.Op {
	case insn.OpNOP, insn.OpENDBR64, insn.OpSERIALIZE:
		return true, false // guest time is not for waiting
	case insn.OpSTOS, insn.OpMOVS:
		return e.str(raw, in, pc), false
	case insn.OpLEAVE:
		if in.OpSize != 64 {
			return false, false
		}
		e.toRSP(pc, x86.RBP, 0)
		e.mark(pc, None)
		e.bytes(0x5d) // pop rbp
		return true, false
	case insn.OpPUSHF, insn.OpPOPF, insn.OpENTER, insn.OpXLAT, insn.OpLODS, insn.OpCMPS, insn.OpSCAS:
		return false, false
	case insn.OpCLFLUSH, insn.OpCLFLUSHOPT, insn.OpCLWB:
		return e.copyInst(raw, in, pc), false // for its faults
	case insn.OpXSAVE, insn.OpXSAVEC, insn.OpXSAVEOPT, insn.OpXRSTOR:
		return e.xstate(raw, in, pc, next), false
	case insn.OpLEA:
		return e.leaInst(raw, in, pc, next), false
	case insn.OpPUSH, insn.OpPOP:
		switch {
		case !usesRSP(in):
			return e.copyInst(raw, in, pc), false
		case in.Op == insn.OpPUSH:
			e.pushRSP(pc, next)
		default:
			e.popRSP(pc, next)
		}
		return true, false
	}
	switch in.Enc.Group {
	case insn.GroupInt:
	default:
		return false, false
	}
	if usesRSP(in) {
		return e.rspInst(raw, in, pc, next), false
	}
	return e.copyInst(raw, in, pc), false
}

// signDead reports whether SF is not looked at before it is written, in the
// code that follows. It is the one flag that stack arithmetic sets by the top
// bit of RSP, which folding changes. No call or return passes it on.
func signDead(code []byte) bool {
	var in insn.Inst
	for range 32 {
		if insn.Decode(code, insn.Mode64, &in) != nil {
			return true // behind the page
		}
		// MOV of control registers leaves flags undefined, and in fact alone.
		const sf = 1 << 7
		switch {
		case in.Enc.FlagsRead&sf != 0, in.Op == insn.OpPUSHF, in.Op == insn.OpLAHF:
			return false
		case in.Enc.FlagsWritten&sf != 0, in.Enc.Class == insn.Innocuous && in.Enc.FlagsUndef&sf != 0, in.Op == insn.OpJMP, in.Op == insn.OpCALL, in.Op == insn.OpRET:
			return true
		case in.Enc.Class == insn.Branch:
			return false // one way may look at it
		}
		code = code[in.Len:]
	}
	return true
}

// leaInst emits LEA, which has no memory access.
func (e *emitter) leaInst(raw []byte, in *insn.Inst, pc, next uint64) bool {
	m, dst := &in.Mem, in.Args[0].Reg
	if in.AddrSize != 64 {
		return false
	}
	switch {
	case m.Base == insn.RIPReg:
		a := next + uint64(m.Disp)
		if in.OpSize != 64 || dst == x86.RSP {
			return false
		}
		e.movImm(dst, a)
		return true
	case dst == x86.RSP:
		if in.OpSize != 64 || m.Index != insn.NoReg || m.Base == insn.NoReg {
			return false
		}
		if m.Base != x86.RSP {
			e.toRSP(pc, m.Base, int32(m.Disp))
			return true
		}
		e.bytes(raw...)
		return true
	case m.Base == x86.RSP && in.OpSize == 64: // else folding changes no bit of it
		if m.Index != insn.NoReg {
			return e.leaRSP(in, pc, next)
		}
		e.rspTo(dst, int32(m.Disp))
		return true
	}
	e.bytes(raw...)
	return true
}

// str emits STOS and MOVS. ES:RDI takes no override, so RDI is folded around
// the instruction. RSI is too, though it could have GS: with a segment base,
// AMD's Zen copies byte by byte, 4 to 30 times slower.
func (e *emitter) str(raw []byte, in *insn.Inst, pc uint64) bool {
	if in.AddrSize != 64 || in.SegOverride {
		return false
	}
	next := pc + uint64(in.Len)
	e.save(0, x86.RDX)
	e.mark(pc, RDX)
	e.movImm(x86.RDX, Delta)
	e.lea(x86.RDI, x86.RDI, x86.RDX, 0)
	e.mark(pc, RDXFold)
	if in.Op == insn.OpMOVS {
		e.lea(x86.RSI, x86.RSI, x86.RDX, 0)
		e.mark(pc, RDXBoth)
	}
	e.bytes(raw...)
	if in.Op == insn.OpMOVS {
		e.mark(next, RDXBoth)
		e.movImm(x86.RDX, 1<<64-Delta)
		e.lea(x86.RSI, x86.RSI, x86.RDX, 0)
		e.mark(next, RDXFold)
	} else {
		e.mark(next, RDXFold)
		e.movImm(x86.RDX, 1<<64-Delta)
	}
	e.lea(x86.RDI, x86.RDI, x86.RDX, 0)
	e.mark(next, RDX)
	e.load(x86.RDX, 0)
	return true
}
