// Package boot puts a Linux kernel into guest memory and tells the state in
// which its first processor starts.
//
// It reads bzImage and ELF64 vmlinux files, unpacks the kernel in the monitor
// (the decompressor inside a bzImage never runs), loads the segments at the
// physical addresses they are linked for, and enters at the kernel's own
// 64-bit entry as the Linux boot protocol wants it
// (Documentation/arch/x86/boot.rst, "64-bit Boot Protocol"; field offsets are
// from there and from Documentation/arch/x86/zero-page.rst).
//
// Kernel and initrd files are untrusted: a malformed one gives an *InputError
// of one line, never a panic, and never more than MaxUnpacked bytes of output.
package boot
