// Package cli holds the parts of ring3's command line that stand alone: values
// of flags and a progress display.
package cli

import (
	"fmt"
	"math"
	"strconv"
	"strings"
)

// Size is a number of bytes as a flag value: 512M, 1G, 1.5GiB, 536870912.
// Suffixes mean powers of 1024, with or without "B" or "iB", in either case.
type Size uint64

var sizeUnits = []struct {
	letter string
	shift  uint
}{{"T", 40}, {"G", 30}, {"M", 20}, {"K", 10}, {"", 0}}

// ParseSize reads a size.
func ParseSize(s string) (Size, error) {
	t := strings.ToUpper(strings.TrimSpace(s))
	t = strings.TrimSuffix(strings.TrimSuffix(t, "B"), "I")
	for _, u := range sizeUnits {
		digits, ok := strings.CutSuffix(t, u.letter)
		if !ok {
			continue
		}
		if n, err := strconv.ParseUint(digits, 10, 64); err == nil {
			if n > math.MaxUint64>>u.shift {
				return 0, fmt.Errorf("%q is too large", s)
			}
			return Size(n << u.shift), nil
		}
		f, err := strconv.ParseFloat(digits, 64)
		if err != nil || strings.ContainsAny(digits, "EXPN_-+") || u.shift == 0 {
			break
		}
		if f *= float64(uint64(1) << u.shift); f >= 1<<63 {
			return 0, fmt.Errorf("%q is too large", s)
		}
		return Size(f), nil
	}
	return 0, fmt.Errorf("%q is no size: write 512M, 1G or a number of bytes", s)
}

// Set implements pflag.Value.
func (z *Size) Set(s string) (err error) {
	*z, err = ParseSize(s)
	return err
}

// Type implements pflag.Value: the word for the value in a help text.
func (*Size) Type() string { return "SIZE" }

// String renders the size in the largest unit that divides it.
func (z Size) String() string {
	if z == 0 {
		return "0"
	}
	for _, u := range sizeUnits {
		if z&(1<<u.shift-1) == 0 {
			return strconv.FormatUint(uint64(z>>u.shift), 10) + u.letter
		}
	}
	panic("BUG: a size that bytes do not divide")
}
