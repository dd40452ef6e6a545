package interp

import (
	"encoding/binary"
	"unsafe"

	"ring3/internal/cpu"
	"ring3/internal/native"
	"ring3/internal/x86"
	"ring3/internal/x86/insn"
)

// Exchanging the extended state with the host costs several times what an
// instruction does. So consecutive vector instructions of a block run as one
// batch: the handler of the first executes as many as it can, and the handlers
// of the others find that they are done already. A batch ends before whatever
// needs a closer look: an operand that is not in the TLB, a load of what an
// earlier instruction of the batch stores, an instruction that faults. The
// handler of that instruction then executes it alone.

const (
	slotSize = 64 // bytes of scratch memory per instruction of a batch
)

// nativeRun are consecutive instructions of a block that may run as a batch.
type nativeRun struct {
	ops  []runOp
	code []byte
}

type runOp struct {
	o     *op
	op    *nativeOp
	start int // offset in nativeRun.code
	end   int
}

// batch holds the memory operands of the running batch.
type batch struct {
	mem [maxOps]unsafe.Pointer // by instruction; nil: none
}

// lowerNative makes o an instruction for the host CPU. Whatever else has no
// handler belongs to a feature that the virtual CPU does not have.
func lowerNative(d *decoded, o *op) {
	switch d.Enc.Group {
	case insn.GroupX87, insn.GroupMMX, insn.GroupSSE, insn.GroupAVX, insn.GroupEVEX, insn.GroupMask:
		o.fn, o.inst = opNative, d
		d.native, d.run = nil, nil
	default:
		o.fn = opUndefined
	}
}

func opNative(c *CPU, o *op) bool {
	s := &c.simd
	if s.ahead > 0 {
		s.ahead--
		return true
	}
	d := o.inst
	if d.native == nil {
		s.executor()
		d.native = s.prepare(&d.Inst, d.code[:])
		d.run = c.planRun(o)
	}
	if d.run != nil {
		if n := c.runBatch(d.run); n > 0 {
			s.ahead = n - 1
			return true
		}
	}
	end := c.RIP
	c.RIP = (end - uint64(o.back) + uint64(o.len)) & c.mode.ipMask
	ok := c.runNative(&d.Inst, d.native)
	c.RIP = end
	return ok
}

// batchable reports whether op may run in a batch. Those that write a general
// register, which an address could depend on, may do so at the end of one.
func (op *nativeOp) batchable() bool {
	switch op.domain {
	case domainSSE, domainAVX, domainEVEX:
	default:
		return false
	}
	return op.special == specialNone && op.standIn == 0 && op.size <= slotSize &&
		op.state&stateX87 == 0
}

// planRun finds the run that starts at o, nil if it is of one instruction.
func (c *CPU) planRun(o *op) *nativeRun {
	if c.cur == nil {
		return nil
	}
	ops := c.cur.ops
	at := 0
	for at < len(ops) && &ops[at] != o {
		at++
	}
	r := new(nativeRun)
	for ; at < len(ops) && len(r.ops) < maxOps; at++ {
		d := ops[at].inst
		if d == nil || !isNativeGroup(d.Enc.Group) {
			break
		}
		op := c.simd.prepare(&d.Inst, d.code[:])
		if !op.batchable() || len(r.code)+len(op.code)+4 > native.MaxCode {
			break
		}
		start := len(r.code)
		r.code = op.appendSlot(r.code, len(r.ops)*slotSize)
		r.ops = append(r.ops, runOp{&ops[at], op, start, len(r.code)})
		if op.gpr {
			break
		}
	}
	if len(r.ops) < 2 {
		return nil
	}
	return r
}

func isNativeGroup(g insn.Group) bool {
	switch g {
	case insn.GroupSSE, insn.GroupAVX, insn.GroupEVEX, insn.GroupMask:
		return true
	}
	return false
}

// appendSlot appends the code of op with [rsp+slot] as its memory operand.
func (op *nativeOp) appendSlot(b []byte, slot int) []byte {
	if op.access == accessNone {
		return append(b, op.code[:op.len]...)
	}
	m := int(op.modrm)
	b = append(b, op.code[:m]...)
	b = append(b, op.code[m]|0x80, sibRSP) // mod 2: a displacement of 32 bits
	b = binary.LittleEndian.AppendUint32(b, uint32(slot))
	return append(b, op.code[m+2:op.len]...)
}

// runBatch executes instructions of r, and returns how many.
func (c *CPU) runBatch(r *nativeRun) int {
	s := &c.simd
	scratch, addr := s.x.Scratch()
	ctx := &s.ctx
	ctx.Mask = 0
	n, flags, gpr := 0, false, false
	for n < len(r.ops) && c.batchOperand(r, n, scratch) {
		op := r.ops[n].op
		ctx.Mask |= op.state
		flags = flags || op.flags
		gpr = gpr || op.gpr
		n++
	}
	if n < 2 {
		return 0
	}
	ctx.FPU = c.syncFPU()
	ctx.GPR = c.GPR
	ctx.GPR[x86.RSP] = addr
	if flags {
		ctx.RFLAGS = c.flags()
	}
	f := s.x.Run(r.code[:r.ops[n-1].end], ctx)
	if f.Raised {
		done := 0
		for uint64(r.ops[done].start) != f.RIP {
			done++
		}
		n, gpr = done, false // only the last one could have written a register
	}
	for i, o := range r.ops[:n] {
		if p := s.batch.mem[i]; p != nil && o.op.access == accessWrite {
			copy(bytesAt(p, uint64(o.op.size)), scratch[i*slotSize:])
		}
	}
	if gpr {
		ctx.GPR[x86.RSP] = c.GPR[x86.RSP]
		c.GPR = ctx.GPR
	}
	if flags {
		c.setArith(ctx.RFLAGS)
	}
	return n
}

// sameChecks reports whether op may run when prev may.
func (op *nativeOp) sameChecks(prev *nativeOp) bool {
	return op.domain == prev.domain && op.feature == prev.feature
}

// batchOperand checks instruction i of r and loads its operand. False ends the
// batch before it.
func (c *CPU) batchOperand(r *nativeRun, i int, scratch []byte) bool {
	o, op := r.ops[i].o, r.ops[i].op
	if i == 0 || !op.sameChecks(r.ops[i-1].op) {
		if !c.nativeAllowed(&o.inst.Inst, op) {
			c.fault = fault{}
			return false
		}
	}
	mem := &c.simd.batch.mem
	mem[i] = nil
	if op.access == accessNone {
		return true
	}
	size := uint64(op.size)
	lin, ok := c.addr(o, int(size), op.access == accessWrite)
	if !ok {
		c.fault = fault{}
		return false
	}
	if op.aligned && lin%size != 0 {
		return false
	}
	p, left := c.readable(lin)
	if op.access == accessWrite {
		p, left = c.writable(lin)
	}
	if p == nil || left < size {
		return false
	}
	mem[i] = p
	if op.access == accessWrite {
		return true
	}
	for j := range i {
		q := mem[j]
		if q == nil || r.ops[j].op.access != accessWrite {
			continue
		}
		if uintptr(p) < uintptr(q)+uintptr(r.ops[j].op.size) && uintptr(q) < uintptr(p)+uintptr(size) {
			return false
		}
	}
	copy(scratch[i*slotSize:], bytesAt(p, size))
	return true
}

// syncFPU fetches the guest's extended state.
func (c *CPU) syncFPU() *cpu.FPU {
	c.FPU = c.Env.SyncFPU()
	return c.FPU
}
