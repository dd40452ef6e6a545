package console

import (
	"fmt"
	"slices"
	"strings"
	"testing"
)

func TestTailLines(t *testing.T) {
	tests := []struct {
		name   string
		size   int
		writes []string
		n      int
		want   []string
	}{
		{"empty", 16, nil, 3, nil},
		{"unfinished line", 16, []string{"abc"}, 3, []string{"abc"}},
		{"blank lines do not count", 64, []string{"a\r\n\r\n  \r\nb\r\n"}, 2, []string{"a", "b"}},
		{"last two", 64, []string{"a\nb\n", "c\n"}, 2, []string{"b", "c"}},
		{"wrapped", 8, []string{"one\ntwo\n", "three\n"}, 9, []string{"o", "three"}},
		{"one write larger than the ring", 4, []string{"0123456789"}, 1, []string{"6789"}},
		{"exactly full", 4, []string{"abcd"}, 1, []string{"abcd"}},
		{"escape sequences", 99, []string{"\x1b[2J\x1b[1;31mred\x1b[m \x1b]0;title\x07ok\x1b7\n"}, 1, []string{"red ok"}},
		{"other controls", 99, []string{"a\tb\x00\x08\x7fc\xff\n"}, 1, []string{"a bc\ufffd"}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			tail := NewTail(tt.size)
			for _, w := range tt.writes {
				if n, err := tail.Write([]byte(w)); n != len(w) || err != nil {
					t.Fatalf("Write = %d, %v", n, err)
				}
			}
			if got := tail.Lines(tt.n); !slices.Equal(got, tt.want) {
				t.Errorf("got %q, want %q", got, tt.want)
			}
		})
	}
}

// The tail must agree with the plain definition for every split of the input.
func TestTailSplits(t *testing.T) {
	text := ""
	for i := range 40 {
		text += fmt.Sprintf("line %d\n", i)
	}
	for piece := 1; piece < 50; piece++ {
		tail := NewTail(100)
		for s := text; s != ""; {
			n := min(piece, len(s))
			tail.Write([]byte(s[:n]))
			s = s[n:]
		}
		want := text[len(text)-100:]
		if got := string(tail.bytes()); got != want {
			t.Fatalf("pieces of %d: got %q, want %q", piece, got, want)
		}
	}
}

func FuzzPrintable(f *testing.F) {
	f.Add([]byte("\x1b[31mred\x1b[m\n"))
	f.Add([]byte("\x1b]0;t\x1b\\x\x1b"))
	f.Fuzz(func(t *testing.T, p []byte) {
		s := Printable(p)
		if i := strings.IndexFunc(s, func(r rune) bool { return r != '\n' && r < 0x20 || r >= 0x7f && r < 0xa0 }); i >= 0 {
			t.Errorf("control character at %d of %q from %q", i, s, p)
		}
	})
}
