package main

import (
	"os"
	"testing"

	"github.com/rogpeppe/go-internal/testscript"

	"ring3/internal/console"
	"ring3/internal/hostcheck"
)

// TestMain lets the tests run the command itself, under the name ring3, and the
// command start itself for its small tasks.
func TestMain(m *testing.M) {
	if len(os.Args) == 2 && (os.Args[1] == console.GuardCommand || os.Args[1] == hostcheck.ProbeCommand) {
		main()
	}
	testscript.Main(m, map[string]func(){"ring3": main})
}

// TestScript runs testdata/script. Each script has an empty store of kernels
// and an empty directory for temporary files, $TMPDIR.
func TestScript(t *testing.T) {
	testscript.Run(t, testscript.Params{
		Dir: "testdata/script",
		Setup: func(e *testscript.Env) error {
			e.Setenv("XDG_CACHE_HOME", e.WorkDir+"/cache")
			return os.MkdirAll(e.Getenv("TMPDIR"), 0o755)
		},
		Cmds: scriptCommands,
	})
}
