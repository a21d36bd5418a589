package network

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"os/exec"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/nftables"
	"golang.org/x/sys/unix"

	"github.com/skerry-dev/skerry"
)

func custom(allow, deny []string) *skerry.NetworkPolicy {
	p := &skerry.NetworkPolicy{Mode: skerry.NetworkCustom}
	for _, s := range allow {
		p.Allow = append(p.Allow, netip.MustParsePrefix(s))
	}
	for _, s := range deny {
		p.Deny = append(p.Deny, netip.MustParsePrefix(s))
	}
	return p
}

var denyAll = &skerry.NetworkPolicy{Mode: skerry.NetworkDenyAll}

func setPolicy(t testing.TB, l *Lease, p *skerry.NetworkPolicy) {
	t.Helper()
	if err := l.SetPolicy(context.Background(), p); err != nil {
		t.Fatal(err)
	}
}

// otherAddr is a second address of the lab.
const otherAddr = "198.51.100.9"

func addOtherAddr(t testing.TB) {
	t.Helper()
	if err := inside(t, labNS, func() error { return addAddr("eth0", otherAddr) }); err != nil && !errors.Is(err, unix.EEXIST) {
		t.Fatal(err)
	}
}

func TestPolicies(t *testing.T) {
	addOtherAddr(t)
	p := newPool(t, nil)
	l, neighbour := acquireClosed(t, p), acquire(t, p)
	const lab, other = labAddr + ":" + labPort, otherAddr + ":" + labPort
	reaches := func(what string, lab, other bool) {
		t.Helper()
		for target, want := range map[string]bool{labAddr: lab, otherAddr: other} {
			start := time.Now()
			_, err := tryDial(t, l, target+":"+labPort)
			if (err == nil) != want {
				t.Errorf("%s: %s: %v", what, target, err)
			}
			if err != nil && time.Since(start) > impatience/2 {
				t.Errorf("%s: %s: refused only after %s: %v", what, target, time.Since(start), err)
			}
		}
		if got := udpEcho(t, l, labAddr); got != lab { // the lab answers from this address alone
			t.Errorf("%s: UDP passes: %t", what, got)
		}
	}
	reaches("before the first policy", false, false)
	for _, c := range []struct {
		name       string
		policy     *skerry.NetworkPolicy
		lab, other bool
	}{
		{"allow-all", skerry.AllowAll(), true, true},
		{"deny-all", denyAll, false, false},
		{"one address", custom([]string{labAddr + "/32"}, nil), true, false},
		{"the network without it", custom([]string{"198.51.100.0/24", "2001:db8::/32"}, []string{labAddr + "/32"}), false, true},
		{"everything", custom([]string{"0.0.0.0/0"}, nil), true, true},
		{"everything denied", custom(nil, []string{"0.0.0.0/0"}), false, false},
		{"nothing", custom(nil, nil), false, false},
		{"ranges that end beside it", custom([]string{"198.51.100.0/31", "198.51.100.3/32", "198.51.100.8/32", "198.51.100.10/31"}, nil), false, false},
		{"a mode that is none", &skerry.NetworkPolicy{Mode: "?"}, false, false},
	} {
		setPolicy(t, l, c.policy)
		reaches(c.name, c.lab, c.other)
	}
	// What no sandbox may reach stays so.
	setPolicy(t, l, custom([]string{"0.0.0.0/0"}, nil))
	for _, target := range []string{hostAddr, labAddrs[1], labAddrs[2], neighbour.Address().String(), neighbour.host.String(), l.host.String()} {
		if seen, err := tryDial(t, l, target+":"+labPort); err == nil {
			t.Errorf("reached %s as %s", target, seen)
		}
	}
	// A neighbour has its own policy.
	setPolicy(t, l, denyAll)
	if _, err := dial(t, neighbour, lab); err != nil {
		t.Error(err)
	}
	if _, err := dial(t, neighbour, other); err != nil {
		t.Error(err)
	}
}

// udpEcho reports whether a datagram comes back.
func udpEcho(t testing.TB, l *Lease, target string) bool {
	t.Helper()
	return udpTo(t, l, target+":"+labPort) == nil
}

func udpTo(t testing.TB, l *Lease, target string) error {
	t.Helper()
	return inside(t, l.NetNSPath(), func() error {
		fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			return err
		}
		defer unix.Close(fd)
		tv := unix.NsecToTimeval(int64(impatience))
		unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &tv)
		ap := netip.MustParseAddrPort(target)
		if err := unix.Connect(fd, &unix.SockaddrInet4{Port: int(ap.Port()), Addr: ap.Addr().As4()}); err != nil {
			return err
		}
		if _, err := unix.Write(fd, []byte("x")); err != nil {
			return err
		}
		_, err = unix.Read(fd, make([]byte, 8))
		return err
	})
}

// TestRefusals: a program that asks a name server, or for a cloud's metadata, need
// not wait. Of datagrams the kernel says so only about once a second.
func TestRefusals(t *testing.T) {
	l := acquire(t, newPool(t, nil))
	for _, forbidden := range []string{"169.254.169.254:80", hostAddr + ":" + labPort} {
		if _, err := dial(t, l, forbidden); !errors.Is(err, unix.ECONNREFUSED) {
			t.Errorf("%s: %v", forbidden, err)
		}
	}
	setPolicy(t, l, denyAll)
	if err := udpTo(t, l, labAddr+":53"); !errors.Is(err, unix.ECONNREFUSED) {
		t.Errorf("a datagram with deny-all: %v", err)
	}
}

// TestPolicyChangesCut has data on its way while the policy changes: it goes on
// exactly where the new policy allows it.
func TestPolicyChangesCut(t *testing.T) {
	addOtherAddr(t)
	p := newPool(t, nil)
	for _, c := range []struct {
		name   string
		policy *skerry.NetworkPolicy
		kept   bool
	}{
		{"deny-all", denyAll, false},
		{"elsewhere alone", custom([]string{otherAddr + "/32"}, nil), false},
		{"denied", custom([]string{"0.0.0.0/0"}, []string{labAddr + "/32"}), false},
		{"allowed", custom([]string{labAddr + "/32"}, nil), true},
		{"allow-all again", skerry.AllowAll(), true},
	} {
		l := acquire(t, p)
		if err := streamThrough(t, l, c.policy, c.kept); err != nil {
			t.Errorf("%s: %v", c.name, err)
		}
	}
}

// streamThrough echoes a stream, changes the policy in its midst, and says what
// is wrong with how it went on.
func streamThrough(t *testing.T, l *Lease, change *skerry.NetworkPolicy, kept bool) error {
	return inside(t, l.NetNSPath(), func() error {
		fd, err := blockingDial(labAddr+":"+labPort, patience)
		if err != nil {
			return err
		}
		f := os.NewFile(uintptr(fd), "lab")
		defer f.Close()
		r := bufio.NewReader(f)
		if _, err := r.ReadString('\n'); err != nil {
			return err
		}
		echo := func() error {
			if _, err := f.Write(make([]byte, 1024)); err != nil {
				return err
			}
			_, err := io.ReadFull(r, make([]byte, 1024))
			return err
		}
		if err := echo(); err != nil {
			return err
		}
		// Nothing is under way at this moment but what the change lets pass. It
		// is made by a thread of the host's.
		var took time.Duration
		if err := elsewhere(func() error {
			start := time.Now()
			defer func() { took = time.Since(start) }()
			return l.SetPolicy(context.Background(), change)
		}); err != nil {
			return err
		}
		start := time.Now()
		if !kept { // one that sends nothing learns of it too
			_, err = r.ReadByte()
		}
		for range 20 {
			if err == nil {
				err = echo()
			}
		}
		if kept && err != nil {
			return fmt.Errorf("it was cut: %w", err)
		}
		if !kept && !errors.Is(err, unix.ECONNRESET) && !errors.Is(err, unix.EPIPE) {
			return fmt.Errorf("it was not reset but %v", err)
		}
		t.Logf("the change took %s; it was cut (%t) or tried again %s later", took, !kept, time.Since(start))
		return nil
	})
}

// TestPolicySurvives replaces the process that set the policies.
func TestPolicySurvives(t *testing.T) {
	addOtherAddr(t)
	first, err := New(t.Context(), Config{Dir: t.TempDir(), Prefix: DefaultPrefix, Outbound: true, Log: quiet})
	if err != nil {
		t.Fatal(err)
	}
	var ids []string
	policies := []*skerry.NetworkPolicy{
		skerry.AllowAll(), denyAll, custom([]string{"198.51.100.0/24"}, []string{otherAddr + "/32"}), custom(nil, nil), skerry.AllowAll(),
	}
	for _, policy := range policies {
		l, err := first.Acquire(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		setPolicy(t, l, policy)
		ids = append(ids, l.ID())
	}
	if err := first.Close(); err != nil {
		t.Fatal(err)
	}
	second := newPool(t, func(c *Config) { c.Dir = first.cfg.Dir })
	if err := second.Recover(t.Context(), ids[:4]); err != nil { // the fifth is a stray
		t.Fatal(err)
	}
	for i, want := range [][2]bool{{true, true}, {false, false}, {true, false}, {false, false}} {
		l, err := second.Adopt(t.Context(), ids[i])
		if err != nil {
			t.Fatal(err)
		}
		for j, target := range []string{labAddr, otherAddr} {
			if _, err := tryDial(t, l, target+":"+labPort); (err == nil) != want[j] {
				t.Errorf("policy %d: %s: %v", i, target, err)
			}
		}
		setPolicy(t, l, denyAll)
		if _, err := tryDial(t, l, labAddr+":"+labPort); err == nil {
			t.Errorf("policy %d cannot be changed", i)
		}
		setPolicy(t, l, policies[i])
		if err := l.Release(t.Context()); err != nil {
			t.Error(err)
		}
	}
	for _, set := range policySets(second.rules.table()) {
		var c nftables.Conn
		if left, err := c.GetSetElements(set); err != nil || len(left) > 0 {
			t.Errorf("left in the set %s: %v %v", set.Name, left, err)
		}
	}
}

// TestPolicyOfEarlierVersion adopts from a table that knew no policies.
func TestPolicyOfEarlierVersion(t *testing.T) {
	p := newPool(t, func(c *Config) { c.unguarded = true })
	l := acquire(t, p)
	out, err := exec.Command("nft", "list table inet "+p.rules.table().Name).CombinedOutput()
	if err != nil || !strings.Contains(string(out), "set open") {
		t.Fatalf("%v %s", err, out)
	}
	name := p.rules.table().Name
	for _, cmd := range []string{
		"flush chain inet " + name + " through-host", "flush chain inet " + name + " judge-out", "flush chain inet " + name + " judge-in",
		"delete set inet " + name + " open", "delete set inet " + name + " custom", "delete set inet " + name + " denied", "delete set inet " + name + " allowed",
	} {
		if out, err := exec.Command("nft", cmd).CombinedOutput(); err != nil {
			t.Fatalf("%s: %v %s", cmd, err, out)
		}
	}
	carried, err := p.rules.carried([]*Lease{l})
	if err != nil || len(carried) != 1 || !carried[l.Address()].open {
		t.Fatalf("carried %v, %v", carried, err)
	}
	if err := p.rules.install(p.elements(), carried); err != nil {
		t.Fatal(err)
	}
	if _, err := dial(t, l, labAddr+":"+labPort); err != nil {
		t.Error(err)
	}
}

// BenchmarkSetPolicy changes the policy of one among many sandboxes with long
// lists.
func BenchmarkSetPolicy(b *testing.B) {
	p := newPool(b, nil)
	var fill nftables.Conn
	for i := range uint32(200) {
		_, sandbox := addresses(p.prefix, 2000+i)
		v := verdicts{custom: true}
		for n := range 200 {
			a := netip.AddrFrom4([4]byte{10, byte(n), 0, 0})
			v.allowed = append(v.allowed, addressRange{a, netip.AddrFrom4([4]byte{10, byte(n), 7, 255})})
		}
		for i, set := range policySets(p.rules.table()) {
			if err := chunked(v.elements(sandbox)[i], func(part []nftables.SetElement) error { return fill.SetAddElements(set, part) }); err != nil {
				b.Fatal(err)
			}
		}
		if err := fill.Flush(); err != nil {
			b.Fatal(err)
		}
	}
	l := acquire(b, p)
	some := custom([]string{labAddr + "/32", "10.0.0.0/8"}, []string{"10.1.0.0/16"})
	for i := 0; b.Loop(); i++ {
		policy := some
		if i%2 == 1 {
			policy = denyAll
		}
		setPolicy(b, l, policy)
	}
}

// BenchmarkFirstPolicy is what a policy adds to the start of a session.
func BenchmarkFirstPolicy(b *testing.B) {
	p := newPool(b, nil)
	l := acquire(b, p)
	for b.Loop() {
		b.StopTimer()
		setPolicy(b, l, denyAll)
		b.StartTimer()
		setPolicy(b, l, skerry.AllowAll())
	}
}

// BenchmarkChange goes between lists, with nobody else there.
func BenchmarkChange(b *testing.B) {
	p := newPool(b, nil)
	l := acquire(b, p)
	policies := []*skerry.NetworkPolicy{custom([]string{labAddr + "/32"}, nil), custom(nil, []string{labAddr + "/32"})}
	for i := 0; b.Loop(); i++ {
		setPolicy(b, l, policies[i%2])
	}
}

// elsewhere calls fn on another thread, one in the host's namespace.
func elsewhere(fn func() error) error {
	res := make(chan error, 1)
	go func() { res <- fn() }()
	return <-res
}

// TestShut takes a network away without the rules.
func TestShut(t *testing.T) {
	p := newPool(t, nil)
	l, other := acquire(t, p), acquire(t, p)
	if err := l.Shut(); err != nil {
		t.Fatal(err)
	}
	if _, err := tryDial(t, l, labAddr+":"+labPort); err == nil {
		t.Error("a network that is shut reaches the lab")
	}
	if _, err := dial(t, other, labAddr+":"+labPort); err != nil {
		t.Errorf("another: %v", err)
	}
	setPolicy(t, l, skerry.AllowAll())
	if _, err := dial(t, l, labAddr+":"+labPort); err != nil {
		t.Errorf("with the next policy: %v", err)
	}
}

// TestSamePolicyChangesNothing sets a policy again, which must not touch its elements.
func TestSamePolicyChangesNothing(t *testing.T) {
	keys := func(list []nftables.SetElement) (all []string) {
		for _, e := range list {
			all = append(all, string(e.Key)+"-"+string(e.KeyEnd))
		}
		return all
	}
	element := func(key, end string) nftables.SetElement {
		return nftables.SetElement{Key: []byte(key), KeyEnd: []byte(end)}
	}
	old := []nftables.SetElement{element("a", "b"), element("c", "d"), element("e", "")}
	next := []nftables.SetElement{element("a", "b"), element("c", "x"), element("f", "")}
	if gone, added := keys(without(old, next)), keys(without(next, old)); !slices.Equal(gone, []string{"c-d", "e-"}) || !slices.Equal(added, []string{"c-x", "f-"}) {
		t.Errorf("%q go and %q are added", gone, added)
	}
	if rest := without(old, old); rest != nil {
		t.Errorf("%q of the same go", keys(rest))
	}
}

// TestManyPolicies has more networks in the policies of sandboxes than fit into the
// kernel's default buffers, and the rules made anew.
func TestManyPolicies(t *testing.T) {
	p := newPool(t, func(c *Config) { c.unguarded = true })
	for i := range uint32(100) {
		_, sandbox := addresses(p.prefix, 2000+i)
		v := verdicts{custom: true}
		for n := range 128 {
			first, last := netip.AddrFrom4([4]byte{20, byte(n), 0, 0}), netip.AddrFrom4([4]byte{20, byte(n), 7, 255})
			v.allowed, v.denied = append(v.allowed, addressRange{first, last}), append(v.denied, addressRange{first, last})
		}
		if err := p.rules.judge(sandbox, verdicts{}, v); err != nil {
			t.Fatal(i, err)
		}
	}
	if err := p.rules.remake(); err != nil {
		t.Error(err)
	}
}
