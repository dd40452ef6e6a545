package direct

import "time"

// Stats counts what the engine did. Only the vCPU thread writes it.
type Stats struct {
	Runs       uint64    // entries into guest code
	Exits      [6]uint64 // returns from Run by ExitKind
	Exceptions [32]uint64
	Spurious   uint64 // kicks that nobody asked for any more

	HostFaults   uint64 // page faults served by mapping
	Maps         uint64 // mmap calls
	PagesMapped  uint64
	Unmaps       uint64 // munmap and mprotect calls
	PagesDropped uint64
	Upgrades     uint64 // read-only to writable or executable

	Flushes        uint64 // flushes by the guest
	Revalidations  uint64 // address spaces compared with their page tables
	PagesChecked   uint64
	PageChecks     uint64 // single pages compared
	Switches       uint64 // Run in another address space than the last
	Hints          uint64 // pages mapped by MapHint before they faulted
	FPUMoves       uint64 // extended state copied between stubs or to the monitor
	TLSLoads       uint64 // set_thread_area calls
	Unmirrored     uint64 // states that the host cannot mirror, stepped
	WXFlips        uint64 // pages that changed between writable and executable
	WXUnscanned    uint64 // pages mapped both ways because they thrashed
	Forks          uint64
	Zygotes        uint64
	Relocations    uint64 // stubs moved away from guest mappings
	Recycled       uint64
	Evictions      uint64 // address spaces shrunk to stay under the limits
	Proofs         uint64 // stops proved to be true
	Deaths         uint64
	Scans          uint64 // pages scanned
	ScansCandidate uint64 // of them, decoded because a byte pattern asked for it
	Patches        uint64 // instructions patched
	Handed         uint64 // system calls handed to the kernel stub
	HandedFaults   uint64 // page faults, likewise
	PagesWeakened  uint64 // that lost the right to be written only
	Changes        uint64 // pages mapped and unmapped while the monitor slept
	Parks          uint64 // stubs that listened and were stopped
	Sites          uint64 // system calls patched
	FastSyscalls   uint64 // and the stops that came by them
	PatchedTraps   uint64 // stops at a patched instruction
	CPUIDs         uint64 // and CPUIDs that did without
	SpinHits       uint64 // stops seen while spinning
	SpinMisses     uint64 // stops waited for in a futex

	Scarce     uint64        // times that processors became scarce: all share one
	ScarceTime time.Duration // and for how long
}

// Stats returns the counters so far. Call it on the vCPU thread.
func (e *Engine) Stats() Stats {
	for _, s := range e.spaces {
		s.p.countCPUIDs()
	}
	s := e.stats
	if e.cfg.Beside != nil {
		return s // what follows is counted for all of the machine
	}
	s.Scarce, s.ScarceTime = e.near.switches, e.near.scarceTime
	if e.near.scarce {
		s.ScarceTime += time.Since(e.near.since)
	}
	return s
}
