package firewall

import (
	"context"
	"encoding/json"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/skerry-dev/skerry"
	"github.com/skerry-dev/skerry/internal/network"
	"github.com/skerry-dev/skerry/internal/nodeapi"
)

const farAddr = "192.0.2.2"

// newFirewall makes one whose host has a way to farAddr.
func newFirewall(t *testing.T, change ...func(*Config)) *Firewall {
	t.Helper()
	if err := up("lo", ""); err != nil {
		t.Fatal(err)
	}
	newNamespace(t, "far", "192.0.2.1/24", farAddr+"/24", "192.0.2.1")
	t.Cleanup(func() { // it goes with its namespace, but only some time after
		link, err := netlink.LinkByName("far")
		if err == nil {
			err = netlink.LinkDel(link)
		}
		if err != nil {
			t.Error(err)
		}
	})
	dir := t.TempDir()
	cfg := Config{
		Network: network.Config{Dir: filepath.Join(dir, "netns"), Prefix: network.DefaultPrefix, Resolvers: []string{farAddr}, Outbound: true, Private: prefixes("192.0.2.0/24")},
		Dir:     filepath.Join(dir, "keys"), Sessions: filepath.Join(dir, "sessions"), Log: slog.New(slog.DiscardHandler),
	}
	for _, c := range change {
		c(&cfg)
	}
	f, err := New(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := f.Close(); err != nil {
			t.Error(err)
		}
	})
	return f
}

func newSession(t *testing.T, f *Firewall, p *skerry.NetworkPolicy) (*lease, string) {
	t.Helper()
	acquired, err := f.Acquire(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := acquired.Release(context.Background()); err != nil {
			t.Error(err)
		}
	})
	id := skerry.NewID(skerry.PrefixSession)
	if err := os.MkdirAll(filepath.Join(f.events.dir, id), 0o700); err != nil {
		t.Fatal(err)
	}
	spec := nodeapi.NetworkSpec{Policy: p, Owner: nodeapi.Owner{TeamID: "team_1", ProjectID: "prj_1", SandboxID: "sb_1", SandboxName: "one"}}
	if err := acquired.SetNetwork(t.Context(), id, spec); err != nil {
		t.Fatal(err)
	}
	return acquired.(*lease), id
}

// TestDeniedAddressIsInTheLogs has a packet denied that the proxy never sees.
func TestDeniedAddressIsInTheLogs(t *testing.T) {
	path := filepath.Join(t.TempDir(), "network.log")
	f := newFirewall(t, func(c *Config) { c.Export = path })
	policy := &skerry.NetworkPolicy{Mode: skerry.NetworkCustom, Domains: []skerry.DomainRules{{Domain: site}}}
	l, id := newSession(t, f, policy)
	onThread(t, l.NetNSPath(), func() error {
		fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			return err
		}
		defer unix.Close(fd)
		return unix.Sendto(fd, []byte("x"), 0, &unix.SockaddrInet4{Port: 443, Addr: netip.MustParseAddr(farAddr).As4()})
	})
	var events []skerry.NetworkEvent
	eventually(t, "the event", func() bool {
		var err error
		if events, err = f.Events(t.Context(), id, 10); err != nil {
			t.Fatal(err)
		}
		return len(events) > 0
	})
	e := events[0]
	if len(events) != 1 || e.Allowed || e.Protocol != "udp" || e.Destination != farAddr+":443" || e.Reason != network.ReasonNotAllowed {
		t.Errorf("the events are %+v", events)
	}
	eventually(t, "the operator's line", func() bool { return len(readFile(t, path)) > 0 })
	var got line
	if err := json.Unmarshal(readFile(t, path), &got); err != nil {
		t.Fatal(err)
	}
	got.Time = ""
	want := line{
		SandboxID: "sb_1", SandboxName: "one", SessionID: id, TeamID: "team_1", ProjectID: "prj_1",
		Decision: "denied", Reason: "address not allowed", Protocol: "udp", Destination: farAddr + ":443",
	}
	if got != want {
		t.Errorf("the line is %+v, want %+v", got, want)
	}
}
