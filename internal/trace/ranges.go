package trace

import (
	"fmt"
	"strconv"
	"strings"

	"ring3/internal/symbols"
)

// Range is guest addresses, [Start, End).
type Range struct{ Start, End uint64 }

// Error is a range that stands for nothing: what, why and the mend, in a line.
type Error struct{ Reason string }

func (e *Error) Error() string { return e.Reason }

// suggestions is how many names a message offers.
const suggestions = 5

// Ranges reads ranges that are separated by commas: SYMBOL for a function,
// SYMBOL+OFFSET for one address in it, or START-END in hexadecimal. The symbols
// are asked for only if there are names.
func Ranges(text string, table func() (*symbols.Table, error)) (rs []Range, err error) {
	for _, part := range strings.Split(text, ",") {
		r, ok, err := addresses(part)
		if err != nil {
			return nil, err
		}
		if ok {
			rs = append(rs, r)
			continue
		}
		t, err := table()
		if err != nil {
			return nil, err
		}
		named, err := symbol(part, t)
		if err != nil {
			return nil, err
		}
		rs = append(rs, named...)
	}
	return rs, nil
}

func hex(s string) (uint64, error) {
	return strconv.ParseUint(strings.TrimPrefix(s, "0x"), 16, 64)
}

// addresses reads START-END; ok is false for something else.
func addresses(text string) (r Range, ok bool, err error) {
	from, to, found := strings.Cut(text, "-")
	if !found {
		return r, false, nil
	}
	var errs [2]error
	r.Start, errs[0] = hex(from)
	r.End, errs[1] = hex(to)
	switch {
	case errs[0] != nil || errs[1] != nil:
		return r, false, &Error{fmt.Sprintf("%q is no range of addresses (two hexadecimal numbers, such as ffffffff81000000-ffffffff81001000)", text)}
	case r.Start >= r.End:
		return r, false, &Error{fmt.Sprintf("%q: the end is not above the start", text)}
	}
	return r, true, nil
}

// symbol reads SYMBOL or SYMBOL+OFFSET.
func symbol(text string, t *symbols.Table) (rs []Range, err error) {
	name, offset, one := strings.Cut(text, "+")
	var off uint64
	if one {
		if off, err = hex(offset); err != nil {
			return nil, &Error{fmt.Sprintf("%q: %q is no hexadecimal offset", text, offset)}
		}
	}
	syms := t.Named(name)
	if len(syms) == 0 {
		mend := "ring3 run -- cat /proc/kallsyms lists them"
		if near := t.Near(name, suggestions); len(near) > 0 {
			mend = "did you mean " + strings.Join(near, ", ") + "?"
		} else if _, err := hex(name); err == nil {
			mend = "addresses are START-END"
		}
		return nil, &Error{fmt.Sprintf("the kernel has no symbol %q (%s)", name, mend)}
	}
	for _, s := range syms {
		if !s.IsCode() {
			continue
		}
		r := Range{s.Addr, t.End(s.Addr)}
		if one {
			if off >= r.End-r.Start {
				return nil, &Error{fmt.Sprintf("%q is outside %s, which has %#x bytes", text, name, r.End-r.Start)}
			}
			r = Range{s.Addr + off, s.Addr + off + 1}
		}
		rs = append(rs, r)
	}
	if rs == nil {
		return nil, &Error{fmt.Sprintf("symbol %q is data, not a function", name)}
	}
	return rs, nil
}
