package native

import (
	"encoding/binary"
	"unsafe"
)

// MaxCode is the longest code that Compile takes, in bytes.
const MaxCode = 1024

// int3 fills all code pages: whatever runs off its code stops there.
const int3 = 0xcc

// Snippet is code made ready to run. It is valid until the next Compile.
type Snippet struct {
	entry uint32 // offset in the slice of the first byte, where enter jumps to
	code  uint32 // offset in the slice of the first byte of the given code
}

// arena hands out the code pages from arenaOffset to arenaEnd.
type arena struct {
	next  int
	cache map[string]Snippet // by code bytes
}

func (a *arena) reset() {
	a.next = arenaOffset
	a.cache = make(map[string]Snippet)
}

// Compile makes a snippet of code, which runs from its first to behind its
// last byte.
func (x *Executor) Compile(code []byte) Snippet {
	if s, ok := x.arena.cache[string(code)]; ok {
		return s
	}
	if len(code) > MaxCode {
		panic("BUG: native code longer than MaxCode")
	}
	const most = entryLen + MaxCode + 5 + 15
	if x.arena.next+most > arenaEnd {
		x.arena.reset()
	}
	b := x.code[x.arena.next : x.arena.next : x.arena.next+most]
	s := Snippet{entry: uint32(x.arena.next), code: uint32(x.arena.next + entryLen)}
	b = appendEntry(b, x.arena.next)
	b = append(b, code...)
	b = appendJump(b, x.arena.next+len(b), exitOffset)
	// Snippets start at multiples of 16, the unit of instruction fetch.
	x.arena.next += (len(b) + 15) &^ 15
	x.arena.cache[string(code)] = s
	return s
}

// The parts of the frame that generated code names.
const (
	frameR15    = frameOffset + unsafe.Offsetof(frame{}.gpr) + 15*8
	frameRSP    = frameOffset + unsafe.Offsetof(frame{}.gpr) + 4*8
	frameHostSP = unsafe.Offsetof(frame{}.hostSP)
	frameLeave  = unsafe.Offsetof(frame{}.leave)
)

// entryLen is the length of what appendEntry makes.
const entryLen = 14

// appendEntry appends code for offset pos of a slice that loads the two
// registers that enter needed to the end.
func appendEntry(b []byte, pos int) []byte {
	// mov r15, [rip+d]; mov rsp, [rip+d]
	b = appendRel(append(b, 0x4c, 0x8b, 0x3d), pos+7, int(frameR15))
	return appendRel(append(b, 0x48, 0x8b, 0x25), pos+14, int(frameRSP))
}

// appendExit appends the exit code of a slice, for offset pos.
func appendExit(b []byte, pos int) []byte {
	start := len(b)
	b = appendRel(append(b, 0x4c, 0x89, 0x3d), pos+7, int(frameR15)) // mov [rip+d], r15
	b = appendRel(append(b, 0x48, 0x89, 0x25), pos+14, int(frameRSP))
	b = appendRel(append(b, 0x4c, 0x8d, 0x3d), pos+21, frameOffset) // lea r15, [rip+d]
	b = append(b, 0x49, 0x8b, 0xa7)                                 // mov rsp, [r15+hostSP]
	b = binary.LittleEndian.AppendUint32(b, uint32(frameHostSP))
	b = append(b, 0x41, 0xff, 0xa7) // jmp [r15+leave]
	b = binary.LittleEndian.AppendUint32(b, uint32(frameLeave))
	if pos+len(b)-start > rawEntry {
		panic("BUG: exit code too long")
	}
	return b
}

// appendJump appends JMP rel32 for offset pos of a slice.
func appendJump(b []byte, pos, target int) []byte {
	return appendRel(append(b, 0xe9), pos+5, target)
}

// appendRel appends the distance from next to target.
func appendRel(b []byte, next, target int) []byte {
	return binary.LittleEndian.AppendUint32(b, uint32(int32(target-next)))
}
