package console

import (
	"strings"
	"testing"
)

func TestPlain(t *testing.T) {
	in := "one\r\n\x1b[31mred\x1b[m\r\n~# \x1b[6n"
	for _, piece := range []int{1, 3, 100} {
		var out strings.Builder
		p := Plain{W: &out}
		for s := in; s != ""; {
			n := min(piece, len(s))
			p.Write([]byte(s[:n]))
			s = s[n:]
		}
		if err := p.Close(); err != nil || out.String() != "one\nred\n~# \n" {
			t.Errorf("pieces of %d: %q %v", piece, out.String(), err)
		}
	}
	var out strings.Builder
	p := Plain{W: &out}
	for range 100 {
		p.Write(make([]byte, 1<<12))
	}
	if len(p.line) > 1<<17 {
		t.Errorf("%d bytes of a line are kept", len(p.line))
	}
}
