package network

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/skerry-dev/skerry"
)

// The tests need root. They run in a network and a mount namespace of their
// own, which stands for the host, with a lab behind it:
//
//	sandboxes ── host ── 198.51.100.1/24 uplink ── lab 198.51.100.2, 169.254.169.254, …
const (
	insideEnv  = "SKERRY_NETWORK_TEST_INSIDE"
	recoverEnv = "SKERRY_NETWORK_TEST_RECOVER"

	hostAddr = "198.51.100.1"
	labAddr  = "198.51.100.2"
	labPort  = "8080"
)

// labNets are the lab's, which the operator has opened.
var labNets = prefixes([]string{"198.51.100.0/24", "203.0.113.0/24"})

// labAddrs are those that the lab's server has, beside its own those that no
// sandbox may reach though the host has a route to them.
var labAddrs = []string{labAddr, "169.254.169.254", "100.100.100.200", "168.63.129.16"}

func TestMain(m *testing.M) {
	if os.Getenv(insideEnv) == "" {
		os.Exit(runInside())
	}
	if dir := os.Getenv(recoverEnv); dir != "" {
		acquireAndHang(dir)
	}
	stop, err := startLab()
	if err != nil {
		fmt.Fprintln(os.Stderr, "lab:", err)
		os.Exit(1)
	}
	code := m.Run()
	stop()
	os.Exit(code)
}

// runInside runs this test binary again in namespaces of its own.
func runInside() int {
	cmd := exec.Command("/proc/self/exe", os.Args[1:]...)
	cmd.Env = append(os.Environ(), insideEnv+"=1")
	cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags: unix.CLONE_NEWNET, Unshareflags: unix.CLONE_NEWNS, Pdeathsig: syscall.SIGKILL,
	}
	runtime.LockOSThread() // Pdeathsig is about the thread
	if err := cmd.Run(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return 0
}

var labNS string

var quiet = slog.New(slog.DiscardHandler)

// startLab makes the lab's namespace, with an echo server that tells a client
// the address it is seen with, and connects the host to it.
func startLab() (stop func(), err error) {
	dir, err := os.MkdirTemp("", "lab")
	if err != nil {
		return nil, err
	}
	labNS = filepath.Join(dir, "netns")
	if err := sysctl("ipv4", "all", "forwarding", "0"); err != nil {
		return nil, err
	}
	var listener net.Listener
	var udp net.PacketConn
	err = inNewNetNS(labNS, func(host int) error {
		veth := &netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "eth0", TxQLen: -1}, PeerName: "uplink", PeerNamespace: netlink.NsFd(host)}
		if err := netlink.LinkAdd(veth); err != nil {
			return err
		}
		for _, a := range append(labAddrs, "2001:db8::2") {
			if err := addAddr("eth0", a); err != nil {
				return err
			}
		}
		listener, err = net.Listen("tcp4", ":"+labPort)
		if err == nil {
			udp, err = net.ListenPacket("udp4", ":"+labPort)
		}
		return err
	})
	if err == nil {
		err = connectHost()
	}
	if err != nil {
		return nil, err
	}
	go serveLab(listener)
	go echoLab(udp)
	return func() {
		listener.Close()
		udp.Close()
		unix.Unmount(labNS, unix.MNT_DETACH)
		os.RemoveAll(dir)
	}, nil
}

func connectHost() error {
	for _, a := range [][2]string{{"lo", "127.0.0.1"}, {"uplink", "2001:db8::1"}, {"uplink", hostAddr}} {
		if err := addAddr(a[0], a[1]); err != nil {
			return err
		}
	}
	for _, a := range labAddrs[1:] {
		if err := route(a, "uplink"); err != nil {
			return err
		}
	}
	return nil
}

func addAddr(iface, addr string) error {
	link, err := netlink.LinkByName(iface)
	if err != nil {
		return err
	}
	a := netip.MustParseAddr(addr)
	bits := 24
	if a.Is6() {
		bits = 64
	}
	ip := &net.IPNet{IP: a.AsSlice(), Mask: net.CIDRMask(bits, a.BitLen())}
	if err := netlink.AddrAdd(link, &netlink.Addr{IPNet: ip, Flags: unix.IFA_F_NODAD}); err != nil {
		return fmt.Errorf("add %s to %s: %w", addr, iface, err)
	}
	return netlink.LinkSetUp(link)
}

func route(dst, iface string) error {
	link, err := netlink.LinkByName(iface)
	if err != nil {
		return err
	}
	a := netip.MustParseAddr(dst)
	return netlink.RouteReplace(&netlink.Route{LinkIndex: link.Attrs().Index, Scope: netlink.SCOPE_LINK,
		Dst: &net.IPNet{IP: a.AsSlice(), Mask: net.CIDRMask(32, 32)}})
}

// serveLab tells each client its address and then echoes.
func serveLab(l net.Listener) {
	for {
		c, err := l.Accept()
		if err != nil {
			return
		}
		go func() {
			defer c.Close()
			fmt.Fprintln(c, c.RemoteAddr().(*net.TCPAddr).IP)
			io.Copy(c, c)
		}()
	}
}

func echoLab(c net.PacketConn) {
	buf := make([]byte, 2048)
	for {
		n, from, err := c.ReadFrom(buf)
		if err != nil {
			return
		}
		c.WriteTo(buf[:n], from)
	}
}

// inside runs fn on a thread in the namespace at path. The thread ends with
// it.
func inside(t testing.TB, path string, fn func() error) error {
	t.Helper()
	res := make(chan error, 1)
	go func() {
		runtime.LockOSThread()
		ns, err := os.Open(path)
		if err == nil {
			err = unix.Setns(int(ns.Fd()), unix.CLONE_NEWNET)
			ns.Close()
		}
		if err == nil {
			err = fn()
		}
		res <- err
	}()
	return <-res
}

// dial connects from a lease, which must succeed, and returns the address that
// the server sees.
func dial(t testing.TB, l *Lease, target string) (string, error) {
	t.Helper()
	return dialWithin(t, l, target, patience)
}

// tryDial is a dial that must fail: a packet that is dropped shows as a
// time-out.
func tryDial(t testing.TB, l *Lease, target string) (string, error) {
	t.Helper()
	return dialWithin(t, l, target, impatience)
}

const (
	// patience is for machines that have much else to do, impatience is long
	// for a network in memory.
	patience   = 30 * time.Second
	impatience = 700 * time.Millisecond
)

func dialWithin(t testing.TB, l *Lease, target string, timeout time.Duration) (string, error) {
	t.Helper()
	var seen string
	err := inside(t, l.NetNSPath(), func() error {
		c, err := blockingDial(target, timeout)
		if err != nil {
			return err
		}
		defer unix.Close(c)
		buf := make([]byte, 64)
		n, err := unix.Read(c, buf)
		seen = strings.TrimSpace(string(buf[:max(n, 0)]))
		return err
	})
	return seen, err
}

// blockingDial is a connect in the calling thread, as package net may use
// another one's namespace.
func blockingDial(target string, timeout time.Duration) (int, error) {
	ap := netip.MustParseAddrPort(target)
	family := unix.AF_INET
	var sa unix.Sockaddr = &unix.SockaddrInet4{Port: int(ap.Port())}
	if ap.Addr().Is6() {
		family, sa = unix.AF_INET6, &unix.SockaddrInet6{Port: int(ap.Port()), Addr: ap.Addr().As16()}
	} else {
		sa = &unix.SockaddrInet4{Port: int(ap.Port()), Addr: ap.Addr().As4()}
	}
	fd, err := unix.Socket(family, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return -1, err
	}
	tv := unix.NsecToTimeval(int64(timeout))
	unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_SNDTIMEO, &tv)
	unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &tv)
	if err := unix.Connect(fd, sa); err != nil {
		unix.Close(fd)
		return -1, fmt.Errorf("connect to %s: %w", target, err)
	}
	return fd, nil
}

// newPool makes a pool that is closed, and must have left nothing, at the end.
func newPool(t testing.TB, change func(*Config)) *Pool {
	t.Helper()
	cfg := Config{Dir: t.TempDir(), Prefix: DefaultPrefix, Resolvers: []string{labAddr}, Outbound: true, Private: labNets, Log: slog.New(slog.NewTextHandler(io.Discard, nil))}
	if change != nil {
		change(&cfg)
	}
	p, err := New(context.Background(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := p.Close(); err != nil {
			t.Error(err)
		}
		mustBeClean(t, p)
	})
	return p
}

func acquire(t testing.TB, p *Pool) *Lease {
	t.Helper()
	l := acquireClosed(t, p)
	if err := l.SetPolicy(context.Background(), skerry.AllowAll()); err != nil {
		t.Fatal(err)
	}
	return l
}

// acquireClosed returns a lease that may not reach anything yet.
func acquireClosed(t testing.TB, p *Pool) *Lease {
	t.Helper()
	l, err := p.Acquire(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := l.Release(context.Background()); err != nil {
			t.Error(err)
		}
	})
	return l
}

// mustBeClean looks for what a closed pool must not leave.
func mustBeClean(t testing.TB, p *Pool) {
	t.Helper()
	if links, err := interfaces(p.ifPrefix()); err != nil || len(links) > 0 {
		t.Errorf("interfaces left: %v %v", links, err)
	}
	if list, err := os.ReadDir(p.cfg.Dir); err != nil || len(list) > 0 {
		t.Errorf("namespaces left: %v %v", list, err)
	}
	mounts, err := os.ReadFile("/proc/self/mounts")
	if err != nil || bytes.Contains(mounts, []byte(p.cfg.Dir)) {
		t.Errorf("mounts left: %s %v", mounts, err)
	}
	if tables, err := exec.Command("nft", "list", "tables").CombinedOutput(); err != nil || bytes.Contains(tables, []byte(tablePrefix+p.mark)) {
		t.Errorf("tables left: %s %v", tables, err)
	}
	if b, err := os.ReadFile("/proc/sys/net/ipv4/conf/uplink/forwarding"); err != nil || string(b) != "0\n" {
		t.Errorf("forwarding left on: %q %v", b, err)
	}
}
