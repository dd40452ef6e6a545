package initramfs

import (
	"ring3/internal/kmod"
)

// AddNetwork has the guest set up its network, and adds what a kernel needs for
// that among its modules, which are in dir; "" for a kernel that brings its own.
func (o *Options) AddNetwork(dir string) error {
	o.Network = true
	if dir == "" {
		return nil
	}
	modules, err := kmod.Find(dir, "virtio_pci", "virtio_net")
	if err != nil {
		return err
	}
	o.Modules = kmod.Join(o.Modules, modules)
	return nil
}
