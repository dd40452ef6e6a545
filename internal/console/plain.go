package console

import (
	"bytes"
	"io"
)

// Plain is a writer that renders a guest's output harmless for the terminal
// that it writes to, as Printable does, line by line.
type Plain struct {
	W    io.Writer
	line []byte // unfinished
}

// Write implements io.Writer.
func (p *Plain) Write(b []byte) (int, error) {
	p.line = append(p.line, b...)
	end := bytes.LastIndexByte(p.line, '\n') + 1
	if end == 0 && len(p.line) > 1<<16 {
		end = len(p.line)
	}
	if end > 0 {
		if _, err := io.WriteString(p.W, Printable(p.line[:end])); err != nil {
			return 0, err
		}
		p.line = append(p.line[:0], p.line[end:]...)
	}
	return len(b), nil
}

// Close writes what is left. W stays open.
func (p *Plain) Close() error {
	if len(p.line) == 0 {
		return nil
	}
	_, err := io.WriteString(p.W, Printable(p.line)+"\n")
	p.line = nil
	return err
}
