package native

import (
	"unsafe"

	"ring3/internal/cpu"
)

// imageAddress is the address of an XSAVE image, for the assembly. The caller
// keeps fpu alive and on the heap: a stack may move before the assembly runs.
func imageAddress(fpu *cpu.FPU) uintptr {
	p := uintptr(unsafe.Pointer(fpu))
	if p%64 != 0 {
		panic("BUG: XSAVE image is not 64-byte aligned")
	}
	return p
}
