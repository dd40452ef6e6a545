package main

import (
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"ring3/internal/cli"
	"ring3/internal/machine"
	"ring3/internal/x86"
)

// defaultAppend is the guest's command line when ring3 chooses it.
//
//   - console: ring3's first serial port, which is the terminal
//   - panic: a panic resets the machine at once, so that ring3 ends
//   - mitigations: they protect against a CPU that the guest does not drive
//   - cryptomgr: the self-tests are two thirds of a boot's instructions
const defaultAppend = "console=ttyS0 panic=-1 mitigations=off cryptomgr.notests"

// runOptions are the flags of ring3 run.
type runOptions struct {
	kernel   string
	initrd   string
	noInitrd bool // --initrd ""
	append   string
	bare     bool // --no-default-append
	memory   cli.Size
	cpus     int
	disks    cli.Disks
	shareOptions
	net netOptions
	diskBootOptions
	timeout cli.Duration // 0: none
	life    lifeOptions
	engine  string
	verify  int // 0: off

	trace     string // ranges, "" for none
	traceFile string // "": standard error
	symbols   string // file, "": those of the kernel

	stats   bool
	tty     bool
	command []string
}

// cmdline is the guest's command line. It begins with what its disk says, so that
// the console is ring3's serial port whatever that is: the last one named counts.
func (o *runOptions) cmdline(fromDisk string) string {
	beginning := defaultAppend
	if o.bare {
		beginning = ""
	}
	var parts []string
	for _, p := range []string{fromDisk, beginning, o.append} {
		if p != "" {
			parts = append(parts, p)
		}
	}
	return strings.Join(parts, " ")
}

func newRunCommand() *cobra.Command {
	o := &runOptions{memory: 512 << 20}
	c := &cobra.Command{
		Use:   "run [flags] [-- COMMAND ARG...]",
		Short: "boot a virtual machine",
		Long: `run boots a virtual machine on this terminal, or runs one command in it.

Without a COMMAND the terminal is the machine's serial console. Ctrl-A x stops
the machine, Ctrl-A h lists the other keys.

With a COMMAND the machine runs it and switches off. Standard input, output and
error are the command's, and ring3 exits with its status. Kernel messages are
not shown. SIGINT, SIGTERM and SIGHUP go to the command; the second one stops the
machine.

Without --kernel the default kernel of the store is booted, which is fetched if
the store is empty, or what is installed on a disk. Without --initrd the userland is BusyBox.

A --disk is a raw image, or a qcow2 image if its name ends in .qcow2 or ,qcow2 is
given. It is locked while the machine runs, so that no two write to the same. The
built-in userland loads the drivers for it if the kernel is of the
store and has them as modules; another userland must bring them.

A --share is a directory of the host. With --root such a directory is the guest's
root, and COMMAND, or a shell, runs in it. Root in the guest can do there what the
caller of ring3 can do on the host.

` + diskBootHelp + `

With --detach the machine runs on in the background, and its name is printed:
ring3 exec, logs, console, stop and rm are for it, ring3 ps lists all. A COMMAND
then has no input, and ring3 logs shows its output.

SIGTERM has the guest shut down, as its power button does; after 10 seconds, or
with a second signal, the machine is stopped.

` + netHelp + `

SIGUSR1 prints the table of exits while the machine runs, on standard error.

` + statusHelp,
		Example: `  ring3 run
  ring3 run -- uname -a
  tar c src | ring3 run -- sh -c 'tar x && ls -l src'
  truncate -s 1G data.img; ring3 run --disk data.img -- sh -c 'mke2fs /dev/vda && mount /dev/vda /mnt'
  ring3 run --root host -- make
  ring3 run --share src:/src,ro --share out:/out -- sh -c 'tar c /src >/out/src.tar'
  ring3 run --detach --name web; ring3 exec web -- uptime; ring3 stop web
  ring3 run --publish 8080:80 -- httpd -f -h /tmp
  ring3 run --disk debian.img
  ring3 run --kernel generic --memory 1G --timeout 60s -- dmesg
  ring3 run --trace memset,do_syscall_64+1f --trace-file list.txt -- true
  ring3 run --kernel bzImage --initrd root.cpio.gz --append "rdinit=/bin/sh"`,
		Args: func(c *cobra.Command, args []string) error {
			if dash := c.ArgsLenAtDash(); len(args) > 0 && dash != 0 {
				return usageError("unexpected argument %q (a command comes after --: ring3 run -- %s)", args[0], args[0])
			} else if dash == 0 && len(args) == 0 {
				return usageError("no command after --")
			}
			return nil
		},
		RunE: func(c *cobra.Command, args []string) error {
			o.command = args
			o.noInitrd = c.Flags().Changed("initrd") && o.initrd == ""
			if err := o.check(); err != nil {
				return err
			}
			return run(c.Context(), o)
		},
	}
	f := c.Flags()
	f.SortFlags = false
	f.SetInterspersed(false) // what follows the first argument is the command's
	f.StringVar(&o.kernel, "kernel", "", "kernel: `FILE` (bzImage or vmlinux), or a name or flavour of the store")
	f.StringVar(&o.initrd, "initrd", "", "initial RAM disk: `FILE`, or \"\" for none (default: the built-in userland)")
	f.StringVar(&o.append, "append", "", "`TEXT` to add to the guest's command line, which begins with\n"+defaultAppend)
	f.BoolVar(&o.bare, "no-default-append", false, "leave that beginning out")
	f.Var(&o.memory, "memory", "guest memory `SIZE`")
	f.Var(&o.disks, "disk", "disk image `FILE` as /dev/vda, then vdb, ...; FILE,ro: read-only;\nFILE,snapshot: writes are lost in the end; may be repeated")
	o.shareOptions.addFlags(f)
	o.life.flags(c)
	o.net.add(f)
	o.diskBootOptions.addFlags(f)
	f.IntVar(&o.cpus, "cpus", 1, "`NUMBER` of virtual CPUs, 1 to 8; they take turns: several are not faster than one")
	f.Var(&o.timeout, "timeout", "stop the machine after `TIME`, such as 90 (seconds) or 5m (default: never)")
	f.StringVar(&o.engine, "engine", string(machine.EngineAuto), "`HOW` kernel code is executed: interp (interpreted, slow), translate, or auto:\ntranslate if the processor has BMI2")
	f.IntVar(&o.verify, "verify", 0, "compare translated kernel code with the interpreter, block by block, and stop at a\ndifference (slow; implies --engine translate): all of it, or with --verify=`N`\n1,000 blocks after every N exits of translated code")
	f.Lookup("verify").NoOptDefVal = "1"
	f.StringVar(&o.trace, "trace", "", "list translations of kernel code when the machine has ended (implies --engine\ntranslate): of `RANGE`[,RANGE...], each a function, FUNCTION+OFFSET or START-END in\nhexadecimal")
	f.StringVar(&o.traceFile, "trace-file", "", "`FILE` for that list (default: standard error)")
	f.StringVar(&o.symbols, "symbols", "", "`FILE` with the kernel's symbols for --trace, a System.map or a saved\n/proc/kallsyms (default: the table that the kernel carries)")
	f.BoolVar(&o.stats, "stats", false, "print at the end what the machine spent its time on")
	f.BoolVarP(&o.tty, "tty", "t", false, "give COMMAND a terminal instead of pipes")
	return c
}

// check finds mistakes that need no machine to be seen.
func (o *runOptions) check() error {
	switch {
	case o.cpus < 1 || o.cpus > machine.MaxCPUs:
		return usageError("--cpus: %d is not between 1 and %d", o.cpus, machine.MaxCPUs)
	case o.memory < machine.MinMemory:
		return usageError("--memory: %v is too little, a kernel needs at least %v", o.memory, cli.Size(machine.MinMemory))
	case o.memory > machine.MaxMemory:
		return usageError("--memory: %v is too much, a machine can have %v", o.memory, cli.Size(machine.MaxMemory))
	case o.memory%x86.PageSize != 0:
		return usageError("--memory: %v is not a multiple of %v", o.memory, cli.Size(x86.PageSize))
	case len(o.disks) > machine.MaxDisks:
		return usageError("--disk: %d are too many, a machine can have %d", len(o.disks), machine.MaxDisks)
	case !slices.Contains([]machine.Engine{machine.EngineAuto, machine.EngineInterp, machine.EngineTranslate}, machine.Engine(o.engine)):
		return usageError("--engine: %q is none of auto, interp and translate", o.engine)
	case o.verify < 0:
		return usageError("--verify: %d is negative", o.verify)
	case o.trace == "" && o.traceFile != "":
		return usageError("--trace-file: there is no --trace to write")
	case o.trace == "" && o.symbols != "":
		return usageError("--symbols: they are for --trace")
	case len(o.command) > 0 && (o.initrd != "" || o.noInitrd):
		return usageError("a COMMAND needs the built-in userland: leave out --initrd")
	case len(o.command) > 0 && o.command[0] == "":
		return usageError("the command's name is empty")
	case o.tty && len(o.command) == 0:
		return usageError("--tty is for a COMMAND (the console is a terminal anyway)")
	case o.tty && o.life.detach:
		return usageError("--tty: a detached machine has no terminal (ring3 exec -t gives one)")
	}
	if err := o.shareOptions.check(o.initrd == "" && !o.noInitrd); err != nil {
		return err
	}
	if err := o.life.check(); err != nil {
		return err
	}
	return o.net.check()
}
