package console

import "testing"

func TestPanicWatch(t *testing.T) {
	tests := []struct {
		name, in, message string
		want              bool
	}{
		{"nothing", "[    0.000000] Linux version 6.1.0\r\n", "", false},
		{"panic", "[    1.234567] Kernel panic - not syncing: VFS: Unable to mount root fs on unknown-block(0,0)\r\n[    1.3] CPU: 0 PID: 1\r\n",
			"VFS: Unable to mount root fs on unknown-block(0,0)", true},
		{"no time stamp", "Kernel panic - not syncing: Attempted to kill init! exitcode=0x00000100\n",
			"Attempted to kill init! exitcode=0x00000100", true},
		{"with caller", "[    1.234567][    T1] Kernel panic - not syncing: Fatal exception\n", "Fatal exception", true},
		{"cut short", "[    1.2] Kernel panic - not syncing: Fatal", "Fatal", true},
		{"not at the start", "/ # grep 'Kernel panic - not syncing: x' log\n", "", false},
		{"shown, then an orderly end", "Kernel panic - not syncing: old\n/ # reboot -f\n[   12.0] reboot: Restarting system\n", "", false},
		{"the end mark alone", "[    1.2] ---[ end Kernel panic - not syncing: Fatal ]---\n", "", false},
		{"coloured", "\x1b[31m[    1.2] Kernel panic - not syncing: Fatal\x1b[m\r\n", "Fatal", true},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			for _, piece := range []int{1, 7, 1000} {
				var w PanicWatch
				for s := tt.in; s != ""; {
					n := min(piece, len(s))
					w.Write([]byte(s[:n]))
					s = s[n:]
				}
				if message, ok := w.Panicked(); ok != tt.want || message != tt.message {
					t.Errorf("in pieces of %d: got %q %v, want %q %v", piece, message, ok, tt.message, tt.want)
				}
			}
		})
	}
}

// A guest may write without ever ending a line.
func TestPanicWatchIsBounded(t *testing.T) {
	var w PanicWatch
	block := make([]byte, 1<<16)
	for range 64 {
		w.Write(block)
	}
	if len(w.line) > maxLine {
		t.Errorf("kept %d bytes of a line, want at most %d", len(w.line), maxLine)
	}
}
