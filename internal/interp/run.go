package interp

import (
	"ring3/internal/x86"
	"ring3/internal/x86/insn"
)

// enter takes over the state, which may have been changed from outside.
func (c *CPU) enter() {
	c.active = true
	c.setFlags(c.RFLAGS)
	c.modeChanged()
	c.single = c.needStep()
}

// exit leaves the complete state behind.
func (c *CPU) exit() {
	c.RFLAGS = c.flags()
	c.active = false
	c.cur = nil
}

// Run executes guest code from the current state until something must be
// looked at, or for about budget instructions.
func (c *CPU) Run(budget int) Exit {
	c.enter()
	e, stop := c.look()
	for !stop {
		if budget <= 0 {
			e = ExitBudget
			break
		}
		if c.kick.Load() {
			c.kick.Store(false)
			e = ExitKick
			break
		}
		if c.single {
			budget--
			c.step()
			e, stop = c.look()
			continue
		}
		b := c.lookup()
		if b == nil {
			budget--
			e, stop = c.look()
			continue
		}
		budget -= int(b.n)
		if !c.runBlock(b) {
			e, stop = c.look()
		}
	}
	c.exit()
	return e
}

// runBlock executes b; false: something happened that look must see.
func (c *CPU) runBlock(b *block) bool {
	c.RIP = (c.RIP + b.len) & c.mode.ipMask
	c.cur = b
	c.stat.Blocks++
	c.stat.Instructions += uint64(b.n)
	ops := b.ops
	for i := range ops {
		o := &ops[i]
		if !o.fn(c, o) {
			return c.leave(o, len(ops)-1-i)
		}
	}
	return true
}

// leave deals with a handler that returned false, with rest ops left to do.
func (c *CPU) leave(o *op, rest int) bool {
	c.stat.Instructions -= uint64(rest)
	if c.fault.pending {
		c.RIP = (c.RIP - uint64(o.back)) & c.mode.ipMask
		if c.fault.nonCan && o.seg == x86.SS {
			c.fault.vector = x86.VecSS
		}
		c.deliverFault()
	} else if c.left {
		c.left = false
		c.stat.Instructions--
		return true
	}
	return false
}

// deliverFault delivers the pending fault through the IDT.
func (c *CPU) deliverFault() {
	f := c.fault
	c.fault = fault{}
	c.stat.Faults++
	if f.vector == x86.VecPF {
		c.CR2 = f.cr2
	}
	c.deliver(f.vector, f.hasErr, f.err, eventFault)
}

// look finds out whether the run is over. It runs after every instruction that
// may have changed system state.
func (c *CPU) look() (e Exit, stop bool) {
	switch {
	case c.shutdown:
		return ExitShutdown, true
	case c.Halted:
		return ExitHalt, true
	case c.StopAtUser && c.CPL == 3:
		return ExitUser, true
	case c.WantWindow && c.RFLAGS&x86.FlagIF != 0 && !c.InterruptShadow:
		return ExitKick, true
	}
	single := c.needStep()
	if single != c.single {
		c.single = single
		c.selectTLB()
	}
	return 0, false
}

// Shutdown reports a triple fault since RESET# or INIT.
func (c *CPU) Shutdown() bool { return c.shutdown }

// Step executes exactly one instruction, exceptions and traps included. The
// exit is ExitBudget unless the instruction halted or shut down the CPU.
func (c *CPU) Step() Exit {
	c.enter()
	c.step()
	c.exit()
	switch {
	case c.shutdown:
		return ExitShutdown
	case c.Halted:
		return ExitHalt
	}
	return ExitBudget
}

// step executes one instruction with all the checks that blocks leave out.
func (c *CPU) step() {
	trap := c.RFLAGS&x86.FlagTF != 0
	if c.DR[7]&dr7Enabled != 0 && c.RFLAGS&x86.FlagRF == 0 {
		if hits := c.dbg.fetch(c, c.RIP+c.mode.csBase); hits != 0 {
			c.DR[6] = c.DR[6]&^0xf | hits
			c.raise(x86.VecDB, 0)
			c.deliverFault()
			return
		}
	}
	c.RFLAGS &^= x86.FlagRF
	c.InterruptShadow = false
	b := c.buildOne()
	if b == nil {
		return
	}
	c.dbg.hits = 0
	c.oneRound = trap || c.DR[7]&dr7Enabled != 0
	o := &b.ops[0]
	c.RIP = (c.RIP + b.len) & c.mode.ipMask
	c.cur = b
	c.stat.Instructions++
	c.stat.Steps++
	vectors := c.stat.Faults
	ok := o.fn(c, o)
	c.oneRound = false
	if !ok {
		c.leave(o, 0)
	}
	if vectors != c.stat.Faults {
		return // a fault is not followed by the traps of its instruction
	}
	if trap && noTrap(c, o) {
		trap = false
	}
	if trap || c.dbg.hits != 0 {
		if trap {
			c.dbg.hits |= dr6BS
		}
		c.DR[6] = c.DR[6]&^0xf | c.dbg.hits
		c.deliver(x86.VecDB, false, 0, eventTrap)
	}
}

// noTrap reports whether o suppresses the single-step trap: loads of SS, whose
// shadow covers it, and transfers that clear TF (SDM vol. 3B, section 18.3.1.4).
func noTrap(c *CPU, o *op) bool {
	if o.inst == nil {
		return false
	}
	switch o.inst.Op {
	case insn.OpMOV, insn.OpPOP, insn.OpLSS:
		return c.InterruptShadow
	case insn.OpINT, insn.OpINT3, insn.OpINT1, insn.OpINTO:
		return true
	case insn.OpSYSCALL, insn.OpSYSENTER:
		return c.RFLAGS&x86.FlagTF == 0
	}
	return false
}

// Inject delivers an exception that direct execution met. RIP is that of the
// instruction, or behind it for the traps #DB, #BP and #OF.
func (c *CPU) Inject(vec uint8, hasErr bool, err uint32, cr2 uint64) Exit {
	c.enter()
	kind := eventFault
	switch vec {
	case x86.VecPF:
		c.CR2 = cr2
	case x86.VecDB:
		kind = eventTrap
		c.DR[6] |= dr6BS
	case x86.VecBP, x86.VecOF:
		kind = eventSoft
	}
	c.stat.Faults++
	c.deliver(vec, hasErr, err, kind)
	c.exit()
	if c.shutdown {
		return ExitShutdown
	}
	return ExitBudget
}
