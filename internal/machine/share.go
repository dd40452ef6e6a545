package machine

import (
	"fmt"

	"ring3/internal/share"
	"ring3/internal/virtio"
	"ring3/internal/virtio/fs"
)

// Share is a directory of the host that the guest can mount.
type Share struct {
	Tag string // name of the virtio file system, 1 to fs.TagSize bytes
	share.Options
}

// plugShares puts the shares on the bus. Errors of a directory are
// *share.Error.
func (m *Machine) plugShares(p virtio.Platform, plug func(virtio.Device) error, shares []Share) error {
	for _, s := range shares {
		if n := len(s.Tag); n == 0 || n > fs.TagSize {
			return &InputError{fmt.Sprintf("share %s: tag %q has not 1 to %d bytes", s.Path, s.Tag, fs.TagSize)}
		}
		tree, err := share.Open(s.Options)
		if err != nil {
			return err
		}
		d := fs.New(p, s.Tag, tree)
		m.dev.shares = append(m.dev.shares, d)
		if err := plug(d); err != nil {
			return err
		}
	}
	return nil
}
