//go:build soak

package boot

import (
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"ring3/internal/kernelstore"
	"ring3/internal/machine"
)

// modulesIn lists those in a directory below k.Modules.
func modulesIn(t *testing.T, k kernelstore.Kernel, dir string) (names []string) {
	t.Helper()
	found, _ := filepath.Glob(filepath.Join(k.Modules, "kernel", dir, "*.ko"))
	if len(found) == 0 {
		t.Fatalf("%s has no modules in %s", k.Name, dir)
	}
	for _, p := range found {
		names = append(names, strings.TrimSuffix(filepath.Base(p), ".ko"))
	}
	return names
}

// TestCryptoModules loads all crypto modules and has the kernel test what they
// offer, and with tcrypt what is made of several.
func TestCryptoModules(t *testing.T) {
	k := kernel(t, kernelstore.Generic)
	names := append(modulesIn(t, k, "crypto"), modulesIn(t, k, "arch/x86/crypto")...)
	files, order := modules(t, k, names...)
	rest := slices.DeleteFunc(slices.Clone(order), func(m string) bool { return m == "tcrypt" })
	const modes = "10 35 36 37 38 45 105 109 150 151" // aes, gcm, ...; see crypto/tcrypt.c
	engines(t, func(t *testing.T, e machine.Engine) {
		o := guest{flavour: kernelstore.Generic, engine: e, files: files, timeout: 5 * time.Minute,
			cmdline: "console=ttyS0 panic=-1", args: []string{"sh", "-c", load(rest) + `
			for mode in ` + modes + `; do insmod /mod/tcrypt.ko mode=$mode 2>/dev/null; done
			cat /proc/crypto; dmesg`}}.run(t).must(t)
		check(t, o.stdout)
		passed := strings.Count(o.stdout, "selftest     : passed")
		if all := strings.Count(o.stdout, "selftest     : "); passed != all || passed < 100 {
			t.Errorf("%d of %d self-tests passed", passed, all)
		}
		t.Logf("%d self-tests passed", passed)
	})
}
