package host

import (
	"encoding/binary"
	"unsafe"
)

//go:noescape
func fxsave(area *[512]byte)

// MXCSRMask is the set of MXCSR bits that the processor implements
// (SDM vol. 1, section 11.6.6).
func MXCSRMask() uint32 {
	b := make([]byte, 512+15)
	area := (*[512]byte)(b[-uintptr(unsafe.Pointer(&b[0]))&15:])
	fxsave(area)
	if m := binary.LittleEndian.Uint32(area[28:]); m != 0 {
		return m
	}
	return 0xffbf // the documented default
}
