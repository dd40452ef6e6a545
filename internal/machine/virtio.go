package machine

import (
	"ring3/internal/disk"
	"ring3/internal/pci"
	"ring3/internal/virtio"
	"ring3/internal/virtio/blk"
	vnet "ring3/internal/virtio/net"
	"ring3/internal/virtio/rng"
	"ring3/internal/virtio/vsock"
)

// plugVirtio puts the virtio devices on the PCI bus: randomness in slot 1, the
// disks behind it, then shares, the socket device and the network.
func (m *Machine) plugVirtio(host *pci.Host, cfg Config) error {
	p := virtio.Platform{Mem: m.mem, Sync: m.stopped, Exclusive: cfg.Verify > 0, Log: m.log}
	plug := func(d virtio.Device) error { return host.Plug(virtio.NewPCI(p, d, host.MSI).Function) }
	if err := plug(rng.Device{}); err != nil {
		return err
	}
	for i, o := range cfg.Disks {
		img, err := cfg.image(i)
		if err != nil {
			return err
		}
		d := blk.New(p, blk.Config{Name: "vd" + string(rune('a'+i)), Image: img, ReadOnly: o.ReadOnly, Queues: cfg.CPUs})
		m.dev.disks = append(m.dev.disks, d)
		if err := plug(d); err != nil {
			return err
		}
	}
	if err := m.plugShares(p, plug, cfg.Shares); err != nil {
		return err
	}
	if cfg.Vsock != nil {
		d, err := vsock.New(p, *cfg.Vsock)
		if err != nil {
			return err
		}
		m.dev.vsock = d
		if err := plug(d); err != nil {
			return err
		}
	}
	if cfg.Net != nil {
		m.dev.net = vnet.New(p, *cfg.Net)
		return plug(m.dev.net)
	}
	return nil
}

// image opens disk i.
func (cfg *Config) image(i int) (disk.Image, error) {
	if cfg.Images == nil {
		return disk.Open(cfg.Disks[i])
	}
	return borrowed{cfg.Images[i]}, nil
}

// borrowed is an image that outlives the machine.
type borrowed struct{ disk.Image }

// Close implements disk.Image.
func (borrowed) Close() error { return nil }

// stopped calls fn while no guest code runs. Once the machine has ended that is
// on the caller's goroutine, of which there may be several.
func (m *Machine) stopped(fn func()) {
	m.vcpus.Do(func() {
		m.dma.Lock()
		defer m.dma.Unlock()
		fn()
	})
}
