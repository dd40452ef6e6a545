// Package stub is the program that lives inside the host processes which run
// guest user code, its memory layout, its system-call filter and its protocol
// with the monitor. It contains no policy: the engine in package direct
// decides what is mapped and when a stub runs.
//
// A stub process has nothing in its address space but the stub area (one code
// page, a few control pages shared with the monitor) and what the monitor
// maps for the guest. How one round works:
//
//  1. The monitor writes registers to the control page and the command Run.
//     The stub loads segment registers, the extended state and the general
//     registers and enters guest code with IRETQ.
//  2. Guest code runs natively until the processor or the system-call filter
//     stops it. The host kernel delivers a signal on the stub's alternate
//     stack, which lies in the control pages: the signal frame with all guest
//     registers is memory that the monitor reads directly.
//  3. The handler stores where that frame is, the segment registers and their
//     bases, says Stopped, and waits for the next command, spinning for a
//     while and then in a futex. It never returns through sigreturn.
//  4. The monitor serves the stop, perhaps has the stub execute mmap and
//     munmap calls (command Calls), and goes to 1.
//
// # Proof
//
// Guest code can write the word that says Stopped and run on. It would then
// use mappings that the monitor believes to be out of use, and read the
// secrets of the next command. So each stop has a proof that it cannot forge:
// the stub writes the constant 1 to an eventfd of its own. The filter allows
// that at one instruction only, and behind that instruction stub code erases
// the command word and waits; whoever gets there is stopped until the monitor
// gives a command. Since the monitor gives one command per stop, the sum in
// the eventfd equals the number of stops exactly if all of them were true.
// The monitor reads it before it depends on the stop: before it shows
// secrets, and before the guest kernel may reuse memory that the stub has
// mapped (a flush, another address space). An ordinary system call needs no
// look, and the write overlaps with the monitor's work.
//
// Everything the stub can write, guest code can write too. The monitor treats
// all of it as hostile input; see Control.
package stub
