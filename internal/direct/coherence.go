package direct

import (
	"ring3/internal/guestmem"
	"ring3/internal/x86"
)

var _ guestmem.CodeUser = (*Engine)(nil)

// DropCode implements guestmem.CodeUser: the bytes of a page change, so its
// scan and its private copy are void and it is executable nowhere. No stub
// runs while the vCPU thread is here; the mappings go before the next Run.
func (e *Engine) DropCode(gpa uint64, n int) (left bool) {
	gpa &^= x86.PageSize - 1
	e.dropMappings(gpa, entExec)
	if p := e.code.pages[gpa]; p != nil {
		e.releaseSites(p)
	}
	e.code.forget(e.mem, gpa)
	return false
}

// PageBecameCode implements guestmem.CodeUser. Nothing to do: writable
// mappings are taken away by RevokeStubWrite.
func (e *Engine) PageBecameCode(gpa uint64) {}

// RevokeStubWrite implements guestmem.CodeUser.
func (e *Engine) RevokeStubWrite(gpa uint64) {
	e.dropMappings(gpa&^(x86.PageSize-1), entWrite)
}

// dropMappings drops the mappings of a page that have any of the given
// rights.
func (e *Engine) dropMappings(gpa uint64, rights entry) {
	off, ok := e.mem.Offset(gpa)
	if !ok {
		return
	}
	for i := e.rmap.head[off/x86.PageSize]; i != 0; {
		n := e.rmap.nodes[i]
		i = n.next // drop frees the node
		s := e.byID[n.space]
		if s.get(n.gva)&rights != 0 {
			e.drop(s, n.gva)
		}
	}
}
