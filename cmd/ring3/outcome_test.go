package main

import (
	"bytes"
	"context"
	"errors"
	"strings"
	"syscall"
	"testing"

	"ring3/internal/console"
	"ring3/internal/machine"
	"ring3/internal/vcpu"
)

// Each way to end has its status, and one line on standard error at most.
func TestVerdict(t *testing.T) {
	ended := func(e machine.End) machine.Result { return machine.Result{End: e} }
	tests := []struct {
		name     string
		o        outcome
		status   int
		says     string // in the message; empty: there is none
		abnormal bool
	}{
		{"power-off", outcome{result: ended(vcpu.PowerOff)}, 0, "", false},
		{"reboot", outcome{result: ended(vcpu.Reset)}, 0, "", false},
		{"stop key", outcome{result: ended(vcpu.Stopped), cause: errStopKey}, 0, "", false},
		{"job succeeds", outcome{result: ended(vcpu.PowerOff), isJob: true}, 0, "", false},
		{"job fails", outcome{result: ended(vcpu.PowerOff), isJob: true, jobStatus: 7}, 7, "", false},
		{"job killed", outcome{result: ended(vcpu.PowerOff), isJob: true, jobStatus: 137}, 137, "", false},
		{"job with a status of ours", outcome{result: ended(vcpu.PowerOff), isJob: true, jobStatus: 124}, 124, "", false},
		{"panic", outcome{result: ended(vcpu.Reset), panicked: true, message: "VFS: no root"}, 120, "VFS: no root", true},
		{"panic under a job", outcome{result: ended(vcpu.Reset), panicked: true, isJob: true, jobStatus: -1}, 120, "panicked", true},
		{"panic without reset", outcome{result: ended(vcpu.Stopped), panicked: true, cause: errTimeout}, 120, "panicked", true},
		{"triple fault", outcome{result: ended(vcpu.TripleFault)}, 121, "triple fault", true},
		{"job cut off", outcome{result: ended(vcpu.PowerOff), isJob: true, jobStatus: -1}, 122, "before the command", true},
		{"timeout", outcome{result: ended(vcpu.Stopped), cause: errTimeout}, 124, "timeout", true},
		{"timeout of a job", outcome{result: ended(vcpu.Stopped), cause: errTimeout, isJob: true, jobStatus: -1}, 124, "timeout", true},
		{"internal error", outcome{err: errors.New("boom")}, 125, "boom", true},
		{"cancelled by SIGTERM", outcome{result: ended(vcpu.Stopped), err: context.Canceled, cause: &signalError{syscall.SIGTERM}}, 143, "", false},
		{"SIGINT", outcome{result: ended(vcpu.Stopped), cause: &signalError{syscall.SIGINT}}, 130, "", false},
		{"SIGINT ended the job", outcome{result: ended(vcpu.PowerOff), isJob: true, jobStatus: 130}, 130, "", false},
		{"output fails", outcome{result: ended(vcpu.Stopped), cause: withStatus(statusHost, "standard output: full")}, 123, "full", false},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			err, abnormal := tt.o.verdict()
			var b bytes.Buffer
			if got := report(&b, err); got != tt.status {
				t.Errorf("status %d, want %d", got, tt.status)
			}
			if abnormal != tt.abnormal {
				t.Errorf("abnormal is %v", abnormal)
			}
			if tt.says == "" && b.Len() > 0 || !strings.Contains(b.String(), tt.says) || strings.Count(b.String(), "\n") > 1 {
				t.Errorf("printed %q, want %q", b.String(), tt.says)
			}
		})
	}
}

func TestPrintTail(t *testing.T) {
	tail := console.NewTail(1 << 10)
	var b bytes.Buffer
	printTail(&b, tail)
	if !strings.Contains(b.String(), "empty") {
		t.Errorf("an empty console prints as %q", b.String())
	}
	b.Reset()
	tail.Write([]byte("one\r\n\x1b[31mtwo\r\n"))
	printTail(&b, tail)
	if !strings.HasSuffix(b.String(), "\n  | one\n  | two\n") {
		t.Errorf("got %q", b.String())
	}
}
