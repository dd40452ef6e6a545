package initramfs

import (
	"bytes"
	"fmt"

	"ring3/internal/kmod"
)

// Mount is a virtio file system to be mounted.
type Mount struct {
	Tag      string
	Path     string // absolute, below the root that the job has
	ReadOnly bool
}

// Root is a virtio file system that the job, or the shell, has as its root.
type Root struct {
	Tag      string
	Writable bool     // else it lies below a layer in memory, which takes the writes
	Dir      string   // working directory, if it exists there; else /
	Env      []string // NAME=VALUE, for the job or the shell
	Modules  string   // where in it the running kernel's modules are, "" for nowhere
}

// ShareModules finds what a kernel needs to mount shares, and layers above
// them, among its modules, which are in dir.
func ShareModules(dir string) ([]kmod.Module, error) {
	return kmod.Find(dir, "virtio_pci", "virtio_rng", "virtiofs", "overlay")
}

// mounts writes what to mount.
func (o *Options) mounts(set func(name, val string), b *bytes.Buffer) {
	root, modules := "", ""
	if r := o.Root; r != nil {
		root, modules = "layer", r.Modules
		if r.Writable {
			root = "plain"
		}
		set("roottag", r.Tag)
		set("dir", r.Dir)
	}
	set("root", root)
	set("modules", modules)
	b.WriteString("mount_shares() {\n:\n")
	for _, m := range o.Mounts {
		mode := "rw"
		if m.ReadOnly {
			mode = "ro"
		}
		fmt.Fprintf(b, "mount_share %s %s %s\n", quote(m.Tag), quote(m.Path), mode)
	}
	b.WriteString("}\n")
}
