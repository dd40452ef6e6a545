package usernet

import (
	"net"
	"net/netip"
	"slices"
	"testing"
	"time"

	"golang.org/x/net/dns/dnsmessage"
	"gvisor.dev/gvisor/pkg/tcpip/adapters/gonet"
	"gvisor.dev/gvisor/pkg/tcpip/network/ipv4"
)

// question is a query's message.
func question(t testing.TB, id uint16, name string, kind dnsmessage.Type) []byte {
	t.Helper()
	m := dnsmessage.Message{Header: dnsmessage.Header{ID: id, RecursionDesired: true},
		Questions: []dnsmessage.Question{{Name: dnsmessage.MustNewName(name), Type: kind, Class: dnsmessage.ClassINET}}}
	b, err := m.Pack()
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// resolver is a server that knows ring3.test, and sends some things that are no
// answers before it answers.
func resolver(t *testing.T) netip.AddrPort {
	t.Helper()
	c, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	go func() {
		b := make([]byte, 2000)
		for {
			k, from, err := c.ReadFrom(b)
			if err != nil {
				return
			}
			var m dnsmessage.Message
			if m.Unpack(b[:k]) != nil {
				continue
			}
			c.WriteTo(b[:k], from) // no answer
			c.WriteTo([]byte("nonsense"), from)
			m.Response = true
			m.ID++
			wrong, _ := m.Pack()
			c.WriteTo(wrong, from) // another's
			m.ID--
			m.Answers = []dnsmessage.Resource{{
				Header: dnsmessage.ResourceHeader{Name: m.Questions[0].Name, Class: dnsmessage.ClassINET, TTL: 60},
				Body:   &dnsmessage.AResource{A: [4]byte{192, 0, 2, 7}}}}
			right, err := m.Pack()
			if err != nil {
				t.Error(err)
			}
			c.WriteTo(right, from)
		}
	}()
	return netip.MustParseAddrPort(c.LocalAddr().String())
}

// addresses are those in an answer.
func addresses(t *testing.T, b []byte) (a []string, m dnsmessage.Message) {
	t.Helper()
	if err := m.Unpack(b); err != nil {
		t.Fatal(err)
	}
	for _, r := range m.Answers {
		if v, ok := r.Body.(*dnsmessage.AResource); ok {
			a = append(a, netip.AddrFrom4(v.A).String())
		}
	}
	return a, m
}

func TestDNS(t *testing.T) {
	hosts := write(t, "# names\n127.0.1.1 this-host alias # more\n192.0.2.9\tOther other\n::1 six\n127.0.0.1 localhost\n192.0.2.10 other\nnonsense other\n\n")
	_, s := join(t, Config{Hosts: hosts, Resolvers: []netip.AddrPort{netip.MustParseAddrPort("127.0.0.1:1"), resolver(t)}})
	to := endpoint(resolve, dnsPort)
	c, err := gonet.DialUDP(s, nil, &to, ipv4.ProtocolNumber)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	for i, tt := range []struct {
		name string
		kind dnsmessage.Type
		want []string
	}{
		{"ring3.test.", dnsmessage.TypeA, []string{"192.0.2.7"}},
		{"this-host.", dnsmessage.TypeA, []string{"10.0.2.2"}},
		{"ALIAS.", dnsmessage.TypeA, []string{"10.0.2.2"}},
		{"other.", dnsmessage.TypeA, []string{"192.0.2.9", "192.0.2.10"}},
		{"other.", dnsmessage.TypeAAAA, nil},
		{"six.", dnsmessage.TypeA, []string{"10.0.2.2"}},
		{"localhost.", dnsmessage.TypeA, []string{"192.0.2.7"}}, // not the gateway
	} {
		id := uint16(0x1200 + i)
		c.Write([]byte("no message"))
		c.Write(question(t, id, tt.name, tt.kind))
		b := make([]byte, 2000)
		c.SetReadDeadline(time.Now().Add(15 * time.Second))
		k, err := c.Read(b)
		if err != nil {
			t.Fatalf("%s: %v", tt.name, err)
		}
		got, m := addresses(t, b[:k])
		if !slices.Equal(got, tt.want) || m.ID != id || !m.Response || m.RCode != dnsmessage.RCodeSuccess {
			t.Errorf("%s: %v, want %v; %v", tt.name, got, tt.want, m.GoString())
		}
	}
}

// TestNoResolver: none answers.
func TestNoResolver(t *testing.T) {
	n, err := New(Config{Resolvers: []netip.AddrPort{netip.MustParseAddrPort("127.0.0.1:1")}})
	if err != nil {
		t.Fatal(err)
	}
	defer n.Close()
	q, ok := parseQuery(question(t, 7, "ring3.test.", dnsmessage.TypeA))
	if !ok {
		t.Fatal("no query")
	}
	if _, m := addresses(t, n.answerDNS(q)); m.RCode != dnsmessage.RCodeServerFailure || m.ID != 7 || len(m.Questions) != 1 {
		t.Errorf("%v", m.GoString())
	}
}

func TestResolvConf(t *testing.T) {
	path := write(t, "# comment\nsearch example.org\nnameserver\nnameserver 192.0.2.1 # one\nnameserver nonsense\nnameserver fe80::1%eth0\nnameserver 2001:db8::1\nnameserver 192.0.2.3\n")
	var got []string
	for _, s := range readResolvers(path) {
		got = append(got, s.String())
	}
	if want := []string{"192.0.2.1:53", "[fe80::1%eth0]:53", "[2001:db8::1]:53"}; !slices.Equal(got, want) {
		t.Errorf("%v", got)
	}
	if got := readResolvers(path + "x"); got != nil {
		t.Errorf("%v from a file that is not there", got)
	}
}

// FuzzDNS: what cannot be answered is dropped, all else gets an answer with the
// same ID.
func FuzzDNS(f *testing.F) {
	f.Add(question(f, 1, "ring3.test.", dnsmessage.TypeA))
	f.Add(question(f, 2, "a.b.", dnsmessage.TypeMX))
	n := &Network{cfg: Config{Hosts: "/dev/null"}}
	f.Fuzz(func(t *testing.T, b []byte) {
		q, ok := parseQuery(b)
		if !ok {
			return
		}
		n.lookUpHosts(q.question.Name.String())
		a := q.reply(dnsmessage.RCodeSuccess, []netip.Addr{gateway})
		if a == nil || a[0] != b[0] || a[1] != b[1] {
			t.Errorf("answer % x to % x", a, b)
		}
		var m dnsmessage.Message
		if err := m.Unpack(a); err != nil || !m.Response {
			t.Errorf("answer % x: %v", a, err)
		}
	})
}
