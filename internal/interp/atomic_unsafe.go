package interp

import (
	"sync/atomic"
	"unsafe"
)

// casHost replaces the operand at p by v if it is still old, atomically also
// against other CPUs and against guest code that runs directly. Operands that
// are not aligned are replaced atomically as long as they do not cross an
// aligned quadword; beyond that (split locks) it is a plain store.
func casHost(p unsafe.Pointer, size uint8, old, v uint64) bool {
	a := uintptr(p)
	switch {
	case size == 8 && a&7 == 0:
		return atomic.CompareAndSwapUint64((*uint64)(p), old, v)
	case size == 4 && a&3 == 0:
		return atomic.CompareAndSwapUint32((*uint32)(p), uint32(old), uint32(v))
	case a&7+uintptr(size) <= 8:
		q := (*uint64)(unsafe.Add(p, -int(a&7)))
		sh := a & 7 * 8
		mask := (uint64(1)<<(size*8) - 1) << sh
		for {
			w := atomic.LoadUint64(q)
			if w&mask != old<<sh&mask {
				return false
			}
			if atomic.CompareAndSwapUint64(q, w, w&^mask|v<<sh&mask) {
				return true
			}
		}
	}
	hostPut(p, size, v)
	return true
}

// cas128 is CMPXCHG16B on the 16-byte aligned operand at p: it stores n0 and n1
// if the operand is o0 and o1, and returns what it found.
func cas128(p unsafe.Pointer, o0, o1, n0, n1 uint64) (v0, v1 uint64, ok bool)
