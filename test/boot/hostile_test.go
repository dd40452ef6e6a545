package boot

import (
	"bytes"
	"debug/elf"
	"encoding/binary"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"ring3/internal/initramfs"
	"ring3/internal/kernelstore"
	"ring3/internal/machine"
)

// hostileModule builds ../guest/hostile.c for kernel k, without kernel headers:
// what a module needs beside its code is taken from stock modules.
func hostileModule(t *testing.T, k kernelstore.Kernel, phase string) initramfs.File {
	t.Helper()
	dir := t.TempDir()
	at := func(name string) string { return filepath.Join(dir, name) }
	if err := os.WriteFile(at("module.s"), []byte(moduleSections(t, k)), 0o644); err != nil {
		t.Fatal(err)
	}
	for _, args := range [][]string{
		{"gcc", "-O1", "-DPHASE=" + phase, "-mcmodel=kernel", "-mno-red-zone", "-mgeneral-regs-only", "-ffreestanding", "-fno-pic",
			"-fno-stack-protector", "-fcf-protection=none", "-fno-jump-tables", "-fno-asynchronous-unwind-tables",
			"-c", "-o", at("code.o"), filepath.Join("..", "guest", "hostile.c")},
		{"gcc", "-c", "-o", at("module.o"), at("module.s")},
		{"ld", "-r", "-o", at("hostile.ko"), at("code.o"), at("module.o")},
	} {
		if out, err := exec.Command(args[0], args[1:]...).CombinedOutput(); err != nil {
			t.Fatalf("%s: %v\n%s", strings.Join(args, " "), err, out)
		}
	}
	data, err := os.ReadFile(at("hostile.ko"))
	if err != nil {
		t.Fatal(err)
	}
	return initramfs.File{Path: "hostile.ko", Mode: 0o644, Data: data}
}

const (
	thisModule    = ".gnu.linkonce.this_module"
	moduleName    = 24 // offset in struct module
	versionLength = 64 // of struct modversion_info
)

// moduleSections is assembly language for what makes a module of code: its name
// and initial function in a struct module as long as the kernel's, the version
// magic, and checksums of what it uses (CONFIG_MODVERSIONS).
func moduleSections(t *testing.T, k kernelstore.Kernel) string {
	t.Helper()
	versions := map[string]uint64{"module_layout": 0, "_printk": 0, "kthread_create_on_node": 0, "wake_up_process": 0, "msleep": 0}
	missing := len(versions)
	var magic string
	var size, init uint64
	err := filepath.WalkDir(k.Modules, func(p string, d fs.DirEntry, err error) error {
		if err != nil || filepath.Ext(p) != ".ko" {
			return err
		}
		f, err := elf.Open(p)
		if err != nil {
			return err
		}
		defer f.Close()
		for b := sectionData(f, "__versions"); len(b) >= versionLength; b = b[versionLength:] {
			name, _, _ := strings.Cut(string(b[8:versionLength]), "\x00")
			if v, used := versions[name]; used && v == 0 {
				versions[name] = binary.LittleEndian.Uint64(b)
				missing--
			}
		}
		if init == 0 {
			size, init = f.Section(thisModule).Size, initialFunction(f)
			_, magic, _ = strings.Cut(string(sectionData(f, ".modinfo")), "\x00vermagic=")
			magic, _, _ = strings.Cut(magic, "\x00")
		}
		if missing == 0 && init != 0 {
			return fs.SkipAll
		}
		return nil
	})
	if err != nil || missing != 0 || init == 0 {
		t.Fatalf("the modules in %s are no model: %v, %v", k.Modules, err, versions)
	}
	var asm strings.Builder
	fmt.Fprintf(&asm, ".section .modinfo, \"a\"\n.asciz \"license=GPL\", \"depends=\", \"retpoline=Y\", \"name=hostile\", \"vermagic=%s\"\n", magic)
	fmt.Fprintf(&asm, ".section %s, \"aw\"\n.balign 64\n.org %d\n.asciz \"hostile\"\n.org %d\n.quad init_module\n.org %d\n",
		thisModule, moduleName, init, size)
	fmt.Fprintf(&asm, ".section __versions, \"a\"\n.balign 32\n")
	for name, crc := range versions {
		fmt.Fprintf(&asm, ".quad %#x\n1: .asciz \"%s\"\n.org 1b + %d\n", crc, name, versionLength-8)
	}
	return asm.String()
}

func sectionData(f *elf.File, name string) []byte {
	s := f.Section(name)
	if s == nil {
		return nil
	}
	b, _ := s.Data() // none is as good as no section
	return b
}

// initialFunction is where a module's struct module names init_module, 0 if it
// does not.
func initialFunction(f *elf.File) uint64 {
	syms, err := f.Symbols()
	if err != nil {
		return 0
	}
	for b := sectionData(f, ".rela"+thisModule); len(b) >= 24; b = b[24:] {
		if i := binary.LittleEndian.Uint64(b[8:]) >> 32; i > 0 && syms[i-1].Name == "init_module" {
			return binary.LittleEndian.Uint64(b)
		}
	}
	return 0
}

// TestHostileKernel loads a module that attacks from within the guest's kernel.
// The monitor, its memory and another machine must not notice. Whoever writes
// to the kernel stub's own pages may lose the machine, and a kernel does not
// always survive a hundred jumps into nothing.
func TestHostileKernel(t *testing.T) {
	k := kernel(t, kernelstore.Cloud)
	canary := bytes.Repeat([]byte("monitor!"), 1<<17)
	t.Run("machines", func(t *testing.T) {
		t.Run("other", func(t *testing.T) {
			t.Parallel()
			o := guest{engine: machine.EngineTranslate, args: []string{"sh", "-c",
				"head -c 1000000 /dev/urandom >/tmp/z; for i in $(seq 20); do md5sum </tmp/z; sleep 0.3; done | uniq | wc -l"}}.run(t).must(t)
			if o.stdout != "1\n" {
				t.Errorf("a file had %q checksums", o.stdout)
			}
		})
		t.Run("hostile", func(t *testing.T) {
			t.Parallel()
			o := attack(t, k, "survivable", time.Minute)
			for _, want := range []string{"anywhere, 0 of ", "area found", "to code, 0 of "} {
				if !strings.Contains(o.stdout, "hostile: "+want) {
					t.Errorf("no %q in\n%s%s", want, tail(o.stdout), tail(o.stderr))
				}
			}
			for _, phase := range []string{"jumps", "area"} {
				if o := attack(t, k, phase, 15*time.Second); o.End == machine.PowerOff && !strings.Contains(o.stdout, "hostile: lives") {
					t.Errorf("the module did nothing:\n%s%s", tail(o.stdout), tail(o.stderr))
				}
			}
		})
	})
	if bytes.Count(canary, []byte("monitor!")) != 1<<17 {
		t.Error("memory of the monitor has changed")
	}
}

// attack boots a machine that loads the module.
func attack(t *testing.T, k kernelstore.Kernel, phase string, timeout time.Duration) outcome {
	t.Helper()
	o, err := guest{engine: machine.EngineTranslate, timeout: timeout, files: []initramfs.File{hostileModule(t, k, phase)},
		cmdline: defaults + " loglevel=0", args: []string{"sh", "-c", "insmod /hostile.ko; dmesg | grep hostile:"}}.boot(t)
	t.Logf("%s: the machine ended with %v, %v", phase, o.End, err)
	return o
}
