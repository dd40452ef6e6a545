package boot

import (
	"fmt"
	"regexp"
	"strconv"
	"strings"
	"testing"

	"ring3/internal/kernelstore"
	"ring3/internal/machine"
)

// smpScript looks at what the kernel makes of its processors, and takes each but
// the first away and back, and then runs ../guest/smp.c.
const smpScript = `
set -e
echo cpus $(nproc) $(grep -c ^processor /proc/cpuinfo)
grep -E '^(physical id|siblings|cpu cores|core id|apicid)' /proc/cpuinfo
c=1
while [ -d /sys/devices/system/cpu/cpu$c ]; do
	taskset -p $((1 << c)) $$ >/dev/null
	awk '{print "on", $39}' /proc/self/stat
	taskset -p ff $$ >/dev/null
	echo 0 >/sys/devices/system/cpu/cpu$c/online
	echo left $(nproc)
	echo 1 >/sys/devices/system/cpu/cpu$c/online
	c=$((c + 1))
done
echo back $(nproc)
smp
grep -E '(LOC|RES|CAL|TLB):' /proc/interrupts
`

// TestProcessors boots both stock kernels with several virtual CPUs, and with the
// interpreter.
func TestProcessors(t *testing.T) {
	for _, c := range []struct {
		flavour string
		cpus    int
		engine  machine.Engine
	}{
		{kernelstore.Cloud, 2, machine.EngineInterp},
		{kernelstore.Cloud, 4, ""},
		{kernelstore.Generic, 2, ""},
	} {
		t.Run(fmt.Sprintf("%s-%d-%s", c.flavour, c.cpus, c.engine), func(t *testing.T) {
			g := guest{flavour: c.flavour, cpus: c.cpus, engine: c.engine, args: []string{"sh", "-c", smpScript}}
			g.files = append(g.files, compile(t, "smp", true))
			o := g.run(t).must(t)
			has := func(want string, times int) {
				t.Helper()
				if n := strings.Count(o.stdout, want+"\n"); n != times {
					t.Errorf("%q %d times, want %d", want, n, times)
				}
			}
			has(fmt.Sprintf("cpus %d %d", c.cpus, c.cpus), 1)
			has(fmt.Sprintf("cpu cores\t: %d", c.cpus), c.cpus)
			has(fmt.Sprintf("siblings\t: %d", c.cpus), c.cpus)
			has("physical id\t: 0", c.cpus)
			for i := range c.cpus {
				has(fmt.Sprintf("core id\t\t: %d", i), 1)
				has(fmt.Sprintf("apicid\t\t: %d", i), 1)
				if i > 0 {
					has(fmt.Sprintf("on %d", i), 1)
				}
			}
			has(fmt.Sprintf("left %d", c.cpus-1), c.cpus-1)
			has(fmt.Sprintf("back %d", c.cpus), 1)
			has(fmt.Sprintf("PASS smp on %d processors", c.cpus), 1)
			for _, kind := range []string{"LOC", "RES", "CAL", "TLB"} {
				for i, n := range interrupts(o.stdout, kind) {
					if n == 0 {
						t.Errorf("CPU %d has had no %s interrupt", i, kind)
					}
				}
			}
			if t.Failed() {
				t.Log(o.stdout)
			}
		})
	}
}

// interrupts are the counts of a row of /proc/interrupts.
func interrupts(text, kind string) (counts []int) {
	row := regexp.MustCompile(`(?m)^ *` + kind + `:((?: +\d+)+)`).FindStringSubmatch(text)
	if row == nil {
		return []int{0}
	}
	for _, f := range strings.Fields(row[1]) {
		n, _ := strconv.Atoi(f)
		counts = append(counts, n)
	}
	return counts
}
