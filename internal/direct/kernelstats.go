package direct

import "ring3/internal/bt"

// KernelCounts say more about what KernelStats counts.
type KernelCounts struct {
	Insts, GuestBytes, EmittedBytes uint64 // of Translated

	// Exits: Misses, and by kind.
	Left [bt.ExitKinds]uint64
	// Faults: served by mapping a page, kicks, addresses in the lower half, other
	// page faults (of code pages, devices and the guest), other exceptions.
	Mapped, KickSignals, LowerHalf, Refused, Trapped uint64
	// Dropped: blocks whose code was written, and blocks whose page moved. Those
	// of Learned come on top.
	Written, Moved uint64
	// Flushes: the cache was full. Those for CR4 come on top.
	ModeFlushes uint64
}

// made counts a new block.
func (c *KernelCounts) made(b *cached) {
	c.Insts += uint64(b.N)
	if b.N != 0 {
		c.GuestBytes += b.Len
	}
	c.EmittedBytes += uint64(b.size)
}
