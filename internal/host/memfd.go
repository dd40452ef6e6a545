package host

import (
	"fmt"

	"golang.org/x/sys/unix"
)

// mfdExec asks for an executable memfd by name (Linux 6.3); older kernels
// refuse the flag and make them executable anyway.
const mfdExec = 0x10

// Memfd makes a memfd of a fixed, sealed size. Its pages take memory when they
// are touched.
func Memfd(name string, size int64, exec bool) (int, error) {
	flags := unix.MFD_CLOEXEC | unix.MFD_ALLOW_SEALING
	fd, err := -1, error(unix.EINVAL)
	if exec {
		fd, err = unix.MemfdCreate(name, flags|mfdExec)
	}
	if err == unix.EINVAL {
		fd, err = unix.MemfdCreate(name, flags)
	}
	if err != nil {
		return -1, fmt.Errorf("memfd_create %s: %w", name, err)
	}
	if err := unix.Ftruncate(fd, size); err != nil {
		unix.Close(fd)
		return -1, fmt.Errorf("ftruncate %s to %d bytes: %w", name, size, err)
	}
	if _, err := unix.FcntlInt(uintptr(fd), unix.F_ADD_SEALS, unix.F_SEAL_SHRINK|unix.F_SEAL_GROW|unix.F_SEAL_SEAL); err != nil {
		unix.Close(fd)
		return -1, fmt.Errorf("seal %s: %w", name, err)
	}
	return fd, nil
}

// MapShared maps all size bytes of a memfd for reading and writing.
func MapShared(fd int, size int) ([]byte, error) {
	b, err := unix.Mmap(fd, 0, size, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED|unix.MAP_NORESERVE)
	if err != nil {
		return nil, fmt.Errorf("mmap %d bytes: %w", size, err)
	}
	return b, nil
}
