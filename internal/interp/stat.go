package interp

import (
	"time"

	"ring3/internal/x86/insn"
)

// Counters are statistics of the interpreter.
type Counters struct {
	Instructions uint64 // executed, a repeated string instruction counting each time it is entered
	Blocks       uint64 // executed
	Steps        uint64 // instructions executed one at a time
	Lookups      uint64 // blocks that the jump cache did not know
	Decoded      uint64 // blocks decoded
	Invalidated  uint64 // blocks dropped because their bytes were written
	CacheFlushes uint64 // times that all blocks were dropped to make room
	SlowLoads    uint64 // accesses that the TLB did not know
	SlowStores   uint64
	MMIO         uint64 // device accesses
	Flushes      uint64 // TLB flushes
	Faults       uint64 // exceptions delivered

	// Privileged counts system instructions by mnemonic.
	Privileged [insn.NumOps]Cost
}

// Cost is a count, and the time that it took in all where CPU.Timed is set.
type Cost struct {
	Count uint64
	Time  time.Duration
}

// Counters returns the statistics; they change while the CPU runs.
func (c *CPU) Counters() *Counters { return &c.stat }
