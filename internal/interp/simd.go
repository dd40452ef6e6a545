package interp

import (
	"ring3/internal/cpu"
	"ring3/internal/native"
	"ring3/internal/x86"
	"ring3/internal/x86/insn"
)

// x87, MMX, SSE, AVX and AVX-512 instructions are not interpreted: the host CPU
// executes them, on the guest's XSAVE image. What remains to be done here is
// everything around the computation: the checks that depend on the guest's
// control registers, guest memory, and exceptions.
//
// A memory operand is read into a scratch buffer, the instruction runs with
// that buffer as its operand, and a result is written back after it has
// succeeded. The buffer has the alignment of the guest's address, so that the
// host's alignment checks are right for the guest too.

// simdState is what a CPU keeps for that.
type simdState struct {
	x        *native.Executor
	ctx      native.Context
	ops      map[nativeKey]*nativeOp
	features [256]int8 // by insn.Feature: 1 the guest has it, -1 not, 0 not asked yet
	ahead    int       // instructions of the running block that are done already
	batch    batch
}

// Extended state that the instructions of a group use and change, as bits of
// XCR0 (SDM vol. 1, section 13.1).
const (
	stateX87  = 1 << native.CompX87
	stateSSE  = 1 << native.CompSSE
	stateAVX  = stateSSE | 1<<native.CompAVX
	stateEVEX = stateAVX | 1<<native.CompOpmask | 1<<native.CompZMMHi256 | 1<<native.CompHi16ZMM
)

// executor starts the native executor with the first instruction that needs it.
func (s *simdState) executor() *native.Executor {
	if s.x == nil {
		x, err := native.New()
		if err != nil {
			panic("native execution of vector instructions: " + err.Error())
		}
		s.x = x
		s.ops = make(map[nativeKey]*nativeOp)
	}
	return s.x
}

// runNative executes an instruction of the x87, MMX, SSE, AVX, EVEX or Mask
// group. RIP is that of the next instruction.
func (c *CPU) runNative(inst *insn.Inst, op *nativeOp) bool {
	if !c.nativeAllowed(inst, op) {
		return false
	}
	fpu := c.syncFPU()
	switch op.special {
	case specialGather:
		return c.gather(inst, fpu)
	case specialMaskMovDQ:
		return c.maskMovDQ(inst, op, fpu)
	case specialMasked:
		return c.runMasked(inst, op, fpu)
	case specialZero:
		return c.zeroLower(op, fpu)
	}

	buf, addr := c.simd.x.Scratch()
	var lin uint64
	if op.access != accessNone {
		var ok bool
		if lin, ok = c.memLin(inst, int(op.size), op.access == accessWrite); !ok {
			return c.earlierFault(op, fpu, 0, addr)
		}
		addr += lin & 63
		buf = buf[lin&63:][:op.size]
		if !c.loadOperand(op, lin, buf) {
			return c.earlierFault(op, fpu, lin, addr)
		}
	}
	x87 := op.domain == domainX87
	var ptrs x87Pointers
	if x87 {
		ptrs = loadPointers(fpu)
		if op.access == accessWrite {
			fillSentinel(buf)
		}
	}
	f := c.callNative(op, fpu, addr)
	if f.Raised {
		if x87 {
			ptrs.store(fpu)
		}
		return c.nativeFault(f)
	}
	if x87 {
		c.afterX87(inst, op, fpu, ptrs, buf)
		if op.access == accessWrite && isSentinel(buf) && fpu.Area[offFSW]&fswES != 0 {
			return true // an unmasked exception kept the result from being stored
		}
	}
	if op.access == accessWrite && !c.writeBytes(lin, buf) {
		return false // cannot be: the operand was checked
	}
	return true
}

// callNative runs op with its memory operand at the host address mem, and
// takes over registers and flags when it succeeds.
func (c *CPU) callNative(op *nativeOp, fpu *cpu.FPU, mem uint64) native.Fault {
	ctx := &c.simd.ctx
	ctx.GPR = c.GPR
	ctx.GPR[x86.RSP] = mem
	if op.standIn != 0 {
		ctx.GPR[op.standIn] = c.GPR[x86.RSP]
	}
	if op.flags {
		ctx.RFLAGS = c.flags()
	} else {
		ctx.RFLAGS = 0
	}
	ctx.FPU, ctx.Mask = fpu, op.state
	f := c.simd.x.Run(op.code[:op.len], ctx)
	if f.Raised {
		return f
	}
	if op.gpr {
		ctx.GPR[x86.RSP] = c.GPR[x86.RSP]
		if op.standIn != 0 {
			ctx.GPR[x86.RSP] = ctx.GPR[op.standIn]
			ctx.GPR[op.standIn] = c.GPR[op.standIn]
		}
		c.GPR = ctx.GPR
	}
	if op.flags {
		c.setArith(ctx.RFLAGS)
	}
	return f
}

// nativeFault raises in the guest what the host CPU raised.
func (c *CPU) nativeFault(f native.Fault) bool {
	switch f.Vector {
	case x86.VecUD, x86.VecMF:
		return c.raise(f.Vector, 0)
	case x86.VecGP:
		// Alignment, or reserved bits of MXCSR.
		return c.raise(x86.VecGP, 0)
	case x86.VecXM:
		if c.CR4&x86.CR4OSXMMEXCPT == 0 {
			return c.raise(x86.VecUD, 0)
		}
		return c.raise(x86.VecXM, 0)
	}
	panic("BUG: unexpected exception in native code")
}

// loadOperand makes sure that op may access its memory operand, and reads it
// into buf when op does.
func (c *CPU) loadOperand(op *nativeOp, lin uint64, buf []byte) bool {
	if c.mode.alignCheck && !c.checkAlign(lin, op.align()) {
		return false
	}
	if op.access == accessRead {
		return c.readBytes(lin, buf)
	}
	if p, n := c.writable(lin); p != nil && n >= uint64(op.size) {
		return true
	}
	return c.checkWrite(lin, uint64(op.size))
}

// earlierFault is called when the access to the memory operand has faulted. Two
// exceptions come before that one: #MF for an x87 exception that is pending, and
// #GP for an operand that must be aligned, before paging looks at it. The host
// is asked about them, on a copy of the state.
func (c *CPU) earlierFault(op *nativeOp, fpu *cpu.FPU, lin, addr uint64) bool {
	pending := op.state&stateX87 != 0 && fpu.Area[offFSW]&fswES != 0
	misaligned := op.size >= 16 && lin%uint64(op.size) != 0 && c.fault.vector == x86.VecPF
	if !pending && !misaligned {
		return false
	}
	copied := new(cpu.FPU)
	*copied = *fpu
	gpr, flags := c.GPR, c.lazy
	f := c.callNative(op, copied, addr)
	c.GPR, c.lazy = gpr, flags
	if f.Raised && (pending && f.Vector == x86.VecMF || misaligned && f.Vector == x86.VecGP) {
		c.raise(f.Vector, 0)
	}
	return false
}

// nativeAllowed checks what system software has allowed
// (SDM vol. 2A, section 2.4 to 2.8; vol. 3A, tables 2-2 and 14-1).
func (c *CPU) nativeAllowed(inst *insn.Inst, op *nativeOp) bool {
	ud := false
	xcr0 := c.XCR0 & c.simd.x.Host().XCR0
	switch op.domain {
	case domainX87:
		if c.CR0&(x86.CR0EM|x86.CR0TS) != 0 {
			return c.raise(x86.VecNM, 0)
		}
	case domainWait:
		if c.CR0&(x86.CR0MP|x86.CR0TS) == x86.CR0MP|x86.CR0TS {
			return c.raise(x86.VecNM, 0)
		}
		return true
	case domainMMX:
		ud = c.CR0&x86.CR0EM != 0
	case domainSSE:
		ud = c.CR0&x86.CR0EM != 0 || c.CR4&x86.CR4OSFXSR == 0
	case domainAVX:
		ud = c.CR4&x86.CR4OSXSAVE == 0 || xcr0&stateAVX != stateAVX || c.mode.real
	case domainEVEX:
		ud = c.CR4&x86.CR4OSXSAVE == 0 || xcr0&stateEVEX != stateEVEX || c.mode.real
	default:
		ud = true
	}
	if ud || !c.hasFeature(inst.Enc.Feature) {
		return c.raise(x86.VecUD, 0)
	}
	if c.CR0&x86.CR0TS != 0 {
		return c.raise(x86.VecNM, 0)
	}
	return true
}
