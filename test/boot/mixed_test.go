//go:build soak

package boot

import (
	"crypto/md5"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"ring3/internal/initramfs"
	"ring3/internal/kernelstore"
)

// mixed runs many things at once, each of which checks its results, until the
// time is over. $T is how long, in seconds; $SUM is what the compiler's output
// must be.
const mixed = `
mount -t tracefs tracefs /sys/kernel/tracing 2>/dev/null
cd /tmp
now() { cut -d. -f1 /proc/uptime; }
end=$(($(now) + T))
again() { [ $(now) -lt $end ]; }
fail() { echo "FAIL $*"; }
worker() { # NAME: repeat the function of that name
	n=0
	while again; do
		$1 || { fail $1 in round $n; break; }
		n=$((n + 1))
	done
	echo "done $1 $n"
}
compile() {
	[ "$(cd /src; /bin/cc1 -quiet -fpreprocessed -O1 -w c.i -o - | md5sum)" = "$SUM  -" ]
}
forks() {
	i=0
	while [ $i -lt 50 ]; do
		(exit $i) & pid=$!
		(/bin/busybox true) || return 1
		wait $pid; [ $? = $i ] || return 1
		i=$((i + 1))
	done
}
programs() {
	signals >/tmp/signals.out && threads >/tmp/threads.out && grep -q PASS /tmp/signals.out && grep -q PASS /tmp/threads.out
}
timers() {
	a=$(sed 's/ .*//; s/\.//' /proc/uptime)
	usleep 300000
	b=$(sed 's/ .*//; s/\.//' /proc/uptime)
	[ $((b - a)) -ge 29 ]
}
pages() {
	dd if=/dev/urandom of=seed bs=1M count=8 2>/dev/null
	sum=$(md5sum <seed)
	i=0
	while [ $i -lt 8 ]; do
		cp seed copy.$i; i=$((i + 1))
	done
	echo 3 >/proc/sys/vm/drop_caches
	for f in copy.*; do [ "$(md5sum <$f)" = "$sum" ] || return 1; done
	rm copy.*
}
loads() {
	for m in $MODULES; do insmod /mod/$m.ko || return 1; done
	for m in $UNLOAD; do rmmod $m || return 1; done
}
traces() {
	t=/sys/kernel/tracing
	echo function >$t/current_tracer && sleep 1 && grep -q schedule $t/trace || return 1
	echo nop >$t/current_tracer && echo >$t/trace || return 1
	echo 'p:mine do_sys_openat2' >>$t/kprobe_events && echo 1 >$t/events/kprobes/mine/enable || return 1
	cat /proc/version >/dev/null
	sleep 1
	grep -q mine: $t/trace && echo 0 >$t/events/kprobes/mine/enable && echo >$t/kprobe_events && echo >$t/trace
}
for w in compile forks programs timers pages loads traces; do worker $w & done
while again; do echo "beat $(now)"; sleep 5; done
wait
`

// TestMixed keeps one machine busy with everything at once, for
// RING3_SOAK_TIME or ten minutes.
func TestMixed(t *testing.T) {
	long := 10 * time.Minute
	if s := os.Getenv("RING3_SOAK_TIME"); s != "" {
		var err error
		if long, err = time.ParseDuration(s); err != nil {
			t.Fatal(err)
		}
	}
	k := kernel(t, kernelstore.Generic)
	files, order := modules(t, k, "test_static_keys", "test_user_copy", "crc32_generic", "xor")
	compiler, sum := compiler(t)
	files = append(files, compiler...)
	files = append(files, compile(t, "signals", true), compile(t, "threads", true))
	script := fmt.Sprintf("T=%d SUM=%s MODULES=%q UNLOAD=%q\n", int(long.Seconds()), sum, strings.Join(order, " "), backwards(order)) + mixed
	o := guest{flavour: kernelstore.Generic, memory: 1 << 30, files: files, timeout: long + 5*time.Minute,
		args: []string{"sh", "-c", script}}.run(t).must(t)
	check(t, o.stdout)
	noTrouble(t, o.console)
	var last, beats int
	for line := range strings.Lines(o.stdout) {
		var at, rounds int
		var name string
		if _, err := fmt.Sscanf(line, "beat %d", &at); err == nil {
			if beats > 0 && at-last > 60 {
				t.Errorf("no sign of life for %d s, until %d s", at-last, at)
			}
			beats, last = beats+1, at
		}
		if _, err := fmt.Sscanf(line, "done %s %d", &name, &rounds); err == nil {
			t.Logf("%s: %d rounds", name, rounds)
			if rounds == 0 {
				t.Errorf("%s: not one round", name)
			}
		}
	}
	if n := strings.Count(o.stdout, "done "); n != 7 || beats < 2 {
		t.Errorf("%d of 7 ended, %d beats:\n%s", n, beats, tail(o.stdout))
	}
}

// compiler returns the host's C compiler proper with its libraries, a program
// for it, /src/c.i, and the MD5 sum of what it makes of that here.
func compiler(t *testing.T) (files []initramfs.File, sum string) {
	t.Helper()
	run := func(program string, args ...string) []byte {
		out, err := exec.Command(program, args...).Output()
		if err != nil {
			t.Fatalf("%s: %v", program, err)
		}
		return out
	}
	cc1 := strings.TrimSpace(string(run("gcc", "-print-prog-name=cc1")))
	source := filepath.Join(t.TempDir(), "c.i")
	text := run("gcc", "-E", "-P", "../guest/signals.c")
	if err := os.WriteFile(source, text, 0o600); err != nil {
		t.Fatal(err)
	}
	files = append(files, initramfs.File{Path: "src/c.i", Mode: 0o644, Data: text})
	at := map[string]string{"bin/cc1": cc1}
	for _, word := range strings.Fields(string(run("ldd", cc1))) {
		if strings.HasPrefix(word, "/") {
			at[strings.TrimPrefix(word, "/")] = word
		}
	}
	for path, file := range at {
		data, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		files = append(files, initramfs.File{Path: path, Mode: 0o755, Data: data})
	}
	out := run("sh", "-c", "cd "+filepath.Dir(source)+" && "+cc1+" -quiet -fpreprocessed -O1 -w c.i -o -")
	return files, fmt.Sprintf("%x", md5.Sum(out))
}
