package main

import (
	"bufio"
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"ring3/internal/disk"
)

// TestKillKeepsData: what a guest has flushed to a disk before the monitor is
// killed is there, and the image can be used again.
func TestKillKeepsData(t *testing.T) {
	needKernel(t)
	image := filepath.Join(t.TempDir(), "disk.img")
	if err := os.WriteFile(image, make([]byte, 1<<20), 0o600); err != nil {
		t.Fatal(err)
	}
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := &exec.Cmd{Path: self, Stderr: os.Stderr, Args: []string{"ring3", "run", "--timeout", "100s", "--disk", image, "--", "sh", "-c",
		"i=0; while :; do echo sector $i | dd of=/dev/vda bs=512 seek=$i conv=fsync 2>/dev/null; echo $i; i=$((i+1)); done"}}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	lines, last := bufio.NewScanner(out), -1
	for last < 10 && lines.Scan() {
		if _, err := fmt.Sscan(lines.Text(), &last); err != nil {
			t.Fatalf("the guest says %q", lines.Text())
		}
	}
	cmd.Process.Kill()
	for lines.Scan() { // told before the end
		fmt.Sscan(lines.Text(), &last)
	}
	cmd.Wait()
	if last < 10 {
		t.Fatalf("the guest has told of %d sectors", last+1)
	}
	img, err := disk.Open(disk.Options{Path: image})
	if err != nil {
		t.Fatal(err)
	}
	defer img.Close()
	for i := range last + 1 {
		b := make([]byte, disk.SectorSize)
		want := fmt.Appendf(nil, "sector %d\n", i)
		if err := img.ReadAt([][]byte{b}, int64(i)*disk.SectorSize); err != nil || !bytes.HasPrefix(b, want) {
			t.Errorf("sector %d has %.20q: %v", i, b, err)
		}
	}
}
