// Package native runs single instructions, or short runs of them, on the host
// CPU inside the monitor, with the guest's general registers, flags and
// extended state (x87, MMX, SSE, AVX, AVX-512) loaded. The interpreter uses it
// for instructions that are not worth a second implementation in Go, and the
// tests use it as the oracle for those that have one.
//
// The mechanism, step by step:
//
//  1. All executors live in one reserved range of addresses, one slice of
//     sliceSize bytes each (region_unsafe.go). A slice holds code pages, which
//     are mapped twice from a memfd, once writable and once executable, and
//     data pages: the frame with the register values, and a scratch buffer for
//     memory operands.
//  2. An instruction is compiled once to a snippet: load R15 and RSP, the
//     instruction's bytes, jump to the exit code of the slice (arena.go).
//  3. enter (switch_amd64.s) saves what Go needs in the frame, XRSTORs the
//     guest's image, loads flags and registers and jumps to the snippet.
//  4. The exit code finds the frame by its own address (RIP-relative), since
//     every register belongs to the guest then, and jumps to leave, which
//     stores the registers, XSAVEs the image, and puts the extended state back
//     into its initial configuration: that is the one Go expects.
//  5. A fault in the snippet raises a signal. Our handler stands in front of
//     the one of Go's runtime (signal_amd64.s). When the interrupted RIP lies
//     in the region, it notes the fault in the frame of that slice and makes
//     the kernel resume at the slice's exit code; otherwise it jumps to Go's
//     handler with registers and stack as the kernel made them.
//
// Why that is safe for Go's runtime: enter and leave are assembly, which is
// never preempted asynchronously, nor is code the runtime does not know, so
// neither the collector nor stack growth happens while guest registers are
// loaded. Signals run on the thread's alternate stack, whatever RSP is, and the
// kernel gives every handler a fresh extended state and a clear DF. TF and AC
// are never loaded, so the handler runs without them too.
//
// Preconditions for code that is run, which this package cannot check: it
// changes no segment register and no base, makes no system call, and does not
// write outside the memory its caller means. Only bytes that the instruction
// table classes as vector, x87, MMX or opmask instructions get here outside
// tests.
package native
