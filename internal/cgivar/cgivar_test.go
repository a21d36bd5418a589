package cgivar

import "testing"

func TestSame(t *testing.T) {
	for _, c := range []struct {
		a, b         string
		same, begins bool
	}{
		{"X-Real-Ip", "x_real.IP", true, true},
		{"X-Real-Ip", "X-Real-Ip2", false, false},
		{"X-Real-Ip2", "X-Real-Ip", false, true},
		{"X-Real-Ip", "XRealIp", false, false},
		{"", "", true, true},
		{"a", "b", false, false},
	} {
		if Same(c.a, c.b) != c.same || HasPrefix(c.a, c.b) != c.begins {
			t.Errorf("%q and %q: %v, %v", c.a, c.b, Same(c.a, c.b), HasPrefix(c.a, c.b))
		}
	}
}
