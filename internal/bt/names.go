package bt

import "fmt"

// Words for listings of blocks.

var savedNames = [...]string{
	None:      "",
	RCX:       "RCX in Scratch[0]",
	RDXFold:   "RDX in Scratch[0], RDI folded",
	RDXBoth:   "RDX in Scratch[0], RDI and RSI folded",
	Target:    "RCX in Scratch[0], RIP in RCX",
	TargetIn:  "RCX, RDX in Scratch[0..1], RIP in Scratch[2]",
	RDX:       "RDX in Scratch[0]",
	Two:       "RCX, RDX in Scratch[0..1]",
	TwoPush:   "RCX, RDX in Scratch[0..1], RSP 8 too low",
	TwoRSP:    "RCX, RDX in Scratch[0..1], RSP in RCX",
	TwoIF:     "RCX, RDX in Scratch[0..1], IF in RCX",
	TwoGS:     "RCX, RDX in Scratch[0..1], GS base in RCX",
	Words:     "registers in Scratch",
	WordsCX:   "registers in Scratch, RCX less Scratch[4]",
	WordsDI:   "the same, RDI plus Scratch[5]",
	WordsBoth: "the same, RSI plus Scratch[6]",
}

func (s Saved) String() string { return savedNames[s] }

var exitNames = [...]string{
	ExitChain:     "go on",
	ExitStep:      "interpret",
	ExitVector:    "interpret, extended state",
	ExitUser:      "look up user memory to read",
	ExitUserWrite: "look up user memory to write",
	ExitWindow:    "interpret, an interrupt waits",
}

func (k ExitKind) String() string { return exitNames[k] }

// Name is what the emitted code has at a host address, "" for nothing.
func (h *Host) Name(addr uint64) string {
	switch addr {
	case h.Exit:
		return "exit routine"
	case h.Sysret:
		return "SYSRET routine"
	case h.Iret:
		return "IRET routine"
	case h.SetCR3:
		return "CR3 routine"
	case h.SaveX:
		return "XSAVE routine"
	case h.UserMissRead, h.UserMissWrite:
		return "user TLB routine"
	case h.Invlpg:
		return "INVLPG routine"
	case h.CheckX, h.LoadX:
		return "XRSTOR routine"
	case h.Lookup:
		return "Lookup"
	case h.LookupAC:
		return "LookupAC"
	}
	for _, w := range []struct {
		at    uint32
		n     uint64 // elements
		size  uint64 // bytes of each
		table bool   // the index is in a register
		name  string
	}{
		{h.ExitID, 1, 4, false, "ExitID"},
		{h.Scratch, 8, 8, false, "Scratch"},
		{h.Frame, 5, 8, false, "Frame"},
		{h.IF, 1, 8, false, "IF"},
		{h.Want, 1, 8, false, "Want"},
		{h.Mask, 2, 8, false, "Mask"},
		{h.PopMask, 1, 8, false, "PopMask"},
		{h.IFMask, 1, 8, false, "IFMask"},
		{h.Upper, 1, 8, false, "Upper"},
		{h.CR, 5, 8, false, "CR"},
		{h.Sel, 6, 4, false, "Sel"},
		{h.FS, 1, 8, false, "FS"},
		{h.GS, 1, 8, false, "GS"},
		{h.Kernel, 1, 8, false, "Kernel"},
		{h.TSCAux, 1, 4, false, "TSCAux"},
		{h.Jumps, 2 * TableSize, 8, true, "Jumps"},
		{h.UserRead, UserTLBSize, 8, true, "UserRead"},
		{h.UserWrite, UserTLBSize, 8, true, "UserWrite"},
		{h.UserDelta, UserTLBSize, 8, true, "UserDelta"},
		{h.UserIndex, 1, 8, false, "UserIndex"},
		{h.UserPage, 1, 8, false, "UserPage"},
		{h.DFMask, 1, 8, false, "DFMask"},
		{h.Room, 4, 8, false, "Room"},
	} {
		off := addr - uint64(w.at)
		switch {
		case off >= w.n*w.size:
		case w.n == 1 || w.table:
			return w.name
		default:
			return fmt.Sprintf("%s[%d]", w.name, off/w.size)
		}
	}
	return ""
}
