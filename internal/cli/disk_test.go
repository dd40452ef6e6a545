package cli

import (
	"testing"

	"ring3/internal/disk"
)

func TestParseDisk(t *testing.T) {
	for in, want := range map[string]disk.Options{
		"a.img":             {Path: "a.img"},
		"/x/a.img,ro":       {Path: "/x/a.img", ReadOnly: true},
		"a.img,snapshot":    {Path: "a.img", Snapshot: true},
		"a.img,qcow2,ro":    {Path: "a.img", Format: disk.Qcow2, ReadOnly: true},
		"a b.img,ro,ro":     {Path: "a b.img", ReadOnly: true},
		"/dev/sdb,snapshot": {Path: "/dev/sdb", Snapshot: true},
	} {
		if got, err := ParseDisk(in); err != nil || got != want {
			t.Errorf("ParseDisk(%q) = %+v, %v; want %+v", in, got, err, want)
		}
	}
	for _, in := range []string{"", ",ro", "a.img,", "a.img,rw", "a.img,RO", "a.img,ro,snapshot"} {
		if got, err := ParseDisk(in); err == nil {
			t.Errorf("ParseDisk(%q) = %+v, want an error", in, got)
		}
	}
	var d Disks
	for _, s := range []string{"a,ro", "b", "c,raw,snapshot"} {
		if err := d.Set(s); err != nil {
			t.Error(err)
		}
	}
	if got := d.String(); got != "a,ro b c,raw,snapshot" {
		t.Errorf("prints as %q", got)
	}
}
