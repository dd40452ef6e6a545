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

func allowed(l objLine, mnem string, in *Inst, err error) bool {
	for i := range allowances {
		if allowances[i].is(l, mnem, in, err) {
			return true
		}
	}
	return false
}
