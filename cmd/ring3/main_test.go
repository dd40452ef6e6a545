package main

import (
	"os"
	"testing"

	"github.com/rogpeppe/go-internal/testscript"
)

// TestMain lets the scripts run the command itself, as ring3.
func TestMain(m *testing.M) {
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
		Cmds: map[string]func(*testscript.TestScript, bool, []string){
			"status":  scriptStatus,
			"oneline": scriptOneLine,
			"empty":   scriptEmpty,
		},
	})
}
