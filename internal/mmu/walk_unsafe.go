package mmu

import "unsafe"

// word32 is the doubleword at gpa, nil outside RAM.
func (w Walker) word32(gpa uint64) *uint32 {
	p := w.Mem.Page(gpa)
	if p == nil {
		return nil
	}
	return (*uint32)(unsafe.Add(p, gpa&0xffc))
}
