package usernet

import (
	"bufio"
	"context"
	"io"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"strings"

	"golang.org/x/net/dns/dnsmessage"
	"gvisor.dev/gvisor/pkg/tcpip/adapters/gonet"
	"gvisor.dev/gvisor/pkg/tcpip/network/ipv4"
)

const (
	dnsPort = 53
	// maxResolvers is how many of /etc/resolv.conf are asked (resolver(5)).
	maxResolvers = 3
	// hostsTTL is how long the guest may remember a name of the hosts file.
	hostsTTL = 10 // seconds
	// maxHosts bounds how much of that file is read, in bytes.
	maxHosts = 1 << 20
)

// serveDNS answers queries over UDP. Those over TCP are relayed to a resolver of
// the host like any connection; see tcpTarget.
func (n *Network) serveDNS() error {
	at := endpoint(resolve, dnsPort)
	c, err := gonet.DialUDP(n.stack, &at, nil, ipv4.ProtocolNumber)
	if err != nil {
		return err
	}
	n.closeOnEnd(c)
	n.running.Go(func() {
		defer c.Close()
		b := make([]byte, maxDatagram)
		for {
			k, from, err := c.ReadFrom(b)
			if err != nil {
				return
			}
			q, ok := parseQuery(b[:k])
			if !ok || !n.start(n.queries) {
				continue // it will ask again
			}
			go func() {
				defer n.running.Done()
				defer n.queries.drop()
				if a := n.answerDNS(q); a != nil {
					c.WriteTo(a, from)
				}
			}()
		}
	})
	return nil
}

// query is a question of the guest.
type query struct {
	message  []byte // as it came
	header   dnsmessage.Header
	question dnsmessage.Question
}

// parseQuery reads a message from the guest; ok is false for what is none.
func parseQuery(b []byte) (q query, ok bool) {
	var p dnsmessage.Parser
	h, err := p.Start(b)
	if err != nil || h.Response {
		return q, false
	}
	question, err := p.Question()
	if err != nil {
		return q, false
	}
	return query{append([]byte(nil), b...), h, question}, true
}

// answerDNS is the answer to a query: from the hosts file, or that of the first
// resolver that gives one.
func (n *Network) answerDNS(q query) []byte {
	if a, ok := n.lookUpHosts(q.question.Name.String()); ok && q.question.Class == dnsmessage.ClassINET {
		switch q.question.Type {
		case dnsmessage.TypeA, dnsmessage.TypeAAAA:
			return q.reply(dnsmessage.RCodeSuccess, a)
		}
	}
	for _, server := range n.resolvers() {
		if a := n.forward(q, server); a != nil {
			return a
		}
	}
	return q.reply(dnsmessage.RCodeServerFailure, nil)
}

// reply makes an answer of our own with the IPv4 addresses in a.
func (q *query) reply(code dnsmessage.RCode, a []netip.Addr) []byte {
	b := dnsmessage.NewBuilder(nil, dnsmessage.Header{
		ID: q.header.ID, Response: true, OpCode: q.header.OpCode, RCode: code,
		RecursionDesired: q.header.RecursionDesired, RecursionAvailable: true,
	})
	b.EnableCompression()
	b.StartQuestions() // Questions, answers: in this order it cannot fail
	if b.Question(q.question) != nil {
		return nil
	}
	b.StartAnswers()
	if q.question.Type == dnsmessage.TypeA {
		for _, v := range a {
			h := dnsmessage.ResourceHeader{Name: q.question.Name, Class: dnsmessage.ClassINET, TTL: hostsTTL}
			if b.AResource(h, dnsmessage.AResource{A: v.As4()}) != nil {
				return nil
			}
		}
	}
	m, err := b.Finish()
	if err != nil {
		return nil
	}
	return m
}

// forward asks a resolver, with an ID and port that a stranger cannot guess. The
// answer goes to the guest as it is, but for the ID.
func (n *Network) forward(q query, server netip.AddrPort) []byte {
	ctx, cancel := context.WithTimeout(n.ctx, queryTimeout)
	defer cancel()
	c, err := new(net.Dialer).DialContext(ctx, "udp", server.String())
	if err != nil {
		return nil
	}
	defer c.Close()
	defer context.AfterFunc(ctx, func() { c.Close() })()
	id := uint16(rand.Uint32())
	m := append([]byte(nil), q.message...)
	m[0], m[1] = byte(id>>8), byte(id)
	if _, err := c.Write(m); err != nil {
		return nil
	}
	b := make([]byte, maxDatagram)
	for {
		k, err := c.Read(b)
		if err != nil {
			return nil
		}
		var p dnsmessage.Parser
		h, err := p.Start(b[:k])
		if err != nil || !h.Response || h.ID != id {
			continue
		}
		b[0], b[1] = byte(q.header.ID>>8), byte(q.header.ID)
		return b[:k]
	}
}

// resolvers are those to ask.
func (n *Network) resolvers() []netip.AddrPort {
	if len(n.cfg.Resolvers) > 0 {
		return n.cfg.Resolvers
	}
	return readResolvers("/etc/resolv.conf")
}

// readResolvers reads the name servers of a file like /etc/resolv.conf.
func readResolvers(path string) (servers []netip.AddrPort) {
	for f := range lines(path) {
		if len(f) < 2 || f[0] != "nameserver" || len(servers) == maxResolvers {
			continue
		}
		if a, err := netip.ParseAddr(f[1]); err == nil {
			servers = append(servers, netip.AddrPortFrom(a, dnsPort))
		}
	}
	return servers
}

// lookUpHosts looks a name up in the hosts file; the addresses are those of
// IPv4, as the guest can reach them.
func (n *Network) lookUpHosts(name string) (a []netip.Addr, ok bool) {
	path := n.cfg.Hosts
	if path == "" {
		path = "/etc/hosts"
	}
	name = strings.TrimSuffix(name, ".")
	if strings.EqualFold(name, "localhost") {
		return nil, false // that is the guest itself
	}
	for f := range lines(path) {
		if len(f) == 0 {
			continue
		}
		addr, err := netip.ParseAddr(f[0])
		if err != nil {
			continue
		}
		for _, alias := range f[1:] {
			if !strings.EqualFold(alias, name) {
				continue
			}
			ok = true
			if addr = addr.Unmap(); addr.IsLoopback() {
				addr = gateway
			}
			if addr.Is4() {
				a = append(a, addr)
			}
			break
		}
	}
	return a, ok
}

// lines are the words of each line of a file of the host, without comments. A
// file that cannot be read has none.
func lines(path string) func(yield func([]string) bool) {
	return func(yield func([]string) bool) {
		f, err := os.Open(path)
		if err != nil {
			return
		}
		defer f.Close()
		s := bufio.NewScanner(io.LimitReader(f, maxHosts))
		for s.Scan() {
			text, _, _ := strings.Cut(s.Text(), "#")
			if !yield(strings.Fields(text)) {
				return
			}
		}
	}
}
