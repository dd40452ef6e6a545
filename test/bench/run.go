package main

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// run is what one system showed in one round: nanoseconds by row.
type run map[string]float64

// measure runs the guest program once in s.
func (p *place) measure(ctx context.Context, s *system, names []string, timeout time.Duration) (run, error) {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	defer reap()
	defer killDescendants()
	cmd := s.command(p, guestRows(names))
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true} // Ctrl-C reaches this process alone
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	start := time.Now()
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	ended := context.AfterFunc(ctx, killDescendants)
	t, err := read(out, func() time.Duration { return time.Since(start) })
	werr := cmd.Wait()
	ended()
	r := t.values(s.boots)
	switch {
	case ctx.Err() != nil:
		return r, fmt.Errorf("not done after %v", timeout)
	case err != nil:
		return r, err
	case werr != nil && !t.ended:
		return r, fmt.Errorf("%w: %s", werr, lastLine(stderr.String()))
	}
	return r, t.check()
}

// transcript is what the guest program said, and when.
type transcript struct {
	rows     run
	failed   []string
	upHost   time.Duration // from process start to the first line
	upGuest  float64       // the kernel's clock then
	endHost  time.Duration
	endGuest float64 // from the first line to the last
	up       bool
	ended    bool
}

// read reads the guest program's lines among whatever else a console shows.
func read(r io.Reader, clock func() time.Duration) (*transcript, error) {
	t := &transcript{rows: run{}}
	s := bufio.NewScanner(r)
	for s.Scan() {
		_, line, ok := strings.Cut(strings.TrimRight(s.Text(), "\r"), "bench: ")
		if !ok {
			continue
		}
		if err := t.add(line, clock()); err != nil {
			return t, err
		}
	}
	return t, s.Err()
}

func (t *transcript) add(line string, at time.Duration) (err error) {
	f := strings.Fields(line)
	switch {
	case len(f) == 2 && f[0] == "up":
		t.up, t.upHost = true, at
		t.upGuest, err = strconv.ParseFloat(f[1], 64)
	case len(f) == 2 && f[0] == "end":
		t.ended, t.endHost = true, at
		t.endGuest, err = strconv.ParseFloat(f[1], 64)
	case len(f) == 3 && f[0] == "row":
		t.rows[f[1]], err = strconv.ParseFloat(f[2], 64)
	case len(f) >= 2 && f[0] == "fail":
		t.failed = append(t.failed, strings.Join(f[1:], " "))
	default:
		err = errors.New("unknown")
	}
	if err != nil {
		return fmt.Errorf("line %q: %w", line, err)
	}
	return nil
}

// values returns the rows, those that the host measured among them.
func (t *transcript) values(boots bool) run {
	r := t.rows
	if t.up {
		r[rowBoot] = float64(t.upHost)
		if boots {
			r[rowClock] = t.upGuest
		}
	}
	return r
}

// check reports what should be told beside the values.
func (t *transcript) check() error {
	var errs []error
	for _, f := range t.failed {
		errs = append(errs, errors.New(f))
	}
	if !t.ended {
		return errors.Join(append(errs, errors.New("it ended early"))...)
	}
	// Short runs say little: lines are told late by serial ports and pipes.
	host := float64(t.endHost - t.upHost)
	if off := t.endGuest/host - 1; host > 1e9 && (off > 0.05 || off < -0.05) {
		errs = append(errs, fmt.Errorf("its clock is %+.0f %% off the host's", off*100))
	}
	return errors.Join(errs...)
}

func lastLine(s string) string {
	s = strings.TrimSpace(s)
	return s[strings.LastIndexByte(s, '\n')+1:]
}

// adopt makes this process the parent of those that its children leave behind.
func adopt() { _ = unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) }

// killDescendants ends all processes below this one. Those of a process that
// has died come up as children of this one; hence the repetition.
func killDescendants() {
	for range 200 {
		pids := descendants(os.Getpid())
		if len(pids) == 0 {
			return
		}
		for _, pid := range pids {
			_ = syscall.Kill(pid, syscall.SIGKILL)
		}
		time.Sleep(5 * time.Millisecond)
	}
}

// reap takes note of the dead that were left behind. Nothing that was started
// here may be running: its own waiter wants it.
func reap() {
	for {
		if pid, err := syscall.Wait4(-1, nil, syscall.WNOHANG, nil); pid <= 0 && err != syscall.EINTR {
			return
		}
	}
}

// descendants returns the living processes below pid, from /proc/PID/stat.
func descendants(pid int) []int {
	children := map[int][]int{}
	entries, _ := os.ReadDir("/proc")
	for _, e := range entries {
		id, err := strconv.Atoi(e.Name())
		if err != nil {
			continue
		}
		stat, err := os.ReadFile("/proc/" + e.Name() + "/stat")
		if err != nil {
			continue
		}
		// pid (name) state ppid; the name may hold anything.
		_, rest, _ := strings.Cut(string(stat[bytes.LastIndexByte(stat, ')')+1:]), " ")
		f := strings.Fields(rest)
		if len(f) < 2 || f[0] == "Z" {
			continue
		}
		if parent, err := strconv.Atoi(f[1]); err == nil {
			children[parent] = append(children[parent], id)
		}
	}
	var all []int
	for next := []int{pid}; len(next) > 0; next = next[1:] {
		all = append(all, children[next[0]]...)
		next = append(next, children[next[0]]...)
	}
	return all
}
