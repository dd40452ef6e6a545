package boot

import "fmt"

// InputError says that something the user gave cannot be booted: a file, the
// command line or the memory size. Its text is one line that names the input.
// Commands answer it with exit status 2.
type InputError struct {
	Input string // file name, or "command line", or "memory"
	What  string // what is wrong with it, and why
	Err   error  // cause, may be nil
}

// Error implements error.
func (e *InputError) Error() string {
	if e.Err != nil {
		return fmt.Sprintf("%s: %s: %v", e.Input, e.What, e.Err)
	}
	return e.Input + ": " + e.What
}

// Unwrap returns the cause.
func (e *InputError) Unwrap() error { return e.Err }

func inputErr(input string, err error, format string, args ...any) error {
	return &InputError{Input: input, What: fmt.Sprintf(format, args...), Err: err}
}

// mib renders a size or an address in MiB, rounded up.
func mib(n uint64) string {
	return fmt.Sprintf("%d MiB", n/(1<<20)+min(n%(1<<20), 1))
}
