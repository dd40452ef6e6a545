package interp

import (
	"ring3/internal/x86/insn"
)

// notCompared gives the reason why an entry of the instruction table is not
// compared with the host, "" when it is.
func notCompared(e *insn.Encoding) string {
	if r := notComparedForm[e.Form]; r != "" {
		return r
	}
	if r := notComparedOp[e.Op.String()]; r != "" {
		return r
	}
	if r := notComparedFeature[e.Feature.String()]; r != "" {
		return r
	}
	if e.Group == insn.GroupXSave {
		return "the image depends on which components the host has in use; tested on its own"
	}
	if e.Opcode == "0F 0D /r" {
		return "a NOP on Intel processors, #UD on AMD's"
	}
	return ""
}

var notComparedForm = map[string]string{
	"MOV Sreg, r/m16": "would change segment registers of the test process",
	"POP FS":          "would change the FS base of the Go runtime",
	"POP GS":          "would change GS",
	"POP ES":          "would change ES",
	"POP SS":          "would change SS",
	"POP DS":          "would change DS",
}

var notComparedOp = map[string]string{
	"INT3": "is the end mark of the comparison",
	"INT1": "raises #DB, which Linux reports as a trap of its own",
	"INT":  "could be a system call",

	"LES": "would change ES", "LDS": "would change DS",
	"LSS": "would change SS", "LFS": "would change the FS base of the Go runtime", "LGS": "would change GS",
	"CALLF": "no far targets in the test process", "JMPF": "no far targets in the test process",
	"RETF": "no far targets in the test process", "IRET": "no far targets in the test process",
	"SYSCALL": "is a system call", "SYSENTER": "is a system call of the host",
	"WRFSBASE": "would change the FS base of the Go runtime", "WRGSBASE": "would change GS",

	"SGDT": "the host's tables", "SIDT": "the host's tables", "SLDT": "the host's tables",
	"STR": "the host's tables", "SMSW": "Linux emulates it under UMIP",
	"LAR": "depends on the host's GDT", "LSL": "depends on the host's GDT",
	"VERR": "depends on the host's GDT", "VERW": "depends on the host's GDT",

	"CPUID": "the virtual CPU answers otherwise", "RDTSC": "time", "RDTSCP": "time", "RDPMC": "depends on the host's CR4.PCE",
	"RDPRU": "time", "RDPID": "number of the host's CPU", "RDRAND": "random", "RDSEED": "random",
	"XGETBV": "the virtual CPU shows fewer components", "RDPKRU": "the virtual CPU hides PKU", "WRPKRU": "the virtual CPU hides PKU",

	"MONITORX": "hidden from the guest", "MWAITX": "hidden from the guest", "MCOMMIT": "hidden from the guest",
	"VMCALL": "would call the host's hypervisor", "VMMCALL": "would call the host's hypervisor",
	"VMGEXIT": "would call the host's hypervisor", "TDCALL": "would call the host's hypervisor",
	"SYSEXIT": "vendors check mode and privilege in another order",
}

var notComparedFeature = map[string]string{
	"SMX": "would call the host's firmware", "SGX": "would enter an enclave",
	"CET_SS": "the host process may have a shadow stack", "UINTR": "would change user-interrupt state",
	"PADLOCK": "hidden from the guest; REP forms run over memory", "LWP": "hidden from the guest",
	"RTM": "hidden from the guest", "WAITPKG": "hidden from the guest", "ENQCMD": "writes to a device",
	"SVM": "hidden from the guest; hypervisors answer for the host", "SEV_SNP": "hidden from the guest",
	"MPX": "hint space on hosts without MPX, hidden from the guest",
}
