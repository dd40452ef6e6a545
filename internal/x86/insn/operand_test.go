package insn

import (
	"regexp"
	"strconv"
	"strings"
)

// Decorations and phrases of objdump that say nothing about the operand.
var (
	objDecoration = regexp.MustCompile(`\{[^}]*\}`)
	objComment    = regexp.MustCompile(`\s*(#.*|<.*>)$`)
	objNoIndex    = regexp.MustCompile(`\+?[re]iz(\*\d)?`)
	objRIP        = regexp.MustCompile(`\[[re]ip[+-]0x[0-9a-f]+`)
	objScaleOne   = regexp.MustCompile(`\*1\b`)
)

// objOperands splits objdump's operands, in the spelling of Operand.
func objOperands(rest string) []string {
	rest = objComment.ReplaceAllString(strings.TrimSpace(rest), "")
	rest = objDecoration.ReplaceAllString(rest, "")
	if rest == "" {
		return nil
	}
	var ops []string
	for _, o := range strings.Split(rest, ",") {
		o = strings.ToLower(strings.TrimSpace(o))
		o = strings.Replace(objComment.ReplaceAllString(o, ""), " bcst ", " ptr ", 1)
		ops = append(ops, o)
	}
	return ops
}

// operandDisagreement compares one operand; "" means the same.
func operandDisagreement(in *Inst, i int, pc uint64, obj string) string {
	a := &in.Args[i]
	ours := objDecoration.ReplaceAllString(in.Operand(i, pc), "")
	switch a.Kind {
	case ArgMem, ArgMoffs, ArgStrSrc, ArgStrDst:
		if memoryText(ours) == memoryText(obj) && sizeText(ours, obj) {
			return ""
		}
		if x, y := number(stripSeg(memoryText(ours))), number(stripSeg(memoryText(obj))); x != 0 && (x == y || uint32(x) == uint32(y) && in.AddrSize == 32) {
			return ""
		}
		// objdump prints the override in front of some operands only.
		if s, o := stripSeg(memoryText(ours)), stripSeg(memoryText(obj)); s == o {
			return ""
		}
	case ArgImm, ArgImm2, ArgRel:
		if numberText(ours) == numberText(obj) {
			return ""
		}
		if x, y := number(ours), number(obj); uint16(x) == uint16(y) && in.OpSize == 16 || uint32(x) == uint32(y) && in.OpSize != 64 || in.Op == OpPUSH && uint32(x) == uint32(y) {
			return ""
		}
	default:
		if s := in.Enc.args[i].size; a.Kind == ArgGPR && (s == sz16 || s == sz32 || in.OpSize == 16) && gprNumber(obj) == int(a.Reg) {
			return "" // objdump shows a size the processor does not use
		}
		if in.Enc.Group == GroupMMX || in.Op == OpMOVQ2DQ || in.Op == OpMOVDQ2Q { // 66 makes objdump show XMM
			if n, err := strconv.Atoi(strings.TrimLeft(obj, "xm")); err == nil && n&7 == int(a.Reg)&7 {
				return ""
			}
		}
		if a.Kind == ArgVec && in.Enc.attr&attrLIG != 0 { // objdump shows the ignored length
			obj = "x" + obj[1:]
		}
		if ours == obj || ours == "st(0)" && obj == "st" || a.Kind == ArgDR && strings.TrimPrefix(obj, "db") == strings.TrimPrefix(ours, "dr") {
			return ""
		}
	}
	return ours + " is not " + obj
}

// gprNumber is the number of a general-purpose register of 16 bits or more, or -1.
func gprNumber(name string) int {
	for n := range 16 {
		for _, size := range []uint16{16, 32, 64} {
			if gprName(uint8(n), size, false) == name {
				return n
			}
		}
	}
	return -1
}

func number(s string) uint64 {
	n, _ := strconv.ParseUint(strings.TrimPrefix(s, "0x"), 16, 64)
	return n
}

func numberText(s string) string { return strings.TrimPrefix(s, "0x") }

// memoryText is seg:[...] without size, no-index registers and scale one.
func memoryText(s string) string {
	if i := strings.Index(s, "ptr "); i >= 0 {
		s = s[i+4:]
	}
	s = objNoIndex.ReplaceAllString(s, "")
	s = objScaleOne.ReplaceAllString(s, "")
	s = strings.Replace(s, "[+", "[", 1)
	s = strings.Replace(s, "+0x0]", "]", 1)
	s = strings.Replace(s, "[0x", "0x", 1) // absolute addresses have no brackets
	if !strings.Contains(s, "[") {
		s = strings.TrimSuffix(s, "]")
	}
	s = objRIP.ReplaceAllStringFunc(s, func(m string) string {
		n := int64(int32(number(m[5:])))
		if m[4] == '-' {
			n = -n
		}
		return m[:4] + strconv.FormatInt(n, 10)
	})
	if n, ok := strings.CutPrefix(stripSeg(s), "[-0x"); ok { // no base, no index
		s = hexText(-number(strings.TrimSuffix(n, "]")))
	}
	return s
}

func stripSeg(s string) string {
	if len(s) > 3 && s[2] == ':' {
		return s[3:]
	}
	return s
}

// sizeText compares the size of memory operands when both have one.
func sizeText(a, b string) bool {
	x, _, okX := strings.Cut(a, " ptr ")
	y, _, okY := strings.Cut(b, " ptr ")
	return !okX || !okY || x == y
}

// operandsDisagree compares all operands when there are as many on both sides.
func operandsDisagree(in *Inst, rest string, pc uint64) string {
	ops := objOperands(rest)
	if len(ops) != int(in.NArg) {
		return ""
	}
	for i, o := range ops {
		if d := operandDisagreement(in, i, pc, o); d != "" {
			return d
		}
	}
	return ""
}
