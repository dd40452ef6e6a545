package boot

import (
	"fmt"
	"regexp"
	"slices"
	"strings"
	"testing"

	"ring3/internal/initramfs"
	"ring3/internal/kernelstore"
	"ring3/internal/kmod"
	"ring3/internal/machine"
)

// modules finds the named modules of k and all that they depend on. It returns
// the files for the guest and, dependencies first, the order to load them in.
func modules(t *testing.T, k kernelstore.Kernel, names ...string) (files []initramfs.File, order []string) {
	t.Helper()
	found, err := kmod.Find(k.Modules, names...)
	if err != nil {
		t.Fatal(err)
	}
	for _, m := range found {
		files = append(files, initramfs.File{Path: "mod/" + m.Name + ".ko", Mode: 0o644, Data: m.Data})
		order = append(order, m.Name)
	}
	return files, order
}

// trouble is what the kernel says when something is wrong with it, or with a
// self-test.
var trouble = regexp.MustCompile(`WARNING:|BUG:|Oops|Call Trace|general protection|soft lockup|hung task|rcu.*(stall|starved)|` +
	`unchecked MSR|Tainted|(?i:test.*fail|fail.*test)|alg: .*(fail|wrong|unexpected|overran|corrupt|err )|[1-9][0-9]* FAILED`)

// noTrouble fails the test for each line of a kernel log that tells of some.
func noTrouble(t *testing.T, log string) {
	t.Helper()
	for line := range strings.Lines(log) {
		if trouble.MatchString(line) && !strings.Contains(line, ", 0 FAILED") {
			t.Errorf("the kernel says: %s", line)
		}
	}
}

func TestTrouble(t *testing.T) {
	for line, want := range map[string]bool{
		"alg: skcipher: cbc-aes-aesni encryption test failed (wrong result)":   true,
		"alg: self-tests for xts(aes) using xts-aes-aesni failed (rc=-22)":     true,
		"test_bpf: Summary: 1025 PASSED, 1 FAILED, [1014/1014 JIT'ed]":         true,
		"test_bpf: Summary: 1026 PASSED, 0 FAILED, [1014/1014 JIT'ed]":         false,
		"test_user_copy: illegal copy_to_user passed: test failed":             true,
		"WARNING: CPU: 0 PID: 99 at lib/test_static_keys.c:124":                true,
		"rcu: INFO: rcu_preempt detected stalls on CPUs/tasks":                 true,
		"raid6: using avx2x4 recovery algorithm":                               false,
		"test_user_copy: tests passed.":                                        false,
		"alg: hash: crc32-pclmul digest() failed on test vector 0; expected 0": true,
		"watchdog: BUG: soft lockup - CPU#0 stuck for 22s!":                    true,
		"alg: No test for fips(ansi_cprng) (fips_ansi_cprng)":                  false,
		"traps: x general protection fault ip:1 sp:2 error:0 in busybox":       true,
		"unchecked MSR access error: RDMSR from 0x1ad":                         true,
		"test_firmware: interface ready":                                       false,
	} {
		if trouble.MatchString(line) && !strings.Contains(line, ", 0 FAILED") != want {
			t.Errorf("%q: %v", line, !want)
		}
	}
}

// engines runs f with each engine.
func engines(t *testing.T, f func(t *testing.T, e machine.Engine)) {
	for _, e := range []machine.Engine{machine.EngineInterp, machine.EngineTranslate} {
		t.Run(string(e), func(t *testing.T) { f(t, e) })
	}
}

// load is shell code that loads modules and says which it could not. A driver
// without its device is no failure, nor is tcrypt, which never stays.
func load(order []string) string {
	var b strings.Builder
	for _, name := range order {
		fmt.Fprintf(&b, "insmod /mod/%s.ko 2>/tmp/err || { grep -q 'No such device' /tmp/err && echo absent %[1]s || { echo FAIL %[1]s; cat /tmp/err; }; }\n", name)
	}
	return b.String()
}

// TestModules loads the kernel's modules that test the kernel itself, and those
// that choose the fastest of their routines by running them.
func TestModules(t *testing.T) {
	k := kernel(t, kernelstore.Generic)
	files, order := modules(t, k, "test_static_keys", "test_user_copy", "test_firmware", "raid6_pq", "xor")
	files = append(files, initramfs.File{Path: "lib/firmware/sample", Mode: 0o644, Data: []byte("a firmware\n")})
	engines(t, func(t *testing.T, e machine.Engine) {
		o := guest{flavour: kernelstore.Generic, engine: e, files: files, args: []string{"sh", "-c", load(order) + `
			echo -n sample >/sys/devices/virtual/misc/test_firmware/trigger_request || echo FAIL trigger
			cmp /dev/test_firmware /lib/firmware/sample || echo FAIL contents
			for m in ` + backwards(order) + `; do rmmod $m || echo FAIL rmmod $m; done
			lsmod | grep test_ && echo FAIL modules stay
			for m in ` + strings.Join(order[:2], " ") + `; do insmod /mod/$m.ko || echo FAIL $m once more; done
			dmesg`}}.run(t).must(t)
		check(t, o.stdout)
		for _, want := range []string{"test_user_copy: tests passed", "raid6: using algorithm", "raid6: using .*recovery", "xor: "} {
			if !regexp.MustCompile(want).MatchString(o.stdout) {
				t.Errorf("no %q in\n%s", want, tail(o.stdout))
			}
		}
	})
}

// backwards lists modules in the order to remove them in.
func backwards(order []string) string {
	order = slices.Clone(order)
	slices.Reverse(order)
	return strings.Join(order, " ")
}

// check looks for trouble in what the guest's script and kernel said.
func check(t *testing.T, out string) {
	t.Helper()
	noTrouble(t, out)
	for line := range strings.Lines(out) {
		if strings.HasPrefix(line, "FAIL") {
			t.Errorf("%s%s", line, tail(out))
		}
	}
}
