// Package netfd is a network that somebody else has made: a file descriptor of
// which each read and each write is one Ethernet frame. That is a tap device, or
// a socket that keeps the bounds of messages.
package netfd

import (
	"errors"
	"fmt"
	"io"
	"os"
	"syscall"

	"golang.org/x/sys/unix"

	"ring3/internal/virtio"
	vnet "ring3/internal/virtio/net"
)

// maxFrame is the longest frame, in bytes: one with the longest IP packet.
const maxFrame = 14 + 65535

// Port is a virtio port at a file descriptor.
type Port struct {
	file   *os.File
	conn   syscall.RawConn
	stream bool     // a read of no bytes is the end
	frames [][]byte // what Receive returned last
}

var _ vnet.Port = (*Port)(nil)

// Open uses descriptor fd, which stays open and must be neither a stream nor a tap device
// that puts other bytes before frames.
func Open(fd int) (*Port, error) {
	p := &Port{}
	if kind, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_TYPE); err == nil {
		switch kind {
		case unix.SOCK_SEQPACKET:
			p.stream = true
		case unix.SOCK_DGRAM:
		default:
			return nil, errors.New("a stream socket does not keep frames apart: use one of type SOCK_SEQPACKET or SOCK_DGRAM")
		}
	} else if errors.Is(err, unix.EBADF) {
		return nil, errors.New("no such descriptor is open: the program that starts ring3 must pass it on")
	} else if err := checkTap(fd); err != nil {
		return nil, err
	}
	if err := unix.SetNonblock(fd, true); err != nil {
		return nil, err
	}
	unix.CloseOnExec(fd)
	// The port has a descriptor of its own: another machine may follow.
	own, err := unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	p.file = os.NewFile(uintptr(own), fmt.Sprintf("fd %d", fd))
	conn, err := p.file.SyscallConn()
	p.conn = conn
	return p, err
}

// checkTap checks that fd is a tap device without extras.
func checkTap(fd int) error {
	ifr, err := unix.NewIfreq("")
	if err != nil {
		return err
	}
	if err := unix.IoctlIfreq(fd, unix.TUNGETIFF, ifr); err != nil {
		return errors.New("neither a tap device nor a socket")
	}
	switch flags := ifr.Uint16(); {
	case flags&unix.IFF_TAP == 0:
		return errors.New("a tun device has no Ethernet frames: make a tap device (IFF_TAP)")
	case flags&unix.IFF_NO_PI == 0, flags&unix.IFF_VNET_HDR != 0:
		return errors.New("the tap device puts a header before frames: set IFF_NO_PI and not IFF_VNET_HDR")
	}
	return nil
}

// Close implements net.Port.
func (p *Port) Close() error {
	if err := p.file.Close(); !errors.Is(err, os.ErrClosed) {
		return err
	}
	return nil
}

// Offloads implements net.Port: there is no place for a header.
func (p *Port) Offloads() bool { return false }

// Ready implements net.Port.
func (p *Port) Ready(vnet.Accepts) {}

// Send implements net.Port. A frame for which the descriptor has no room now is
// lost.
func (p *Port) Send(_ vnet.Header, frame virtio.Buffers) {
	p.conn.Write(func(fd uintptr) bool {
		unix.Writev(int(fd), frame.Slices())
		return true // no second try
	})
}

// Receive implements net.Port.
func (p *Port) Receive(f []vnet.Frame) (n int, err error) {
	for len(p.frames) < len(f) {
		p.frames = append(p.frames, make([]byte, maxFrame))
	}
	werr := p.conn.Read(func(fd uintptr) bool {
		for n < len(f) {
			k, rerr := unix.Read(int(fd), p.frames[n])
			switch {
			case rerr == unix.EINTR:
				continue
			case rerr == unix.EAGAIN:
				return n > 0
			case rerr != nil:
				err = rerr
				return true
			case k == 0 && p.stream:
				err = io.EOF
				return true
			case k == 0:
				continue
			}
			f[n] = vnet.Frame{Parts: [][]byte{p.frames[n][:k]}}
			n++
		}
		return true
	})
	if n > 0 {
		return n, nil // an error comes again
	}
	return 0, errors.Join(werr, err)
}
