package ingress

import (
	"net/netip"
	"testing"
)

func TestClientOf(t *testing.T) {
	for from, want := range map[string]string{
		"198.51.100.7": "198.51.100.7", "::ffff:198.51.100.7": "198.51.100.7",
		"2001:db8:1:2:3:4:5:6": "2001:db8:1:2::", "2001:db8:1:2::9": "2001:db8:1:2::", "fe80::1%eth0": "fe80::",
	} {
		if got := clientOf(netip.MustParseAddr(from)); got != netip.MustParseAddr(want) {
			t.Errorf("clientOf(%s) = %s, want %s", from, got, want)
		}
	}
	if got := clientOf(netip.Addr{}); got.IsValid() {
		t.Errorf("of no address: %s", got)
	}
}
