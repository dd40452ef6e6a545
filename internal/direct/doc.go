// Package direct runs guest user code natively, in host processes ("stubs",
// package stub), one per guest address space.
//
// How it works:
//
//  1. Run picks the stub of the current CR3, brings what it has mapped up to
//     date with the flushes since it last ran, and lets it enter guest code.
//  2. A stub's mappings are a TLB: they may be stale until the guest
//     invalidates them, and they are filled by faults. A fault walks the guest
//     page tables; if the access is allowed, pages of guest RAM are mapped
//     into the stub and guest code goes on; if not, Run returns an Exception.
//  3. A flush marks address spaces or pages; before such a stub runs again,
//     what it has mapped is compared with the page tables, and only what
//     changed is taken away (flush.go).
//  4. A page becomes executable only after its bytes were scanned for
//     instructions that would silently give the host's answer; those are
//     replaced by a trapping byte in a private copy of the page (scan.go).
//
// Address spaces are keyed by the PML4's address alone, not with the PCID:
// Linux moves a process between PCIDs all the time, and a new PCID for a
// known PML4 needs only a revalidation.
//
// One vCPU thread calls everything except Kick. The only lock is kickMu,
// held for the length of one tgkill.
//
// Everything a stub can write is hostile input: it is read once and checked.
// A stub that misbehaves is killed and reported as ExitDied.
package direct
