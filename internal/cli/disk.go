package cli

import (
	"fmt"
	"strings"

	"ring3/internal/disk"
)

// Disks are disk images as the values of a flag that may be repeated, each
// FILE[,ro][,snapshot][,raw][,qcow2].
type Disks []disk.Options

// ParseDisk reads one of them. A file's name cannot have a comma.
func ParseDisk(s string) (disk.Options, error) {
	words := strings.Split(s, ",")
	o := disk.Options{Path: words[0]}
	if o.Path == "" {
		return o, fmt.Errorf("%q names no file: write FILE, FILE,ro or FILE,snapshot", s)
	}
	for _, w := range words[1:] {
		switch w {
		case "ro":
			o.ReadOnly = true
		case "snapshot":
			o.Snapshot = true
		case disk.Raw, disk.Qcow2:
			o.Format = w
		default:
			return o, fmt.Errorf("%s: %q is no option of a disk: use ro, snapshot, raw or qcow2", o.Path, w)
		}
	}
	if o.ReadOnly && o.Snapshot {
		return o, fmt.Errorf("%s: ro keeps the guest from writing, snapshot lets it and forgets: use one", o.Path)
	}
	return o, nil
}

// Set implements pflag.Value.
func (d *Disks) Set(s string) error {
	o, err := ParseDisk(s)
	if err == nil {
		*d = append(*d, o)
	}
	return err
}

// Type implements pflag.Value: the word for the value in a help text.
func (*Disks) Type() string { return "FILE" }

// String renders the disks.
func (d *Disks) String() string {
	var s []string
	for _, o := range *d {
		s = append(s, o.String())
	}
	return strings.Join(s, " ")
}
