//go:build soak

package main

import (
	"io"
	"math/rand"
	"os"
	"path/filepath"
	"testing"
	"time"
)

// TestDebianBoots boots Debian 20 times in a row, from an image that stays.
func TestDebianBoots(t *testing.T) {
	image := copySparse(t, debianDisk(t), 0)
	for i := range 20 {
		start := time.Now()
		c := startOnTerminal(t, 24, 80, "run", "--disk", image)
		c.login()
		t.Logf("boot %d: login after %v", i+1, time.Since(start).Round(10*time.Millisecond))
		c.keys("systemctl is-system-running --wait; systemctl --failed --no-legend --plain | wc -l; poweroff\r")
		c.expect("running\r\n0\r\n")
		c.end(0)
	}
}

// TestDebianPlug is TestPlug in the root file system of a Debian, 50 times. The disk
// has no partition table: e2fsck cannot replay a journal behind an offset.
func TestDebianPlug(t *testing.T) {
	image := copySparse(t, debianDisk(t), 1<<20)
	random := rand.New(rand.NewSource(time.Now().UnixNano()))
	for i := range 50 {
		c := startOnTerminal(t, 24, 80, "run", "--disk", image)
		c.login()
		r, w := io.Pipe()
		c.copyTo(w)
		c.keys("f() { " + records + "; }; stty -echo; f /root\r")
		last := acknowledged(t, r, 5+random.Intn(100), func() {
			c.cmd.Process.Kill()
			c.cmd.Wait()
			io.WriteString(c.slave, "\n"+pulled+"\n")
		})
		c.copyTo(io.Discard)
		checkRecords(t, image, "/root/log", last)
		t.Logf("%d: %d records", i+1, last+1)
	}
}

// copySparse copies an image from byte skip on, with its holes.
func copySparse(t *testing.T, from string, skip int64) (path string) {
	t.Helper()
	src, err := os.Open(from)
	if err != nil {
		t.Fatal(err)
	}
	defer src.Close()
	if _, err := src.Seek(skip, io.SeekStart); err != nil {
		t.Fatal(err)
	}
	path = filepath.Join(t.TempDir(), "disk.img")
	dst, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer dst.Close()
	buf, zero := make([]byte, 1<<20), [1 << 20]byte{}
	for at := int64(0); ; at += int64(len(buf)) {
		n, err := io.ReadFull(src, buf)
		if n > 0 && string(buf[:n]) != string(zero[:n]) {
			if _, err := dst.WriteAt(buf[:n], at); err != nil {
				t.Fatal(err)
			}
		}
		if err != nil {
			if terr := dst.Truncate(at + int64(n)); terr != nil || err != io.EOF && err != io.ErrUnexpectedEOF {
				t.Fatal(err, terr)
			}
			return path
		}
	}
}
