package direct

import (
	"bytes"

	"ring3/internal/x86"
	"ring3/internal/x86/insn"
)

// The scanner looks for instructions that user mode executes without a trap
// and that answer for the host instead of the virtual CPU. Most pages contain
// no byte pair that could be one, and are done. In the others each candidate
// is judged:
//
//   - Recursive descent from where the guest enters the page: follow
//     fall-through and direct branches. What is reached that way is code for
//     certain, and tells whether the candidate is an instruction or lies
//     within one.
//   - What the descent does not reach is put to the vote. Decoding from many
//     places before it falls into step within a few instructions; if nearly
//     all agree that an instruction starts at the candidate, and everything
//     around it looks like code, it is one.
//
// A wrong yes in data would change what the guest reads only when it executes
// the page; loads come from the same private copy, though, so the vote is
// strict. A wrong no lets the guest see the host's answer.

// codeBytes is a page and the first bytes of the next one, as the processor
// would fetch them.
type codeBytes struct {
	b    []byte // PageSize bytes, and up to MaxLen-1 more
	mode insn.Mode
}

// opMask are the second opcode bytes (after 0F) of sensitive instructions:
// 00 SLDT STR VERR VERW, 01 SGDT SIDT SMSW RDTSCP RDPKRU WRPKRU, 02 LAR,
// 03 LSL, 05 SYSCALL (32-bit), 34 SYSENTER, A2 CPUID, C7 RDPID.
var opMask = [256]bool{0x00: true, 0x01: true, 0x02: true, 0x03: true, 0x05: true, 0x34: true, 0xa2: true, 0xc7: true}

// maxPrefixes is how many bytes before its 0F a sensitive instruction is
// thought to start at most: F3 and REX, or a few useless ones.
const maxPrefixes = 4

// candidates appends the offsets of all 0F bytes that could belong to the
// opcode of a sensitive instruction. The last few are in the next page: such
// an instruction may start in this one.
func (c *codeBytes) candidates(list []uint16) []uint16 {
	end := min(x86.PageSize+maxPrefixes, len(c.b))
	for i := 0; i < end; i++ {
		n := bytes.IndexByte(c.b[i:end], 0x0f)
		if n < 0 {
			break
		}
		i += n
		if i+1 >= len(c.b) {
			break
		}
		if op := c.b[i+1]; opMask[op] && c.candidate(i, op) {
			list = append(list, uint16(i))
		}
	}
	return list
}

// open reports whether the page ends with what may be the start of a
// sensitive instruction: 0F or a prefix.
func (c *codeBytes) open() bool {
	switch b := c.b[x86.PageSize-1]; b {
	case 0x0f, 0xf2, 0xf3, 0x66, 0x67, 0x26, 0x2e, 0x36, 0x3e, 0x64, 0x65:
		return true
	default:
		return b&0xf0 == 0x40 && c.mode == insn.Mode64
	}
}

func (c *codeBytes) candidate(i int, op byte) bool {
	if op == 0x05 {
		return c.mode != insn.Mode64 // in 64-bit mode seccomp sees it
	}
	if op > 3 && op != 0xc7 {
		return true
	}
	if i+2 >= len(c.b) {
		return true
	}
	modrm := c.b[i+2]
	switch reg := modrm >> 3 & 7; op {
	case 0x00:
		return reg == 0 || reg == 1 || reg == 4 || reg == 5
	case 0x01:
		if modrm >= 0xc0 {
			// RDPKRU, WRPKRU, RDTSCP, SMSW to a register.
			return modrm == 0xee || modrm == 0xef || modrm == 0xf9 || reg == 4
		}
		return reg == 0 || reg == 1 || reg == 4
	case 0xc7:
		// RDPID needs F3, with at most a REX prefix between (other prefixes
		// are possible; nobody writes them).
		return modrm >= 0xf8 && (i == 0 || i >= 1 && c.b[i-1] == 0xf3 || i >= 2 && c.b[i-2] == 0xf3)
	}
	return true
}

// sensitive reports whether an instruction must be patched.
func (c *codeBytes) sensitive(in *insn.Inst) bool {
	switch in.Op {
	case insn.OpCPUID, insn.OpRDPID, insn.OpRDTSCP, insn.OpLSL, insn.OpLAR, insn.OpVERR, insn.OpVERW,
		insn.OpSGDT, insn.OpSIDT, insn.OpSLDT, insn.OpSTR, insn.OpSMSW, insn.OpRDPKRU, insn.OpWRPKRU,
		insn.OpSYSENTER:
		return true
	case insn.OpSYSCALL:
		return c.mode != insn.Mode64
	}
	return false
}

// decode decodes the instruction at offset i.
func (c *codeBytes) decode(i int, in *insn.Inst) error {
	return insn.Decode(c.b[i:min(i+insn.MaxLen, len(c.b))], c.mode, in)
}

// plausible reports whether compiled user code contains such an instruction.
func (c *codeBytes) plausible(i int, in *insn.Inst) bool {
	switch {
	case in.Len == 2 && c.b[i] == 0 && c.b[i+1] == 0: // add [rax], al: zeros
		return false
	case in.Enc.Class == insn.Privileged:
		return in.Op == insn.OpHLT // behind a call that does not return
	case in.Enc.Class == insn.Undefined:
		return in.Op == insn.OpUD2
	case in.Enc.Group == insn.GroupSystem:
		switch in.Op {
		case insn.OpSYSCALL, insn.OpRDTSC, insn.OpINT3, insn.OpINT:
			return true
		}
		return c.sensitive(in)
	}
	return true
}

// descend marks the instruction starts that can be reached from offset entry
// without leaving the page.
func (c *codeBytes) descend(starts *[x86.PageSize / 64]uint64, entry int) {
	work := []int{entry}
	var in insn.Inst
	for len(work) > 0 {
		i := work[len(work)-1]
		work = work[:len(work)-1]
		for i >= 0 && i < x86.PageSize && starts[i/64]>>(i%64)&1 == 0 {
			if c.decode(i, &in) != nil {
				break
			}
			starts[i/64] |= 1 << (i % 64)
			next := i + int(in.Len)
			if in.Enc.Class == insn.Branch && in.NArg == 1 && in.Args[0].Kind == insn.ArgRel {
				if t := next + int(in.Imm); t >= 0 && t < x86.PageSize {
					work = append(work, t)
				}
			}
			switch in.Op {
			case insn.OpJMP, insn.OpRET, insn.OpRETF, insn.OpIRET, insn.OpJMPF, insn.OpUD2, insn.OpHLT:
				i = -1
			default:
				i = next
			}
		}
	}
}

// verdict of a candidate.
type verdict uint8

const (
	unknown verdict = iota
	no
	yes
)

// certain judges the candidate at offset i by the instruction starts known:
// start is where the sensitive instruction starts.
func (c *codeBytes) certain(starts *[x86.PageSize / 64]uint64, i int) (v verdict, start int) {
	var in insn.Inst
	for s := min(i, x86.PageSize-1); s >= 0 && s > i-insn.MaxLen; s-- {
		if starts[s/64]>>(s%64)&1 == 0 {
			continue
		}
		if c.decode(s, &in) != nil || s+int(in.Len) <= i {
			return unknown, 0 // the nearest known start ends before
		}
		if c.isCandidate(&in, s, i) {
			return yes, s
		}
		return no, 0
	}
	return unknown, 0
}

// isCandidate reports whether in, at offset s, is sensitive with its opcode
// at offset i.
func (c *codeBytes) isCandidate(in *insn.Inst, s, i int) bool {
	if !c.sensitive(in) || i >= s+int(in.Len) {
		return false
	}
	off := s + int(in.OpcodeOff)
	return i == off || i == off+1 && in.Rex != 0
}

// How the vote is taken: from voteStarts places, the first voteSpan bytes
// before the candidate; at least 3/4 must agree, and voteAfter instructions
// behind the candidate must be plausible.
const (
	voteSpan   = 96
	voteStarts = 32
	voteAfter  = 6
)

// vote judges a candidate that no descent has reached. before are the bytes
// in front of the page, as far as they are known.
func (c *codeBytes) vote(i int, before []byte) (start int, ok bool) {
	if i < voteSpan {
		// The vote takes place on a text with the end of the page before.
		before = before[max(0, len(before)-voteSpan):]
		if len(before)+i < voteSpan/2 {
			return 0, false // too short to fall into step
		}
		v := codeBytes{b: append(append([]byte{}, before...), c.b[:min(len(c.b), 2*voteSpan+i)]...), mode: c.mode}
		at, ok := v.poll(i + len(before))
		return at - len(before), ok && at >= len(before)
	}
	return c.poll(i)
}

// poll takes the vote on the candidate at offset i of the text.
func (c *codeBytes) poll(i int) (start int, ok bool) {
	lo := max(0, i-voteSpan)
	hi := min(lo+voteStarts, i+1)
	tally := map[int]int{}
	voters := 0
	var in insn.Inst
	for s := lo; s < hi; s++ {
		at, good := s, true
		for at < i && good {
			switch err := c.decode(at, &in); {
			case err != nil:
				good = false
			case at+int(in.Len) > i:
				// Spans the candidate: decides below.
			case i-at < voteSpan-voteStarts && !c.plausible(at, &in):
				// Before it is in step, a start sees nonsense; near the
				// candidate it must not.
				good = false
			}
			if good && at+int(in.Len) > i {
				break
			}
			at += int(in.Len)
		}
		if !good {
			continue
		}
		voters++
		if c.decode(at, &in) == nil && c.isCandidate(&in, at, i) {
			tally[at]++
		}
	}
	for at, n := range tally {
		if n*4 >= voters*3 && voters*4 >= hi-lo && c.plausibleAfter(at) {
			return at, true
		}
	}
	return 0, false
}

func (c *codeBytes) plausibleAfter(i int) bool {
	var in insn.Inst
	for range voteAfter {
		if i >= len(c.b) {
			return true
		}
		if err := c.decode(i, &in); err != nil {
			return err == insn.ErrTruncated
		}
		if !c.plausible(i, &in) {
			return false
		}
		i += int(in.Len)
		switch in.Op {
		case insn.OpRET, insn.OpJMP:
			return true // padding or another function follows
		}
	}
	return true
}
