package main

import (
	"fmt"
	"regexp"
	"strings"
)

// operand is one operand: where it is encoded and what it is. The names are
// those of the constants in internal/x86/insn.
type operand struct {
	pos, kind string
	size, mem string // size codes of the register and memory form
	reg       int    // fixed register number
	high      bool
	regOK     bool // a register is allowed in ModRM.r/m
	memOK     bool // memory is allowed in ModRM.r/m
	attrs     []string
}

// Letters of the Op/En column: SDM vol. 2A, 3.1.1.5, one letter per operand.
var positions = map[byte]string{
	'R': "posReg", 'M': "posRM", 'V': "posVvvv", 'I': "posImm", 'T': "posImm2",
	'D': "posRel", 'O': "posOpc", 'S': "posIs4", 'F': "posFixed",
}

// sizes translates the size part of operand notation.
var sizes = map[string]string{
	"": "szNone", "8": "sz8", "16": "sz16", "32": "sz32", "48": "sz48", "64": "sz64",
	"80": "sz80", "128": "sz128", "256": "sz256", "384": "sz384", "512": "sz512",
	"v": "szV", "y": "szY", "z": "szZ", "a": "szA", "s": "szS",
	"16:v": "szFar", "16&s": "szTable", "v&v": "szPair", "bnd": "szBnd",
	"14/28byte": "szEnv", "94/108byte": "szState", "512byte": "sz4096",
	"vl": "szVL", "vl2": "szVL2", "vl4": "szVL4", "vl8": "szVL8", "dup": "szDup",
}

// fixed maps the operands that are spelled out.
var fixed = map[string]operand{
	"AL": {kind: "ArgGPR", size: "sz8"}, "AX": {kind: "ArgGPR", size: "sz16"},
	"EAX": {kind: "ArgGPR", size: "sz32"}, "rAX": {kind: "ArgGPR", size: "szV"},
	"zAX": {kind: "ArgGPR", size: "szZ"}, "aAX": {kind: "ArgGPR", size: "szA"},
	"AH": {kind: "ArgGPR", size: "sz8", reg: 4, high: true},
	"CL": {kind: "ArgGPR", size: "sz8", reg: 1}, "ECX": {kind: "ArgGPR", size: "sz32", reg: 1},
	"DX": {kind: "ArgGPR", size: "sz16", reg: 2}, "EDX": {kind: "ArgGPR", size: "sz32", reg: 2},
	"1":  {kind: "ArgOne"},
	"ES": {kind: "ArgSeg", size: "sz16", reg: 0}, "CS": {kind: "ArgSeg", size: "sz16", reg: 1},
	"SS": {kind: "ArgSeg", size: "sz16", reg: 2}, "DS": {kind: "ArgSeg", size: "sz16", reg: 3},
	"FS": {kind: "ArgSeg", size: "sz16", reg: 4}, "GS": {kind: "ArgSeg", size: "sz16", reg: 5},
	"ST": {kind: "ArgST", size: "sz80"}, "XMM0": {kind: "ArgVec", size: "sz128"},
	"src8": {kind: "ArgStrSrc", size: "sz8"}, "srcv": {kind: "ArgStrSrc", size: "szV"},
	"srcz": {kind: "ArgStrSrc", size: "szZ"},
	"dst8": {kind: "ArgStrDst", size: "sz8"}, "dstv": {kind: "ArgStrDst", size: "szV"},
	"dstz": {kind: "ArgStrDst", size: "szZ"},
}

// registers maps register classes; the register part of a notation such as
// xmm/m32 is looked up here.
var registers = map[string][2]string{
	"xmm": {"ArgVec", "sz128"}, "ymm": {"ArgVec", "sz256"}, "zmm": {"ArgVec", "sz512"},
	"vmm": {"ArgVec", "szVL"}, "vmm2": {"ArgVec", "szVR2"}, "vmm4": {"ArgVec", "szVR4"},
	"vmm8": {"ArgVec", "szVR8"},
	"mm":   {"ArgMMX", "sz64"}, "k": {"ArgMask", "sz64"}, "bnd": {"ArgBnd", "sz128"},
	"tmm": {"ArgTile", "szNone"}, "Sreg": {"ArgSeg", "sz16"}, "CR": {"ArgCR", "szS"},
	"DR": {"ArgDR", "szS"}, "ST(i)": {"ArgST", "sz80"},
}

var decoration = regexp.MustCompile(`\{(k|z|er|sae|k!)\}`)

// parseOperand translates one operand written in manual notation with the
// Op/En letter at.
func parseOperand(text string, at byte) (operand, error) {
	pos, ok := positions[at]
	if !ok {
		return operand{}, fmt.Errorf("no such Op/En letter %q", at)
	}
	var attrs []string
	for _, m := range decoration.FindAllStringSubmatch(text, -1) {
		attrs = append(attrs, map[string]string{
			"k": "attrMask", "z": "attrZero", "k!": "attrMaskMust", "er": "attrER", "sae": "attrSAE",
		}[m[1]])
	}
	text = decoration.ReplaceAllString(text, "")
	if at == 'F' {
		o, ok := fixed[text]
		if !ok {
			return o, fmt.Errorf("no such fixed operand %q", text)
		}
		o.pos, o.mem = pos, "szNone"
		if o.size == "" {
			o.size = "szNone"
		}
		return o, nil
	}
	o, err := parseKind(text)
	if err != nil {
		return o, err
	}
	o.pos, o.attrs = pos, append(o.attrs, attrs...)
	return o, nil
}

func parseKind(text string) (operand, error) {
	switch {
	case strings.HasPrefix(text, "imm") || strings.HasPrefix(text, "simm"):
		o := operand{kind: "ArgImm", size: sizes[strings.TrimLeft(text, "sim")], mem: "szNone"}
		if text[0] == 's' {
			o.mem = "szSigned"
		}
		return o, nil
	case strings.HasPrefix(text, "rel"):
		return operand{kind: "ArgRel", size: sizes[text[3:]], mem: "szNone"}, nil
	case strings.HasPrefix(text, "moffs"):
		return operand{kind: "ArgMoffs", size: sizes[text[5:]], mem: "szNone"}, nil
	}
	o := operand{size: "szNone", mem: "szNone"}
	if rest, ok := strings.CutPrefix(text, "r/m"); ok {
		text = "r" + rest + "/m" + rest
	}
	reg, mem, hasMem := strings.Cut(text, "/m")
	if strings.HasPrefix(text, "m") && !strings.HasPrefix(text, "mm") {
		reg, mem, hasMem = "", text[1:], true
	}
	if reg != "" {
		o.regOK = true
		if r, ok := registers[reg]; ok {
			o.kind, o.size = r[0], r[1]
		} else if sz, ok := sizes[strings.TrimPrefix(reg, "r")]; ok && reg[0] == 'r' {
			o.kind, o.size = "ArgGPR", sz
		} else {
			return o, fmt.Errorf("no such register operand %q", reg)
		}
	}
	if !hasMem {
		return o, nil
	}
	o.memOK = true
	if reg == "" {
		o.kind = "ArgMem"
	}
	mem, bcst, isBcst := strings.Cut(mem, "/m")
	if isBcst {
		o.attrs = append(o.attrs, "attrBcst"+strings.TrimSuffix(bcst, "bcst"))
	}
	// m32:vm64v is an element of 32 bits at an index of 64 bits; the vm part is
	// that of SDM vol. 2A, 3.1.1.3, with v for all vector lengths.
	mem, vm, vsib := strings.Cut(mem, ":vm")
	if vsib {
		o.attrs = append(o.attrs, "attrVSIB")
		o.size = map[byte]string{'x': "sz128", 'y': "sz256", 'z': "sz512", 'v': "szVL", 'h': "szVR2"}[vm[2]]
	}
	sz, ok := sizes[mem]
	if !ok {
		return o, fmt.Errorf("no such memory size %q", mem)
	}
	o.mem = sz
	return o, nil
}
