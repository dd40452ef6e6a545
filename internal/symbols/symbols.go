// Package symbols knows the symbols of a guest kernel: from System.map or a
// saved /proc/kallsyms, or from the table that the kernel carries for itself.
//
// ring3 loads a kernel where it is linked to run and never enters the
// decompressor, which is what moves a kernel (KASLR), so the addresses of a
// System.map are those of the running kernel.
package symbols

import (
	"bufio"
	"cmp"
	"errors"
	"fmt"
	"io"
	"iter"
	"math"
	"slices"
	"strconv"
	"strings"
)

// Symbol is an address with a name. Type is a letter as nm(1) prints it.
type Symbol struct {
	Addr uint64
	Type byte
	Name string
}

// IsCode reports whether the symbol is in the text section.
func (s Symbol) IsCode() bool { return strings.IndexByte("tTwW", s.Type) >= 0 }

// Table is a set of symbols, not empty.
type Table struct {
	syms []Symbol // by address
	name map[string][]int
}

// New makes a table.
func New(syms []Symbol) *Table {
	slices.SortStableFunc(syms, func(a, b Symbol) int { return cmp.Compare(a.Addr, b.Addr) })
	t := &Table{syms: syms, name: make(map[string][]int, len(syms))}
	for i, s := range syms {
		t.name[s.Name] = append(t.name[s.Name], i)
	}
	return t
}

// Parse reads System.map or /proc/kallsyms: an address in hexadecimal, a type
// and a name in each line, and in kallsyms the module in brackets.
func Parse(r io.Reader) (*Table, error) {
	var syms []Symbol
	hidden := true
	sc := bufio.NewScanner(r)
	for n := 1; sc.Scan(); n++ {
		f := strings.Fields(sc.Text())
		module := len(f) == 4 && f[3][0] == '['
		if len(f) != 3 && !module || len(f[1]) != 1 || f[1][0] <= ' ' || f[1][0] > '~' {
			return nil, fmt.Errorf("line %d is not ADDRESS TYPE NAME", n)
		}
		addr, err := strconv.ParseUint(f[0], 16, 64)
		if err != nil {
			return nil, fmt.Errorf("line %d begins with no hexadecimal address", n)
		}
		hidden = hidden && addr == 0
		syms = append(syms, Symbol{addr, f[1][0], strings.Clone(f[2])})
	}
	switch {
	case sc.Err() != nil:
		return nil, sc.Err()
	case len(syms) == 0:
		return nil, errors.New("holds no symbols")
	case hidden:
		return nil, errors.New("all addresses are 0: /proc/kallsyms shows them to root only")
	}
	return New(syms), nil
}

// All lists the symbols by address.
func (t *Table) All() iter.Seq[Symbol] { return slices.Values(t.syms) }

// Named returns the symbols of a name; static functions may share one.
func (t *Table) Named(name string) (s []Symbol) {
	for _, i := range t.name[name] {
		s = append(s, t.syms[i])
	}
	return s
}

// End is where the symbol at an address ends: where the next one begins.
func (t *Table) End(addr uint64) uint64 {
	i := t.after(addr)
	if i == len(t.syms) {
		return math.MaxUint64
	}
	return t.syms[i].Addr
}

// after is the index of the first symbol above addr.
func (t *Table) after(addr uint64) int {
	i, _ := slices.BinarySearchFunc(t.syms, addr, func(s Symbol, a uint64) int {
		if s.Addr <= a {
			return -1
		}
		return 1
	})
	return i
}

// maxDistance is how far from its symbol an address may be, in bytes.
const maxDistance = 1 << 20

// At is the symbol that an address belongs to: the last one at or below it,
// and of several at one address the first.
func (t *Table) At(addr uint64) (s Symbol, ok bool) {
	i := t.after(addr)
	if i == 0 || addr-t.syms[i-1].Addr > maxDistance {
		return s, false
	}
	for i--; i > 0 && t.syms[i-1].Addr == t.syms[i].Addr; i-- {
	}
	return t.syms[i], true
}

// Near lists up to max names that resemble one, the nearest first.
func (t *Table) Near(name string, max int) []string {
	type near struct {
		name string
		d    int
	}
	var found []near
	for n, at := range t.name {
		if !slices.ContainsFunc(at, func(i int) bool { return t.syms[i].IsCode() }) {
			continue
		}
		d := len(n) - len(name)
		if !strings.Contains(n, name) {
			if d < -2 || d > 2 {
				continue
			}
			if d = distance(name, n); d > 2 {
				continue
			}
		}
		found = append(found, near{n, d})
	}
	slices.SortFunc(found, func(a, b near) int { return cmp.Or(cmp.Compare(a.d, b.d), cmp.Compare(a.name, b.name)) })
	var names []string
	for _, f := range found[:min(max, len(found))] {
		names = append(names, f.name)
	}
	return names
}

// distance is the Levenshtein distance of two words.
func distance(a, b string) int {
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		diag := row[0]
		row[0] = i + 1
		for j := range len(b) {
			change := diag
			if a[i] != b[j] {
				change++
			}
			diag = row[j+1]
			row[j+1] = min(change, row[j]+1, row[j+1]+1)
		}
	}
	return row[len(b)]
}
