package main

import (
	"errors"
	"fmt"
	"os"
	"slices"
	"testing"

	"github.com/rogpeppe/go-internal/testscript"

	"ring3/internal/agent"
	"ring3/internal/console"
	"ring3/internal/hostcheck"
)

// TestMain lets the tests run the command itself, under the name ring3, and the
// command start itself for its small tasks.
func TestMain(m *testing.M) {
	if len(os.Args) == 2 && slices.Contains([]string{console.GuardCommand, hostcheck.ProbeCommand, agent.GuestCommand}, os.Args[1]) {
		main()
	}
	testscript.Main(ownMachines{m}, map[string]func(){"ring3": main})
}

// ownMachines runs the tests with a directory for machines of their own.
type ownMachines struct{ *testing.M }

func (m ownMachines) Run() int {
	dir, err := os.MkdirTemp("", "ring3-test")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer os.RemoveAll(dir)
	os.Setenv("XDG_RUNTIME_DIR", dir)
	return m.M.Run()
}

// setUpScript is what all scripts have: a directory for temporary files,
// $TMPDIR, and one for machines.
func setUpScript(e *testscript.Env) error {
	run := e.WorkDir + "/run"
	e.Setenv("XDG_RUNTIME_DIR", run)
	return errors.Join(os.MkdirAll(e.Getenv("TMPDIR"), 0o755), os.MkdirAll(run, 0o700))
}

// TestScript runs testdata/script. Each script has an empty store of kernels
// besides.
func TestScript(t *testing.T) {
	testscript.Run(t, testscript.Params{
		Dir: "testdata/script",
		Setup: func(e *testscript.Env) error {
			e.Setenv("XDG_CACHE_HOME", e.WorkDir+"/cache")
			return setUpScript(e)
		},
		Cmds: scriptCommands,
	})
}
