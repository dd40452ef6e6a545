package cli

import (
	"fmt"
	"strconv"
	"strings"

	"ring3/internal/virtio/vsock"
)

// Vsock is a socket device as the value of a flag, PATH[,cid=N]. Without a flag
// its Path is empty.
type Vsock vsock.Config

// Set implements pflag.Value. A path cannot have a comma.
func (v *Vsock) Set(s string) error {
	path, option, more := strings.Cut(s, ",")
	o := Vsock{Path: path, CID: vsock.MinCID}
	if path == "" {
		return fmt.Errorf("%q names no socket: write PATH or PATH,cid=N", s)
	}
	if more {
		number, ok := strings.CutPrefix(option, "cid=")
		n, err := strconv.ParseUint(number, 10, 64)
		switch {
		case !ok:
			return fmt.Errorf("%s: %q is no option of a socket: use cid=N", path, option)
		case err != nil || n < vsock.MinCID || n > vsock.MaxCID:
			return fmt.Errorf("%s: cid %q is not a number between %d and %d", path, number, vsock.MinCID, uint64(vsock.MaxCID))
		}
		o.CID = n
	}
	*v = o
	return nil
}

// Type implements pflag.Value: the word for the value in a help text.
func (*Vsock) Type() string { return "PATH" }

// String renders the device.
func (v *Vsock) String() string {
	if v.Path == "" {
		return ""
	}
	return fmt.Sprintf("%s,cid=%d", v.Path, v.CID)
}
