package interp

import (
	"sync/atomic"
	"time"

	"ring3/internal/x86"
	"ring3/internal/x86/insn"
)

// System instructions end their block and make the run loop look at the state.
// RIP is that of the next instruction when they run.

// endBlock makes o the last op of its block.
func endBlock(d *decoded, o *op) {
	o.flag |= flagEnd
	o.inst = d
}

func (c *CPU) count(o *op) { c.stat.Privileged[o.inst.Op].Count++ }

// opTimed runs the handler of a sensitive or privileged instruction and adds
// the time to its count, exceptions not included.
func opTimed(c *CPU, o *op) bool {
	p := &c.stat.Privileged[o.inst.Op]
	before, start := p.Count, time.Now()
	ok := o.inst.timed(c, o)
	if p.Count != before {
		p.Time += time.Since(start)
	}
	return ok
}

func lowerSystem(d *decoded, o *op) {
	endBlock(d, o)
	setSize(o, uint16(d.OpSize))
	o.fn = opSystem
}

// opSystem handles the instructions that are nothing but a call.
func opSystem(c *CPU, o *op) bool {
	c.count(o)
	in := &o.inst.Inst
	bits := int(in.OpSize)
	switch in.Op {
	case insn.OpCALLF, insn.OpJMPF:
		c.farBranch(o)
	case insn.OpRETF:
		c.farRet(bits, uint16(in.Imm))
	case insn.OpIRET:
		c.iret(bits)
	case insn.OpINT:
		c.softInt(uint8(in.Imm))
	case insn.OpINT3:
		c.softInt3()
	case insn.OpINT1:
		c.icebp()
	case insn.OpINTO:
		if c.lazy.of() {
			c.softInt(x86.VecOF)
		}
	case insn.OpSYSCALL:
		c.syscallOp()
	case insn.OpSYSRET:
		c.sysret(bits)
	case insn.OpSYSENTER:
		c.sysenter()
	case insn.OpSYSEXIT:
		c.sysexit(bits)
	case insn.OpSTI:
		c.sti()
	case insn.OpHLT:
		c.hlt()
	case insn.OpCLTS:
		c.clts()
	case insn.OpWBINVD, insn.OpWBNOINVD, insn.OpINVD:
		c.wbinvd()
	case insn.OpRDMSR:
		c.rdmsr()
	case insn.OpWRMSR:
		c.wrmsr()
	case insn.OpSWAPGS:
		c.swapgs()
	case insn.OpXSETBV:
		c.xsetbv()
	case insn.OpMONITOR, insn.OpMWAIT, insn.OpMONITORX, insn.OpMWAITX:
		c.monitorOp(in)
	case insn.OpVMCALL, insn.OpVMMCALL:
		c.vmcall()
	default:
		c.raise(x86.VecUD, 0)
	}
	return false
}

// CLI, STAC and CLAC do not end their block: nothing that the run loop acts on
// can come of them.
func lowerCLI(d *decoded, o *op) { o.inst, o.fn = d, opCLI }

func opCLI(c *CPU, o *op) bool {
	c.count(o)
	return c.cli()
}

func lowerAC(d *decoded, o *op) {
	o.inst = d
	o.fn = opCLAC
	if d.Op == insn.OpSTAC {
		o.fn = opSTAC
	}
}

func opSTAC(c *CPU, o *op) bool {
	c.count(o)
	return c.setAC(c.RFLAGS | x86.FlagAC)
}

func opCLAC(c *CPU, o *op) bool {
	c.count(o)
	return c.setAC(c.RFLAGS &^ x86.FlagAC)
}

func (c *CPU) setAC(flags uint64) bool {
	if c.CPL != 0 || c.CR4&x86.CR4SMAP == 0 {
		return c.raise(x86.VecUD, 0)
	}
	c.RFLAGS = flags
	c.selectTLB()
	return true
}

// farBranch is a far JMP or CALL with an immediate or memory operand.
func (c *CPU) farBranch(o *op) {
	in := &o.inst.Inst
	sel, off := uint64(in.Imm2), uint64(in.Imm)
	if o.flag&flagMem != 0 {
		var ok bool
		if off, sel, ok = c.farPointer(o); !ok {
			return
		}
	}
	switch in.OpSize {
	case 16:
		off &= 0xffff
	case 32:
		off &= 0xffffffff
	}
	if in.Op == insn.OpJMPF {
		c.farJump(uint16(sel), off, int(in.OpSize))
	} else {
		c.farCall(uint16(sel), off, int(in.OpSize))
	}
}

// farPointer reads an offset and a selector from memory.
func (c *CPU) farPointer(o *op) (off, sel uint64, ok bool) {
	n := o.inst.OpSize / 8
	a, ok := c.addr(o, int(n)+2, false)
	if !ok {
		return 0, 0, false
	}
	if off, ok = c.load(a, n); !ok {
		return 0, 0, false
	}
	sel, ok = c.load16(a + uint64(n))
	return off, sel, ok
}

// LDS, LES, LSS, LFS, LGS.
func lowerLoadFar(d *decoded, o *op) {
	endBlock(d, o)
	switch d.Op {
	case insn.OpLES:
		o.kind = x86.ES
	case insn.OpLDS:
		o.kind = x86.DS
	case insn.OpLSS:
		o.kind = x86.SS
	case insn.OpLFS:
		o.kind = x86.FS
	case insn.OpLGS:
		o.kind = x86.GS
	}
	o.fn = opLoadFar
}

func opLoadFar(c *CPU, o *op) bool {
	off, sel, ok := c.farPointer(o)
	if ok && c.loadSegment(o.kind, uint16(sel)) {
		c.setReg(o.dst, o.inst.OpSize/8, off)
	}
	return false
}

// lowerMovSystem handles MOV with segment, control and debug registers.
func lowerMovSystem(d *decoded, o *op) {
	a, b := &d.Args[0], &d.Args[1]
	switch {
	case a.Kind == insn.ArgSeg:
		endBlock(d, o)
		o.fn = opMovToSeg
	case b.Kind == insn.ArgSeg:
		o.inst = d
		o.fn = opMovFromSeg
	default:
		endBlock(d, o)
		o.fn = opMovControl
		// Control and debug registers have numbers up to 15.
		if a.Kind == insn.ArgGPR {
			o.src = b.Reg
		} else {
			o.dst = a.Reg
		}
	}
}

func opMovToSeg(c *CPU, o *op) bool {
	c.count(o)
	if v, ok := c.rmv(o, 2); ok {
		c.loadSegment(o.dst, uint16(v))
	}
	return false
}

// opMovFromSeg: memory gets 16 bits, a register the zero-extended selector.
func opMovFromSeg(c *CPU, o *op) bool {
	c.count(o)
	sel := uint64(c.Seg[o.src].Sel)
	if o.flag&flagMem != 0 {
		return c.storeMem(o, 2, sel)
	}
	c.setReg(o.dst, o.size, sel)
	return true
}

func opMovControl(c *CPU, o *op) bool {
	c.count(o)
	a, b := o.inst.Args[0].Kind, o.inst.Args[1].Kind
	var v uint64
	ok := true
	switch {
	case a == insn.ArgCR:
		c.writeCR(o.dst, c.reg(o.src, uint8(o.inst.Args[1].Size/8)))
	case a == insn.ArgDR:
		c.writeDR(o.dst, c.reg(o.src, uint8(o.inst.Args[1].Size/8)))
		c.selectTLB()
	case b == insn.ArgCR:
		v, ok = c.readCR(o.src)
	default:
		v, ok = c.readDR(o.src)
	}
	if a == insn.ArgGPR && ok {
		c.setReg(o.dst, o.size, v)
	}
	return false
}

// lowerPlain handles the instructions that look at system state without
// changing what the run loop depends on; they do not end the block.
func lowerPlain(d *decoded, o *op) {
	o.inst = d
	o.fn = opPlain
}

func opPlain(c *CPU, o *op) bool {
	c.count(o)
	in := &o.inst.Inst
	end := c.RIP
	c.RIP = (end - uint64(o.back) + uint64(o.len)) & c.mode.ipMask
	var ok bool
	switch in.Op {
	case insn.OpCPUID:
		ok = c.cpuidOp()
	case insn.OpRDTSC:
		ok = c.rdtsc()
	case insn.OpRDTSCP:
		ok = c.rdtscp()
	case insn.OpRDPMC:
		ok = c.rdpmc()
	case insn.OpRDPID:
		ok = c.rdpid(o.dst)
	case insn.OpXGETBV:
		ok = c.xgetbv()
	default:
		ok = c.fsgsbase(in.Op, o.dst, int(in.Args[0].Size))
	}
	c.RIP = end
	return ok
}

func lowerXSave(d *decoded, o *op) {
	endBlock(d, o)
	o.fn = opXSave
}

func opXSave(c *CPU, o *op) bool {
	c.count(o)
	// The extent of the operand depends on what is saved, so the segment is
	// checked for its first byte here.
	lin, ok := c.memLin(&o.inst.Inst, 1, false)
	if ok {
		c.xsaveOp(&o.inst.Inst, lin)
	}
	return false
}

// Cache control.

func lowerHint(d *decoded, o *op) {} // nothing to do

var fence atomic.Uint32

// opFence orders stores before later loads, as MFENCE does; any locked
// operation of the host will do.
func opFence(c *CPU, o *op) bool { fence.Add(0); return true }

func lowerFence(d *decoded, o *op) { o.fn = opFence }

// CLFLUSH and CLWB check their operand like a load of one byte.
func lowerTouch(d *decoded, o *op) { o.fn = opTouch }

func opTouch(c *CPU, o *op) bool {
	a, ok := c.addr(o, 1, false)
	if !ok {
		return false
	}
	if p, _ := c.readable(a); p != nil {
		return true
	}
	return c.checkRange(a, 1, 0)
}

func lowerCLZERO(d *decoded, o *op) {
	o.fn = opCLZERO
	o.seg = d.Mem.Seg
}

func opCLZERO(c *CPU, o *op) bool {
	a := c.GPR[x86.RAX] & addrMask(o) &^ 63
	lin, ok := c.segLin(o.seg, a, 64, true)
	if !ok {
		return false
	}
	var zero [64]byte
	return c.writeBytes(lin, zero[:])
}
