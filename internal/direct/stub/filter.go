package stub

import (
	"golang.org/x/net/bpf"
	"golang.org/x/sys/unix"
)

// Secrets make system calls of the stub's own call list possible. Guest code
// can jump to the stub's system-call instructions with registers of its
// choice; what it cannot know are these numbers, which the kernel ignores and
// the filter compares. They are in stub memory only while a command runs.
type Secrets struct {
	// Mmap is the upper halves of prot, flags and fd.
	Mmap [3]uint32
	// Args are the fifth and sixth argument of all other calls but clone.
	Args [2]uint64
	// Compat are the second to sixth argument of the 32-bit call.
	Compat [5]uint32
	// Page and Drop are for the calls of the hand-over page: Page is like Mmap,
	// Drop like Args.
	Page [3]uint32
	Drop [2]uint64
	// Clone are those of clone; only ever shown to a zygote, which never runs
	// guest code.
	Clone [2]uint64
}

// Offsets in struct seccomp_data (include/uapi/linux/seccomp.h).
const (
	dataNr   = 0
	dataArch = 4
	dataIP   = 8
	dataArgs = 16
)

// Actions.
const (
	retTrap  = 0x00030000
	retAllow = 0x7fff0000
)

// ABIs (include/uapi/linux/audit.h).
const (
	auditArchX8664 = 0xc000003e
	auditArchI386  = 0x40000003
)

// sysSetThreadArea32 exists in the 32-bit ABI only.
const sysSetThreadArea32 = 243

// word is a 32-bit load and what must be found there.
type word struct {
	off  uint32
	val  uint32
	cond condition
}

// condition is how the loaded value compares.
type condition uint8

const (
	equal condition = iota
	atMost
	differs
	// atMostPages: the quadword at off, without its low 12 bits, is at most val
	// pages.
	atMostPages
)

// rule allows one system call at one instruction when all words match.
type rule struct {
	site  uint64
	arch  uint32
	nr    uint32
	words []word
}

func argLo(i int, v uint32) word { return word{off: dataArgs + uint32(8*i), val: v} }
func argHi(i int, v uint32) word { return word{off: dataArgs + uint32(8*i) + 4, val: v} }
func argMax(i int, v uint32) word {
	return word{off: dataArgs + uint32(8*i), val: v, cond: atMost}
}

func arg(i int, v uint64) []word { return []word{argLo(i, uint32(v)), argHi(i, uint32(v>>32))} }

// rules is the complete list of what a stub may do. ram is the size of guest
// memory in bytes.
func rules(p *Program, s *Secrets, ram uint64) []rule {
	secret := func(v [2]uint64, more ...word) []word {
		return append(append(arg(4, v[0]), arg(5, v[1])...), more...)
	}
	control := p.Base + ControlOff
	mmap := []word{
		argHi(2, s.Mmap[0]), argHi(3, s.Mmap[1]), argHi(4, s.Mmap[2]),
		argMax(2, unix.PROT_READ|unix.PROT_WRITE|unix.PROT_EXEC),
		argLo(3, unix.MAP_SHARED|unix.MAP_FIXED),
		argMax(4, FDCode),
	}
	var compat []word
	for i, v := range s.Compat {
		compat = append(compat, argLo(i+1, v))
	}
	// One page outside the stub's own 4 GiB.
	page := append(arg(1, PageSize), word{off: dataArgs + 4, val: uint32(p.Base >> 32), cond: differs})
	mapPage := append([]word{
		argHi(2, s.Page[0]), argHi(3, s.Page[1]), argHi(4, s.Page[2]),
		argMax(2, unix.PROT_READ|unix.PROT_WRITE),
		argLo(3, unix.MAP_SHARED|unix.MAP_FIXED|unix.MAP_POPULATE),
		argLo(4, FDRAM),
		{off: dataArgs + 8*5, val: uint32(ram/PageSize) - 1, cond: atMostPages},
	}, page...)
	dropPage := append(append(arg(4, s.Drop[0]), arg(5, s.Drop[1])...), page...)
	const x64 = auditArchX8664
	list := []rule{
		{p.SiteWait, x64, unix.SYS_FUTEX, append(arg(0, control+oCmd), argLo(1, futexWait))},
		{p.SiteWake, x64, unix.SYS_FUTEX, append(arg(0, control+oState), argLo(1, futexWake))},
		{p.SiteProof, x64, unix.SYS_WRITE, append(arg(1, p.One), argLo(0, FDProof), argLo(2, 8), argHi(2, 0))},
		{p.SiteCalls, x64, unix.SYS_MMAP, mmap},
		{p.SiteCalls, x64, unix.SYS_MUNMAP, secret(s.Args)},
		{p.SiteCalls, x64, unix.SYS_MPROTECT, secret(s.Args)},
		{p.SiteCalls, x64, unix.SYS_PRCTL, secret(s.Args, argLo(0, unix.PR_SET_PDEATHSIG), argLo(1, uint32(unix.SIGKILL)))},
		{p.SiteCalls, x64, unix.SYS_GETPPID, secret(s.Args)},
		{p.SiteCalls, x64, unix.SYS_DUP2, secret(s.Args)},
		{p.SiteCalls, x64, unix.SYS_CLOSE_RANGE, secret(s.Args)},
		{p.SiteCompat, auditArchI386, sysSetThreadArea32, compat},
		{p.SiteClone, x64, unix.SYS_CLONE, secret(s.Clone)},
		{p.SiteExit, x64, unix.SYS_EXIT_GROUP, nil},
		{p.SiteHand, x64, unix.SYS_MMAP, mapPage},
		{p.SiteHand, x64, unix.SYS_MUNMAP, dropPage},
		{p.SiteListens, x64, unix.SYS_READ, append(arg(1, control+oProofs), argLo(0, FDListens), argLo(2, 8), argHi(2, 0))},
	}
	for _, site := range p.SitesProve {
		list = append(list, rule{site, x64, unix.SYS_WRITE, append(arg(1, p.One), argLo(0, FDListens), argLo(2, 8), argHi(2, 0))})
	}
	for _, b := range p.Bells {
		list = append(list, rule{b.Site, x64, unix.SYS_FUTEX, append(arg(0, p.Base+b.Off), argLo(1, b.Op))})
	}
	return list
}

// Filter is the seccomp program of a stub. A guest's own system call costs it
// two loads: its address is not in the stub's 4 GiB. (seccomp_data gives the
// address behind the system-call instruction; that is what Program's sites
// are.)
func Filter(p *Program, s *Secrets, ram uint64) ([]bpf.RawInstruction, error) {
	eq := func(off, val uint32) []bpf.Instruction {
		return []bpf.Instruction{
			bpf.LoadAbsolute{Off: off, Size: 4},
			bpf.JumpIf{Cond: bpf.JumpEqual, Val: val, SkipTrue: 1},
			bpf.RetConstant{Val: retTrap},
		}
	}
	prog := eq(dataIP+4, uint32(p.Base>>32))
	for _, r := range rules(p, s, ram) {
		body := eq(dataArch, r.arch)
		for _, w := range r.words {
			c := eq(w.off, w.val)
			switch w.cond {
			case atMost:
				c[1] = bpf.JumpIf{Cond: bpf.JumpLessOrEqual, Val: w.val, SkipTrue: 1}
			case differs:
				c[1] = bpf.JumpIf{Cond: bpf.JumpNotEqual, Val: w.val, SkipTrue: 1}
			case atMostPages:
				c = []bpf.Instruction{
					bpf.LoadAbsolute{Off: w.off + 4, Size: 4},
					bpf.JumpIf{Cond: bpf.JumpLessThan, Val: 1 << 12, SkipTrue: 1},
					bpf.RetConstant{Val: retTrap},
					bpf.ALUOpConstant{Op: bpf.ALUOpShiftLeft, Val: 20},
					bpf.TAX{},
					bpf.LoadAbsolute{Off: w.off, Size: 4},
					bpf.ALUOpConstant{Op: bpf.ALUOpShiftRight, Val: 12},
					bpf.ALUOpX{Op: bpf.ALUOpOr},
					bpf.JumpIf{Cond: bpf.JumpLessOrEqual, Val: w.val, SkipTrue: 1},
					bpf.RetConstant{Val: retTrap},
				}
			}
			body = append(body, c...)
		}
		body = append(body, bpf.RetConstant{Val: retAllow})
		skip := uint8(len(body))
		prog = append(prog,
			bpf.LoadAbsolute{Off: dataIP, Size: 4},
			bpf.JumpIf{Cond: bpf.JumpNotEqual, Val: uint32(r.site), SkipTrue: skip + 2},
			bpf.LoadAbsolute{Off: dataNr, Size: 4},
			bpf.JumpIf{Cond: bpf.JumpNotEqual, Val: r.nr, SkipTrue: skip})
		prog = append(prog, body...)
	}
	prog = append(prog, bpf.RetConstant{Val: retTrap})
	return bpf.Assemble(prog)
}
