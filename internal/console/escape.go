package console

// Action is what the user asked for with the escape key.
type Action int

const (
	None   Action = iota
	Stop          // end the virtual machine now
	Stats         // print the table of exits
	Help          // print EscapeHelp, or AttachedHelp
	Detach        // leave the console of a machine that goes on
)

// EscapeKey begins an escape sequence: Ctrl-A, as in QEMU, screen and minicom.
const EscapeKey = 0x01

// EscapeHelp lists the sequences. Lines end as a raw terminal needs it.
const EscapeHelp = "\r\n" +
	"Ctrl-A x       stop the virtual machine\r\n" +
	"Ctrl-A s       show what it spent its time on\r\n" +
	"Ctrl-A h       show this help\r\n" +
	"Ctrl-A a       send Ctrl-A to the guest, as does Ctrl-A Ctrl-A\r\n"

// AttachedHelp lists those of a console that can be left.
const AttachedHelp = "\r\n" +
	"Ctrl-A d       leave the console; the virtual machine goes on\r\n" +
	"Ctrl-A x       stop the virtual machine\r\n" +
	"Ctrl-A h       show this help\r\n" +
	"Ctrl-A a       send Ctrl-A to the guest, as does Ctrl-A Ctrl-A\r\n"

// Escape finds escape sequences in what the user types. The zero value is
// ready. A sequence may be split over any number of reads.
type Escape struct {
	Attached bool // to a machine of another process: Detach, and no Stats

	armed bool // the last byte was EscapeKey
}

// Next consumes p up to and including the first action. It returns the bytes
// meant for the guest, the action or
// None, and the rest of p for the next call.
//
// A key that means nothing after the escape key goes to the guest together
// with the escape key, so that Ctrl-A keeps its meaning in the guest's shell.
func (e *Escape) Next(p []byte) (data []byte, a Action, rest []byte) {
	for i, b := range p {
		if !e.armed {
			if b != EscapeKey {
				data = append(data, b)
				continue
			}
			e.armed = true
			continue
		}
		e.armed = false
		switch {
		case e.Attached && (b == 'd' || b == 'D'):
			return data, Detach, p[i+1:]
		case b == 'x' || b == 'X':
			return data, Stop, p[i+1:]
		case !e.Attached && (b == 's' || b == 'S'):
			return data, Stats, p[i+1:]
		case b == 'h' || b == 'H' || b == '?':
			return data, Help, p[i+1:]
		case b == 'a' || b == 'A' || b == EscapeKey:
			data = append(data, EscapeKey)
		default:
			data = append(data, EscapeKey, b)
		}
	}
	return data, None, nil
}
