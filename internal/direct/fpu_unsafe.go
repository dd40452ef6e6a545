package direct

import (
	"encoding/binary"
	"unsafe"

	"ring3/internal/cpu"
)

// newFPU allocates a 64-byte aligned image in its initial configuration.
func newFPU() *cpu.FPU {
	b := make([]byte, cpu.XSAVEAreaSize+63)
	off := -uintptr(unsafe.Pointer(&b[0])) & 63
	f := (*cpu.FPU)(unsafe.Pointer(&b[off]))
	binary.LittleEndian.PutUint16(f.Area[0:], 0x37f)   // FCW
	binary.LittleEndian.PutUint32(f.Area[24:], 0x1f80) // MXCSR
	return f
}
