package console

import (
	"fmt"
	"os"
	"os/exec"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// TestMain lets the test binary play the parts of the program.
func TestMain(m *testing.M) {
	if len(os.Args) == 2 {
		switch os.Args[1] {
		case GuardCommand:
			if err := Guard(); err != nil {
				fmt.Fprintln(os.Stderr, err)
				os.Exit(1)
			}
			return
		case "hold-terminal": // the owner: raw mode until killed
			if _, err := OpenTerminal(os.Stdin); err != nil {
				fmt.Fprintln(os.Stderr, err)
				os.Exit(1)
			}
			fmt.Println("raw")
			select {}
		}
	}
	os.Exit(m.Run())
}

// pty opens a new pseudo-terminal and returns both ends.
func pty(t *testing.T) (master, slave *os.File) {
	t.Helper()
	master, err := os.OpenFile("/dev/ptmx", os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Skipf("no pseudo-terminals on this host: %v", err)
	}
	t.Cleanup(func() { master.Close() })
	n, err := unix.IoctlGetInt(int(master.Fd()), unix.TIOCGPTN)
	if err == nil {
		err = unix.IoctlSetPointerInt(int(master.Fd()), unix.TIOCSPTLCK, 0)
	}
	if err != nil {
		t.Fatal(err)
	}
	slave, err = os.OpenFile(fmt.Sprintf("/dev/pts/%d", n), os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { slave.Close() })
	return master, slave
}

func raw(t *testing.T, f *os.File) bool {
	t.Helper()
	s, err := unix.IoctlGetTermios(int(f.Fd()), unix.TCGETS)
	if err != nil {
		t.Fatal(err)
	}
	return s.Lflag&(unix.ICANON|unix.ECHO|unix.ISIG) == 0
}

func TestTerminalCloseRestores(t *testing.T) {
	_, slave := pty(t)
	term, err := OpenTerminal(slave)
	if err != nil {
		t.Fatal(err)
	}
	if !raw(t, slave) {
		t.Error("not raw after OpenTerminal")
	}
	for range 2 {
		if err := term.Close(); err != nil {
			t.Error(err)
		}
	}
	if raw(t, slave) {
		t.Error("still raw after Close")
	}
}

func TestTerminalSize(t *testing.T) {
	master, slave := pty(t)
	want := unix.Winsize{Row: 43, Col: 132}
	if err := unix.IoctlSetWinsize(int(master.Fd()), unix.TIOCSWINSZ, &want); err != nil {
		t.Fatal(err)
	}
	term, err := OpenTerminal(slave)
	if err != nil {
		t.Fatal(err)
	}
	defer term.Close()
	if c, r, err := term.Size(); c != 132 || r != 43 || err != nil {
		t.Errorf("Size = %d, %d, %v", c, r, err)
	}
}

// The owner dies without any chance to act.
func TestTerminalRestoredAfterKill(t *testing.T) {
	_, slave := pty(t)
	cmd := exec.Command(os.Args[0], "hold-terminal")
	cmd.Stdin, cmd.Stderr = slave, os.Stderr
	out, err := cmd.StdoutPipe()
	if err == nil {
		err = cmd.Start()
	}
	if err != nil {
		t.Fatal(err)
	}
	if _, err := out.Read(make([]byte, 4)); err != nil {
		t.Fatal(err)
	}
	if !raw(t, slave) {
		t.Error("not raw while the owner lives")
	}
	cmd.Process.Kill()
	cmd.Wait()
	for deadline := time.Now().Add(10 * time.Second); raw(t, slave); {
		if time.Now().After(deadline) {
			t.Fatal("the terminal is still raw 10 s after its owner was killed")
		}
		time.Sleep(10 * time.Millisecond)
	}
}
