package boot

import (
	"bytes"
	"crypto/md5"
	"fmt"
	"io"
	"math/rand"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"sync/atomic"
	"testing"

	"golang.org/x/net/dns/dnsmessage"
	"golang.org/x/sys/unix"

	"ring3/internal/kernelstore"
	"ring3/internal/machine"
	"ring3/internal/netfd"
	"ring3/internal/usernet"
	"ring3/internal/virtio"
	vnet "ring3/internal/virtio/net"
)

// userNet is a user network for a guest, which closes it.
func userNet(t *testing.T, cfg usernet.Config) (*vnet.Config, *usernet.Network) {
	t.Helper()
	n, err := usernet.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { n.Close() })
	return &vnet.Config{Name: "eth0", MAC: [6]byte{0x52, 0x54, 0, 0x12, 0x34, 0x56}, MTU: usernet.MTU, Port: n}, n
}

// nameServer knows that everything is at 10.0.2.2.
func nameServer(t *testing.T) netip.AddrPort {
	t.Helper()
	c, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	go func() {
		b := make([]byte, 2000)
		for {
			n, from, err := c.ReadFrom(b)
			if err != nil {
				return
			}
			var m dnsmessage.Message
			if m.Unpack(b[:n]) != nil || len(m.Questions) != 1 {
				continue
			}
			m.Response, m.Additionals = true, nil
			if q := m.Questions[0]; q.Type == dnsmessage.TypeA {
				m.Answers = []dnsmessage.Resource{{Header: dnsmessage.ResourceHeader{Name: q.Name, Class: q.Class, TTL: 9},
					Body: &dnsmessage.AResource{A: [4]byte{10, 0, 2, 2}}}}
			}
			if a, err := m.Pack(); err == nil {
				c.WriteTo(a, from)
			}
		}
	}()
	return netip.MustParseAddrPort(c.LocalAddr().String())
}

// useNet takes the ports of the host's web server and of one that answers with a
// sum. What it gets from the former it serves, too, and says when it is ready.
const useNet = `
fail() { echo "FAIL $*"; }
ifconfig eth0 | grep -q 'inet addr:10.0.2.15 .*Mask:255.255.255.0' || fail address
route -n | grep -q '^0.0.0.0 *10.0.2.2 ' || fail route
grep -qx 'nameserver 10.0.2.3' /etc/resolv.conf || fail resolv.conf
ping -c 2 -W 5 10.0.2.2 >/dev/null || fail ping
mkdir /tmp/www
wget -qO /tmp/www/data http://files.ring3.test:$1/data || fail wget
echo down $(md5sum </tmp/www/data)
head -c 1048576 /tmp/www/data | nc 10.0.2.2 $2 || fail nc
wget -qO- http://10.0.2.2:1/ 2>/dev/null && fail a port where nobody listens
httpd -p 80 -h /tmp/www || fail httpd
wget -qO- http://10.0.2.2:$1/ready || fail ready
dmesg | grep -iE 'virtio.*(fail|error)|needs reset'
true
`

// TestNetwork: a lease, names, and data both ways in connections that either
// side opens.
func TestNetwork(t *testing.T) {
	for name, g := range map[string]guest{
		"translate": {engine: machine.EngineTranslate},
		"pin":       {flavour: kernelstore.Generic, cmdline: defaults + " pci=nomsi"},
		"verify":    {verify: 2000},
	} {
		size := 64 * mib
		if name != "translate" {
			size = mib
		}
		t.Run(name, func(t *testing.T) {
			data := random(size)
			mux := http.NewServeMux()
			host := httptest.NewServer(mux)
			defer host.Close()
			_, port, _ := net.SplitHostPort(host.Listener.Addr().String())
			cfg, n := userNet(t, usernet.Config{Resolvers: []netip.AddrPort{nameServer(t)},
				Publish: []usernet.Publish{{Host: netip.MustParseAddrPort("127.0.0.1:0"), Guest: 80}}})
			mux.HandleFunc("/data", func(w http.ResponseWriter, r *http.Request) { w.Write(data) })
			var served atomic.Value
			mux.HandleFunc("/ready", func(http.ResponseWriter, *http.Request) {
				r, err := http.Get("http://" + n.Published()[0].String() + "/data")
				if err != nil {
					served.Store(err.Error())
					return
				}
				defer r.Body.Close()
				h := md5.New()
				_, err = io.Copy(h, r.Body)
				served.Store(fmt.Sprintf("%x %v", h.Sum(nil), err))
			})
			g.net = cfg
			g.args = []string{"sh", "-c", useNet, "sh", port, sumServer(t, mib)}
			o := g.run(t).must(t)
			check(t, o.stdout)
			if want := fmt.Sprintf("down %s -\nsent %s\n", sum(data), sum(data[:mib])); o.stdout != want {
				t.Errorf("the guest says\n%s\nwant\n%s\n%s", o.stdout, want, o.stderr)
			}
			if want := sum(data) + " <nil>"; served.Load() != want {
				t.Errorf("the guest's server gave %q, want %q", served.Load(), want)
			}
		})
	}
}

// sumServer answers n bytes with their sum, and returns its port.
func sumServer(t *testing.T, n int64) (port string) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	go func() {
		c, err := l.Accept()
		if err != nil {
			return
		}
		defer c.Close()
		h := md5.New()
		io.CopyN(h, c, n) // an error shows as a wrong sum
		fmt.Fprintf(c, "sent %x\n", h.Sum(nil))
	}()
	_, port, _ = net.SplitHostPort(l.Addr().String())
	return port
}

// random is n random bytes.
func random(n int) []byte {
	b := make([]byte, n)
	rand.New(rand.NewSource(int64(n))).Read(b)
	return b
}

// buffers are the parts of a frame.
func buffers(parts [][]byte) (b virtio.Buffers) {
	for _, p := range parts {
		b = append(b, virtio.Buffer{Data: p})
	}
	return b
}

// TestNoNetwork: without one there is no device.
func TestNoNetwork(t *testing.T) {
	o := guest{args: []string{"sh", "-c", "ls /sys/class/net; grep -l 0x020000 /sys/bus/pci/devices/*/class"}}.run(t)
	if o.stdout != "lo\n" {
		t.Errorf("the guest has %q", o.stdout)
	}
}

// TestNetworkSocket: a program at the other end of a socket, which here is
// another network.
func TestNetworkSocket(t *testing.T) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	near, err := netfd.Open(fds[0])
	if err != nil {
		t.Fatal(err)
	}
	far, err := netfd.Open(fds[1])
	if err != nil {
		t.Fatal(err)
	}
	host := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Write(bytes.Repeat([]byte("ring3"), 1<<18))
	}))
	defer host.Close()
	_, port, _ := net.SplitHostPort(host.Listener.Addr().String())
	_, n := userNet(t, usernet.Config{})
	done := make(chan struct{}, 2)
	move := func(to, from vnet.Port) {
		defer func() { done <- struct{}{} }()
		f := make([]vnet.Frame, 8)
		for {
			k, err := from.Receive(f)
			if err != nil {
				return
			}
			for _, x := range f[:k] {
				to.Send(x.Header, buffers(x.Parts))
				if x.Release != nil {
					x.Release()
				}
			}
		}
	}
	go move(n, far)
	go move(far, n)
	g := guest{net: &vnet.Config{Name: "eth0", MAC: [6]byte{0x52, 0x54, 0, 1, 2, 3}, MTU: 1500, Port: near},
		args: []string{"sh", "-c", "cat /sys/class/net/eth0/address; wget -qO- http://10.0.2.2:" + port + "/ | wc -c"}}
	o := g.run(t).must(t)
	if want := fmt.Sprintf("52:54:00:01:02:03\n%d\n", 5<<18); o.stdout != want {
		t.Errorf("the guest says %q, want %q", o.stdout, want)
	}
	far.Close()
	n.Close()
	<-done
	<-done
}
