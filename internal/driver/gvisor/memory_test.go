package gvisor

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/skerry-dev/skerry"
	"github.com/skerry-dev/skerry/internal/cgroup"
	"github.com/skerry-dev/skerry/internal/driver"
)

func snapshotMemory(t *testing.T, m driver.Machine) string {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "memory")
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	begun := time.Now()
	if err := m.Save(t.Context(), dir, driver.Saving{Memory: true}); err != nil {
		t.Fatal(err)
	}
	t.Logf("memory snapshot: %v", time.Since(begun))
	return dir
}

// from returns the spec of a machine that starts from a memory snapshot.
func from(spec driver.Spec, dir string) driver.Spec {
	spec.Source.Memory = dir
	return spec
}

func (l *lab) restored(t *testing.T, spec driver.Spec, dir string) (driver.Machine, *guest) {
	t.Helper()
	begun := time.Now()
	m, err := l.Start(t.Context(), from(spec, dir))
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("restore: %v", time.Since(begun))
	t.Cleanup(func() {
		if err := m.Stop(context.Background()); err != nil {
			t.Error(err)
		}
		l.assertNothingLeft(t, spec.ID)
	})
	begun = time.Now()
	conn, err := m.Attach(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("attach: %v", time.Since(begun))
	return m, newGuest(t, conn)
}

// counter reads where the counting process is.
func counter(t *testing.T, g *guest) (nonce uint64, n int) {
	t.Helper()
	answer := g.ask("read /counter")
	if _, err := fmt.Sscan(answer, &nonce, &n); err != nil {
		t.Fatalf("the counter says %q: %v", answer, err)
	}
	return nonce, n
}

// countsAnew waits until another process counts than the one with a nonce.
func countsAnew(t *testing.T, g *guest, than uint64) (nonce uint64, n int) {
	t.Helper()
	for deadline := time.Now().Add(30 * time.Second); time.Now().Before(deadline); {
		answer := g.ask("read /counter") // there may be none yet
		if _, err := fmt.Sscan(answer, &nonce, &n); err == nil && nonce != than {
			return nonce, n
		}
	}
	t.Fatal("no new process counts")
	return 0, 0
}

func assertCounts(t *testing.T, g *guest, nonce uint64, from int) int {
	t.Helper()
	for deadline := time.Now().Add(10 * time.Second); ; {
		got, n := counter(t, g)
		if got != nonce {
			t.Fatalf("another process counts: %d, want %d", got, nonce)
		}
		if n > from {
			return n
		}
		if time.Now().After(deadline) {
			t.Fatalf("the counter stands at %d, and was at %d", n, from)
		}
	}
}

// cable is a network namespace with an interface, and the other end of it in
// another one, which stands for the host.
type cable struct{ ns, host string }

func newCable(t *testing.T, address string) cable {
	t.Helper()
	dir := t.TempDir()
	w := cable{ns: filepath.Join(dir, "sandbox"), host: filepath.Join(dir, "host")}
	for _, path := range []string{w.ns, w.host} {
		makeNetNS(t, path)
	}
	peer, err := os.Open(w.host)
	if err != nil {
		t.Fatal(err)
	}
	defer peer.Close()
	ip, mask, err := net.ParseCIDR(address)
	if err != nil {
		t.Fatal(err)
	}
	inNetNS(t, w.ns, func() error {
		veth := &netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "eth0"}, PeerName: "peer", PeerNamespace: netlink.NsFd(peer.Fd())}
		if err := netlink.LinkAdd(veth); err != nil {
			return err
		}
		return bringUp("eth0", &net.IPNet{IP: ip, Mask: mask.Mask})
	})
	inNetNS(t, w.host, func() error {
		return bringUp("peer", &net.IPNet{IP: ip.Mask(mask.Mask).To4().Mask(mask.Mask).To4(), Mask: mask.Mask})
	})
	return w
}

func bringUp(name string, addr *net.IPNet) error {
	link, err := netlink.LinkByName(name)
	if err != nil {
		return err
	}
	if name == "peer" {
		addr.IP[len(addr.IP)-1] = 1
	}
	if err := netlink.AddrAdd(link, &netlink.Addr{IPNet: addr}); err != nil {
		return err
	}
	return netlink.LinkSetUp(link)
}

func veth(ns string) []driver.Interface { return []driver.Interface{{Kind: driver.Veth, NetNS: ns}} }

func makeNetNS(t *testing.T, path string) {
	t.Helper()
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	done := make(chan error)
	go func() {
		runtime.LockOSThread() // for good: the thread ends in its namespace
		err := unix.Unshare(unix.CLONE_NEWNET)
		if err == nil {
			err = unix.Mount("/proc/thread-self/ns/net", path, "", unix.MS_BIND, "")
		}
		done <- err
	}()
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(path, unix.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
}

func inNetNS(t *testing.T, path string, f func() error) {
	t.Helper()
	ns, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer ns.Close()
	done := make(chan error)
	go func() {
		runtime.LockOSThread()
		err := unix.Setns(int(ns.Fd()), unix.CLONE_NEWNET)
		if err == nil {
			err = f()
		}
		done <- err
	}()
	if err := <-done; err != nil {
		t.Fatal(err)
	}
}

// echo answers lines on the host's end of a cable.
func (w cable) echo(t *testing.T, address string) {
	t.Helper()
	var l net.Listener
	inNetNS(t, w.host, func() (err error) {
		l, err = net.Listen("tcp", address)
		return err
	})
	t.Cleanup(func() { l.Close() })
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer conn.Close()
				b := make([]byte, 1<<10)
				for {
					n, err := conn.Read(b)
					if err != nil {
						return
					}
					conn.Write(b[:n])
				}
			}()
		}
	}()
}

func TestMemorySnapshot(t *testing.T) {
	l := newLab(t)
	first, second := newCable(t, "10.99.1.2/24"), newCable(t, "10.99.2.2/24")
	first.echo(t, "10.99.1.1:7")
	second.echo(t, "10.99.2.1:7")
	spec := l.spec("original")
	spec.Interfaces = veth(first.ns)
	m, g := l.start(t, spec)
	if got := g.ask("count /counter"); got != "<nil>" {
		t.Fatal(got)
	}
	if got := g.ask("write /data 10"); got != "ok" {
		t.Fatal(got)
	}
	if got := g.ask("dial 10.99.1.1:7"); got != "<nil>" {
		t.Fatal(got)
	}
	sum := g.ask("sum /data")
	time.Sleep(50 * time.Millisecond)
	nonce, n := counter(t, g)
	dir := snapshotMemory(t, m)
	// The original goes on, over the connections that it has.
	at := assertCounts(t, g, nonce, n)
	if got := g.ask("echo still"); got != `"still\n" <nil>` {
		t.Errorf("the original's connection: %s", got)
	}
	if got := g.ask("write /data 1"); got != "ok" {
		t.Fatal(got)
	}

	spec = l.spec("fork")
	spec.Interfaces, spec.Hostname = veth(second.ns), "dinghy"
	fork, fg := l.restored(t, spec, dir)
	if nonce2, n2 := counter(t, fg); nonce2 != nonce || n2 < n || n2 > at+1000 {
		t.Errorf("the fork counts %d %d, the original was at %d %d", nonce2, n2, nonce, n)
	}
	// What was restored can be saved and restored in its turn.
	_, n2 := counter(t, fg)
	spec = l.spec("grandchild")
	_, gg := l.restored(t, spec, snapshotMemory(t, fork))
	assertCounts(t, gg, nonce, n2)
	assertCounts(t, fg, nonce, n2)
	if got := fg.ask("sum /data"); got != sum {
		t.Errorf("the fork's file is %s, was %s", got, sum)
	}
	if got := fg.ask("hostname"); got != "dinghy <nil>" {
		t.Errorf("the fork's hostname is %s", got)
	}
	if got := fg.ask("address"); !strings.Contains(got, "10.99.2.2/24") || strings.Contains(got, "10.99.1.2") {
		t.Errorf("the fork has the addresses %s", got)
	}
	if got := fg.ask("echo gone"); !strings.HasPrefix(got, `"" `) || strings.HasSuffix(got, "<nil>") || strings.Contains(got, "timeout") {
		t.Errorf("the original's connection in the fork: %s", got)
	} else {
		t.Log("in the fork:", got)
	}
	if got := fg.ask("dial 10.99.2.1:7"); got != "<nil>" {
		t.Errorf("a new connection of the fork: %s", got)
	}
	if got := fg.ask("echo new"); got != `"new\n" <nil>` {
		t.Errorf("a new connection of the fork: %s", got)
	}
	assertCounts(t, g, nonce, at)
	assertConfined(t, l, fork.(*machine))
	// Its files can be saved, and what starts from them can be saved whole.
	files := snapshot(t, fork)
	spec = l.spec("files")
	spec.Source.Files = files
	fromFiles, ffg := l.start(t, spec)
	if got := ffg.ask("sum /data"); got != sum {
		t.Errorf("after a snapshot of the fork's files the file is %s, was %s", got, sum)
	}
	if got := ffg.ask("count /counter"); got != "<nil>" {
		t.Fatal(got)
	}
	nonce3, n3 := countsAnew(t, ffg, nonce)
	_, tg := l.restored(t, l.spec("third"), snapshotMemory(t, fromFiles))
	assertCounts(t, tg, nonce3, n3)
}

// TestMemoryIsOfOneMoment: a machine runs on while its pages are still being saved, and
// changes them. What was saved is as it was at one moment all the same.
func TestMemoryIsOfOneMoment(t *testing.T) {
	l := newLab(t)
	spec := func(id string) driver.Spec {
		spec := l.spec(id)
		spec.MemoryBytes, spec.DiskBytes = 1<<30, 512<<20
		return spec
	}
	m, g := l.start(t, spec("original"))
	if got := g.ask("change /rounds"); got != "<nil>" {
		t.Fatal(got)
	}
	assertRounds(t, g, 2)
	for i := range 4 {
		dir := snapshotMemory(t, m)
		assertRounds(t, g, 2)
		fork, fg := l.restored(t, spec(fmt.Sprint("fork", i)), dir)
		assertRounds(t, fg, 2)
		if err := fork.Stop(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
}

// TestForkWithoutRoom: the pages of a fork are written when its source goes on again. If they
// find no room, the fork fails and the source does not notice.
func TestForkWithoutRoom(t *testing.T) {
	l := newLab(t)
	m, g := l.start(t, l.spec("source"))
	if got := g.ask("count /counter"); got != "<nil>" {
		t.Fatal(got)
	}
	if got := g.ask("write /data 32"); got != "ok" {
		t.Fatal(got)
	}
	dir := t.TempDir()
	if err := unix.Mount("small", dir, "tmpfs", 0, "size=24m"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Unmount(dir, unix.MNT_DETACH) })
	fork := func(id, dir string) (child driver.Machine, saved, err error) {
		save, err := m.Fork(t.Context(), dir, func() {})
		if err != nil {
			t.Fatal(err)
		}
		spec := l.spec(id)
		spec.Source.Fork = save
		child, err = l.Start(t.Context(), spec)
		<-save.Done()
		return child, save.Err(), err
	}
	if _, saved, err := fork("failed", dir); !errors.Is(err, unix.ENOSPC) || !errors.Is(saved, unix.ENOSPC) {
		t.Errorf("a fork without room: %v, its save: %v", err, saved)
	}
	l.assertNothingLeft(t, "failed")
	nonce, n := countsAnew(t, g, 0)
	assertCounts(t, g, nonce, n)
	child, saved, err := fork("forked", t.TempDir())
	if err != nil || saved != nil {
		t.Fatal(err, saved)
	}
	if err := child.Stop(t.Context()); err != nil {
		t.Error(err)
	}
	assertCounts(t, g, nonce, n)
}

// assertRounds waits until the changing process has done more rounds, all of them right.
func assertRounds(t *testing.T, g *guest, more int) {
	t.Helper()
	first := -1
	for deadline := time.Now().Add(time.Minute); ; time.Sleep(5 * time.Millisecond) {
		answer, n := g.ask("read /rounds"), 0 // there may be none yet
		if _, err := fmt.Sscan(answer, &n); err == nil {
			if first < 0 {
				first = n
			}
			if n >= first+more {
				return
			}
		} else if !strings.Contains(answer, "no such file") {
			t.Fatalf("the changing process says %q", answer)
		}
		if time.Now().After(deadline) {
			t.Fatalf("the changing process stands at %q", answer)
		}
	}
}

// assertConfined checks what a fresh machine has too: all processes under the
// limits, unprivileged, and those of the sandboxed code first in line when
// memory runs out.
func assertConfined(t *testing.T, l *lab, m *machine) {
	t.Helper()
	inGroup, err := m.group.Processes()
	if err != nil {
		t.Fatal(err)
	}
	has := map[int]bool{}
	for _, pid := range inGroup {
		has[pid] = true
	}
	helpers := descendants(m.proc.pid)
	if len(helpers) == 0 {
		t.Error("the sentry has no helper processes")
	}
	for _, pid := range append(helpers, m.proc.pid) {
		if !has[pid] {
			t.Errorf("process %d is not in the machine's group", pid)
		}
		score, err := os.ReadFile(fmt.Sprintf("/proc/%d/oom_score_adj", pid))
		if err != nil {
			continue // it has ended
		}
		want := "800"
		if pid == m.proc.pid {
			want = "0"
		}
		if got := strings.TrimSpace(string(score)); got != want {
			t.Errorf("process %d has OOM score %s, want %s", pid, got, want)
		}
	}
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", m.proc.pid))
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"Seccomp:\t2", "NoNewPrivs:\t1"} {
		if !strings.Contains(string(status), want) {
			t.Errorf("the sentry's status lacks %q", want)
		}
	}
}

func TestRestoreHoldsToLimits(t *testing.T) {
	l := newLab(t)
	spec := l.spec("original")
	spec.MemoryBytes = 128 << 20
	m, g := l.start(t, spec)
	g.ask("cpus")
	spec.ID = "fork"
	fork, fg := l.restored(t, spec, snapshotMemory(t, m))
	if got := fg.ask("child alloc 2000"); !strings.Contains(got, "signal: killed") {
		t.Errorf("2000 MiB in a machine of 128: %s", got)
	}
	if got := fg.ask("write /big 100"); !strings.HasPrefix(got, "ENOSPC after") {
		t.Errorf("100 MiB on a disk of 64: %s", got)
	}
	if got := fg.ask("memory"); got != fmt.Sprintf("%d <nil>", 128<<10) {
		t.Errorf("the machine sees %s KiB, want %d", got, 128<<10)
	}
	select {
	case <-fork.Done():
		t.Errorf("the machine died: %s", fork.Reason())
	default:
	}
}

// TestConfine: a machine that is confined loses its own processes below its limit,
// until that ends, or a later server takes it over.
func TestConfine(t *testing.T) {
	l := newLab(t)
	if err := l.cfg.Cgroups.Bound(cgroup.Limits{MemoryBytes: 2 << 30}); err != nil {
		t.Fatal(err)
	}
	m, g := l.start(t, l.spec("confined"))
	allocates := func(mib int, want bool) {
		t.Helper()
		got := g.ask("child alloc %d", mib)
		if killed := strings.Contains(got, "signal: killed"); killed == want {
			t.Errorf("%d MiB: %s", mib, got)
		}
	}
	// What a process held is given back a little after its end.
	confine := func() {
		t.Helper()
		deadline := time.Now().Add(30 * time.Second)
		for {
			err := m.Confine(200 << 20)
			if err == nil {
				return
			}
			if !errors.Is(err, unix.EBUSY) || time.Now().After(deadline) {
				t.Fatal(err)
			}
			time.Sleep(10 * time.Millisecond)
		}
	}
	allocates(300, true)
	confine()
	allocates(300, false)
	if err := m.Confine(0); err != nil {
		t.Fatal(err)
	}
	allocates(300, true)
	confine()
	next := &lab{&Driver{cfg: l.cfg, null: l.null}}
	if machines, err := next.Recover(t.Context()); err != nil || len(machines) != 1 {
		t.Fatalf("recovered %v, %v", machines, err)
	}
	allocates(300, true)
	// What the child held goes on being given back meanwhile.
	all, err := l.Memory()
	if err != nil || all.Used < 1<<20 || all.Used > 512<<20 || all.Limit != 2<<30 {
		t.Errorf("all machines hold %+v, %v", all, err)
	}
	if own, err := m.PinnedMemory(0); err != nil || own < 1<<20 || own > 512<<20 {
		t.Errorf("it holds %d, %v", own, err)
	}
	m.End("there was no more memory")
	<-m.Done()
	if m.Reason() != "there was no more memory" {
		t.Errorf("it ended because %q", m.Reason())
	}
}

func TestRestoreRefuses(t *testing.T) {
	l := newLab(t)
	m, g := l.start(t, l.spec("original"))
	g.ask("cpus")
	dir := snapshotMemory(t, m)
	for _, test := range []struct {
		name   string
		change func(*driver.Spec)
		code   skerry.Code
		says   string
	}{
		{"vcpus", func(s *driver.Spec) { s.VCPUs = 1 }, skerry.CodeBadRequest, "resources.vcpus"},
		{"memory", func(s *driver.Spec) { s.MemoryBytes *= 2 }, skerry.CodeBadRequest, "resources.memory"},
		{"version", func(s *driver.Spec) {
			b := fmt.Sprintf(`{"sentry":"v0.0.1","vcpus":%d,"memoryBytes":%d}`, s.VCPUs, s.MemoryBytes)
			if err := os.WriteFile(filepath.Join(dir, imageFile), []byte(b), 0o600); err != nil {
				t.Fatal(err)
			}
		}, skerry.CodeSnapshotIncompatible, "v0.0.1"},
	} {
		spec := l.spec("refused-" + test.name)
		test.change(&spec)
		m, err := l.Start(t.Context(), from(spec, dir))
		if err == nil {
			m.Stop(t.Context())
		}
		if skerry.CodeOf(err) != test.code || !strings.Contains(err.Error(), test.says) {
			t.Errorf("%s: %v", test.name, err)
		}
		l.assertNothingLeft(t, spec.ID)
	}
}

// TestDamagedMemoryEndsTheMachine cuts off and overwrites each file of a
// memory snapshot.
func TestDamagedMemoryEndsTheMachine(t *testing.T) {
	l := newLab(t)
	m, g := l.start(t, l.spec("original"))
	g.ask("cpus")
	dir := snapshotMemory(t, m)
	for i, name := range []string{"checkpoint.img", "pages_meta.img", "pages.img", imageFile} {
		path := filepath.Join(dir, name)
		whole, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		t.Logf("%s has %d bytes", name, len(whole))
		if err := os.WriteFile(path, whole[:len(whole)/2], 0o600); err != nil {
			t.Fatal(err)
		}
		spec := l.spec(fmt.Sprintf("damaged-%d", i))
		if m, err := l.Start(t.Context(), from(spec, dir)); err == nil {
			select {
			case <-m.Done():
				t.Logf("%s: %s", name, m.Reason())
			case <-time.After(30 * time.Second):
				t.Errorf("%s: the machine runs on without its memory", name)
			}
			if err := m.Stop(context.Background()); err != nil {
				t.Error(err)
			}
		} else {
			t.Logf("%s: %v", name, err)
		}
		l.assertNothingLeft(t, spec.ID)
		if err := os.WriteFile(path, whole, 0o600); err != nil {
			t.Fatal(err)
		}
	}
}
