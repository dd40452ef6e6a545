package cli

import (
	"strings"
	"testing"
)

func TestVsock(t *testing.T) {
	for in, want := range map[string]string{
		"a.sock":                "a.sock,cid=3",
		"/run/a,cid=42":         "/run/a,cid=42",
		"":                      "error: names no socket",
		",cid=3":                "error: names no socket",
		"a,cid=2":               "error: between 3 and 4294967294",
		"a,cid=4294967295":      "error: between",
		"a,cid=x":               "error: between",
		"a,port=3":              "error: is no option",
		"a,cid=3,cid=4":         "error: between",
		"a,cid=184467440737095": "error: between",
	} {
		var v Vsock
		err := v.Set(in)
		if message, bad := strings.CutPrefix(want, "error: "); bad {
			if err == nil || !strings.Contains(err.Error(), message) || v != (Vsock{}) {
				t.Errorf("%q: %v %v", in, v, err)
			}
		} else if err != nil || v.String() != want {
			t.Errorf("%q: %q %v", in, v.String(), err)
		}
	}
}
