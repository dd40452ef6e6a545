package native

import "ring3/internal/x86"

// The raw pages: one page of INT3, one for code, one of INT3.
const (
	rawEntry   = 0x40 // entry code for rawCode
	rawEntry32 = 0x80 // the same, for compatibility mode
	rawCode    = rawOffset + pageSize
)

// Selectors of Linux for user code in 64-bit and compatibility mode, and for
// data (arch/x86/include/asm/segment.h of the kernel).
const (
	selCode32 = 0x23
	selData   = 0x2b
)

// RawAddress is where RunRaw puts code. The page of that address and its
// neighbours are executable and all INT3 otherwise.
func (x *Executor) RawAddress() uint64 { return uint64(x.base) + rawCode }

// RunRaw executes code at RawAddress without an exit behind it. It stops at
// the first exception, which is #BP when control reaches any byte of the raw
// pages that is not code; RIP is a host address then. For tests: branches may
// go anywhere in the raw pages, and costs do not matter.
func (x *Executor) RunRaw(code []byte, ctx *Context) Fault {
	return x.runRaw(rawEntry, code, ctx)
}

// CanRun32 reports whether RunRaw32 works: the raw pages are below 4 GiB.
func (x *Executor) CanRun32() bool { return x.base+sliceSize <= 1<<32 }

// RunRaw32 is RunRaw in compatibility mode, with flat CS, SS, DS and ES. FS and
// GS must not be used. DS and ES of the thread stay loaded; 64-bit code does
// not notice.
func (x *Executor) RunRaw32(code []byte, ctx *Context) Fault {
	loadDataSegments(selData)
	return x.runRaw(rawEntry32, code, ctx)
}

func loadDataSegments(sel uint64)

func (x *Executor) runRaw(entry uintptr, code []byte, ctx *Context) Fault {
	if len(code) > pageSize {
		panic("BUG: raw code longer than a page")
	}
	page := x.code[rawCode : rawCode+pageSize]
	copy(page, code)
	f := x.run(x.base+entry, ctx)
	for i := range code {
		page[i] = int3
	}
	if f.Raised && f.Vector == x86.VecBP {
		f.RIP-- // of the INT3
	}
	return f
}

// appendFarEntry appends entry code for offset pos that goes to rawCode in
// compatibility mode.
func appendFarEntry(b []byte, pos int, target uint32) []byte {
	b = appendRel(append(b, 0x48, 0x8b, 0x25), pos+7, int(frameRSP)) // mov rsp, [rip+d]
	b = append(b, 0xff, 0x2d, 0, 0, 0, 0)                            // jmp far [rip]: what follows
	b = le.AppendUint32(b, target)
	return le.AppendUint16(b, selCode32)
}
