package cli

import (
	"os"
	"path/filepath"
	"testing"

	"ring3/internal/share"
)

func TestParseShare(t *testing.T) {
	here, err := os.Getwd()
	if err != nil {
		t.Fatal(err)
	}
	for in, want := range map[string]Share{
		"/src":          {Options: share.Options{Path: "/src"}, Guest: "/src"},
		"src":           {Options: share.Options{Path: "src"}, Guest: filepath.Join(here, "src")},
		"/src/,ro":      {Options: share.Options{Path: "/src/", ReadOnly: true}, Guest: "/src"},
		"src:/a/../b":   {Options: share.Options{Path: "src"}, Guest: "/b"},
		"/:/host,ro":    {Options: share.Options{Path: "/", ReadOnly: true}, Guest: "/host"},
		"/a:b/c:/mnt/x": {Options: share.Options{Path: "/a:b/c"}, Guest: "/mnt/x"},
	} {
		if got, err := ParseShare(in); err != nil || got != want {
			t.Errorf("ParseShare(%q) = %+v, %v; want %+v", in, got, err, want)
		}
	}
	for _, in := range []string{"", ",ro", ":/x", "/src,", "/src,rw", "/src:", "/src:x", "/src:/", "/src:/..", "/"} {
		if got, err := ParseShare(in); err == nil {
			t.Errorf("ParseShare(%q) = %+v, want an error", in, got)
		}
	}
}

func TestRoot(t *testing.T) {
	for in, want := range map[string]Root{
		"host":     {Path: "/"},
		"/":        {Path: "/"},
		"/tree/":   {Path: "/tree"},
		"/tree,rw": {Path: "/tree", Writable: true},
	} {
		var got Root
		if err := got.Set(in); err != nil || got != want {
			t.Errorf("%q is %+v, %v; want %+v", in, got, err, want)
		}
	}
	for _, in := range []string{"", ",rw", "/tree,ro", "/tree,", "host,rw", "/,rw", "/tree/..,rw"} {
		if err := new(Root).Set(in); err == nil {
			t.Errorf("%q is taken", in)
		}
	}
}
