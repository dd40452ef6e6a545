package interp

import "ring3/internal/x86/insn"

// Signatures that the files of this package are written against; the bodies
// follow in their own files.

type (
	lazyFlags  struct{}
	tlb        struct{}
	cache      struct{}
	modeInfo   struct{}
	debugState struct{}
	// Counters are statistics of the interpreter.
	Counters struct{}
)

func (t *tlb) reset()  {}
func (t *cache) init() {}

func hasErrorCode(vec uint8) bool { return false }

func (c *CPU) readLin(addr uint64, size int) (v uint64, ok bool) { return 0, false }
func (c *CPU) writeLin(addr uint64, size int, v uint64) bool     { return false }
func (c *CPU) readSys(addr uint64, size int) (v uint64, ok bool) { return 0, false }
func (c *CPU) writeSys(addr uint64, size int, v uint64) bool     { return false }
func (c *CPU) readBytes(addr uint64, p []byte) bool              { return false }
func (c *CPU) writeBytes(addr uint64, p []byte) bool             { return false }
func (c *CPU) segLin(seg uint8, off uint64, size int, write bool) (lin uint64, ok bool) {
	return 0, false
}
func (c *CPU) push(v uint64, size int) bool { return false }
func (c *CPU) pop(size int) (uint64, bool)  { return 0, false }
func (c *CPU) flags() uint64                { return 0 }
func (c *CPU) setFlags(v uint64)            {}
func (c *CPU) flushTLB(f Flush)             {}
func (c *CPU) modeChanged()                 {}

// memLin is the linear address of the memory operand of inst after the checks
// of segLin. RIP must be that of the next instruction.
func (c *CPU) memLin(inst *insn.Inst, size int, write bool) (lin uint64, ok bool) {
	return 0, false
}

// Run executes about budget instructions.
func (c *CPU) Run(budget int) Exit { return ExitBudget }

// Step executes one instruction.
func (c *CPU) Step() Exit { return ExitBudget }

// Inject delivers an exception that direct execution met.
func (c *CPU) Inject(vec uint8, hasErr bool, err uint32, cr2 uint64) Exit { return ExitBudget }

// Counters returns the statistics.
func (c *CPU) Counters() *Counters { return &c.stat }

func (c *CPU) DropCode(gpa uint64, n int) (left bool) { return false }
func (c *CPU) PageBecameCode(gpa uint64)              {}
func (c *CPU) RevokeStubWrite(gpa uint64)             {}
