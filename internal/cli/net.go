package cli

import (
	"fmt"
	"net/netip"
	"strconv"
	"strings"

	"ring3/internal/usernet"
)

// Net is the value of --net: what the machine's network is. The zero value is
// that nothing was said.
type Net struct {
	Mode NetMode
	FD   int // of NetFD
}

// NetMode is a kind of network.
type NetMode string

// Networks.
const (
	NetNone NetMode = "none" // no network device
	NetUser NetMode = "user" // package usernet
	NetFD   NetMode = "fd"   // package netfd
)

// ParseNet reads user, none or fd:N.
func ParseNet(s string) (Net, error) {
	switch mode, arg, _ := strings.Cut(s, ":"); {
	case s == string(NetNone), s == string(NetUser):
		return Net{Mode: NetMode(s)}, nil
	case mode == string(NetFD):
		n, err := strconv.ParseUint(arg, 10, 31)
		if err != nil {
			return Net{}, fmt.Errorf("%q: write fd:N with the number of an open descriptor, such as fd:3", s)
		}
		if n <= 2 {
			return Net{}, fmt.Errorf("%q: 0 to 2 are standard input, output and error; use a descriptor from 3 on", s)
		}
		return Net{Mode: NetFD, FD: int(n)}, nil
	}
	return Net{}, fmt.Errorf("%q is none of user, none and fd:N", s)
}

// Set implements pflag.Value.
func (n *Net) Set(s string) (err error) {
	*n, err = ParseNet(s)
	return err
}

// Type implements pflag.Value: the word for the value in a help text.
func (*Net) Type() string { return "KIND" }

// String renders the value.
func (n *Net) String() string {
	if n.Mode == NetFD {
		return fmt.Sprintf("fd:%d", n.FD)
	}
	return string(n.Mode)
}

// Publishes are ports as the values of a flag that may be repeated.
type Publishes []usernet.Publish

// ParsePublish reads [HOSTADDR:]HOSTPORT:GUESTPORT[/udp]. An IPv6 address is
// written in brackets. Without an address it is 127.0.0.1.
func ParsePublish(s string) (p usernet.Publish, err error) {
	const form = "write [HOSTADDR:]HOSTPORT:GUESTPORT[/udp], such as 8080:80"
	ports, kind, _ := strings.Cut(s, "/")
	switch {
	case kind == "udp":
		p.UDP = true
	case strings.Contains(s, "/") && kind != "tcp":
		return p, fmt.Errorf("%q: %q is neither tcp nor udp", s, kind)
	}
	at := strings.LastIndexByte(ports, ':')
	if at < 0 {
		return p, fmt.Errorf("%q has no port of the guest: %s", s, form)
	}
	host, guest := ports[:at], ports[at+1:]
	if p.Guest, err = port(guest); err != nil {
		return p, fmt.Errorf("%q: %w: %s", s, err, form)
	}
	addr := netip.AddrFrom4([4]byte{127, 0, 0, 1})
	if at := strings.LastIndexByte(host, ':'); at >= 0 {
		text := strings.TrimSuffix(strings.TrimPrefix(host[:at], "["), "]")
		if addr, err = netip.ParseAddr(text); err != nil {
			return p, fmt.Errorf("%q: %q is no address: %s", s, text, form)
		}
		host = host[at+1:]
	}
	number, err := port(host)
	if err != nil {
		return p, fmt.Errorf("%q: %w: %s", s, err, form)
	}
	p.Host = netip.AddrPortFrom(addr, number)
	return p, nil
}

// port reads the number of one.
func port(s string) (uint16, error) {
	n, err := strconv.ParseUint(s, 10, 16)
	if err != nil || n == 0 {
		return 0, fmt.Errorf("%q is no port from 1 to 65535", s)
	}
	return uint16(n), nil
}

// Set implements pflag.Value.
func (p *Publishes) Set(s string) error {
	v, err := ParsePublish(s)
	if err == nil {
		*p = append(*p, v)
	}
	return err
}

// Type implements pflag.Value: the word for the value in a help text.
func (*Publishes) Type() string { return "PORTS" }

// String renders the values.
func (p *Publishes) String() string {
	var s []string
	for _, v := range *p {
		s = append(s, v.String())
	}
	return strings.Join(s, " ")
}
