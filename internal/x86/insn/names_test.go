package insn

import (
	"regexp"
	"strings"
)

// objPrefixes are words objdump puts before the mnemonic.
var objPrefixes = map[string]bool{
	"rep": true, "repz": true, "repnz": true, "lock": true, "bnd": true, "notrack": true,
	"data16": true, "data32": true, "addr32": true, "addr16": true, "cs": true, "ds": true, "es": true, "ss": true,
	"fs": true, "gs": true, "xacquire": true, "xrelease": true, "{vex}": true, "{evex}": true, "{vex3}": true,
}

// objMnemonic splits objdump's text.
func objMnemonic(text string) (mnem, rest string) {
	for {
		text = strings.TrimSpace(text)
		mnem, rest, _ = strings.Cut(text, " ")
		if i := strings.IndexByte(mnem, ','); i > 0 { // jne,pt
			mnem = mnem[:i]
		}
		if !objPrefixes[mnem] && !strings.HasPrefix(mnem, "rex") {
			return mnem, rest
		}
		text = rest
	}
}

// objNames maps names of objdump to those of the manual where they differ.
var objNames = map[string]string{
	"movabs": "MOV", "cwde": "CBW", "cdqe": "CBW", "cbw": "CBW", "cdq": "CWD", "cqo": "CWD", "cwd": "CWD",
	"pushfw": "PUSHF", "pushfq": "PUSHF", "pushfd": "PUSHF", "popfw": "POPF", "popfq": "POPF", "popfd": "POPF",
	"pushaw": "PUSHA", "pushad": "PUSHA", "popaw": "POPA", "popad": "POPA", "iretw": "IRET", "iretd": "IRET", "iretq": "IRET",
	"retw": "RET", "retfw": "RETF", "retfq": "RETF", "leavew": "LEAVE", "enterw": "ENTER",
	"pushw": "PUSH", "popw": "POP", "lgdtd": "LGDT", "lgdtw": "LGDT", "lidtd": "LIDT", "lidtw": "LIDT", "sgdtd": "SGDT", "sgdtw": "SGDT",
	"sidtd": "SIDT", "sidtw": "SIDT", "pcmpestrmq": "PCMPESTRM", "pcmpestriq": "PCMPESTRI", "vpcmpestrmq": "VPCMPESTRM", "vpcmpestriq": "VPCMPESTRI", "callw": "CALL", "jmpw": "JMP", "rex.W": "", "lcall": "CALLF", "ljmp": "JMPF",
	"jrcxz": "JCXZ", "jecxz": "JCXZ", "sal": "SHL", "icebp": "INT1", "fcom2": "FCOM", "fcomp3": "FCOMP", "fcomp5": "FCOMP",
	"fxch4": "FXCH", "fxch7": "FXCH", "fstp1": "FSTP", "fstp8": "FSTP", "fstp9": "FSTP",
	"sysretq": "SYSRET", "sysretl": "SYSRET", "sysretd": "SYSRET", "sysexitq": "SYSEXIT", "sysexitl": "SYSEXIT", "sysexitd": "SYSEXIT",
	"fxsave64": "FXSAVE", "fxrstor64": "FXRSTOR", "xsave64": "XSAVE", "xrstor64": "XRSTOR", "xsaveopt64": "XSAVEOPT",
	"xsavec64": "XSAVEC", "xsaves64": "XSAVES", "xrstors64": "XRSTORS",
	"rdsspd": "RDSSP", "rdsspq": "RDSSP", "incsspd": "INCSSP", "incsspq": "INCSSP",
	"wrssd": "WRSS", "wrssq": "WRSS", "wrussd": "WRUSS", "wrussq": "WRUSS",
	"fneni(8087": "FNENI", "fndisi(8087": "FNDISI", "fnsetpm(287": "FNSETPM",
	"xcrypt-ecb": "XCRYPTECB", "xcrypt-cbc": "XCRYPTCBC", "xcrypt-ctr": "XCRYPTCTR", "xcrypt-cfb": "XCRYPTCFB", "xcrypt-ofb": "XCRYPTOFB",
	"fldenvw": "FLDENV", "fnstenvw": "FNSTENV", "frstorw": "FRSTOR", "fnsavew": "FNSAVE", "xbeginw": "XBEGIN",
	"xstore-rng": "XSTORE", "prefetchit0": "PREFETCHIT0",
}

// Comparisons with the predicate in the name; it is an immediate for us.
var predicates = regexp.MustCompile(`^(v?cmp)(?:eq|lt|le|unord|neq|nlt|nle|ord|nge|ngt|false|ge|gt|true)(?:_?[a-z]+)?(ps|pd|ss|sd|ph|sh)$|^(vpcmp)(?:eq|lt|le|neq|nlt|nle)(u?[bwdq])$|^(vpcom)(?:lt|le|gt|ge|eq|neq|false|true)(u?[bwdq])$`)

// manualName gives the manual's name for objdump's mnemonic.
func manualName(mnem, rest string, in *Inst) string {
	if n, ok := objNames[mnem]; ok {
		return n
	}
	switch {
	case in.Op == OpVPCMPEQB || in.Op == OpVPCMPEQW || in.Op == OpVPCMPEQD || in.Op == OpVPCMPEQQ:
	case strings.HasSuffix(mnem, "qdq") && strings.Contains(mnem, "pclmul"):
		if mnem[0] == 'v' {
			return "VPCLMULQDQ"
		}
		return "PCLMULQDQ"
	default:
		if m := predicates.FindStringSubmatch(mnem); m != nil {
			return strings.ToUpper(m[1] + m[2] + m[3] + m[4] + m[5] + m[6])
		}
	}
	switch {
	case mnem == "call" && in.Op == OpCALLF, mnem == "jmp" && in.Op == OpJMPF:
		return in.Op.String()
	case mnem == "xchg" && in.Op == OpNOP && strings.HasSuffix(rest, "ax") && strings.Count(rest, "ax") == 2:
		return "NOP"
	}
	upper := strings.ToUpper(mnem)
	if op := in.Op.String(); suffixed[in.Op] && len(upper) == len(op)+1 && strings.HasPrefix(upper, op) {
		return op
	}
	return upper
}

// suffixed are the instructions whose name gets a size suffix when the operand
// size is not the default.
var suffixed = map[Op]bool{
	OpPUSH: true, OpPOP: true, OpRET: true, OpRETF: true, OpENTER: true, OpLEAVE: true, OpCALL: true, OpJMP: true, OpXBEGIN: true,
	OpFLDENV: true, OpFNSTENV: true, OpFRSTOR: true, OpFNSAVE: true, OpPUSHF: true, OpPOPF: true, OpPUSHA: true, OpPOPA: true,
	OpLGDT: true, OpLIDT: true, OpSGDT: true, OpSIDT: true, OpIRET: true,
}
