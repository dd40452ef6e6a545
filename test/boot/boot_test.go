package boot

import (
	"fmt"
	"strings"
	"testing"

	"ring3/internal/kernelstore"
)

// TestKernels boots both stock kernels with little and much memory.
func TestKernels(t *testing.T) {
	for _, flavour := range kernelstore.Flavours() {
		for _, mib := range []uint64{256, 4096} {
			t.Run(fmt.Sprintf("%s-%dM", flavour, mib), func(t *testing.T) {
				o := guest{flavour: flavour, memory: mib << 20,
					args: []string{"sh", "-c", "uname -r; grep MemTotal /proc/meminfo; echo error >&2; exit 7"}}.run(t)
				k := kernel(t, flavour)
				if !strings.Contains(o.stdout, k.Release) {
					t.Errorf("stdout %q does not name release %s", o.stdout, k.Release)
				}
				var kib uint64
				if _, err := fmt.Sscanf(o.stdout[strings.Index(o.stdout, "MemTotal"):], "MemTotal: %d kB", &kib); err != nil ||
					kib < (mib-100)<<10*9/10 || kib > mib<<10 {
					t.Errorf("memory of %d MiB shows as %q", mib, o.stdout)
				}
				if o.stderr != "error\n" || o.status != 7 {
					t.Errorf("stderr %q, status %d", o.stderr, o.status)
				}
			})
		}
	}
}

// TestOwnCommandLine boots the cloud kernel with its mitigations on and its
// crypto self-tests run.
func TestOwnCommandLine(t *testing.T) {
	o := guest{cmdline: "console=ttyS0 panic=-1", args: []string{"sh", "-c", "dmesg; cat /proc/crypto"}}.run(t).must(t)
	for line := range strings.Lines(o.stdout) {
		if strings.Contains(line, "alg:") && strings.Contains(line, "fail") {
			t.Errorf("a crypto self-test failed: %s", line)
		}
	}
	if !strings.Contains(o.stdout, "selftest     : passed") {
		t.Error("no crypto self-test ran")
	}
}

// TestPrograms runs the programs of ../guest, which check themselves and pass
// natively too.
func TestPrograms(t *testing.T) {
	for _, p := range []struct {
		name  string
		flags []string
	}{
		{"signals", nil},
		{"threads", nil},
		{"compat", []string{"-m32"}},
		{"ptrace", nil},
		{"kernelmem", nil},
		{"cpuid", nil},
	} {
		t.Run(p.name, func(t *testing.T) {
			f := compile(t, p.name, true, p.flags...)
			o := guest{args: []string{p.name}}
			o.files = append(o.files, f)
			if out := o.run(t).must(t); !strings.Contains(out.stdout, "PASS "+p.name) {
				t.Errorf("output:\n%s", out.stdout)
			}
		})
	}
}

// TestDynamic runs a dynamically linked program: its libraries choose their
// routines by CPUID and use the vector registers of this host.
func TestDynamic(t *testing.T) {
	g := guest{args: []string{"threads"}, files: dynamic(t, "threads")}
	g.run(t).must(t)
}

// TestRandomCode executes random bytes in the guest's user mode.
func TestRandomCode(t *testing.T) {
	g := guest{args: []string{"fuzz", "20"}}
	g.files = append(g.files, compile(t, "fuzz", false))
	t.Log(g.run(t).must(t).stdout)
}
