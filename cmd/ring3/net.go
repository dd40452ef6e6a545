package main

import (
	"crypto/rand"
	"errors"

	"github.com/spf13/pflag"

	"ring3/internal/cli"
	"ring3/internal/machine"
	"ring3/internal/netfd"
	"ring3/internal/usernet"
	vnet "ring3/internal/virtio/net"
)

// netOptions are the flags of the network.
type netOptions struct {
	kind    cli.Net
	publish cli.Publishes
}

// netHelp is their part of the help text.
const netHelp = `A machine with a console has a network, --net user: its built-in userland gets
10.0.2.15 by DHCP, names are resolved as on the host, and what the host can reach,
the guest can. 10.0.2.2 is the host's loopback. For a COMMAND there is none unless
--net or --publish is given; then it begins when the guest has its address. A
--publish makes a port of the guest one of the host. --net fd:N is for a network
of your own making: an open tap device, or a socket with a frame in each message.`

func (o *netOptions) add(f *pflag.FlagSet) {
	f.Var(&o.kind, "net", "network `KIND`: user, none, or fd:N, a tap device or a SOCK_SEQPACKET or SOCK_DGRAM socket\nthat descriptor N is (default: user with a console or --publish, none with a COMMAND)")
	f.Var(&o.publish, "publish", "reach a port of the guest on the host: `PORTS` is [HOSTADDR:]HOSTPORT:GUESTPORT[/udp],\nHOSTADDR 127.0.0.1 unless given; may be repeated")
}

// mode is the network that the machine gets.
func (o *netOptions) mode(isJob bool) cli.NetMode {
	switch {
	case o.kind.Mode != "":
		return o.kind.Mode
	case isJob && len(o.publish) == 0:
		return cli.NetNone
	}
	return cli.NetUser
}

func (o *netOptions) check() error {
	if len(o.publish) > 0 && o.kind.Mode != "" && o.kind.Mode != cli.NetUser {
		return usageError("--publish: only --net user can, and this is --net %v", &o.kind)
	}
	return nil
}

// userMAC is the guest's address in a network of its own; that of QEMU's guests.
var userMAC = [6]byte{0x52, 0x54, 0x00, 0x12, 0x34, 0x56}

// randomMAC is for a network with others in it.
func randomMAC() [6]byte {
	mac := userMAC
	rand.Read(mac[3:]) // never fails
	return mac
}

// open makes the network; nil for none. A port of the host is taken from then
// on.
func (o *netOptions) open(isJob bool) (*vnet.Config, error) {
	c := &vnet.Config{Name: "eth0", MTU: usernet.MTU}
	switch o.mode(isJob) {
	case cli.NetUser:
		n, err := usernet.New(usernet.Config{Publish: o.publish})
		if p, ok := errors.AsType[*usernet.PublishError](err); ok {
			return nil, usageError("--publish: %w", p)
		}
		c.MAC, c.Port = userMAC, n
		return c, err
	case cli.NetFD:
		p, err := netfd.Open(o.kind.FD)
		if err != nil {
			return nil, usageError("--net %v: %w", &o.kind, err)
		}
		c.MAC, c.Port = randomMAC(), p
		return c, nil
	}
	return nil, nil
}

// closeNet closes the network of a machine that was not made.
func closeNet(cfg machine.Config) {
	if cfg.Net != nil {
		cfg.Net.Port.Close()
	}
}
