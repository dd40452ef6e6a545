package cli

import (
	"fmt"
	"path"
	"path/filepath"
	"strings"

	"ring3/internal/share"
)

// Share is a directory of the host, and where the guest has it.
type Share struct {
	share.Options
	Guest string // absolute path
}

// Shares are the values of a flag that may be repeated, each
// HOST[:GUEST][,ro].
type Shares []Share

// ParseShare reads one of them. Neither path can have a comma; the guest's
// begins behind the last ":/".
func ParseShare(s string) (sh Share, err error) {
	words := strings.Split(s, ",")
	sh.Path = words[0]
	guest := ""
	if i := strings.LastIndex(sh.Path, ":"); i >= 0 {
		if guest = sh.Path[i+1:]; !path.IsAbs(guest) {
			return sh, fmt.Errorf("%s: %q is no absolute path in the guest: write HOST:/GUEST", s, guest)
		}
		sh.Path = sh.Path[:i]
	}
	if sh.Path == "" {
		return sh, fmt.Errorf("%q names no directory: write HOST, HOST:GUEST or HOST,ro", s)
	}
	for _, w := range words[1:] {
		if w != "ro" {
			return sh, fmt.Errorf("%s: %q is no option of a share: use ro", sh.Path, w)
		}
		sh.ReadOnly = true
	}
	if guest == "" {
		if guest, err = filepath.Abs(sh.Path); err != nil {
			return sh, err
		}
	}
	if sh.Guest = path.Clean(guest); sh.Guest == "/" {
		return sh, fmt.Errorf("%s: a share cannot be the guest's /: use --root %s", s, sh.Path)
	}
	return sh, nil
}

// Set implements pflag.Value.
func (l *Shares) Set(s string) error {
	sh, err := ParseShare(s)
	if err == nil {
		*l = append(*l, sh)
	}
	return err
}

// Type implements pflag.Value.
func (*Shares) Type() string { return "HOST" }

// String renders the shares.
func (l *Shares) String() string {
	var s []string
	for _, sh := range *l {
		s = append(s, sh.Options.String())
	}
	return strings.Join(s, " ")
}

// Root is a directory of the host that is the guest's root, as the value of a
// flag, DIR[,rw]; "host" is the host's own.
type Root struct {
	Path     string // absolute; "" for none
	Writable bool   // the guest changes it; else what it writes is lost
}

// Set implements pflag.Value.
func (r *Root) Set(s string) error {
	dir, option, has := strings.Cut(s, ",")
	switch {
	case dir == "":
		return fmt.Errorf("%q names no directory: write DIR, DIR,rw or host", s)
	case has && option != "rw":
		return fmt.Errorf("%s: %q is no option of a root: use rw", dir, option)
	case dir == "host":
		dir = "/"
	}
	abs, err := filepath.Abs(dir)
	if err != nil {
		return err
	}
	if has && abs == "/" {
		return fmt.Errorf("%s: the host's own root is for a throw-away layer only; leave out rw, and add a --share of what shall change", s)
	}
	*r = Root{Path: abs, Writable: has}
	return nil
}

// Type implements pflag.Value.
func (*Root) Type() string { return "DIR" }

// String renders the root.
func (r *Root) String() string {
	if r.Writable {
		return r.Path + ",rw"
	}
	return r.Path
}
