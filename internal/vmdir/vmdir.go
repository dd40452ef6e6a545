// Package vmdir keeps a directory for each virtual machine of a user, by which
// other processes find it.
//
//	BASE/			mode 0700
//	    .lock		held while a machine's directory comes or goes
//	    NAME/
//	        lock		held by the monitor while it lives, flock(2)
//	        state.json	State
//	        control.sock	the monitor listens here: package control
//	        vsock.sock	connections to the guest: package virtio/vsock
//	        console.log	the end of what the guest wrote to its console: Log
//	        output.log	likewise, of the command of a detached machine
//	        monitor.log	what the monitor of a detached machine says
//
// Whether a machine runs is told by the lock alone. The host's kernel takes it
// away from a monitor that ends, however it ends, so that no process number that
// somebody else has now, and no restart of the host, can deceive.
package vmdir

import (
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Files of a machine's directory.
const (
	lockFile  = "lock"
	stateFile = "state.json"

	ControlSocket = "control.sock"
	VsockSocket   = "vsock.sock"
	ConsoleLog    = "console.log"
	OutputLog     = "output.log"
	MonitorLog    = "monitor.log"
)

// MaxName is the longest name of a machine, in bytes.
const MaxName = 32

var validName = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9_.-]*$`)

// Error is a mistake about a machine: which, why, and what to do.
type Error struct{ Name, Reason string }

func (e *Error) Error() string { return "machine " + e.Name + " " + e.Reason }

// CheckName finds out whether a machine can have a name.
func CheckName(name string) error {
	if len(name) > MaxName || !validName.MatchString(name) {
		return fmt.Errorf("%q is no name for a machine: 1 to %d letters, digits, '.', '_' and '-', a letter or digit first", name, MaxName)
	}
	return nil
}

// NewName returns a name for a machine that got none.
func NewName() string {
	b := make([]byte, 4)
	rand.Read(b)
	return "vm-" + hex.EncodeToString(b)
}

// Base is the directory of all machines of this user.
type Base string

// Default is $XDG_RUNTIME_DIR/ring3 if there is such a directory; it goes when
// the user logs out or the host restarts, as machines do. Else it is
// $XDG_STATE_HOME/ring3, which is ~/.local/state/ring3 by default.
func Default() (Base, error) {
	if dir := os.Getenv("XDG_RUNTIME_DIR"); filepath.IsAbs(dir) {
		if st, err := os.Stat(dir); err == nil && st.IsDir() {
			return Base(filepath.Join(dir, "ring3")), nil
		}
	}
	if dir := os.Getenv("XDG_STATE_HOME"); filepath.IsAbs(dir) {
		return Base(filepath.Join(dir, "ring3")), nil
	}
	home, err := os.UserHomeDir()
	if err != nil {
		return "", fmt.Errorf("no place for machines: set XDG_RUNTIME_DIR or HOME (%w)", err)
	}
	return Base(filepath.Join(home, ".local", "state", "ring3")), nil
}

// lock takes the lock of the base until unlock is called, and makes the
// directory if there is none.
func (b Base) lock() (unlock func(), err error) {
	if err := os.MkdirAll(filepath.Dir(string(b)), 0o755); err != nil {
		return nil, err
	}
	if err := os.Mkdir(string(b), 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
		return nil, err
	}
	// Whoever can write here can have the monitor overwrite other files.
	st, err := os.Lstat(string(b))
	if err != nil {
		return nil, err
	}
	sys := st.Sys().(*syscall.Stat_t)
	if !st.IsDir() || int(sys.Uid) != os.Geteuid() || st.Mode().Perm()&0o022 != 0 {
		return nil, fmt.Errorf("%s: not a directory that this user alone can write to", b)
	}
	f, err := os.OpenFile(filepath.Join(string(b), ".lock"), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, err
	}
	if err := flock(f, unix.LOCK_EX); err != nil {
		f.Close()
		return nil, err
	}
	return func() { f.Close() }, nil
}

func flock(f *os.File, how int) error {
	for {
		err := unix.Flock(int(f.Fd()), how)
		if err != unix.EINTR {
			return err
		}
	}
}

// Dir is the directory of a machine, in the hands of its monitor.
type Dir struct {
	base Base
	Name string
	lock *os.File
}

// Create makes the directory of a new machine. A name that is taken is an
// *Error.
func (b Base) Create(name string) (*Dir, error) {
	if err := CheckName(name); err != nil {
		return nil, err
	}
	unlock, err := b.lock()
	if err != nil {
		return nil, err
	}
	defer unlock()
	d := &Dir{base: b, Name: name}
	if err := os.Mkdir(d.Path(), 0o700); errors.Is(err, fs.ErrExist) {
		if running(d.Path()) {
			return nil, &Error{name, "runs already (ring3 stop " + name + ")"}
		}
		return nil, &Error{name, "exists already, and has ended (ring3 rm " + name + ")"}
	} else if err != nil {
		return nil, err
	}
	d.lock, err = os.OpenFile(d.File(lockFile), os.O_RDWR|os.O_CREATE, 0o600)
	if err == nil {
		err = flock(d.lock, unix.LOCK_EX)
	}
	if err != nil {
		os.RemoveAll(d.Path())
		return nil, err
	}
	return d, nil
}

// Path is the directory.
func (d *Dir) Path() string { return filepath.Join(string(d.base), d.Name) }

// File is the path of a file in it.
func (d *Dir) File(name string) string { return filepath.Join(d.Path(), name) }

// Write replaces the state, as a whole.
func (d *Dir) Write(s *State) error {
	b, err := json.MarshalIndent(s, "", "\t")
	if err != nil {
		return err
	}
	temp := d.File(stateFile + ".new")
	if err := os.WriteFile(temp, append(b, '\n'), 0o600); err != nil {
		return err
	}
	return os.Rename(temp, d.File(stateFile))
}

// Close gives the directory up; it stays, as that of a machine that has ended.
func (d *Dir) Close() error { return d.lock.Close() }

// Remove removes the directory, and gives it up.
func (d *Dir) Remove() error {
	unlock, err := d.base.lock()
	if err != nil {
		return errors.Join(err, d.lock.Close())
	}
	defer unlock()
	return errors.Join(os.RemoveAll(d.Path()), d.lock.Close())
}

// State is what a monitor tells of its machine.
type State struct {
	Name     string     `json:"name"`
	PID      int        `json:"pid"` // of the monitor
	Created  time.Time  `json:"created"`
	Kernel   string     `json:"kernel"`
	Memory   uint64     `json:"memory"` // bytes
	Command  []string   `json:"command,omitempty"`
	Detached bool       `json:"detached,omitempty"`
	Started  bool       `json:"started"`           // the guest runs, or has run
	Vsock    string     `json:"vsock,omitempty"`   // path of the socket for connections to the guest
	NoAgent  string     `json:"noAgent,omitempty"` // why exec has nobody to talk to; "" if it has
	Ended    *time.Time `json:"ended,omitempty"`
	Status   *int       `json:"status,omitempty"`  // exit status, with Ended
	Message  string     `json:"message,omitempty"` // why, with a status of ring3's own
}

// Phases of a machine.
const (
	Starting = "starting"
	Running  = "running"
	Ended    = "ended"
	Dead     = "dead" // the monitor was killed, or the host restarted
)

// Machine is a machine as others see it.
type Machine struct {
	State
	Phase string
	dir   string
}

// File is the path of a file in its directory.
func (m *Machine) File(name string) string { return filepath.Join(m.dir, name) }

// Lives reports whether it has a monitor.
func (m *Machine) Lives() bool { return m.Phase == Starting || m.Phase == Running }

// running reports whether the monitor of a machine lives.
func running(dir string) bool {
	f, err := os.Open(filepath.Join(dir, lockFile))
	if err != nil {
		return false
	}
	defer f.Close()
	return errors.Is(flock(f, unix.LOCK_SH|unix.LOCK_NB), unix.EWOULDBLOCK)
}

// Find returns a machine. If there is none, that is an *Error.
func (b Base) Find(name string) (*Machine, error) {
	dir := filepath.Join(string(b), name)
	_, err := os.Stat(dir)
	if CheckName(name) != nil || errors.Is(err, fs.ErrNotExist) {
		return nil, &Error{name, "does not exist (ring3 ps --all)"}
	}
	if err != nil {
		return nil, err
	}
	m := &Machine{dir: dir}
	// The lock first: a monitor writes how it has ended, and then gives it up.
	lives := running(dir)
	text, err := os.ReadFile(m.File(stateFile))
	if err == nil {
		err = json.Unmarshal(text, &m.State)
	}
	if err != nil && !lives || m.Name != name {
		m.State = State{} // the monitor came no further, or somebody else wrote it
	}
	m.Name = name
	switch {
	case lives && m.Started:
		m.Phase = Running
	case lives:
		m.Phase = Starting
	case m.Ended != nil && m.Status != nil:
		m.Phase = Ended
	default:
		m.Phase = Dead
	}
	return m, nil
}

// List returns all machines, the oldest first.
func (b Base) List() ([]*Machine, error) {
	entries, err := os.ReadDir(string(b))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	var all []*Machine
	for _, e := range entries {
		if !e.IsDir() || CheckName(e.Name()) != nil {
			continue
		}
		if m, err := b.Find(e.Name()); err == nil { // else it has just gone
			all = append(all, m)
		}
	}
	slices.SortStableFunc(all, func(x, y *Machine) int {
		if c := x.Created.Compare(y.Created); c != 0 {
			return c
		}
		return strings.Compare(x.Name, y.Name)
	})
	return all, nil
}

// Remove removes what a machine that has ended left.
func (b Base) Remove(name string) error {
	unlock, err := b.lock()
	if err != nil {
		return err
	}
	defer unlock()
	m, err := b.Find(name)
	if err != nil {
		return err
	}
	if m.Lives() {
		return &Error{name, "runs (ring3 stop " + name + ", or ring3 rm --force " + name + ")"}
	}
	return os.RemoveAll(m.dir)
}

// Wait waits until the monitor of a machine has ended.
func (m *Machine) Wait() error {
	f, err := os.Open(m.File(lockFile))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	defer f.Close()
	return flock(f, unix.LOCK_SH)
}

// Again is the machine as it is now.
func (m *Machine) Again() (*Machine, error) {
	return Base(filepath.Dir(m.dir)).Find(m.Name)
}
