package usernet

import (
	"net"
	"testing"

	"github.com/insomniacslk/dhcp/dhcpv4"
)

var hw = net.HardwareAddr(guestMAC)

func ask(t testing.TB, kind dhcpv4.MessageType, with ...dhcpv4.Modifier) *dhcpv4.DHCPv4 {
	t.Helper()
	m, err := dhcpv4.New(append([]dhcpv4.Modifier{dhcpv4.WithHwAddr(hw), dhcpv4.WithMessageType(kind)}, with...)...)
	if err != nil {
		t.Fatal(err)
	}
	return m
}

func TestDHCP(t *testing.T) {
	ip := net.IP(guest.AsSlice())
	want := func(a net.IP) dhcpv4.Modifier { return dhcpv4.WithOption(dhcpv4.OptRequestedIPAddress(a)) }
	from := func(a net.IP) dhcpv4.Modifier { return dhcpv4.WithOption(dhcpv4.OptServerIdentifier(a)) }
	other := net.IPv4(10, 0, 2, 99)
	for name, tt := range map[string]struct {
		ask    *dhcpv4.DHCPv4
		answer dhcpv4.MessageType // 0: none
	}{
		"discover":             {ask(t, dhcpv4.MessageTypeDiscover), dhcpv4.MessageTypeOffer},
		"request":              {ask(t, dhcpv4.MessageTypeRequest, want(ip), from(gateway.AsSlice())), dhcpv4.MessageTypeAck},
		"after a reboot":       {ask(t, dhcpv4.MessageTypeRequest, want(ip)), dhcpv4.MessageTypeAck},
		"renewal":              {ask(t, dhcpv4.MessageTypeRequest, dhcpv4.WithClientIP(ip)), dhcpv4.MessageTypeAck},
		"other address":        {ask(t, dhcpv4.MessageTypeRequest, want(other)), dhcpv4.MessageTypeNak},
		"no address":           {ask(t, dhcpv4.MessageTypeRequest), dhcpv4.MessageTypeNak},
		"other server's":       {ask(t, dhcpv4.MessageTypeRequest, want(ip), from(other)), 0},
		"inform":               {ask(t, dhcpv4.MessageTypeInform, dhcpv4.WithClientIP(other)), dhcpv4.MessageTypeAck},
		"release":              {ask(t, dhcpv4.MessageTypeRelease), 0},
		"an answer":            {ask(t, dhcpv4.MessageTypeOffer), 0},
		"no address of a link": {ask(t, dhcpv4.MessageTypeDiscover, dhcpv4.WithHwAddr(nil)), 0},
	} {
		b := answerDHCP(tt.ask.ToBytes())
		if tt.answer == 0 {
			if b != nil {
				t.Errorf("%s: answered", name)
			}
			continue
		}
		m, err := dhcpv4.FromBytes(b)
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		if m.MessageType() != tt.answer || m.TransactionID != tt.ask.TransactionID || m.OpCode != dhcpv4.OpcodeBootReply || m.ClientHWAddr.String() != hw.String() {
			t.Errorf("%s: %s", name, m.Summary())
		}
		if tt.answer == dhcpv4.MessageTypeNak {
			continue
		}
		if m.SubnetMask().String() != "ffffff00" || !m.Router()[0].Equal(gateway.AsSlice()) || !m.DNS()[0].Equal(resolve.AsSlice()) ||
			!m.ServerIdentifier().Equal(gateway.AsSlice()) {
			t.Errorf("%s: %s", name, m.Summary())
		}
		if inform := name == "inform"; m.YourIPAddr.Equal(ip) == inform || (m.IPAddressLeaseTime(0) == lease) == inform {
			t.Errorf("%s: %s", name, m.Summary())
		}
	}
}

// FuzzDHCP: any message gets none or a well-formed answer.
func FuzzDHCP(f *testing.F) {
	f.Add(ask(f, dhcpv4.MessageTypeDiscover).ToBytes())
	f.Add(ask(f, dhcpv4.MessageTypeRequest, dhcpv4.WithClientIP(net.IP(guest.AsSlice()))).ToBytes())
	f.Fuzz(func(t *testing.T, b []byte) {
		if a := answerDHCP(b); a != nil {
			if _, err := dhcpv4.FromBytes(a); err != nil {
				t.Errorf("answer % x: %v", a, err)
			}
		}
	})
}
