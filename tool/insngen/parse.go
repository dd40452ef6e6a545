package main

import (
	"fmt"
	"regexp"
	"slices"
	"strconv"
	"strings"
)

// conditions in the order of their code: SDM vol. 1, appendix B.
var conditions = []string{"O", "NO", "B", "AE", "E", "NE", "BE", "A", "S", "NS", "P", "NP", "L", "GE", "LE", "G"}

// Opcode maps in the order of the decoder's lookup array.
const (
	mapOne = iota
	map0F
	map0F38
	map0F3A
	map3DNow
	mapVEX  // +1, +2, +3, ... by map number
	mapEVEX = mapVEX + 8
	mapXOP  = mapEVEX + 8 // +0, +1, +2 for 8, 9, A
	numMaps = mapXOP + 3
)

// encoding is one record of the generated table.
type encoding struct {
	op, form, notation    string
	class, group, feature string
	opmap                 int
	opcode                int
	match                 []uint64 // alternatives
	modrm                 bool
	args                  []operand
	imm                   []string
	attrs                 []string
	lockable              bool
	read, written, undef  uint32
	line                  int
}

type table struct {
	encs     []*encoding
	ops      []string
	features []string
	seenOp   map[string]bool
	seenFeat map[string]bool
}

// context holds the defaults set by % lines.
type context struct{ class, group, feature string }

func parseTable(name, text string) (*table, error) {
	t := &table{seenOp: map[string]bool{}, seenFeat: map[string]bool{}}
	ctx := context{"Innocuous", "GroupInt", "BASE"}
	for i, line := range strings.Split(text, "\n") {
		line, _, _ = strings.Cut(line, "#")
		line = strings.TrimSpace(line)
		if line == "" {
			continue
		}
		var err error
		if line[0] == '%' {
			err = ctx.set(strings.Fields(line[1:]))
		} else {
			err = t.addLine(line, i+1, ctx)
		}
		if err != nil {
			return nil, fmt.Errorf("%s:%d: %w", name, i+1, err)
		}
	}
	return t, t.check(name)
}

func (c *context) set(fields []string) error {
	for _, f := range fields {
		k, v, _ := strings.Cut(f, "=")
		switch k {
		case "class":
			c.class = v
		case "group":
			c.group = "Group" + v
		case "feature":
			c.feature = v
		default:
			return fmt.Errorf("unknown setting %q", f)
		}
	}
	return nil
}

var braceList = regexp.MustCompile(`\{([^{}]*,[^{}]*|)\}`)

// addLine expands the brace lists of a line in parallel: the n-th mnemonic of
// one goes with the n-th opcode of the other. The list of vector lengths is
// kept, it stays one encoding.
func (t *table) addLine(line string, no int, ctx context) error {
	n := 1
	for _, m := range braceList.FindAllStringSubmatch(line, -1) {
		if isVL(m[1]) {
			continue
		}
		k := strings.Count(m[1], ",") + 1
		if n != 1 && k != n {
			return fmt.Errorf("brace lists of %d and %d elements", n, k)
		}
		n = k
	}
	for i := range n {
		one := braceList.ReplaceAllStringFunc(line, func(s string) string {
			if isVL(s[1 : len(s)-1]) {
				return s
			}
			return strings.Split(s[1:len(s)-1], ",")[i]
		})
		if err := t.addExpanded(one, no, ctx); err != nil {
			return err
		}
	}
	return nil
}

func isVL(list string) bool {
	return list == "128,256" || list == "128,256,512" || list == "256,512"
}

func (t *table) addExpanded(line string, no int, ctx context) error {
	cols := strings.Split(line, "|")
	for len(cols) < 4 {
		cols = append(cols, "")
	}
	for i := range cols {
		cols[i] = strings.Join(strings.Fields(cols[i]), " ")
	}
	if !strings.Contains(cols[1], "+cc") {
		return t.addEncoding(cols, no, ctx)
	}
	for cc, name := range conditions {
		c := append([]string(nil), cols...)
		c[0] = strings.Replace(c[0], "cc", name, 1)
		i := strings.Index(c[1], "+cc")
		base, err := strconv.ParseUint(c[1][i-2:i], 16, 8)
		if err != nil {
			return err
		}
		c[1] = c[1][:i-2] + fmt.Sprintf("%02X", int(base)+cc) + c[1][i+3:]
		c[3] += " r:" + []string{"o", "c", "z", "cz", "s", "p", "so", "zso"}[cc/2]
		if err := t.addEncoding(c, no, ctx); err != nil {
			return err
		}
	}
	return nil
}

func (t *table) addEncoding(cols []string, no int, ctx context) error {
	mnem, ops, _ := strings.Cut(cols[0], " ")
	e := &encoding{
		op: mnem, form: cols[0], notation: cols[1], line: no,
		class: ctx.class, group: ctx.group, feature: ctx.feature,
	}
	o := opcodeParser{e: e, match: matchAll}
	if err := o.parse(strings.Fields(cols[1])); err != nil {
		return err
	}
	if err := e.parseAttrs(strings.Fields(cols[3]), &o); err != nil {
		return err
	}
	if err := e.parseOperands(ops, cols[2], &o); err != nil {
		return err
	}
	o.finish()
	if !t.seenOp[mnem] {
		t.seenOp[mnem] = true
		t.ops = append(t.ops, mnem)
	}
	if !t.seenFeat[e.feature] {
		t.seenFeat[e.feature] = true
		t.features = append(t.features, e.feature)
	}
	n := 1
	if o.plusR {
		n = 8
	}
	for i := range n {
		c := *e
		c.opcode += i
		t.encs = append(t.encs, &c)
	}
	return nil
}

func (e *encoding) parseOperands(ops, openc string, o *opcodeParser) error {
	if ops == "" {
		return nil
	}
	list := strings.Split(ops, ", ")
	if len(list) != len(openc) {
		return fmt.Errorf("%d operands, Op/En %q", len(list), openc)
	}
	if len(list) > 4 {
		return fmt.Errorf("more than 4 operands")
	}
	for i, text := range list {
		a, err := parseOperand(text, openc[i])
		if err != nil {
			return err
		}
		switch a.pos {
		case "posRM":
			if !a.memOK && !slices.Contains(e.attrs, "attrModreg") {
				o.match &^= matchMem
			}
			if !a.regOK {
				o.match &^= matchRegForm
			}
		case "posVvvv":
			e.attrs = append(e.attrs, "attrVvvv")
		case "posImm2":
			a.kind = "ArgImm2"
		}
		e.attrs = append(e.attrs, a.attrs...)
		e.args = append(e.args, a)
	}
	return nil
}

// flagBits are the RFLAGS positions of the letters of r:, w:, u: lists.
var flagBits = map[rune]uint32{
	'c': 1 << 0, 'p': 1 << 2, 'a': 1 << 4, 'z': 1 << 6, 's': 1 << 7, 't': 1 << 8,
	'i': 1 << 9, 'd': 1 << 10, 'o': 1 << 11, 'l': 3 << 12, 'n': 1 << 14, 'r': 1 << 16,
	'v': 1 << 17, 'k': 1 << 18,
}

func (e *encoding) parseAttrs(attrs []string, o *opcodeParser) error {
	for _, a := range attrs {
		k, v, _ := strings.Cut(a, ":")
		var set *uint32
		switch k {
		case "r":
			set = &e.read
		case "w":
			set = &e.written
		case "u":
			set = &e.undef
		case "lock":
			e.lockable = true
		case "o64":
			o.match &^= matchMode16 | matchMode32
		case "i64":
			o.match &^= matchMode64
		case "mem":
			o.match &^= matchRegForm
		case "reg":
			o.match &^= matchMem
		case "rm4":
			o.match = o.match&^(0xff<<rmShift) | 1<<(rmShift+4)
		case "rm0":
			o.match = o.match&^(0xff<<rmShift) | 1<<rmShift
		case "nr": // registers of ModRM.reg that are not encodable
			n, err := strconv.Atoi(v)
			if err != nil {
				return err
			}
			o.match &^= 1 << (regShift + n)
		case "wig32":
			o.wig32 = true
		case "class":
			e.class = v
		case "group":
			e.group = "Group" + v
		case "cpuid":
			e.feature = v
		case "n": // disp8 scale when it is not the size of the memory operand
			e.attrs = append(e.attrs, "attrN"+v)
		case "d64", "f64", "sib", "distinct", "gather", "modreg", "norip", "no16":
			e.attrs = append(e.attrs, "attr"+strings.ToUpper(k[:1])+k[1:])
		default:
			return fmt.Errorf("unknown attribute %q", a)
		}
		if set == nil {
			continue
		}
		for _, c := range v {
			bit, ok := flagBits[c]
			if !ok {
				return fmt.Errorf("unknown flag %q", c)
			}
			*set |= bit
		}
	}
	return nil
}
