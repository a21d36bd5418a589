package e2e

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/binary"
	"encoding/pem"
	"fmt"
	"io"
	"log"
	"math/big"
	"net"
	"net/http"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/coder/websocket"
	"github.com/vishvananda/netlink"
	"golang.org/x/net/dns/dnsmessage"
	"golang.org/x/sys/unix"
)

// A test in the lab runs again in a network namespace of its own, which stands
// for the host, with the lab behind it and no way to anywhere else:
//
//	sandboxes ── host 198.51.100.1 ── 198.51.100.2, and all other addresses, the lab
const labEnv = "SKERRY_E2E_LAB"

// The addresses of the lab. Names are those of lab.names.
const (
	labGateway = "198.51.100.2"
	allowedIP  = "203.0.113.10"
	evilIP     = "203.0.113.66"
	directIP   = "203.0.113.77"
	deniedIP   = "203.0.113.88"
	labNets    = "198.51.100.0/24,203.0.113.0/24"
)

// inLab runs a test in the lab, and reports whether that is here.
func inLab(t *testing.T) bool {
	t.Helper()
	if os.Getenv(labEnv) != "" {
		return true
	}
	cmd := exec.Command("/proc/self/exe", "-test.run=^"+t.Name()+"$", "-test.v", "-test.timeout=5m")
	cmd.Env = append(os.Environ(), labEnv+"=1")
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWNET, Pdeathsig: syscall.SIGKILL}
	runtime.LockOSThread() // Pdeathsig is about the thread
	defer runtime.UnlockOSThread()
	out, err := cmd.CombinedOutput()
	t.Logf("%s", out)
	if err != nil {
		t.Errorf("in the lab: %v", err)
	}
	return false
}

// lab is the world outside. It sees every packet that reaches it.
type lab struct {
	t     *testing.T
	ns    int
	roots string // file of the authority that its certificates are from
	// open says that no site asks for a secret.
	open bool

	mu      sync.Mutex
	names   map[string][]string // addresses, "=NAME" for an alias
	packets []string
	queries []string
	hits    []string
}

func newLab(t *testing.T) *lab {
	t.Helper()
	l := &lab{t: t, names: map[string][]string{
		"allowed.test": {allowedIP}, "evil.test": {evilIP}, "denied.test": {deniedIP},
		"metadata.test": {"169.254.169.254"}, "host.test": {"198.51.100.1"}, "loop.test": {"127.0.0.1"},
		"api.rules.test": {allowedIP}, "git.rules.test": {allowedIP}, "pypi.rules.test": {allowedIP}, "npm.rules.test": {allowedIP}, "invalid.rules.test": {allowedIP},
	}}
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	must(linkUp("lo"))
	made := make(chan error)
	go func() { // the thread ends with the goroutine
		runtime.LockOSThread()
		host, err := unix.Open("/proc/thread-self/ns/net", unix.O_RDONLY|unix.O_CLOEXEC, 0)
		if err == nil {
			err = unix.Unshare(unix.CLONE_NEWNET)
		}
		if err == nil {
			l.ns, err = unix.Open("/proc/thread-self/ns/net", unix.O_RDONLY|unix.O_CLOEXEC, 0)
		}
		if err == nil {
			err = netlink.LinkAdd(&netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "eth0", TxQLen: -1}, PeerName: "uplink", PeerNamespace: netlink.NsFd(host)})
		}
		if err == nil {
			err = linkUp("lo")
		}
		for _, a := range []string{labGateway + "/24", allowedIP + "/32", evilIP + "/32", directIP + "/32", deniedIP + "/32", "169.254.169.254/32", "2001:db8::2/64"} {
			if err == nil {
				err = labAddress("eth0", a)
			}
		}
		if err == nil {
			err = linkUp("eth0")
		}
		made <- err
	}()
	must(<-made)
	must(labAddress("uplink", "198.51.100.1/24"))
	must(labAddress("uplink", "2001:db8::1/64"))
	must(linkUp("uplink"))
	uplink, err := netlink.LinkByName("uplink")
	must(err)
	must(netlink.RouteAdd(&netlink.Route{LinkIndex: uplink.Attrs().Index, Gw: net.ParseIP(labGateway)}))
	must(os.WriteFile("/proc/sys/net/ipv4/conf/all/forwarding", []byte("0"), 0))
	l.serve()
	return l
}

func linkUp(name string) error {
	link, err := netlink.LinkByName(name)
	if err != nil {
		return err
	}
	return netlink.LinkSetUp(link)
}

func labAddress(name, address string) error {
	link, err := netlink.LinkByName(name)
	if err != nil {
		return err
	}
	a, err := netlink.ParseAddr(address)
	if err != nil {
		return err
	}
	a.Flags = unix.IFA_F_NODAD
	return netlink.AddrAdd(link, a)
}

// inside opens something in the lab's namespace.
func (l *lab) inside(open func() error) {
	l.t.Helper()
	done := make(chan error)
	go func() {
		runtime.LockOSThread()
		err := unix.Setns(l.ns, unix.CLONE_NEWNET)
		if err == nil {
			err = open()
		}
		done <- err
	}()
	if err := <-done; err != nil {
		l.t.Fatal(err)
	}
}

// serve starts the lab's servers: DNS, HTTP, HTTPS, echoes, and the eye on the
// wire.
func (l *lab) serve() {
	certificate, expired := l.authority()
	handler := l.sites()
	l.inside(func() error {
		dns, err := net.ListenPacket("udp4", labGateway+":53")
		if err != nil {
			return err
		}
		go l.resolve(dns)
		for _, port := range []string{":80", ":8080", ":22", ":53"} {
			ln, err := net.Listen("tcp", port)
			if err != nil {
				return err
			}
			go http.Serve(ln, handler)
		}
		raw, err := net.Listen("tcp", ":2222")
		if err != nil {
			return err
		}
		go echoStreams(raw)
		for _, address := range []string{evilIP + ":53", evilIP + ":123", evilIP + ":443", allowedIP + ":443", deniedIP + ":53", directIP + ":443", "169.254.169.254:53"} {
			udp, err := net.ListenPacket("udp4", address)
			if err != nil {
				return err
			}
			go echoPackets(udp)
		}
		ln, err := net.Listen("tcp", ":443")
		if err != nil {
			return err
		}
		server := &http.Server{Handler: handler, ErrorLog: log.New(io.Discard, "", 0), TLSConfig: &tls.Config{GetCertificate: func(h *tls.ClientHelloInfo) (*tls.Certificate, error) {
			if h.ServerName == "invalid.rules.test" {
				return &expired, nil
			}
			return &certificate, nil
		}}}
		go server.ServeTLS(ln, "", "")
		wire, err := unix.Socket(unix.AF_PACKET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, int(htons(unix.ETH_P_ALL)))
		if err != nil {
			return err
		}
		go l.watch(wire)
		return nil
	})
}

func htons(n uint16) uint16 { return n<<8 | n>>8 }

func echoStreams(ln net.Listener) {
	for {
		c, err := ln.Accept()
		if err != nil {
			return
		}
		go func() {
			defer c.Close()
			// Not io.Copy, which takes two more files for a pipe.
			buf := make([]byte, 512)
			for {
				n, err := c.Read(buf)
				if err != nil {
					return
				}
				if _, err := c.Write(buf[:n]); err != nil {
					return
				}
			}
		}()
	}
}

func echoPackets(c net.PacketConn) {
	buf := make([]byte, 2048)
	for {
		n, from, err := c.ReadFrom(buf)
		if err != nil {
			return
		}
		c.WriteTo(buf[:n], from)
	}
}

// answer tells what a request looked like, streams without end, or echoes
// messages.
func (l *lab) answer(w http.ResponseWriter, r *http.Request) {
	l.mu.Lock()
	l.hits = append(l.hits, fmt.Sprintf("%s %s%s auth=%q", r.Context().Value(http.LocalAddrContextKey), r.Host, r.URL.Path, r.Header.Get("Authorization")))
	l.mu.Unlock()
	if r.URL.Path == "/ws" {
		echoMessages(w, r)
		return
	}
	if r.URL.Path != "/stream" {
		fmt.Fprintf(w, "reached %s auth=%q\n", r.Host, r.Header.Get("Authorization"))
		return
	}
	for r.Context().Err() == nil {
		if _, err := w.Write(make([]byte, 4096)); err != nil {
			return
		}
		w.(http.Flusher).Flush()
		select {
		case <-time.After(5 * time.Millisecond):
		case <-r.Context().Done():
		}
	}
}

func echoMessages(w http.ResponseWriter, r *http.Request) {
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
}

// name changes what a name stands for.
func (l *lab) name(name string, records ...string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.names[name] = records
}

func (l *lab) knows(name string) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	_, ok := l.names[name]
	return ok
}

// asked is how often the world was asked for a name since the last look.
func (l *lab) asked(name string) (n int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, q := range l.queries {
		if q == name {
			n++
		}
	}
	return n
}

// records are the answers to a question about a name; ok is false if there is no
// such name. Nobody should keep them: whoever rebinds says so.
func (l *lab) records(q dnsmessage.Question, name string) (list []dnsmessage.Resource, ok bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.queries = append(l.queries, name)
	head := dnsmessage.ResourceHeader{Name: q.Name, Class: dnsmessage.ClassINET, TTL: 0}
	for range 4 { // aliases of aliases
		next := ""
		for _, r := range l.names[name] {
			if alias, is := strings.CutPrefix(r, "="); is {
				to := dnsmessage.MustNewName(alias + ".")
				list = append(list, dnsmessage.Resource{Header: head, Body: &dnsmessage.CNAMEResource{CNAME: to}})
				head.Name, next = to, alias
			} else if q.Type == dnsmessage.TypeA {
				list = append(list, dnsmessage.Resource{Header: head, Body: &dnsmessage.AResource{A: netip.MustParseAddr(r).As4()}})
			}
		}
		_, known := l.names[name]
		ok = ok || known
		if name = next; name == "" {
			break
		}
	}
	return list, ok
}

// resolve is the DNS server of the world.
func (l *lab) resolve(conn net.PacketConn) {
	buf := make([]byte, 4096)
	for {
		n, from, err := conn.ReadFrom(buf)
		if err != nil {
			return
		}
		var m dnsmessage.Message
		if m.Unpack(buf[:n]) != nil || len(m.Questions) != 1 {
			continue
		}
		name := strings.TrimSuffix(strings.ToLower(m.Questions[0].Name.String()), ".")
		m.Response, m.RecursionAvailable, m.Additionals = true, true, nil
		var known bool
		if m.Answers, known = l.records(m.Questions[0], name); !known {
			m.RCode = dnsmessage.RCodeNameError
		}
		if b, err := m.Pack(); err == nil {
			conn.WriteTo(b, from)
		}
	}
}

// watch notes where each packet that comes in goes.
func (l *lab) watch(fd int) {
	buf := make([]byte, 65536)
	for {
		n, from, err := unix.Recvfrom(fd, buf, 0)
		if err != nil {
			return
		}
		ll, ok := from.(*unix.SockaddrLinklayer)
		if !ok || ll.Pkttype == unix.PACKET_OUTGOING {
			continue
		}
		note := fmt.Sprintf("ethertype %04x", htons(ll.Protocol))
		p := buf[:n]
		if htons(ll.Protocol) == unix.ETH_P_IP && n >= 20 {
			note = fmt.Sprintf("%d %s>%s", p[9], netip.AddrFrom4([4]byte(p[12:])), netip.AddrFrom4([4]byte(p[16:])))
			if head := int(p[0]&15) * 4; (p[9] == unix.IPPROTO_TCP || p[9] == unix.IPPROTO_UDP) && n >= head+4 {
				note += fmt.Sprintf(":%d", binary.BigEndian.Uint16(p[head+2:]))
			}
		} else if htons(ll.Protocol) == unix.ETH_P_IPV6 && n >= 40 {
			from, to := netip.AddrFrom16([16]byte(p[8:])), netip.AddrFrom16([16]byte(p[24:]))
			if to.IsMulticast() && (from.IsLinkLocalUnicast() || from.IsUnspecified()) {
				continue // the host looks for neighbours
			}
			note = fmt.Sprintf("IPv6 %s>%s", from, to)
		} else if htons(ll.Protocol) == unix.ETH_P_ARP {
			continue
		}
		l.mu.Lock()
		if !slices.Contains(l.packets, note) {
			l.packets = append(l.packets, note)
		}
		l.mu.Unlock()
	}
}

// seen takes what has reached the lab since the last call.
func (l *lab) seen() (packets, queries, hits []string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	packets, queries, hits = l.packets, l.queries, l.hits
	l.packets, l.queries, l.hits = nil, nil, nil
	return packets, queries, hits
}

// authority makes the authority of the lab's world, and certificates for all its
// names: one that is valid, and one that was.
func (l *lab) authority() (valid, expired tls.Certificate) {
	l.t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		l.t.Fatal(err)
	}
	root := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "the lab's world"}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign, SubjectKeyId: []byte("lab"),
	}
	rootDER, err := x509.CreateCertificate(rand.Reader, root, root, key.Public(), key)
	if err != nil {
		l.t.Fatal(err)
	}
	issue := func(until time.Time) tls.Certificate {
		leaf := &x509.Certificate{
			SerialNumber: big.NewInt(2), Subject: pkix.Name{CommonName: "lab"}, NotBefore: root.NotBefore, NotAfter: until,
			DNSNames: []string{"allowed.test", "*.rules.test", "evil.test", "*.rebind.test"},
		}
		der, err := x509.CreateCertificate(rand.Reader, leaf, root, key.Public(), key)
		if err != nil {
			l.t.Fatal(err)
		}
		return tls.Certificate{Certificate: [][]byte{der, rootDER}, PrivateKey: key}
	}
	l.roots = filepath.Join(l.t.TempDir(), "roots.pem")
	if err := os.WriteFile(l.roots, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: rootDER}), 0o644); err != nil {
		l.t.Fatal(err)
	}
	return issue(root.NotAfter), issue(root.NotBefore.Add(time.Minute))
}
