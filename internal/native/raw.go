package native

import "ring3/internal/x86"

// The raw pages: one page of INT3, one for code, one of INT3.
const (
	rawEntry = 0x40 // entry code for rawCode
	rawCode  = rawOffset + pageSize
)

// RawAddress is where RunRaw puts code. The page of that address and its
// neighbours are executable and all INT3 otherwise.
func (x *Executor) RawAddress() uint64 { return uint64(x.base) + rawCode }

// RunRaw executes code at RawAddress without an exit behind it. It stops at
// the first exception, which is #BP when control reaches any byte of the raw
// pages that is not code; RIP is a host address then. For tests: branches may
// go anywhere in the raw pages, and costs do not matter.
func (x *Executor) RunRaw(code []byte, ctx *Context) Fault {
	if len(code) > pageSize {
		panic("BUG: raw code longer than a page")
	}
	page := x.code[rawCode : rawCode+pageSize]
	copy(page, code)
	f := x.run(x.base+rawEntry, ctx)
	for i := range code {
		page[i] = int3
	}
	if f.Raised && f.Vector == x86.VecBP {
		f.RIP-- // of the INT3
	}
	return f
}
