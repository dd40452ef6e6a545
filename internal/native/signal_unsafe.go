package native

import (
	"fmt"
	"unsafe"

	"golang.org/x/sys/unix"
)

// goHandler are the handlers that were in place before, by signal number.
var goHandler [32]uintptr

// Flags of struct sigaction (sigaction(2), asm/signal.h).
const (
	saSigInfo  = 0x00000004
	saRestorer = 0x04000000
	saOnStack  = 0x08000000
)

// kernelAction is struct sigaction of the system call rt_sigaction(2).
type kernelAction struct {
	handler  uintptr
	flags    uint64
	restorer uintptr
	mask     uint64
}

func codeAddresses() (leave, handler uintptr)

// installHandlers puts onSignal in front of Go's handlers of the signals that
// faults raise. Flags, mask and restorer stay those of Go.
func installHandlers() error {
	_, handler := codeAddresses()
	for _, sig := range []unix.Signal{unix.SIGILL, unix.SIGTRAP, unix.SIGBUS, unix.SIGFPE, unix.SIGSEGV} {
		var act kernelAction
		if err := sigaction(sig, nil, &act); err != nil {
			return err
		}
		if act.handler == handler {
			continue
		}
		const need = saOnStack | saSigInfo | saRestorer
		if act.handler <= 1 || act.flags&need != need {
			return fmt.Errorf("signal %v has no handler of the Go runtime (flags %#x)", sig, act.flags)
		}
		goHandler[sig] = act.handler
		act.handler = handler
		if err := sigaction(sig, &act, nil); err != nil {
			return err
		}
	}
	return nil
}

func sigaction(sig unix.Signal, set, old *kernelAction) error {
	_, _, errno := unix.RawSyscall6(unix.SYS_RT_SIGACTION, uintptr(sig),
		uintptr(unsafe.Pointer(set)), uintptr(unsafe.Pointer(old)), unsafe.Sizeof(set.mask), 0, 0)
	if errno != 0 {
		return fmt.Errorf("rt_sigaction(%v): %w", sig, errno)
	}
	return nil
}
