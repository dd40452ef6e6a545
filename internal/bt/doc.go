// Package bt translates guest kernel code, which runs at CPL 0 in the upper
// half of the address space, to code that a host process runs at CPL 3 in the
// lower half. It is a pure function of bytes: no processes, no memory.
//
// # Folding
//
// A guest address G lies at the host address G + Delta (modulo 2^64). Memory
// operands get a GS prefix, GS.base being Delta; the guest's own GS becomes
// FS, whose base is the guest's plus Delta; RSP holds the folded address and
// needs no prefix. RIP-relative operands become absolute ones.
//
// # Exactness
//
// Nothing emitted changes a flag that the guest instruction does not. A block
// has marks: from a mark's offset to the next, the guest's state is the host's
// (RSP unfolded), at the mark's RIP, but for registers that Mark.Saved says
// lie in the control page, and for registers that the guest instruction is
// about to overwrite without reading them. So a signal at any host address
// can be turned into a guest state at an instruction boundary.
//
// # Exits
//
// What is not translated ends a block with an exit: a word in the control page
// says which, and the stub's exit routine saves the registers. Exits to a known
// target are jumps that the user of the package patches to the target's block.
//
// # RFLAGS.AC
//
// The host's AC is always clear. The guest's is a static context of a block:
// STAC and CLAC end it and go on in the other one. Key is an address and a
// context in one word. With AC set, memory operands may be user memory, which
// code finds through the user TLB; see user.go.
package bt

// Delta is GS.base: what folding adds. It is 2^47 less 2^43 - 2^36, so that
// the first address that Linux uses in the upper half, 2^43 above its start,
// comes to lie at 2^36.
const Delta = 1<<47 - 1<<43 + 1<<36

// Lowest is the lowest guest address that folds to a place where a process can
// have memory, the first Low bytes of host addresses being the stub's own.
const (
	Low    = 1 << 36
	Lowest = 1<<64 - Delta + Low
)

// Fold and Unfold convert addresses.
func Fold(g uint64) uint64   { return g + Delta }
func Unfold(h uint64) uint64 { return h - Delta }

// Key is an address in the upper half and a context in one word, that of the
// jump table: with AC, 2^62 less, which is where no canonical address lies.
func Key(rip uint64, ac bool) uint64 {
	if ac {
		return rip - 1<<62
	}
	return rip
}

// Host is where the emitted code finds things. All addresses are below 2 GiB.
type Host struct {
	ExitID  uint32 // word that says which exit was taken
	Scratch uint32 // eight quadwords
	Exit    uint64 // the stub's exit routine
	Sysret  uint64 // the stub's routine for SYSRET, which may use the exit
	Iret    uint64 // and for IRET, which finds its frame in Frame
	Frame   uint32 // five quadwords
	SetCR3  uint64 // and for MOV to CR3: value and continuation are in words
	SaveX   uint64 // for XSAVE: the state is in the registers then; continuation as for SetCR3
	CheckX  uint64 // before XRSTOR
	LoadX   uint64 // and behind it
	Invlpg  uint64 // for INVLPG, like MOV to CR3
	// For misses of the user TLB: the address is in a word, and it goes on at the
	// continuation, or uses the exit.
	UserMissRead, UserMissWrite uint64

	IF       uint32 // quadword: 0 when RFLAGS.IF is set, else -FlagIF
	Want     uint32 // quadword: not 0 when an interrupt waits for IF
	Mask     uint32 // two quadwords, IndexMasks
	PopMask  uint32 // quadword PopMask
	IFMask   uint32 // quadword FlagIF
	Upper    uint32 // quadword 1<<63
	CR       uint32 // quadwords: CR0 to CR4
	Sel      uint32 // doublewords: selectors, in register-number order
	FS       uint32 // quadword: base of the guest's FS
	GS       uint32 // and of GS; the host's FS.base is this one folded
	Kernel   uint32 // quadword: IA32_KERNEL_GS_BASE
	TSCAux   uint32 // doubleword: IA32_TSC_AUX
	Jumps    uint32 // jump table: TableSize negated guest addresses, each with the host address behind it
	Lookup   uint64 // the routine of package function Lookup
	LookupAC uint64 // and of LookupAC

	// The user TLB: see user.go. UserTLB is false when there is none.
	UserTLB   bool
	UserRead  uint32 // UserTLBSize tags for reading
	UserWrite uint32 // and for writing
	UserDelta uint32 // and host address less guest address
	UserIndex uint32 // quadword UserIndex
	UserSalt  uint32 // quadword that is part of all tags
	UserPage  uint32 // quadword UserPage
	DFMask    uint32 // quadword FlagDF
	Room      uint32 // quadwords Room

	FSGSBase bool // CR4.FSGSBASE: RDFSBASE and its like are allowed
	SMAP     bool // CR4.SMAP: STAC and CLAC are allowed
}

// Saved tells which registers lie elsewhere at a mark.
type Saved uint8

// Values of Mark.Saved.
const (
	None      Saved = iota
	RCX             // RCX is in Scratch[0]
	RDXFold         // RDX is in Scratch[0], RDI is folded
	RDXBoth         // the same, and RSI is folded
	Target          // RCX is in Scratch[0]; RIP is in RCX
	TargetIn        // RCX, RDX are in Scratch[0] and [1], RIP in Scratch[2]
	RDX             // RDX is in Scratch[0]
	Two             // RCX and RDX are in Scratch[0] and [1]
	TwoPush         // the same, and RSP is 8 too low
	TwoRSP          // the same as Two, and RCX is the guest's RSP
	TwoIF           // the same as Two, and RCX is to be the word at Host.IF
	TwoGS           // the same as Two, and RCX is to be the word at Host.GS
	Words           // Mark.In says it
	WordsCX         // the same, and RCX is too low by Scratch[4]
	WordsDI         // the same as WordsCX, and RDI is too high by Scratch[5]
	WordsBoth       // the same as WordsDI, and RSI is too high by Scratch[6]
)

// Mark says what the guest state is from an offset in a block on.
type Mark struct {
	RIP   uint64
	Off   uint16 // less than MaxCode; there are hundreds of thousands of marks
	Saved Saved
	// With Words and its like: register In[i]-1 is in Scratch[i], unless 0.
	In [4]uint8
}

// ExitKind says what an exit wants.
type ExitKind uint8

// Exit kinds.
const (
	ExitChain     ExitKind = iota // go on at RIP; Patch may be made a jump there
	ExitStep                      // the instruction at RIP must be interpreted
	ExitVector                    // the same, and it computes with extended state: more will follow
	ExitUser                      // the instruction at RIP wants to read at Scratch[4], which the user TLB lacks
	ExitUserWrite                 // the same, to write
	ExitWindow                    // the instruction at RIP opens the window that an interrupt waits for: interpret it
	ExitKinds                     // how many there are
)

// Exit is one way out of a block.
type Exit struct {
	Kind  ExitKind
	AC    bool // the context at RIP
	RIP   uint64
	Patch uint32 // offset of the displacement of a jump
	Stub  uint32 // offset of the code that it jumps to unless patched
}

// Block is a translation.
type Block struct {
	RIP   uint64
	AC    bool   // the context
	Len   uint64 // bytes of guest code
	N     int    // instructions translated
	Code  []byte
	Marks []Mark
	Exits []Exit
}

// At is the mark that holds at an offset of the code.
func (b *Block) At(off uint32) Mark {
	lo, hi := 0, len(b.Marks)
	for lo+1 < hi {
		if m := (lo + hi) / 2; uint32(b.Marks[m].Off) <= off {
			lo = m
		} else {
			hi = m
		}
	}
	return b.Marks[lo]
}
