// Bench measures what ring3 costs on this machine, beside the host itself and
// what one could use in ring3's place: QEMU's TCG, User-mode Linux, gVisor.
//
//	go run ./test/bench [-rounds N] [-systems LIST] [-rows LIST]
//
// Every system runs the same static program, guest/micro.c, and the same
// BusyBox. A round runs all systems one after the other, the next round begins
// with another one, and the results are medians over rounds, of times and of
// ratios within a round: what the machine does beside counts for all alike. A
// system that is not installed is left out, with a word about it.
//
// The program measures with the clock of its system; the host measures the whole
// run, too, and a clock that disagrees is reported.
//
// Results go to standard output and, as results.md and results.svg, into the
// directory -out.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"maps"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"golang.org/x/term"
)

type options struct {
	rounds  int
	systems []string
	rows    []string
	budget  time.Duration
	timeout time.Duration
	slow    time.Duration
	ring3   string
	runsc   string
	out     string
}

func main() {
	var o options
	var systems, rows string
	flag.IntVar(&o.rounds, "rounds", 5, "how many times each system runs, at most")
	flag.StringVar(&systems, "systems", "all", "systems to run: "+strings.Join(systemNames(), ","))
	flag.StringVar(&rows, "rows", "all", "rows to measure: "+strings.Join(rowNames(), ","))
	flag.DurationVar(&o.budget, "budget", 11*time.Minute, "begin no round that would probably end later than this")
	flag.DurationVar(&o.timeout, "timeout", 2*time.Minute, "how long one system may take for one round")
	flag.DurationVar(&o.slow, "slow-timeout", 10*time.Minute, "how long one system may take for the rows that are measured once")
	flag.StringVar(&o.ring3, "ring3", "bin/ring3", "ring3's `program`")
	flag.StringVar(&o.runsc, "runsc", "", "gVisor's `program` (default: the newest bin/runsc-*, or runsc)")
	flag.StringVar(&o.out, "out", "", "`directory` for results.md and results.svg (default: none are written)")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM, syscall.SIGHUP)
	defer stop()
	err := o.parse(systems, rows)
	if err == nil && flag.NArg() > 0 {
		err = fmt.Errorf("unexpected argument %q", flag.Arg(0))
	}
	if err == nil {
		err = o.run(ctx)
	}
	if err != nil {
		if errors.Is(err, context.Canceled) {
			err = errors.New("interrupted")
		}
		fmt.Fprintln(os.Stderr, "bench:", err)
		stop()
		os.Exit(1)
	}
}

// parse checks the lists that the flags gave.
func (o *options) parse(systems, rows string) (err error) {
	if o.systems, err = choose("system", systems, systemNames()); err != nil {
		return err
	}
	if o.rows, err = choose("row", rows, rowNames()); err != nil {
		return err
	}
	if o.rounds < 1 {
		return errors.New("-rounds: at least 1")
	}
	return nil
}

// choose returns the names of a comma-separated list in the order of all.
func choose(kind, list string, all []string) ([]string, error) {
	if list == "all" {
		return all, nil
	}
	want := strings.Split(list, ",")
	for _, w := range want {
		if !slices.Contains(all, w) {
			return nil, fmt.Errorf("no %s %q; there are %s", kind, w, strings.Join(all, ", "))
		}
	}
	return slices.DeleteFunc(slices.Clone(all), func(s string) bool { return !slices.Contains(want, s) }), nil
}

func (o *options) run(ctx context.Context) error {
	adopt()
	dir, err := os.MkdirTemp("", "ring3-bench-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	p, err := newPlace(ctx, o, dir)
	if err != nil {
		return err
	}
	r := &results{host: describeHost(), date: time.Now().UTC(), kernel: p.kernelName, rows: o.rows}
	var chosen []*system
	for _, name := range o.systems {
		s := systemByName(name)
		version, err := s.find(p)
		if err != nil {
			r.missing = append(r.missing, fmt.Sprintf("%s: %v", s.title, err))
			fmt.Fprintf(os.Stderr, "without %s: %v\n", s.title, err)
			continue
		}
		chosen = append(chosen, s)
		r.systems = append(r.systems, column{name: s.name, title: s.title, version: version})
	}
	if len(chosen) == 0 {
		return errors.New("there is nothing to run")
	}
	if err := o.measure(ctx, p, chosen, r); err != nil {
		return err
	}
	r.hostAfter()
	if busy(r.host.load) {
		r.note("the machine was busy with other things (load averages %s before): times are too long, ratios rough", r.host.load)
	}
	fmt.Print(r.text())
	if o.out == "" {
		return nil
	}
	if err := os.MkdirAll(o.out, 0o755); err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(o.out, "results.md"), []byte(r.markdown()), 0o644); err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(o.out, "results.svg"), []byte(r.plot()), 0o644)
}

// measure runs the rounds, and then one more with the rows that take long. Round
// i begins with the system i, so that none is always the one after the loudest.
func (o *options) measure(ctx context.Context, p *place, systems []*system, r *results) error {
	start := time.Now()
	quick, slow := split(o.rows)
	if len(quick) == 0 {
		o.rounds = 0
	}
	for i := range o.rounds {
		if i > 0 && time.Since(start)/time.Duration(i)*time.Duration(i+1) > o.budget {
			r.note("%d rounds of %d: more would not have fitted into %v", i, o.rounds, o.budget)
			break
		}
		round := map[string]run{}
		for j := range systems {
			s := systems[(i+j)%len(systems)]
			say("round %d of %d, %v gone: %s", i+1, o.rounds, time.Since(start).Round(time.Second), s.title)
			if err := o.one(ctx, p, s, quick, o.timeout, round, r); err != nil {
				return err
			}
		}
		r.rounds = append(r.rounds, round)
	}
	if len(slow) > 0 {
		large, err := p.withCompiler(ctx)
		if err != nil {
			r.note("no compiler for the guests: %v", err)
			return nil
		}
		round := map[string]run{}
		for _, s := range systems {
			say("%s, %v gone: %s", strings.Join(slow, ", "), time.Since(start).Round(time.Second), s.title)
			if err := o.one(ctx, large, s, slow, o.slow, round, r); err != nil {
				return err
			}
		}
		r.rounds = append(r.rounds, round)
	}
	say("")
	return nil
}

// one has s measure rows for a round. It fails only if ctx has ended.
func (o *options) one(ctx context.Context, p *place, s *system, rows []string, timeout time.Duration, round map[string]run, r *results) error {
	one, err := p.measure(ctx, s, rows, timeout)
	if ctx.Err() != nil {
		say("")
		return ctx.Err()
	}
	if err != nil {
		r.note("%s: %v", s.title, err)
	}
	maps.DeleteFunc(one, func(name string, _ float64) bool { return !slices.Contains(rows, name) })
	round[s.name] = one
	return nil
}

// say shows progress on standard error, on one line if that is a terminal.
func say(format string, args ...any) {
	s := fmt.Sprintf(format, args...)
	switch {
	case term.IsTerminal(int(os.Stderr.Fd())):
		fmt.Fprintf(os.Stderr, "\r\x1b[K%s", s)
	case s != "":
		fmt.Fprintln(os.Stderr, s)
	}
}
