package insn

import (
	"regexp"
	"strings"
)

// allowance is a known and judged difference between objdump 2.40 and Decode.
type allowance struct {
	why string
	is  func(l objLine, mnem string, in *Inst, err error) bool
}

var allowances = []allowance{
	{
		"objdump does not check that LOCK is allowed (SDM vol. 2A, LOCK: #UD)",
		func(l objLine, _ string, in *Inst, err error) bool {
			return err == ErrInvalid && in.Lock && strings.Contains(l.text, "lock ")
		},
	},
	{
		"objdump prints CS and the segment registers 6 and 7 as destination or source; they are #UD (SDM vol. 2B, MOV)",
		func(l objLine, mnem string, in *Inst, err error) bool {
			return err == ErrInvalid && mnem == "mov" && (strings.Contains(l.text, "?") || strings.Contains(l.text, "cs,"))
		},
	},
	{
		"aliases of x87 instructions that exist in hardware since the 8087 (APM vol. 3, appendix A, table A-15)",
		func(l objLine, mnem string, in *Inst, err error) bool {
			return err == nil && strings.Contains(l.text, "(bad)") && in.Enc.Group == GroupX87 && in.ModRM >= 0xc0
		},
	},
	{
		"FWAIT is an instruction of its own; objdump merges it with the x87 instruction, or splits prefixes from it",
		func(l objLine, mnem string, in *Inst, err error) bool {
			return err == nil && in.Op == OpFWAIT
		},
	},
	{
		"REX before VEX, EVEX or XOP is #UD (SDM vol. 2A, 2.3.3)",
		func(l objLine, mnem string, in *Inst, err error) bool {
			return err == ErrInvalid && in.Rex != 0 && strings.Contains(l.text, "rex")
		},
	},
	{
		"FRSTPM existed in the 80287XL only",
		func(l objLine, mnem string, in *Inst, err error) bool {
			return err == ErrInvalid && strings.HasPrefix(mnem, "frstpm")
		},
	},
	{
		"90 with REX.B exchanges with r8, F3 being ignored (SDM vol. 2B, XCHG and PAUSE: 90 is NOP or PAUSE for rAX only)",
		func(l objLine, mnem string, in *Inst, err error) bool {
			return err == nil && in.Op == OpXCHG && mnem == "pause"
		},
	},
	{
		"control registers other than 0, 2, 3, 4 and 8 and debug registers above 7 are #UD (SDM vol. 2B, MOV)",
		func(l objLine, mnem string, in *Inst, err error) bool {
			return err == ErrInvalid && mnem == "mov" && badControlReg.MatchString(l.text)
		},
	},
	{
		"LFENCE, MFENCE and SFENCE ignore ModRM.r/m (SDM vol. 2)",
		func(l objLine, mnem string, in *Inst, err error) bool {
			return err == nil && mnem == "(bad)" && (in.Op == OpLFENCE || in.Op == OpMFENCE || in.Op == OpSFENCE)
		},
	},
	{
		"F2 is no part of BSF and BSR and is ignored",
		func(l objLine, mnem string, in *Inst, err error) bool {
			return err == nil && mnem == "(bad)" && (in.Op == OpBSF || in.Op == OpBSR) && in.Repne
		},
	},
	{
		"SALC is undocumented, but exists",
		func(l objLine, mnem string, in *Inst, err error) bool {
			return err == nil && in.Op == OpSALC
		},
	},
	{
		"an opmask register in ModRM.r/m has three bits, VEX.B and EVEX.X are ignored",
		func(l objLine, mnem string, in *Inst, err error) bool {
			return err == nil && in.ModRM >= 0xc0 && in.Rex&3 != 0 && maskInRM(in)
		},
	},
	{
		"EVEX gathers with the same destination and index are #UD (SDM vol. 2C, VPGATHERDD), as are VEX ones",
		func(l objLine, mnem string, in *Inst, err error) bool {
			return err == ErrInvalid && in.Enc != nil && in.Enc.attr&attrGather != 0
		},
	},
	{
		"the SDM does not restrict the prefixes of WBINVD",
		func(l objLine, mnem string, in *Inst, err error) bool {
			return err == nil && in.Op == OpWBINVD && mnem == "(bad)"
		},
	},
	{
		"0F 0D with a register is a NOP for Intel (SDM vol. 2D, table A-3, note on reserved NOPs)",
		func(l objLine, mnem string, in *Inst, err error) bool {
			return err == nil && in.Op == OpNOP && strings.HasPrefix(mnem, "prefetch") && strings.Contains(l.text, "(bad)")
		},
	},
	{
		"PREFETCHIT works with RIP-relative operands and is a NOP otherwise, which objdump shows as such",
		func(l objLine, mnem string, in *Inst, err error) bool {
			return err == nil && (in.Op == OpPREFETCHIT0 || in.Op == OpPREFETCHIT1) && mnem == "nop"
		},
	},
	{
		"newer than binutils 2.40",
		func(l objLine, mnem string, in *Inst, err error) bool {
			return err == nil && newFeatures[in.Enc.Feature]
		},
	},
	{
		"REX that is not before the opcode is ignored (SDM vol. 2A, 2.2.1); objdump shows it as an instruction",
		func(l objLine, mnem string, in *Inst, err error) bool {
			return mnem == "" && strings.Contains(l.text, "rex")
		},
	},
	{
		"66, F2 and F3 before VEX, EVEX or XOP are #UD (SDM vol. 2A, 2.3.2)",
		func(l objLine, mnem string, in *Inst, err error) bool {
			return err == ErrInvalid && in.Enc == nil && objRepeat.MatchString(l.text) && withoutPrefixes(l.code, in.Mode)&(1<<GroupAVX|1<<GroupEVEX|1<<GroupMask|1<<GroupAMX) != 0
		},
	},
	{
		"NP in the opcode column forbids 66, F2 and F3 (SDM vol. 2A, 3.1.1.1); objdump ignores them",
		func(l objLine, mnem string, in *Inst, err error) bool {
			return err == ErrInvalid && in.Enc == nil && withoutPrefixes(l.code, in.Mode) != 0
		},
	},
	{
		"objdump does not check pp, W and L of every instruction, and takes EVEX for VEX-only ones",
		func(l objLine, mnem string, in *Inst, err error) bool {
			return err == ErrInvalid && in.Enc == nil && otherVector(l.code, strings.ToUpper(mnem))
		},
	},
	{
		"LOCK as the fourth bit of a control register number is AMD's alone",
		func(l objLine, mnem string, in *Inst, err error) bool {
			return err == ErrInvalid && mnem == "mov" && in.Lock && strings.Contains(l.text, "cr8")
		},
	},
	{
		"test registers went with the 486",
		func(l objLine, mnem string, in *Inst, err error) bool {
			return err == ErrInvalid && mnem == "mov" && testReg.MatchString(l.text)
		},
	},
	{
		"instructions of 64-bit mode only, which objdump shows elsewhere, too",
		func(l objLine, mnem string, in *Inst, err error) bool {
			return err == ErrInvalid && in.Mode != Mode64 && (mnem == "swapgs" || strings.HasSuffix(mnem, "sbase"))
		},
	},
	{
		"end of the section within data",
		func(l objLine, mnem string, in *Inst, err error) bool {
			return err == ErrTruncated && mnem == ".byte"
		},
	},
}

// newFeatures are not known to binutils 2.40.
var newFeatures = map[Feature]bool{
	FeatureFRED: true, FeatureLKGS: true, FeaturePBNDKB: true, FeatureUSER_MSR: true, FeatureAMX_COMPLEX: true,
	FeatureAVX_VNNI_INT16: true, FeatureSHA512: true, FeatureSM3: true, FeatureSM4: true,
}

var badControlReg = regexp.MustCompile(`\b(cr([15679]|1\d)|dr([89]|1\d))\b`)

func maskInRM(in *Inst) bool {
	for i := range int(in.NArg) {
		if in.Args[i].Kind == ArgMask && in.Enc.args[i].pos == posRM {
			return true
		}
	}
	return false
}

var objRepeat = regexp.MustCompile(`^\s*((cs|ds|es|ss|fs|gs|addr\d+|lock|rex\S*) )*(rep|repz|repnz|data16|data32|xacquire|xrelease) `)

// withoutPrefixes gives the group, as a bit, of the encoding that results when
// 66, F2 and F3 are left out; 0 if there is none.
func withoutPrefixes(code []byte, mode Mode) int {
	var rest []byte
scan:
	for i, c := range code {
		switch k := byteClass[c]; {
		case k == pfxOpsize || k == pfxRep:
			continue
		case k == pfxSeg || k == pfxAddr || k == pfxLock || k == pfxRex && mode == Mode64:
			rest = append(rest, c)
			continue
		}
		rest = append(rest, code[i:]...)
		break scan
	}
	var in Inst
	if len(rest) == len(code) || Decode(rest, mode, &in) != nil {
		return 0
	}
	return 1 << in.Enc.Group
}

var testReg = regexp.MustCompile(`\btr[0-7]\b`)

// otherVector reports whether the table has the named instruction under the map
// and opcode of this VEX- or EVEX-encoded code, for VEX or for EVEX.
func otherVector(code []byte, name string) bool {
	i := 0
	for i < len(code) && byteClass[code[i]] != pfxVex {
		i++
	}
	if i+1 >= len(code) {
		return false
	}
	m, at := uint8(1), i+2
	switch code[i] {
	case 0xc4:
		m, at = code[i+1]&0x1f, i+3
	case 0x62:
		m, at = code[i+1]&7, i+4
	}
	for j := range encodings {
		e := &encodings[j]
		if at < len(code) && (e.opmap == mapEVEX+m || e.opmap == mapVEX+m) && e.opcode == code[at] && e.Op.String() == name {
			return true
		}
	}
	return false
}

func allowed(l objLine, mnem string, in *Inst, err error) bool {
	for i := range allowances {
		if allowances[i].is(l, mnem, in, err) {
			return true
		}
	}
	return false
}
