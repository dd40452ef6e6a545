package cli

import (
	"fmt"
	"strconv"
	"time"
)

// Duration is a span of time as a flag value: 90s, 5m, 1h30m, or a plain number
// of seconds, as timeout(1) takes it.
type Duration time.Duration

// ParseDuration reads a duration, which is not negative.
func ParseDuration(s string) (Duration, error) {
	d, err := time.ParseDuration(s)
	if err != nil {
		n, nerr := strconv.ParseUint(s, 10, 32)
		if nerr != nil {
			return 0, fmt.Errorf("%q is no time: write 90s, 5m or a number of seconds", s)
		}
		d = time.Duration(n) * time.Second
	}
	if d < 0 {
		return 0, fmt.Errorf("%q is less than nothing", s)
	}
	return Duration(d), nil
}

// Set implements pflag.Value.
func (d *Duration) Set(s string) (err error) {
	*d, err = ParseDuration(s)
	return err
}

// Type implements pflag.Value: the word for the value in a help text.
func (*Duration) Type() string { return "TIME" }

// String renders the duration.
func (d Duration) String() string {
	if d == 0 {
		return "0"
	}
	return time.Duration(d).String()
}
