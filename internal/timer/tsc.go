package timer

// rdtsc reads the host's time-stamp counter, after earlier loads.
func rdtsc() uint64

// cpuid executes CPUID.
func cpuid(leaf, sub uint32) (a, b, c, d uint32)

// cpuidHz returns the TSC frequency that the processor states itself, or 0
// (SDM vol. 3B, section 18.7.3). Leaf 0x15: EAX and EBX are denominator and
// numerator of TSC over crystal clock, ECX is the crystal clock in Hz.
func cpuidHz() uint64 {
	max, _, _, _ := cpuid(0, 0)
	if max < 0x15 {
		return 0
	}
	den, num, crystal, _ := cpuid(0x15, 0)
	if den == 0 || num == 0 || crystal == 0 {
		return 0
	}
	return Scale(uint64(crystal), uint64(num), uint64(den))
}

// InvariantTSC reports whether the host's TSC runs at a constant rate in all
// power states (CPUID 0x80000007 EDX bit 8; SDM vol. 3B, section 18.17.1).
func InvariantTSC() bool {
	max, _, _, _ := cpuid(0x80000000, 0)
	if max < 0x80000007 {
		return false
	}
	_, _, _, d := cpuid(0x80000007, 0)
	return d&(1<<8) != 0
}
