package console

import (
	"strings"
	"unicode"
	"unicode/utf8"
)

// Printable renders console output harmless: newlines stay, tabs become
// spaces, terminal escape sequences and every other control character go, and
// bytes that are not UTF-8 become U+FFFD. What the guest wrote is untrusted: it
// must not steer the terminal on which an error report appears.
func Printable(p []byte) string {
	var s strings.Builder
	for len(p) > 0 {
		if p[0] == 0x1b {
			p = p[sequenceLen(p):]
			continue
		}
		r, n := utf8.DecodeRune(p)
		p = p[n:]
		switch {
		case r == '\n':
			s.WriteByte('\n')
		case r == '\t':
			s.WriteByte(' ')
		case !unicode.IsControl(r):
			s.WriteRune(r)
		}
	}
	return s.String()
}

// sequenceLen returns the length of the escape sequence that p begins with
// (ECMA-48, section 5): CSI up to its final byte, a string up to BEL or ST, or
// ESC and one byte. A cut-off sequence takes all of p.
func sequenceLen(p []byte) int {
	if len(p) < 2 {
		return len(p)
	}
	switch p[1] {
	case '[': // CSI: parameters and intermediates, then 40..7E
		for i := 2; i < len(p); i++ {
			if p[i] >= 0x40 && p[i] <= 0x7e {
				return i + 1
			}
			if p[i] < 0x20 {
				return i
			}
		}
		return len(p)
	case ']', 'P', '^', '_', 'X': // OSC, DCS, PM, APC, SOS
		for i := 2; i < len(p); i++ {
			switch {
			case p[i] == '\a':
				return i + 1
			case p[i] == '\n':
				return i
			case p[i] == 0x1b && i+1 < len(p) && p[i+1] == '\\':
				return i + 2
			}
		}
		return len(p)
	}
	return 2
}
