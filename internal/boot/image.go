package boot

import "fmt"

// Image unpacks a kernel and returns what Load would put into memory, from
// guest-physical address 0 on.
func Image(kernel File, cache Cache) ([]byte, error) {
	var m flatImage
	_, _, err := loadKernel(&m, Config{Kernel: kernel, Cache: cache})
	return m, err
}

// flatImage is memory that grows as it is written to.
type flatImage []byte

// Size implements Memory.
func (m *flatImage) Size() uint64 { return MaxUnpacked }

// WriteAt implements Memory.
func (m *flatImage) WriteAt(p []byte, gpa uint64) error {
	end := gpa + uint64(len(p))
	if end < gpa || end > m.Size() {
		return fmt.Errorf("write of %d bytes at %#x is outside the image", len(p), gpa)
	}
	if n := uint64(len(*m)); end > n {
		*m = append(*m, make([]byte, end-n)...)
	}
	copy((*m)[gpa:], p)
	return nil
}
