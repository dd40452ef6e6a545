package main

import (
	"bufio"
	"bytes"
	"fmt"
	"io"
	"math/rand"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

// records is a loop for a guest's shell, in a directory $1 of a journalling file
// system: it appends numbered records to a file, each synchronized, while it makes and
// removes other files, and tells of each record when that is safe.
const records = `cd $1 && i=$(cat log 2>/dev/null | wc -l) && while :; do
echo record $i | dd of=log oflag=append conv=notrunc,fsync 2>/dev/null && echo =$i=; i=$((i+1))
mkdir d$i && : >d$i/f && mv d$i/f d$i/g; rm -r d$((i-5)) 2>/dev/null; done`

// pulled is what pull writes behind a guest's output if that has no end.
const pulled = "plug pulled"

// acknowledged reads what the loop prints until it has told of n records, pulls the
// plug, and returns the number of the last that it told of.
func acknowledged(t *testing.T, out io.Reader, n int, pull func()) int {
	t.Helper()
	last, told := -1, 0
	for lines := bufio.NewScanner(out); lines.Scan(); {
		if strings.TrimSpace(lines.Text()) == pulled {
			break
		}
		if _, err := fmt.Sscanf(strings.TrimSpace(lines.Text()), "=%d=", &last); err != nil {
			continue
		}
		if told++; told == n {
			go pull() // what is told before the end comes still
		}
	}
	if told < n {
		t.Fatalf("the guest has told of %d records, wanted %d", told, n)
	}
	return last
}

// checkRecords replays the journal of a file system, has it checked, and looks for
// records 0 to last. image is as e2fsck wants it, log the name of the file.
func checkRecords(t *testing.T, image, log string, last int) {
	t.Helper()
	tool := func(name string, args ...string) (out []byte, status int) {
		t.Helper()
		path, err := exec.LookPath(name)
		if err != nil {
			path = "/sbin/" + name
		}
		cmd := exec.Command(path, args...)
		out, err = cmd.CombinedOutput()
		if cmd.ProcessState == nil {
			t.Fatal(err)
		}
		return out, cmd.ProcessState.ExitCode()
	}
	if out, status := tool("e2fsck", "-y", "-E", "journal_only", image); status > 1 {
		t.Fatalf("the journal cannot be replayed: status %d\n%s", status, out)
	}
	if out, status := tool("e2fsck", "-fn", image); status != 0 {
		t.Errorf("e2fsck after the journal: status %d\n%s", status, out)
	}
	out, _ := tool("debugfs", "-R", "cat "+log, image)
	got := slices.Collect(bytes.Lines(out))
	got = slices.DeleteFunc(got, func(l []byte) bool { return bytes.HasPrefix(l, []byte("debugfs ")) }) // its version
	for i := range last + 1 {
		if want := fmt.Appendf(nil, "record %d\n", i); i >= len(got) || !bytes.Equal(got[i], want) {
			t.Fatalf("record %d of %d acknowledged ones is not in the file, which has %d", i, last+1, len(got))
		}
	}
}

// TestPlug kills ring3 while a guest writes: the file system is whole when its
// journal is replayed, and has all that was acknowledged.
func TestPlug(t *testing.T) {
	needKernel(t)
	mkfs, err := exec.LookPath("mke2fs")
	if err != nil {
		if mkfs, err = exec.LookPath("/sbin/mke2fs"); err != nil {
			t.Skip("no mke2fs on this host")
		}
	}
	image := filepath.Join(t.TempDir(), "disk.img")
	if out, err := exec.Command(mkfs, "-q", "-F", "-t", "ext4", image, "32M").CombinedOutput(); err != nil {
		t.Fatalf("mke2fs: %v\n%s", err, out)
	}
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	random := rand.New(rand.NewSource(time.Now().UnixNano()))
	for range 3 {
		cmd := &exec.Cmd{Path: self, Stderr: os.Stderr, Args: []string{"ring3", "run", "--timeout", "100s", "--disk", image, "--",
			"sh", "-c", "mount -t ext4 /dev/vda /mnt && " + records, "sh", "/mnt"}}
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		last := acknowledged(t, out, 5+random.Intn(40), func() { cmd.Process.Kill() })
		cmd.Wait()
		checkRecords(t, image, "/log", last)
	}
}
