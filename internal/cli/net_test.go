package cli

import (
	"strings"
	"testing"
)

func TestNet(t *testing.T) {
	for s, want := range map[string]Net{"user": {Mode: NetUser}, "none": {Mode: NetNone}, "fd:3": {Mode: NetFD, FD: 3}} {
		if got, err := ParseNet(s); err != nil || got != want || got.String() != s {
			t.Errorf("%s: %+v, %v", s, got, err)
		}
	}
	for _, s := range []string{"", "tap", "user:", "none:1", "fd", "fd:", "fd:x", "fd:-1", "fd:0", "fd:2", "fd:99999999999"} {
		if got, err := ParseNet(s); err == nil || !strings.Contains(err.Error(), `"`+s+`"`) {
			t.Errorf("%q: %+v, %v", s, got, err)
		}
	}
}

func TestPublish(t *testing.T) {
	for s, want := range map[string]string{
		"8080:80":                "127.0.0.1:8080:80",
		"8080:80/tcp":            "127.0.0.1:8080:80",
		"53:53/udp":              "127.0.0.1:53:53/udp",
		"0.0.0.0:1:65535":        "0.0.0.0:1:65535",
		"[::1]:8080:80":          "[::1]:8080:80",
		"[2001:db8::1]:80:8/udp": "[2001:db8::1]:80:8/udp",
	} {
		if got, err := ParsePublish(s); err != nil || got.String() != want {
			t.Errorf("%s: %v, %v", s, got, err)
		}
	}
	for s, why := range map[string]string{
		"": "no port of the guest", "80": "no port of the guest", "x:80": `"x" is no port`, "80:x": `"x" is no port`,
		"0:80": `"0" is no port`, "80:0": `"0" is no port`, "80:65536": `"65536" is no port`, ":80": `"" is no port`,
		"80:": `"" is no port`, "host:80:80": `"host" is no address`, "80:80/icmp": `"icmp" is neither`, "80:80/": `"" is neither`,
		"1.2.3.4.5:80:80": "is no address", "-1:80": "is no port",
	} {
		if got, err := ParsePublish(s); err == nil || !strings.Contains(err.Error(), why) {
			t.Errorf("%q: %v, %v, want %q", s, got, err, why)
		}
	}
}

func FuzzPublish(f *testing.F) {
	f.Add("127.0.0.1:8080:80/udp")
	f.Fuzz(func(t *testing.T, s string) {
		p, err := ParsePublish(s)
		if err != nil {
			return
		}
		if again, err := ParsePublish(p.String()); err != nil || again != p {
			t.Errorf("%q is %v, and that is %v, %v", s, p, again, err)
		}
	})
}
