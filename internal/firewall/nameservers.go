package firewall

import (
	"bufio"
	"fmt"
	"net/netip"
	"os"
	"strings"
)

// nameServers returns the servers that the proxy queries: the configured ones, or
// the host's. The host's include servers on the host itself, which sandboxes cannot
// query. A host without servers resolves nothing.
func nameServers(configured []string) ([]netip.AddrPort, error) {
	if len(configured) == 0 {
		f, err := os.Open("/etc/resolv.conf")
		if err != nil && !os.IsNotExist(err) {
			return nil, err
		}
		if err == nil {
			defer f.Close()
			lines := bufio.NewScanner(f)
			for lines.Scan() {
				if words := strings.Fields(lines.Text()); len(words) > 1 && words[0] == "nameserver" {
					configured = append(configured, words[1])
				}
			}
			if err := lines.Err(); err != nil {
				return nil, fmt.Errorf("read resolv.conf: %w", err)
			}
		}
	}
	var list []netip.AddrPort
	for _, s := range configured {
		if a, err := netip.ParseAddr(s); err == nil && a.Is4() {
			list = append(list, netip.AddrPortFrom(a, 53))
		}
	}
	if len(list) == 0 { // as the C library does
		list = append(list, netip.MustParseAddrPort("127.0.0.1:53"))
	}
	return list, nil
}
