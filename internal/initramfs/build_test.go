package initramfs

import (
	"bytes"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"ring3/internal/kernelstore"
)

func busybox(t *testing.T) string {
	t.Helper()
	s, err := kernelstore.Open("")
	if err != nil {
		t.Fatal(err)
	}
	p, err := s.FetchBusyBox(t.Context(), nil)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// TestBuild has an independent cpio list and unpack the archive.
func TestBuild(t *testing.T) {
	bb := busybox(t)
	b, err := Build(t.Context(), Options{BusyBox: bb, Files: []File{
		{"/opt/a/tool", 0o755, []byte("#!/bin/sh\n")}, {"etc/motd", 0o644, []byte("hello\n")}, {"etc/hosts", 0o600, nil}}})
	if err != nil {
		t.Fatal(err)
	}
	list := exec.Command(bb, "cpio", "-itv")
	list.Stdin = bytes.NewReader(b)
	out, err := list.CombinedOutput()
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	for _, want := range []string{
		"crw------- 0/0 0 dev/console", "-rwxr-xr-x 0/0 10 opt/a/tool", "drwxr-xr-x 0/0 0 opt/a",
		"-rw------- 0/0 0 etc/hosts", // ours gives way
		"lrwxrwxrwx 0/0 0 bin/sh -> /bin/busybox", "lrwxrwxrwx 0/0 0 sbin/init -> /bin/busybox",
	} {
		if !strings.Contains(withoutTimes(string(out)), "\n"+want+"\n") {
			t.Errorf("no %q in the list", want)
		}
	}
	seen := map[string]bool{}
	for l := range strings.Lines(string(out)) {
		if seen[l] {
			t.Errorf("twice: %s", l)
		}
		seen[l] = true
	}
	dir := t.TempDir()
	un := exec.Command(bb, "cpio", "-id", "bin/busybox", "opt/a/tool", "ring3/session", "etc/motd", "bin/sh")
	un.Dir, un.Stdin = dir, bytes.NewReader(b)
	if out, err := un.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	for in, guest := range map[string]string{bb: "bin/busybox", "rootfs/ring3/session": "ring3/session"} {
		a, err1 := os.ReadFile(in)
		c, err2 := os.ReadFile(filepath.Join(dir, guest))
		if err := errors.Join(err1, err2); err != nil || !bytes.Equal(a, c) {
			t.Errorf("%s differs in the archive: %v", guest, err)
		}
	}
	if l, err := os.Readlink(filepath.Join(dir, "bin/sh")); err != nil || l != "/bin/busybox" {
		t.Errorf("bin/sh: %q, %v", l, err)
	}
	if len(b) > 4<<20 {
		t.Errorf("%d bytes", len(b))
	}
}

// withoutTimes makes of a listing's lines "MODE OWNER SIZE DATE TIME NAME" such
// without times and with single blanks.
func withoutTimes(s string) string {
	out := "\n"
	for l := range strings.Lines(s) {
		if f := strings.Fields(l); len(f) >= 6 {
			out += strings.Join(append(f[:3:3], f[5:]...), " ") + "\n"
		}
	}
	return out
}

// TestNewc compares an archive with the format's description, field by field.
func TestNewc(t *testing.T) {
	var b bytes.Buffer
	w := newWriter(&b)
	w.add(entry{path: "/d/c", mode: modeChar | 0o600, major: 5, minor: 1})
	w.add(entry{path: "f", mode: modeReg | 0o644, data: []byte("12345")})
	if err := w.close(); err != nil {
		t.Fatal(err)
	}
	// Magic, then ino, mode, uid, gid, nlink, mtime, size, dev (two), rdev
	// (two), name size, check.
	want := "070701" + "00000001" + "000041ed" + "00000000" + "00000000" + "00000002" + "00000000" + "00000000" + "00000000" + "00000000" +
		"00000000" + "00000000" + "00000002" + "00000000" + "d\x00" +
		"070701" + "00000002" + "00002180" + "00000000" + "00000000" + "00000001" + "00000000" + "00000000" + "00000000" + "00000000" +
		"00000005" + "00000001" + "00000004" + "00000000" + "d/c\x00\x00\x00" +
		"070701" + "00000003" + "000081a4" + "00000000" + "00000000" + "00000001" + "00000000" + "00000005" + "00000000" + "00000000" +
		"00000000" + "00000000" + "00000002" + "00000000" + "f\x00" + "12345\x00\x00\x00" +
		"070701" + "00000004" + "00000000" + "00000000" + "00000000" + "00000001" + "00000000" + "00000000" + "00000000" + "00000000" +
		"00000000" + "00000000" + "0000000b" + "00000000" + "TRAILER!!!\x00\x00\x00\x00"
	if b.String() != want {
		t.Errorf("\n got %q\nwant %q", b.String(), want)
	}
}

// TestScripts has the guest's shell check the scripts' syntax.
func TestScripts(t *testing.T) {
	bb := busybox(t)
	for _, s := range []string{"init", "ring3/session", "ring3/job", "etc/profile"} {
		if out, err := exec.Command(bb, "sh", "-n", "rootfs/"+s).CombinedOutput(); err != nil || len(out) > 0 {
			t.Errorf("%s: %v %s", s, err, out)
		}
	}
}

// TestConfig reads the configuration back with the guest's shell: whatever
// the words, none is split, expanded or lost.
func TestConfig(t *testing.T) {
	bb := busybox(t)
	words := []string{"cmd", "", " ", "a b", "it's", `"q"`, "$HOME `x` $(x)", "*", "\\", "-n", "new\nline\n", "\xff\x01", "~", "!", "'", "''"}
	o := Options{Hostname: "it's", Rows: 24, Cols: 80, Job: &Job{Args: words,
		Env: []string{"A=x y'z", "B=", "PATH=/p=q"}, Dir: "/a b"}}
	conf, err := o.config()
	if err != nil {
		t.Fatal(err)
	}
	f := filepath.Join(t.TempDir(), "config")
	if err := os.WriteFile(f, conf, 0o600); err != nil {
		t.Fatal(err)
	}
	out, err := exec.Command(bb, "sh", "-c", `. "$0"
printf '%s\0' "$hostname" "$term" "$rows" "$cols" "$mode" "$dir" "${A-unset}"
job_env
printf '%s\0' "$A" "$B" "$PATH" "$@"`, f).CombinedOutput()
	want := append([]string{"it's", "linux", "24", "80", "pipes", "/a b", "unset", "x y'z", "", "/p=q"}, words...)
	if got := string(out); err != nil || got != strings.Join(want, "\x00")+"\x00" {
		t.Errorf("%v\n got %q\nwant %q", err, got, want)
	}
}

func TestBuildErrors(t *testing.T) {
	bb := busybox(t)
	text := filepath.Join(t.TempDir(), "text")
	if err := os.WriteFile(text, []byte("hello"), 0o700); err != nil {
		t.Fatal(err)
	}
	other := filepath.Join(t.TempDir(), "true") // a program, but no BusyBox by that name
	if b, err := os.ReadFile(bb); err != nil {
		t.Fatal(err)
	} else if err := os.WriteFile(other, b, 0o700); err != nil {
		t.Fatal(err)
	}
	for want, o := range map[string]Options{
		"no such file":            {BusyBox: text + "x"},
		"not a program":           {BusyBox: text},
		"this BusyBox has no sh":  {BusyBox: other},
		"empty command":           {BusyBox: bb, Job: &Job{}},
		`"A" is not NAME=VALUE`:   {BusyBox: bb, Job: &Job{Args: []string{"x"}, Env: []string{"A"}}},
		`"A B=c" is not NAME=VAL`: {BusyBox: bb, Job: &Job{Args: []string{"x"}, Env: []string{"A B=c"}}},
		`NUL byte in argument "a`: {BusyBox: bb, Job: &Job{Args: []string{"x", "a\x00"}}},
		`NUL byte in "/tmp\x00"`:  {BusyBox: bb, Job: &Job{Args: []string{"x"}, Dir: "/tmp\x00"}},
	} {
		if _, err := Build(t.Context(), o); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v, want %q", err, want)
		}
	}
}
