// Package agent runs commands in a guest for programs on the host. The guest's
// side (Guest) is a small program in the built-in userland, ring3's own, that
// listens on a port of the virtio socket device. The host's side is Session.
//
// # Protocol
//
// Each connection is for one command. Both sides send frames:
//
//	kind u8, size u32 (little-endian, at most MaxFrame), size bytes
//
//	kind	from	bytes
//	start	host	Command, as JSON; the first frame
//	stdin	host	standard input; none: its end
//	resize	host	rows u16, columns u16 of the terminal
//	signal	host	number u8, for the command's process group
//	taken	guest	u32: so many bytes of standard input have gone to the command
//	stdout	guest	standard output, or what the terminal shows
//	stderr	guest	standard error
//	exit	guest	status u8, 128+N if signal N ended it; the last frame
//	failed	guest	status u8 and why the command could not be started; the last frame
//
// The host sends at most Window bytes of standard input that are not taken, so
// that a command which does not read delays no signal. The end of a connection
// ends the command: SIGHUP, and SIGKILL after a moment.
//
// Either side takes what the other sends as input: a frame that is too long or
// has no sense ends the connection.
package agent

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"sync"
)

// Port is the agent's port in the guest.
const Port = 1024

// Limits, in bytes.
const (
	MaxFrame = 64 << 10
	Window   = 256 << 10
	piece    = 32 << 10 // of a stream in one frame
)

// Command is what is to be run.
type Command struct {
	Args []string `json:"args"`           // command and arguments; without a slash it is searched for in $PATH
	Env  []string `json:"env,omitempty"`  // NAME=VALUE, added to the agent's
	Dir  string   `json:"dir,omitempty"`  // working directory, "" for the agent's
	TTY  bool     `json:"tty,omitempty"`  // on a terminal of its own, in place of three pipes
	Rows uint16   `json:"rows,omitempty"` // size of that terminal, 0 if unknown
	Cols uint16   `json:"cols,omitempty"`
}

// Kinds of frames.
const (
	kindStart = iota + 1
	kindStdin
	kindResize
	kindSignal
	kindTaken
	kindStdout
	kindStderr
	kindExit
	kindFailed
)

var le = binary.LittleEndian

var errProtocol = errors.New("not the protocol of the agent")

// readFrame reads the next frame.
func readFrame(r io.Reader) (kind byte, data []byte, err error) {
	var h [5]byte
	if _, err := io.ReadFull(r, h[:]); err != nil {
		return 0, nil, err
	}
	size := le.Uint32(h[1:])
	if size > MaxFrame {
		return 0, nil, fmt.Errorf("%w: a frame of %d bytes", errProtocol, size)
	}
	data = make([]byte, size)
	if _, err := io.ReadFull(r, data); err != nil {
		return 0, nil, io.ErrUnexpectedEOF
	}
	return h[0], data, nil
}

// frameWriter writes frames from any goroutine.
type frameWriter struct {
	mu sync.Mutex
	w  io.Writer
}

// send writes a frame; data has at most MaxFrame bytes.
func (f *frameWriter) send(kind byte, data []byte) error {
	b := le.AppendUint32([]byte{kind}, uint32(len(data)))
	f.mu.Lock()
	defer f.mu.Unlock()
	_, err := f.w.Write(append(b, data...))
	return err
}
