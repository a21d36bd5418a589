package main

import (
	"fmt"
	"net"
	"net/http"
	"runtime"

	"github.com/miekg/dns"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// The network around the server. The addresses are of ranges for documentation, so
// nothing is ever sent to anybody.
//
//	sandboxes ── server 198.51.100.1 ── 198.51.100.2, and the two destinations
const (
	serverIP  = "198.51.100.1"
	gatewayIP = "198.51.100.2"
	oneIP     = "203.0.113.10"
	otherIP   = "203.0.113.66"
	// oneName is a name of oneIP.
	oneName   = "one.test"
	worldNets = "198.51.100.0/24,203.0.113.0/24"
)

// newWorld connects this network namespace, which is empty, to another one with two web
// servers and a DNS server. They run as long as this process.
func newWorld() error {
	made := make(chan error)
	go func() {
		// The thread stays in the other namespace and ends with this goroutine.
		runtime.LockOSThread()
		err := buildWorld()
		if err == nil {
			err = serveWorld()
		}
		made <- err
	}()
	if err := <-made; err != nil {
		return fmt.Errorf("make the network around the server: %w", err)
	}
	if err := configure("uplink", serverIP+"/24"); err != nil {
		return err
	}
	if err := configure("lo"); err != nil {
		return err
	}
	uplink, err := netlink.LinkByName("uplink")
	if err != nil {
		return err
	}
	return netlink.RouteAdd(&netlink.Route{LinkIndex: uplink.Attrs().Index, Gw: net.ParseIP(gatewayIP)})
}

// buildWorld moves this thread to a new network namespace that has the other end of
// "uplink".
func buildWorld() error {
	server, err := unix.Open("/proc/thread-self/ns/net", unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(server)
	if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
		return err
	}
	pair := &netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "eth0", TxQLen: -1}, PeerName: "uplink", PeerNamespace: netlink.NsFd(server)}
	if err := netlink.LinkAdd(pair); err != nil {
		return err
	}
	if err := configure("lo"); err != nil {
		return err
	}
	return configure("eth0", gatewayIP+"/24", oneIP+"/32", otherIP+"/32")
}

// configure gives an interface addresses and sets it up.
func configure(name string, addresses ...string) error {
	link, err := netlink.LinkByName(name)
	if err != nil {
		return fmt.Errorf("find interface %s: %w", name, err)
	}
	for _, address := range addresses {
		a, err := netlink.ParseAddr(address)
		if err != nil {
			return err
		}
		if err := netlink.AddrAdd(link, a); err != nil {
			return fmt.Errorf("give %s to interface %s: %w", address, name, err)
		}
	}
	return netlink.LinkSetUp(link)
}

// serveWorld starts the servers of the world: each destination answers with its address.
func serveWorld() error {
	for _, ip := range []string{oneIP, otherIP} {
		ln, err := net.Listen("tcp4", ip+":80")
		if err != nil {
			return err
		}
		answer := http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { fmt.Fprintln(w, "reached", ip) })
		go http.Serve(ln, answer)
	}
	conn, err := net.ListenPacket("udp4", gatewayIP+":53")
	if err != nil {
		return err
	}
	names := dns.HandlerFunc(func(w dns.ResponseWriter, q *dns.Msg) {
		answer := new(dns.Msg).SetReply(q)
		if len(q.Question) != 1 || q.Question[0].Name != oneName+"." {
			answer.Rcode = dns.RcodeNameError
		} else if q.Question[0].Qtype == dns.TypeA {
			head := dns.RR_Header{Name: q.Question[0].Name, Rrtype: dns.TypeA, Class: dns.ClassINET}
			answer.Answer = []dns.RR{&dns.A{Hdr: head, A: net.ParseIP(oneIP)}}
		}
		_ = w.WriteMsg(answer)
	})
	go (&dns.Server{PacketConn: conn, Handler: names}).ActivateAndServe()
	return nil
}
