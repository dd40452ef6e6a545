package main

import (
	"fmt"
	"regexp"
	"strconv"
	"strings"
)

// The decoder folds everything that selects an encoding besides map and opcode
// into one word with one bit set per property; an encoding matches when it
// allows all of them. These are the bits; emit.go writes them out for the
// decoder.
const (
	matchMode16 = 1 << iota
	matchMode32
	matchMode64
	matchNP
	match66
	matchF3
	matchF2
	matchMem
	matchRegForm
	matchW0
	matchW1
	matchL128
	matchL256
	matchL512
	matchL3
	matchB0
	matchB1
	numMatch = iota

	regShift = 24
	rmShift  = 32
	matchAll = uint64(1)<<numMatch - 1 | 0xff<<regShift | 0xff<<rmShift

	matchPP = matchNP | match66 | matchF3 | matchF2
	matchL  = matchL128 | matchL256 | matchL512 | matchL3
)

var prefixMatch = map[string]uint64{
	"NP": matchNP, "NFx": matchNP | match66, "66": match66, "F3": matchF3, "F2": matchF2,
}

type opcodeParser struct {
	e     *encoding
	match uint64
	wig32 bool
	plusR bool
	seen  bool // opcode byte seen
}

var hexByte = regexp.MustCompile(`^[0-9A-F]{2}$`)

// parse reads the opcode column: SDM vol. 2A, 3.1.1.1.
func (o *opcodeParser) parse(tok []string) error {
	e := o.e
	if len(tok) > 1 {
		if m, ok := prefixMatch[tok[0]]; ok {
			o.match = o.match&^matchPP | m
			tok = tok[1:]
		}
	}
	for i := 0; i < len(tok); i++ {
		t := tok[i]
		switch {
		case strings.Contains(t, "EX.") || strings.HasPrefix(t, "XOP."):
			if err := o.vector(t); err != nil {
				return err
			}
		case t == "0F" && !o.seen && e.opmap == mapOne:
			e.opmap = map0F
			if i+2 < len(tok) && (tok[i+1] == "38" || tok[i+1] == "3A") && hexByte.MatchString(tok[i+2][:min(2, len(tok[i+2]))]) {
				e.opmap = map[string]int{"38": map0F38, "3A": map0F3A}[tok[i+1]]
				i++
			} else if tok[i+1] == "0F" {
				e.opmap = map3DNow
				i++
			}
		case t == "/r":
			e.modrm = true
		case t == "/is4":
			e.imm = append(e.imm, "immIs4")
		case len(t) == 2 && t[0] == '/':
			e.modrm = true
			o.fixReg(int(t[1] - '0'))
		case immCodes[t] != "":
			e.imm = append(e.imm, immCodes[t])
		case hexByte.MatchString(t[:2]):
			if err := o.byte(t); err != nil {
				return err
			}
		default:
			return fmt.Errorf("opcode element %q", t)
		}
	}
	if !o.seen {
		return fmt.Errorf("no opcode")
	}
	return nil
}

var immCodes = map[string]string{
	"ib": "immB", "iw": "immW", "id": "immD", "iz": "immZ", "iv": "immV",
	"cb": "immRelB", "cz": "immRelZ", "cp": "immPtr", "mo": "immMoffs",
}

func (o *opcodeParser) fixReg(n int) {
	o.match = o.match&^(0xff<<regShift) | 1<<(regShift+n)
}

// byte takes the opcode byte and, after it, a literal ModRM byte.
func (o *opcodeParser) byte(t string) error {
	v, err := strconv.ParseUint(t[:2], 16, 8)
	if err != nil {
		return err
	}
	if !o.seen {
		o.seen = true
		o.e.opcode = int(v)
		o.plusR = t[2:] == "+r"
		return nil
	}
	o.e.modrm = true
	if v < 0xc0 {
		return fmt.Errorf("literal ModRM %q", t)
	}
	o.match &^= matchMem
	o.fixReg(int(v>>3) & 7)
	if t[2:] != "+i" {
		o.match = o.match&^(0xff<<rmShift) | 1<<(rmShift+v&7)
	}
	return nil
}

// vector reads REX.W, VEX.*, EVEX.* and XOP.* elements: SDM vol. 2A, 3.1.1.2.
func (o *opcodeParser) vector(t string) error {
	t = strings.ReplaceAll(t, ",", "+")
	f := strings.Split(t, ".")
	base := map[string]int{"VEX": mapVEX, "EVEX": mapEVEX, "XOP": mapXOP}[f[0]]
	for _, s := range f[1:] {
		if f[0] == "REX" {
			s = map[string]string{"W": "W1", "W0": "W0", "B0": "B0"}[s]
		}
		switch s {
		case "W0":
			o.match &^= matchW1
		case "W1":
			o.match &^= matchW0
		case "B0":
			o.match &^= matchB1
		case "WIG":
		case "LIG":
			o.match &^= matchL3
			o.e.attrs = append(o.e.attrs, "attrLIG")
		case "128", "L0", "LZ":
			o.match = o.match&^matchL | matchL128
		case "256", "L1":
			o.match = o.match&^matchL | matchL256
		case "512":
			o.match = o.match&^matchL | matchL512
		case "{128+256}":
			o.match = o.match&^matchL | matchL128 | matchL256
		case "{256+512}":
			o.match = o.match&^matchL | matchL256 | matchL512
		case "{128+256+512}":
			o.match = o.match&^matchL | matchL128 | matchL256 | matchL512
		case "NP", "66", "F3", "F2":
			o.match = o.match&^matchPP | prefixMatch[s]
		case "0F", "0F38", "0F3A", "MAP5", "MAP6", "MAP7":
			o.e.opmap = base + map[string]int{"0F": 1, "0F38": 2, "0F3A": 3, "MAP5": 5, "MAP6": 6, "MAP7": 7}[s]
		case "08", "09", "0A":
			o.e.opmap = base + map[string]int{"08": 0, "09": 1, "0A": 2}[s]
		default:
			return fmt.Errorf("element %q of %q", s, t)
		}
	}
	return nil
}

// finish stores the match words. Outside 64-bit mode VEX.W and EVEX.W do not
// select the size of a general-purpose register (SDM vol. 2A, 2.3.5.5): such
// encodings get a second alternative.
func (o *opcodeParser) finish() {
	e := o.e
	if !o.wig32 {
		e.match = []uint64{o.match}
		return
	}
	e.match = []uint64{o.match &^ (matchMode16 | matchMode32), (o.match | matchW0 | matchW1) &^ matchMode64}
	if o.match&matchW0 == 0 {
		e.match = e.match[:1]
	}
}
