package console

import (
	"bytes"
	"slices"
	"testing"
)

// feed gives s to e in pieces of the given size.
func feed(e *Escape, s string, piece int) (data []byte, actions []Action) {
	for p := []byte(s); len(p) > 0; {
		n := min(piece, len(p))
		for rest := p[:n]; len(rest) > 0; {
			var d []byte
			var a Action
			d, a, rest = e.Next(rest)
			data = append(data, d...)
			if a != None {
				actions = append(actions, a)
			}
		}
		p = p[n:]
	}
	return data, actions
}

func TestEscape(t *testing.T) {
	tests := []struct {
		name, in, data string
		actions        []Action
	}{
		{"plain", "ls -l\r", "ls -l\r", nil},
		{"interrupt key", "\x03\x1a\x04", "\x03\x1a\x04", nil},
		{"stop", "abc\x01x", "abc", []Action{Stop}},
		{"upper case", "\x01X", "", []Action{Stop}},
		{"twice", "a\x01\x01b", "a\x01b", nil},
		{"letter a", "a\x01ab", "a\x01b", nil},
		{"help and on", "a\x01hb", "ab", []Action{Help}},
		{"all", "\x01s\x01?\x01x", "", []Action{Stats, Help, Stop}},
		{"unknown key", "\x01l", "\x01l", nil},
		{"arrow key", "\x01\x1b[A", "\x01\x1b[A", nil},
		{"sent key does not arm", "\x01\x01x", "\x01x", nil},
		{"waits", "a\x01", "a", nil},
		{"binary", "\x00\xff\x80", "\x00\xff\x80", nil},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			for _, piece := range []int{1, 2, 100} {
				var e Escape
				data, actions := feed(&e, tt.in, piece)
				if !bytes.Equal(data, []byte(tt.data)) || !slices.Equal(actions, tt.actions) {
					t.Errorf("in pieces of %d: got %q %v, want %q %v", piece, data, actions, tt.data, tt.actions)
				}
			}
		})
	}
}

// A console of another process's machine can be left, and has no statistics.
func TestEscapeAttached(t *testing.T) {
	data, actions := feed(&Escape{Attached: true}, "a\x01sb\x01h\x01d", 1)
	if string(data) != "a\x01sb" || !slices.Equal(actions, []Action{Help, Detach}) {
		t.Errorf("%q %v", data, actions)
	}
	if data, actions := feed(new(Escape), "\x01d", 2); string(data) != "\x01d" || actions != nil {
		t.Errorf("without: %q %v", data, actions)
	}
}
