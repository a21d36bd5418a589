package egress

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
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
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/coder/websocket"
	"github.com/vishvananda/netlink"
	"golang.org/x/net/dns/dnsmessage"
	"golang.org/x/sys/unix"

	"github.com/skerry-dev/skerry/internal/egress/ca"
)

// The tests need root and nft. They run in a network namespace of their own,
// which stands for the host and has no way out of the machine, with sandboxes
// before it and a lab behind it:
//
//	10.99.1.2 sb1 ──┐
//	                host ── 198.51.100.1/24 uplink ── lab 198.51.100.2 …, 169.254.169.254
//	10.99.2.2 sb2 ──┘
const (
	insideEnv = "SKERRY_EGRESS_TEST_INSIDE"

	hostAddr = "198.51.100.1"
	webAddr  = "198.51.100.2" // HTTP, HTTPS with h2
	oldAddr  = "198.51.100.3" // the same without h2
	evilAddr = "203.0.113.66" // the same, of somebody else
	rawAddr  = "198.51.100.9" // port 443 and 9443: takes or gives bytes
	dnsAddr  = "198.51.100.53"
	metaAddr = "169.254.169.254" // the same as evil

	proxyPort, dnsPort = 3128, 3153
)

var labAddrs = []string{webAddr, oldAddr, rawAddr, dnsAddr, evilAddr, metaAddr}

func TestMain(m *testing.M) {
	if os.Getenv(insideEnv) == "" {
		os.Exit(runInside())
	}
	if err := startLab(); err != nil {
		fmt.Fprintln(os.Stderr, "lab:", err)
		os.Exit(1)
	}
	os.Exit(m.Run())
}

func runInside() int {
	cmd := exec.Command("/proc/self/exe", os.Args[1:]...)
	cmd.Env = append(os.Environ(), insideEnv+"=1")
	cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWNET, Pdeathsig: syscall.SIGKILL}
	runtime.LockOSThread() // Pdeathsig is about the thread
	if err := cmd.Run(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return 0
}

// lab is what is behind the host, and where the namespaces are.
var lab struct {
	ns, sb1, sb2 *os.File
	public       *ca.Authority // everybody trusts it
	private      *ca.Authority // nobody does
	roots        *x509.CertPool

	mu      sync.Mutex
	zone    map[string][]string
	queries []string
}

// newNS makes a namespace and runs fn in it.
func newNS(fn func() error) (*os.File, error) {
	var ns *os.File
	err := onOwnThread(func() error {
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			return err
		}
		var err error
		if ns, err = os.Open("/proc/thread-self/ns/net"); err != nil {
			return err
		}
		return fn()
	})
	return ns, err
}

func within(ns *os.File, fn func() error) error {
	return onOwnThread(func() error {
		if err := unix.Setns(int(ns.Fd()), unix.CLONE_NEWNET); err != nil {
			return err
		}
		return fn()
	})
}

// onOwnThread runs fn on a thread that ends with it.
func onOwnThread(fn func() error) error {
	res := make(chan error, 1)
	go func() {
		runtime.LockOSThread()
		res <- fn()
	}()
	return <-res
}

func startLab() (err error) {
	dir, err := os.MkdirTemp("", "egress")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	if lab.public, err = ca.Open(filepath.Join(dir, "public")); err != nil {
		return err
	}
	if lab.private, err = ca.Open(filepath.Join(dir, "private")); err != nil {
		return err
	}
	lab.roots = x509.NewCertPool()
	lab.roots.AppendCertsFromPEM(lab.public.CertificatePEM())
	host, err := os.Open("/proc/self/ns/net")
	if err != nil {
		return err
	}
	defer host.Close()
	connect := func(peer string, addrs ...string) func() error {
		return func() error {
			veth := &netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "eth0", TxQLen: -1}, PeerName: peer, PeerNamespace: netlink.NsFd(host.Fd())}
			if err := netlink.LinkAdd(veth); err != nil {
				return err
			}
			if err := addAddr("lo", "127.0.0.1"); err != nil {
				return err
			}
			for _, a := range addrs {
				if err := addAddr("eth0", a); err != nil {
					return err
				}
			}
			return nil
		}
	}
	if lab.ns, err = newNS(connect("uplink", labAddrs...)); err != nil {
		return err
	}
	if lab.sb1, err = newNS(connect("sb1", "10.99.1.2")); err != nil {
		return err
	}
	if lab.sb2, err = newNS(connect("sb2", "10.99.2.2")); err != nil {
		return err
	}
	if err := setUpHost(); err != nil {
		return err
	}
	if err := within(lab.ns, func() error { return addRoute("10.99.0.0/16", hostAddr) }); err != nil {
		return err
	}
	for ns, gateway := range map[*os.File]string{lab.sb1: "10.99.1.1", lab.sb2: "10.99.2.1"} {
		if err := within(ns, func() error { return addRoute("0.0.0.0/0", gateway) }); err != nil {
			return err
		}
	}
	return serveLab()
}

const hostRules = `
table ip lab {
	chain pre {
		type nat hook prerouting priority -100;
		iifname "sb*" tcp dport { 80, 81, 443 } redirect to :3128
		iifname "sb*" meta l4proto { tcp, udp } th dport 53 redirect to :3153
	}
	chain post {
		type nat hook postrouting priority 100;
		oifname "uplink" masquerade
	}
}`

func setUpHost() error {
	for _, a := range [][2]string{{"lo", "127.0.0.1"}, {"uplink", hostAddr}, {"sb1", "10.99.1.1"}, {"sb2", "10.99.2.1"}} {
		if err := addAddr(a[0], a[1]); err != nil {
			return err
		}
	}
	for _, net := range []string{"203.0.113.0/24", "169.254.169.254/32"} {
		if err := addRoute(net, webAddr); err != nil {
			return err
		}
	}
	if err := os.WriteFile("/proc/sys/net/ipv4/ip_forward", []byte("1"), 0); err != nil {
		return err
	}
	nft := exec.Command("nft", "-f", "-")
	nft.Stdin = strings.NewReader(hostRules)
	if out, err := nft.CombinedOutput(); err != nil {
		return fmt.Errorf("nft: %s: %w", out, err)
	}
	return nil
}

func addAddr(iface, addr string) error {
	link, err := netlink.LinkByName(iface)
	if err != nil {
		return err
	}
	ip := &net.IPNet{IP: net.ParseIP(addr).To4(), Mask: net.CIDRMask(24, 32)}
	if err := netlink.AddrAdd(link, &netlink.Addr{IPNet: ip}); err != nil && iface != "lo" {
		return fmt.Errorf("add %s to %s: %w", addr, iface, err)
	}
	return netlink.LinkSetUp(link)
}

func addRoute(dst, gateway string) error {
	_, ip, err := net.ParseCIDR(dst)
	if err != nil {
		return err
	}
	return netlink.RouteAdd(&netlink.Route{Dst: ip, Gw: net.ParseIP(gateway)})
}

// serveLab starts the lab's servers. They live as long as the process.
func serveLab() error {
	handler := labHandler()
	for _, addr := range []string{webAddr, oldAddr, evilAddr, metaAddr} {
		server := &http.Server{Handler: handler, ErrorLog: slog.NewLogLogger(slog.DiscardHandler, 0)}
		config := &tls.Config{NextProtos: []string{"h2", "http/1.1"}, GetCertificate: labCertificate}
		if addr == oldAddr {
			config.NextProtos = []string{"http/1.1"}
		}
		plain, err := labListen(addr + ":80")
		if err != nil {
			return err
		}
		secure, err := labListen(addr + ":443")
		if err != nil {
			return err
		}
		go server.Serve(plain)
		go server.Serve(tls.NewListener(secure, config))
	}
	for _, port := range []string{":443", ":9443", ":81"} {
		l, err := labListen(rawAddr + port)
		if err != nil {
			return err
		}
		go serveRaw(l)
	}
	return serveZone()
}

func labListen(addr string) (l net.Listener, err error) {
	err = within(lab.ns, func() (err error) {
		l, err = net.Listen("tcp4", addr)
		return err
	})
	return l, err
}

func labCertificate(h *tls.ClientHelloInfo) (*tls.Certificate, error) {
	if strings.HasPrefix(h.ServerName, "untrusted.") {
		return lab.private.Certificate(h.ServerName)
	}
	if strings.HasPrefix(h.ServerName, "mismatch.") {
		return lab.public.Certificate("other.example.com")
	}
	return lab.public.Certificate(h.ServerName)
}

// seen is what a server of the lab tells of a request.
type seen struct {
	Server, Host, SNI, Proto, Method, URI, Body string
	Header, Trailer                             http.Header
}

func labHandler() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		s := seen{Host: r.Host, Proto: r.Proto, Method: r.Method, URI: r.RequestURI, Body: string(body), Header: r.Header, Trailer: r.Trailer}
		s.Server = r.Context().Value(http.LocalAddrContextKey).(net.Addr).String()
		if r.TLS != nil {
			s.SNI = r.TLS.ServerName
		}
		json.NewEncoder(w).Encode(s)
	})
	mux.HandleFunc("/header", func(w http.ResponseWriter, r *http.Request) {
		n, _ := strconv.Atoi(r.FormValue("n"))
		w.Header().Set("X-Long", strings.Repeat("a", n))
	})
	mux.HandleFunc("/endless", func(w http.ResponseWriter, r *http.Request) {
		b := make([]byte, 4096)
		for r.Context().Err() == nil {
			if _, err := w.Write(b); err != nil {
				return
			}
			http.NewResponseController(w).Flush()
			time.Sleep(time.Millisecond)
		}
	})
	mux.HandleFunc("/duplex", func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Trailer", "Grpc-Status")
		http.NewResponseController(w).EnableFullDuplex()
		b := make([]byte, 1024)
		for {
			n, err := r.Body.Read(b)
			w.Write(b[:n])
			http.NewResponseController(w).Flush()
			if err != nil {
				break
			}
		}
		w.Header().Set("Grpc-Status", "0"+r.Trailer.Get("X-Request-Trailer"))
	})
	mux.HandleFunc("/bytes", func(w http.ResponseWriter, r *http.Request) {
		b := make([]byte, 1<<16)
		for range 1 << 14 {
			if _, err := w.Write(b); err != nil {
				return
			}
		}
	})
	mux.HandleFunc("/ws", func(w http.ResponseWriter, r *http.Request) {
		c, err := websocket.Accept(w, r, nil)
		if err != nil {
			return
		}
		defer c.CloseNow()
		for {
			kind, b, err := c.Read(r.Context())
			if err != nil || c.Write(r.Context(), kind, b) != nil {
				return
			}
		}
	})
	return mux
}

// serveRaw reads until it is told to give or to echo.
func serveRaw(l net.Listener) {
	for {
		c, err := l.Accept()
		if err != nil {
			return
		}
		go func() {
			defer c.Close()
			b := make([]byte, 1<<20)
			var end []byte // of what was read before: a word can come in two pieces
			for {
				n, err := c.Read(b)
				read := append(end, b[:n]...)
				end = bytes.Clone(read[max(0, len(read)-3):])
				_, rest, echo := bytes.Cut(read, []byte("ECHO"))
				switch {
				case err != nil:
					return
				case bytes.HasSuffix(read, []byte("GIVE")):
					for err == nil {
						_, err = c.Write(b)
					}
				case echo:
					c.Write(rest)
					io.Copy(c, c)
				}
			}
		}()
	}
}

func setZone(t testing.TB, zone map[string][]string) {
	t.Helper()
	lab.mu.Lock()
	defer lab.mu.Unlock()
	lab.zone, lab.queries = zone, nil
}

func labQueries() []string {
	lab.mu.Lock()
	defer lab.mu.Unlock()
	return append([]string(nil), lab.queries...)
}

// serveZone is the lab's DNS server, over UDP; answers of more than 10 addresses
// are for TCP alone.
func serveZone() error {
	var udp net.PacketConn
	err := within(lab.ns, func() (err error) {
		udp, err = net.ListenPacket("udp4", dnsAddr+":53")
		return err
	})
	if err != nil {
		return err
	}
	tcp, err := labListen(dnsAddr + ":53")
	if err != nil {
		return err
	}
	go func() {
		b := make([]byte, 4096)
		for {
			n, from, err := udp.ReadFrom(b)
			if err != nil {
				return
			}
			if a := zoneAnswer(b[:n], true); a != nil {
				udp.WriteTo(a, from)
			}
		}
	}()
	go func() {
		for {
			c, err := tcp.Accept()
			if err != nil {
				return
			}
			b := make([]byte, 4096)
			if n, err := c.Read(b); err == nil && n > 2 {
				a := zoneAnswer(b[2:n], false)
				c.Write(append([]byte{byte(len(a) >> 8), byte(len(a))}, a...))
			}
			c.Close()
		}
	}()
	return nil
}

func zoneAnswer(query []byte, udp bool) []byte {
	var m dnsmessage.Message
	if m.Unpack(query) != nil || len(m.Questions) != 1 {
		return nil
	}
	q := m.Questions[0]
	name := strings.ToLower(strings.TrimSuffix(q.Name.String(), "."))
	lab.mu.Lock()
	defer lab.mu.Unlock()
	lab.queries = append(lab.queries, q.Type.String()+" "+name)
	if strings.HasSuffix(name, ".silent.test") {
		return nil
	}
	addrs, ok := lab.zone[name]
	answer := dnsmessage.Message{Header: dnsmessage.Header{ID: m.ID, Response: true}, Questions: m.Questions}
	head := dnsmessage.ResourceHeader{Name: q.Name, Class: q.Class, TTL: 60}
	switch {
	case !ok:
		answer.RCode = dnsmessage.RCodeNameError
	case q.Type == dnsmessage.TypeTXT:
		answer.Answers = append(answer.Answers, dnsmessage.Resource{Header: head, Body: &dnsmessage.TXTResource{TXT: []string{"text"}}})
	case q.Type == dnsmessage.TypeA && udp && len(addrs) > 10:
		answer.Truncated = true
	case q.Type == dnsmessage.TypeA:
		for _, a := range addrs {
			if alias, ok := strings.CutPrefix(a, "="); ok {
				to := dnsmessage.MustNewName(alias + ".")
				answer.Answers = append(answer.Answers, dnsmessage.Resource{Header: head, Body: &dnsmessage.CNAMEResource{CNAME: to}})
				head.Name = to
				continue
			}
			answer.Answers = append(answer.Answers, dnsmessage.Resource{Header: head, Body: &dnsmessage.AResource{A: netip.MustParseAddr(a).As4()}})
		}
	}
	b, err := answer.Pack()
	if err != nil {
		panic(err)
	}
	return b
}

// dialFrom connects from a namespace.
func dialFrom(ns *os.File, network, addr string) (conn net.Conn, err error) {
	kind := unix.SOCK_STREAM
	if network == "udp" {
		kind = unix.SOCK_DGRAM
	}
	to := netip.MustParseAddrPort(addr)
	var fd int
	err = within(ns, func() (err error) {
		if fd, err = unix.Socket(unix.AF_INET, kind|unix.SOCK_CLOEXEC, 0); err != nil {
			return err
		}
		if err = unix.Connect(fd, &unix.SockaddrInet4{Port: int(to.Port()), Addr: to.Addr().As4()}); err != nil {
			unix.Close(fd)
		}
		return err
	})
	if err != nil {
		return nil, err
	}
	f := os.NewFile(uintptr(fd), "sandbox")
	defer f.Close()
	return net.FileConn(f)
}

// clientFrom makes requests from a namespace, to an address in the place of
// every name.
func clientFrom(t testing.TB, ns *os.File, addr string, roots *x509.CertPool, protocols ...string) *http.Client {
	t.Helper()
	tr := &http.Transport{
		DialContext: func(_ context.Context, _, hostport string) (net.Conn, error) {
			_, port, err := net.SplitHostPort(hostport)
			if err != nil {
				return nil, err
			}
			return dialFrom(ns, "tcp", net.JoinHostPort(addr, port))
		},
		TLSClientConfig:   &tls.Config{RootCAs: roots, NextProtos: protocols},
		ForceAttemptHTTP2: len(protocols) == 0,
	}
	if len(protocols) > 0 {
		tr.TLSNextProto = map[string]func(string, *tls.Conn) http.RoundTripper{}
	}
	t.Cleanup(tr.CloseIdleConnections)
	return &http.Client{Transport: tr, Timeout: 20 * time.Second, CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
}
