package firewall

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
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
	"golang.org/x/net/dns/dnsmessage"
	"golang.org/x/sys/unix"

	"github.com/skerry-dev/skerry"
	"github.com/skerry-dev/skerry/internal/egress/ca"
	"github.com/skerry-dev/skerry/internal/network"
	"github.com/skerry-dev/skerry/internal/nodeapi"
)

// The benchmarks need root. They run in namespaces of their own, which stand for
// the host, with a site behind it, a sandbox's network before it, and beside that
// a pair of interfaces with address translation and nothing else.
const (
	insideEnv = "SKERRY_FIREWALL_TEST_INSIDE"

	site, siteAddr = "site.example.com", "198.51.100.2"
	hostAddr       = "198.51.100.1"
	downloadBytes  = 256 << 20
)

func TestMain(m *testing.M) {
	if os.Getenv(insideEnv) != "" {
		os.Exit(m.Run())
	}
	cmd := exec.Command("/proc/self/exe", os.Args[1:]...)
	cmd.Env = append(os.Environ(), insideEnv+"=1")
	cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWNET, Unshareflags: unix.CLONE_NEWNS, Pdeathsig: syscall.SIGKILL}
	runtime.LockOSThread() // Pdeathsig is about the thread
	if err := cmd.Run(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

// onThread runs fn in a namespace, or with "" in a new one, on a thread that ends
// with it.
func onThread(b testing.TB, ns string, fn func() error) {
	b.Helper()
	res := make(chan error)
	go func() {
		runtime.LockOSThread()
		var err error
		if ns == "" {
			err = unix.Unshare(unix.CLONE_NEWNET)
		} else {
			var f *os.File
			if f, err = os.Open(ns); err == nil {
				err = unix.Setns(int(f.Fd()), unix.CLONE_NEWNET)
				f.Close()
			}
		}
		if err == nil {
			err = fn()
		}
		res <- err
	}()
	if err := <-res; err != nil {
		b.Fatal(err)
	}
}

// newNamespace makes one whose eth0 is connected to an interface of the host's,
// and returns a path to it.
func newNamespace(b testing.TB, peer, hostAddress, address, gateway string) string {
	b.Helper()
	host, err := os.Open("/proc/thread-self/ns/net") // the process's own may be a thread's that is elsewhere
	if err != nil {
		b.Fatal(err)
	}
	defer host.Close()
	var path string
	onThread(b, "", func() error {
		ns, err := os.Open("/proc/thread-self/ns/net")
		if err != nil {
			return err
		}
		b.Cleanup(func() { ns.Close() })
		path = fmt.Sprintf("/proc/self/fd/%d", ns.Fd())
		err = netlink.LinkAdd(&netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "eth0", TxQLen: -1}, PeerName: peer, PeerNamespace: netlink.NsFd(host.Fd())})
		if err != nil {
			return err
		}
		return errors.Join(up("lo", ""), up("eth0", address), netlink.RouteAdd(&netlink.Route{Gw: net.ParseIP(gateway)}))
	})
	if err := up(peer, hostAddress); err != nil {
		b.Fatal(err)
	}
	return path
}

func up(name, address string) error {
	link, err := netlink.LinkByName(name)
	if err != nil {
		return err
	}
	if address != "" {
		a, err := netlink.ParseAddr(address)
		if err != nil {
			return err
		}
		if err := netlink.AddrAdd(link, a); err != nil {
			return err
		}
	}
	return netlink.LinkSetUp(link)
}

// serveSite has a web server with HTTPS and a name server in a namespace.
func serveSite(b testing.TB, ns string, authority *ca.Authority) {
	b.Helper()
	mux := http.NewServeMux()
	mux.HandleFunc("/", func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, "x") })
	mux.HandleFunc("/bytes", func(w http.ResponseWriter, _ *http.Request) {
		buf := make([]byte, 1<<16)
		for range downloadBytes / len(buf) {
			if _, err := w.Write(buf); err != nil {
				return
			}
		}
	})
	config := &tls.Config{GetCertificate: func(h *tls.ClientHelloInfo) (*tls.Certificate, error) { return authority.Certificate(h.ServerName) }}
	onThread(b, ns, func() error {
		l, err := net.Listen("tcp4", siteAddr+":443")
		if err != nil {
			return err
		}
		names, err := net.ListenPacket("udp4", siteAddr+":53")
		if err != nil {
			return err
		}
		server := &http.Server{Handler: mux, TLSConfig: config}
		go server.ServeTLS(l, "", "")
		go resolve(names)
		b.Cleanup(func() { server.Close(); names.Close() })
		return nil
	})
}

// resolve says of every name that it is the site's.
func resolve(c net.PacketConn) {
	buf := make([]byte, 2048)
	for {
		n, from, err := c.ReadFrom(buf)
		if err != nil {
			return
		}
		var m dnsmessage.Message
		if m.Unpack(buf[:n]) != nil || len(m.Questions) != 1 {
			continue
		}
		m.Response, m.Additionals = true, nil
		m.Answers = []dnsmessage.Resource{{
			Header: dnsmessage.ResourceHeader{Name: m.Questions[0].Name, Class: dnsmessage.ClassINET, TTL: 300},
			Body:   &dnsmessage.AResource{A: netip.MustParseAddr(siteAddr).As4()},
		}}
		if out, err := m.Pack(); err == nil {
			c.WriteTo(out, from)
		}
	}
}

// clientIn makes requests from a namespace, each with a connection of its own.
func clientIn(b testing.TB, ns string, roots *x509.CertPool) *http.Client {
	return &http.Client{Timeout: time.Minute, Transport: &http.Transport{
		DisableKeepAlives: true, TLSClientConfig: &tls.Config{RootCAs: roots},
		DialContext: func(context.Context, string, string) (conn net.Conn, err error) {
			onThread(b, ns, func() error {
				fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
				if err != nil {
					return err
				}
				f := os.NewFile(uintptr(fd), "sandbox")
				defer f.Close()
				if err := unix.Connect(fd, &unix.SockaddrInet4{Port: 443, Addr: netip.MustParseAddr(siteAddr).As4()}); err != nil {
					return err
				}
				conn, err = net.FileConn(f)
				return err
			})
			return conn, err
		},
	}}
}

// BenchmarkWays downloads and connects by HTTPS: through address translation
// alone, and as a sandbox with its rules and the proxy in force. Each tells how
// much longer it takes than the first.
func BenchmarkWays(b *testing.B) {
	dir := b.TempDir()
	authority, err := ca.Open(filepath.Join(dir, "site.pem"))
	if err != nil {
		b.Fatal(err)
	}
	trusted := filepath.Join(dir, "trusted.pem")
	if err := os.WriteFile(trusted, authority.CertificatePEM(), 0o600); err != nil {
		b.Fatal(err)
	}
	b.Setenv("SSL_CERT_FILE", trusted)
	if err := up("lo", ""); err != nil {
		b.Fatal(err)
	}
	serveSite(b, newNamespace(b, "uplink", hostAddr+"/24", siteAddr+"/24", hostAddr), authority)
	plain := newNamespace(b, "plain", "10.99.1.1/24", "10.99.1.2/24", "10.99.1.1")
	nft := exec.Command("nft", "-f", "-")
	nft.Stdin = strings.NewReader("table ip plain { chain post { type nat hook postrouting priority 100; ip saddr 10.99.1.0/24 masquerade; }; }")
	if out, err := nft.CombinedOutput(); err != nil {
		b.Fatalf("nft: %v: %s", err, out)
	}
	// First, as the rules of a server let what comes back go to sandboxes alone.
	for _, name := range []string{"plain", "uplink"} {
		if err := os.WriteFile("/proc/sys/net/ipv4/conf/"+name+"/forwarding", []byte("1"), 0); err != nil {
			b.Fatal(err)
		}
	}
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(authority.CertificatePEM())
	base := map[string]float64{}
	measure := func(way, ns string) {
		for what, path := range map[string]string{"download": "/bytes", "connect": "/"} {
			b.Run(what+"/"+way, func(b *testing.B) {
				// A sandbox may have so many connections, those of the last
				// two minutes included.
				if err := netlink.ConntrackTableFlush(netlink.ConntrackTable); err != nil {
					b.Fatal(err)
				}
				client := clientIn(b, ns, roots)
				if what == "download" {
					b.SetBytes(downloadBytes)
				}
				for b.Loop() {
					resp, err := client.Get("https://" + site + path)
					if err != nil {
						b.Fatal(err)
					}
					n, err := io.Copy(io.Discard, resp.Body)
					if resp.Body.Close(); err != nil || n == 0 {
						b.Fatal(n, err)
					}
				}
				took := float64(b.Elapsed()) / float64(b.N)
				if way == "plain" {
					base[what] = took
				}
				b.ReportMetric(took/base[what], "x-plain")
			})
		}
	}
	measure("plain", plain)
	f, err := New(b.Context(), Config{
		Network: network.Config{Dir: filepath.Join(dir, "netns"), Prefix: network.DefaultPrefix, Resolvers: []string{siteAddr}, Outbound: true, Private: prefixes("198.51.100.0/24")},
		Dir:     filepath.Join(dir, "keys"), Sessions: dir, Log: slog.New(slog.DiscardHandler),
	})
	if err != nil {
		b.Fatal(err)
	}
	defer f.Close()
	acquired, err := f.Acquire(b.Context())
	if err != nil {
		b.Fatal(err)
	}
	defer acquired.Release(context.WithoutCancel(b.Context()))
	l := acquired.(*lease)
	roots.AppendCertsFromPEM(f.Authority())
	custom := func(rules ...skerry.NetworkRule) *skerry.NetworkPolicy {
		return &skerry.NetworkPolicy{Mode: skerry.NetworkCustom, Domains: []skerry.DomainRules{{Domain: site, Rules: rules}}}
	}
	for _, way := range []struct {
		name   string
		policy *skerry.NetworkPolicy
	}{
		{"direct", skerry.AllowAll()},
		{"network", &skerry.NetworkPolicy{Mode: skerry.NetworkCustom, Allow: []netip.Prefix{netip.MustParsePrefix(siteAddr + "/32")}}},
		{"sni", custom()},
		{"ended", custom(skerry.NetworkRule{Transform: []skerry.HeaderTransform{{Headers: map[string]string{"x-key": "secret"}}}})},
	} {
		if err := l.SetNetwork(b.Context(), skerry.NewID(skerry.PrefixSession), nodeapi.NetworkSpec{Policy: way.policy}); err != nil {
			b.Fatal(err)
		}
		measure(way.name, l.NetNSPath())
	}
}
