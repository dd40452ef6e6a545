package main

import (
	"errors"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"
)

// debianDisk returns the path of a disk with Debian installed on it, which it makes
// if nobody has yet.
func debianDisk(t *testing.T) string {
	t.Helper()
	if testing.Short() {
		t.Skip("boots Debian")
	}
	cmd := exec.Command("../../test/debian/make-image")
	cmd.Stderr = os.Stderr
	out, err := cmd.Output()
	if exit, ok := errors.AsType[*exec.ExitError](err); ok && exit.ExitCode() == 3 {
		t.Skip("this host lacks what makes a disk with Debian (make test-deps)")
	}
	if err != nil {
		t.Fatalf("make-image: %v", err)
	}
	return strings.TrimSpace(string(out))
}

// login waits for the login prompt and logs in. A boot takes minutes on a machine
// with a lot else to do.
func (c *terminal) login() {
	c.t.Helper()
	c.patience = 5 * time.Minute
	c.expect("debian login: ")
	c.keys("root\r")
	c.expect(prompt)
}

// A stock Debian boots from its disk without a unit that fails, reboots in the same
// ring3, and switches off.
func TestDebian(t *testing.T) {
	c := startOnTerminal(t, 24, 80, "run", "--disk", debianDisk(t)+",snapshot")
	c.login()
	c.keys("systemctl is-system-running --wait; systemctl --failed --no-legend --plain | wc -l\r")
	c.expect("running\r\n0\r\n")
	c.keys("echo ept >/var/k; reboot\r")
	c.login()
	c.keys("echo k$(cat /var/k); poweroff\r")
	c.expect("kept\r\n")
	c.end(0)
}
