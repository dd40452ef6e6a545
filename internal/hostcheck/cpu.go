package hostcheck

import (
	"bytes"
	"encoding/binary"
	"os"
	"runtime"
	"strings"

	"golang.org/x/sys/cpu"
)

var cpuChecks = []check{
	{"processor", processor},
	{"FSGSBASE", fsgsbase},
	{"XSAVE", xsave},
	{"BMI2", bmi2},
	{"time stamp counter", tsc},
	{"CPUID faulting", cpuidFaulting},
	{"AVX-512", avx512},
	{"hardware virtualization", hardwareVirtualization},
}

func processor() Result {
	if runtime.GOARCH != "amd64" {
		return fail("use an x86-64 host", "%s", runtime.GOARCH)
	}
	if m := cpuinfo("model name"); m != "" {
		return ok("x86-64, %s", m)
	}
	return ok("x86-64")
}

// Keys and bits of the auxiliary vector (getauxval(3), asm/hwcap2.h).
const (
	atHWCAP2       = 26
	hwcap2Fsgsbase = 1 << 1
)

// fsgsbase: stubs set FS and GS bases with the instructions, which the kernel
// must have enabled (CR4.FSGSBASE); it says so in AT_HWCAP2.
func fsgsbase() Result {
	v, err := auxval(atHWCAP2)
	if err != nil {
		return fail("mount /proc", "cannot be determined: %v", err)
	}
	if v&hwcap2Fsgsbase == 0 {
		return fail("boot a host kernel 5.9 or later, without nofsgsbase, on a processor that has it",
			"user programs may not write FS and GS bases")
	}
	return ok("usable by programs")
}

// auxval returns an entry of the process's auxiliary vector.
func auxval(key uint64) (uint64, error) {
	b, err := os.ReadFile("/proc/self/auxv")
	for ; err == nil && len(b) >= 16; b = b[16:] {
		if binary.LittleEndian.Uint64(b) == key {
			return binary.LittleEndian.Uint64(b[8:]), nil
		}
	}
	return 0, err
}

func xsave() Result {
	if !cpu.X86.HasOSXSAVE {
		return fail("use a processor and a host kernel that have it", "not available")
	}
	return ok("available")
}

// bmi2: translated kernel code finds its way with PEXT.
func bmi2() Result {
	if !cpu.X86.HasBMI2 {
		return warn("none; guest kernel code is interpreted, which is slow", "not available")
	}
	return ok("available")
}

func tsc() Result {
	if !hasFlag("constant_tsc") || !hasFlag("nonstop_tsc") {
		return warn("none; the guest's clock may drift", "does not run at a constant rate")
	}
	return ok("constant rate, never stops")
}

func cpuidFaulting() Result {
	if hasFlag("cpuid_fault") {
		return info("available")
	}
	return info("not available: CPUID in guest programs is patched instead")
}

func avx512() Result {
	if cpu.X86.HasAVX512F {
		return info("present, guest programs can use it")
	}
	return info("not present")
}

func hardwareVirtualization() Result {
	saw := "no VT-x or SVM"
	if hasFlag("vmx") || hasFlag("svm") {
		saw = "VT-x or SVM present"
	}
	if _, err := os.Stat("/dev/kvm"); err == nil {
		saw += ", /dev/kvm present"
	} else {
		saw += ", no /dev/kvm"
	}
	return info("%s: not needed", saw)
}

// cpuinfo returns the first value of a key of /proc/cpuinfo, or "".
func cpuinfo(key string) string {
	b, err := os.ReadFile("/proc/cpuinfo")
	if err != nil {
		return ""
	}
	for line := range bytes.Lines(b) {
		k, v, _ := strings.Cut(string(line), ":")
		if strings.TrimSpace(k) == key {
			return strings.TrimSpace(v)
		}
	}
	return ""
}

// hasFlag reports whether the processor has a feature by the kernel's name.
func hasFlag(name string) bool {
	for f := range strings.FieldsSeq(cpuinfo("flags")) {
		if f == name {
			return true
		}
	}
	return false
}
