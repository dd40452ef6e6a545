package interp

import "unsafe"

// alignPtr is the first 64-byte aligned address in b.
func alignPtr(b []byte) unsafe.Pointer {
	p := unsafe.Pointer(&b[0])
	return unsafe.Add(p, -uintptr(p)&63)
}
