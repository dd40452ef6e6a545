// Package console joins a guest's serial console to the terminal ring3 runs
// in: raw mode and its restoration, window size, the escape key, a bounded tail
// of the output for error reports, and recognition of a kernel panic.
//
// It knows nothing of machines: bytes come in and go out as io.Reader and
// io.Writer.
package console
