package main

import (
	"errors"
	"os"
	"os/exec"
	"strconv"
	"strings"

	"github.com/rogpeppe/go-internal/testscript"
)

// scriptCommands are what our scripts know beside testscript's own commands.
var scriptCommands = map[string]func(*testscript.TestScript, bool, []string){
	"status":  scriptStatus,
	"oneline": scriptOneLine,
	"empty":   scriptEmpty,
	"size":    scriptSize,
	"kill9":   scriptKill9,

	"removeall": scriptRemoveAll,
}

// scriptSize is "size FILE BYTES".
func scriptSize(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 2 {
		ts.Fatalf("usage: size FILE BYTES")
	}
	want, err := strconv.Atoi(args[1])
	ts.Check(err)
	if got := len(ts.ReadFile(args[0])); got != want {
		ts.Fatalf("%s has %d bytes, want %d", args[0], got, want)
	}
}

// scriptStatus is "status N COMMAND ARG...": the command exits with N.
func scriptStatus(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 2 {
		ts.Fatalf("usage: status N COMMAND ARG...")
	}
	want, err := strconv.Atoi(args[0])
	ts.Check(err)
	got := 0
	if err := ts.Exec(args[1], args[2:]...); err != nil {
		var exit *exec.ExitError
		if !errors.As(err, &exit) {
			ts.Fatalf("%s: %v", args[1], err)
		}
		got = exit.ExitCode()
	}
	if got != want {
		ts.Fatalf("exit status %d, want %d", got, want)
	}
}

// scriptOneLine is "oneline": the last command printed one line on standard
// error, beginning with the program's name, and nothing on standard output.
func scriptOneLine(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 0 {
		ts.Fatalf("usage: oneline")
	}
	out, msg := ts.ReadFile("stdout"), ts.ReadFile("stderr")
	if out != "" {
		ts.Fatalf("standard output is not empty: %q", out)
	}
	if !strings.HasPrefix(msg, "ring3: ") || strings.Count(msg, "\n") != 1 || !strings.HasSuffix(msg, "\n") {
		ts.Fatalf("standard error is not one line: %q", msg)
	}
}

// scriptEmpty is "empty DIR": there is nothing in the directory, if it exists.
func scriptEmpty(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 1 {
		ts.Fatalf("usage: empty DIR")
	}
	entries, err := os.ReadDir(ts.MkAbs(args[0]))
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		ts.Check(err)
	}
	for _, e := range entries {
		ts.Fatalf("%s is not empty: %s", args[0], e.Name())
	}
}
