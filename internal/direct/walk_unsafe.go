package direct

import "unsafe"

// ptes is the page table at gpa, nil outside RAM.
func (e *Engine) ptes(gpa uint64) *[512]uint64 {
	return (*[512]uint64)(e.mem.Page(gpa))
}

// page is the monitor's view of the page of RAM at gpa.
func (e *Engine) page(gpa uint64) *[4096]byte {
	return (*[4096]byte)(unsafe.Pointer(e.mem.Page(gpa)))
}
