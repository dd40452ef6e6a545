package vmdir

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// TestMain lets the test binary be a monitor that is killed.
func TestMain(m *testing.M) {
	if len(os.Args) == 3 && os.Args[1] == "hold" {
		d, err := Base(os.Args[2]).Create("held")
		if err == nil {
			err = d.Write(&State{Name: "held", PID: os.Getpid(), Started: true})
		}
		fmt.Println(err)
		time.Sleep(time.Minute)
		os.Exit(1)
	}
	os.Exit(m.Run())
}

func base(t *testing.T) Base { return Base(filepath.Join(t.TempDir(), "ring3")) }

// Of many that want the same name at the same time one gets it, and the others
// hear why not.
func TestRace(t *testing.T) {
	b := base(t)
	var won atomic.Pointer[Dir]
	var all sync.WaitGroup
	for range 20 {
		all.Go(func() {
			d, err := b.Create("web")
			var taken *Error
			switch {
			case err == nil && won.Swap(d) != nil:
				t.Error("two have the same name")
			case err != nil && (!errors.As(err, &taken) || !strings.Contains(err.Error(), "machine web runs already")):
				t.Errorf("error %v", err)
			}
		})
	}
	all.Wait()
	if err := won.Load().Remove(); err != nil {
		t.Error(err)
	}
	if list, err := b.List(); err != nil || len(list) != 0 {
		t.Errorf("%v %v", list, err)
	}
}

func TestPhases(t *testing.T) {
	b := base(t)
	d, err := b.Create("m")
	if err != nil {
		t.Fatal(err)
	}
	want := func(phase string) {
		t.Helper()
		m, err := b.Find("m")
		if err != nil || m.Phase != phase || m.Name != "m" {
			t.Errorf("%+v %v, want phase %s", m, err, phase)
		}
	}
	want(Starting)
	s := State{Name: "m", Created: time.Now(), Started: true}
	if err := d.Write(&s); err != nil {
		t.Fatal(err)
	}
	want(Running)
	if err := b.Remove("m"); err == nil || !strings.Contains(err.Error(), "machine m runs") {
		t.Errorf("removed while it runs: %v", err)
	}
	now, status := time.Now(), 3
	s.Ended, s.Status = &now, &status
	if err := d.Write(&s); err != nil {
		t.Fatal(err)
	}
	want(Running)
	d.Close()
	want(Ended)
	os.WriteFile(filepath.Join(d.Path(), stateFile), []byte(`{"name": "other", "ended": 5}`), 0o600)
	want(Dead)
	if _, err := b.Create("m"); err == nil || !strings.Contains(err.Error(), "exists already") {
		t.Errorf("created twice: %v", err)
	}
	if err := b.Remove("m"); err != nil {
		t.Error(err)
	}
	if _, err := b.Find("m"); err == nil {
		t.Error("found after it was removed")
	}
}

// A monitor that is killed is no longer there, whatever its directory says.
func TestKilled(t *testing.T) {
	b := base(t)
	cmd := exec.Command(os.Args[0], "hold", string(b))
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	line := make([]byte, 6)
	if n, err := out.Read(line); err != nil || string(line[:n]) != "<nil>\n" {
		t.Fatalf("%q %v", line[:n], err)
	}
	m, err := b.Find("held")
	if err != nil || m.Phase != Running {
		t.Errorf("%+v %v", m, err)
	}
	cmd.Process.Kill()
	if err := m.Wait(); err != nil {
		t.Error(err)
	}
	cmd.Wait()
	if m, err := m.Again(); err != nil || m.Phase != Dead {
		t.Errorf("%+v %v", m, err)
	}
	if err := b.Remove("held"); err != nil {
		t.Error(err)
	}
}

func TestNames(t *testing.T) {
	for name, ok := range map[string]bool{"a": true, "web.1_x-Y": true, "9": true, NewName(): true, strings.Repeat("n", MaxName): true,
		"": false, ".": false, "..": false, "-x": false, "_": false, "a/b": false, "a b": false, "ä": false, "a\n": false,
		strings.Repeat("n", MaxName+1): false} {
		if err := CheckName(name); (err == nil) != ok {
			t.Errorf("%q: %v", name, err)
		}
	}
}

// What others can write to is not used.
func TestForeignBase(t *testing.T) {
	b := base(t)
	if err := os.Mkdir(string(b), 0o700); err != nil {
		t.Fatal(err)
	}
	os.Chmod(string(b), 0o770)
	if _, err := b.Create("m"); err == nil || !strings.Contains(err.Error(), "this user alone") {
		t.Errorf("writable by a group: %v", err)
	}
	link := base(t)
	if err := os.Symlink(t.TempDir(), string(link)); err != nil {
		t.Fatal(err)
	}
	if _, err := link.Create("m"); err == nil {
		t.Error("a symbolic link is followed")
	}
}

func TestDefault(t *testing.T) {
	dir := t.TempDir()
	for _, tt := range []struct{ runtime, state, home, want string }{
		{dir, "/s", "/h", dir + "/ring3"},
		{dir + "/none", "/s", "/h", "/s/ring3"},
		{"relative", "relative", "/h", "/h/.local/state/ring3"},
		{"", "", "", "error"},
	} {
		t.Setenv("XDG_RUNTIME_DIR", tt.runtime)
		t.Setenv("XDG_STATE_HOME", tt.state)
		t.Setenv("HOME", tt.home)
		b, err := Default()
		if err != nil {
			b = "error"
		}
		if string(b) != tt.want {
			t.Errorf("%+v: %s %v", tt, b, err)
		}
	}
}

// The end of what was written is kept, in pieces of any size.
func TestLog(t *testing.T) {
	for _, piece := range []int{1000, 7919, LogSize, 3*LogSize + 5} {
		path := filepath.Join(t.TempDir(), "log")
		l, err := CreateLog(path)
		if err != nil {
			t.Fatal(err)
		}
		var all []byte
		for i := 0; len(all) < 7*LogSize/2; i++ {
			p := bytes.Repeat(fmt.Appendf(nil, "%07d\n", i), piece/8+1)[:piece]
			all = append(all, p...)
			l.Write(p)
		}
		if err := l.Close(); err != nil {
			t.Error(err)
		}
		l.Write([]byte("after the end"))
		var got bytes.Buffer
		if err := CopyLog(&got, path, nil); err != nil {
			t.Fatal(err)
		}
		if n := got.Len(); n < LogSize || n > 2*LogSize || !bytes.HasSuffix(all, got.Bytes()) {
			t.Errorf("pieces of %d: %d bytes are kept, the right ones: %v", piece, n, bytes.HasSuffix(all, got.Bytes()))
		}
	}
}

// Who follows gets everything, across new files, and the last of it.
func TestFollow(t *testing.T) {
	path := filepath.Join(t.TempDir(), "log")
	l, err := CreateLog(path)
	if err != nil {
		t.Fatal(err)
	}
	var got bytes.Buffer
	var ended atomic.Bool
	done := make(chan error)
	go func() { done <- CopyLog(&got, path, func() bool { return !ended.Load() }) }()
	var all []byte
	for i := range 30 {
		p := bytes.Repeat([]byte{byte('a' + i)}, 50000)
		all = append(all, p...)
		l.Write(p)
		time.Sleep(20 * time.Millisecond)
	}
	l.Close()
	ended.Store(true)
	if err := <-done; err != nil || !bytes.Equal(got.Bytes(), all) {
		t.Errorf("%d bytes of %d, %v", got.Len(), len(all), err)
	}
}
