package egress

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"syscall"
	"testing"
	"time"

	"golang.org/x/net/dns/dnsmessage"
)

// TestGreedyAsker has one sandbox ask for names that nobody answers, and its
// neighbour for one that somebody does.
func TestGreedyAsker(t *testing.T) {
	pol := allow("*.silent.test")
	newRig(t, pol, Limits{QueriesPerSecond: 100_000})
	setZone(t, usualZone)
	c, err := dialFrom(lab.sb1, "udp", "203.0.113.53:53")
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	for i := range 3000 {
		query := dnsmessage.Message{
			Header:    dnsmessage.Header{ID: uint16(i)},
			Questions: []dnsmessage.Question{{Name: dnsmessage.MustNewName(fmt.Sprintf("n%d.silent.test.", i)), Type: dnsmessage.TypeA, Class: dnsmessage.ClassINET}},
		}
		b, err := query.Pack()
		if err != nil {
			t.Fatal(err)
		}
		c.Write(b)
		if i%100 == 99 { // so that they are also not sent quicker than they are taken
			if m := ask(t, lab.sb2, "udp", "web.example.com", dnsmessage.TypeA); len(addrsOf(m)) != 1 {
				t.Fatalf("after %d queries the neighbour's answer is %v", i, m)
			}
		}
	}
}

// TestGreedyStreams has one sandbox open connections to the name server that say
// nothing.
func TestGreedyStreams(t *testing.T) {
	newRig(t, allow("web.example.com"), Limits{})
	setZone(t, usualZone)
	for range 400 {
		c, err := dialFrom(lab.sb1, "tcp", "203.0.113.53:53")
		if err != nil {
			break // enough: they wait to be taken
		}
		defer c.Close()
	}
	if m := ask(t, lab.sb2, "tcp", "web.example.com", dnsmessage.TypeA); len(addrsOf(m)) != 1 {
		t.Errorf("the neighbour's answer is %v", m)
	}
}

// TestGreedyConnections has one sandbox take as many connections as it gets, of
// few that there are in all.
func TestGreedyConnections(t *testing.T) {
	r := newRig(t, allow("web.example.com"), Limits{Connections: 60, Hello: time.Minute})
	setZone(t, usualZone)
	var open []net.Conn
	for range 200 {
		c, err := dialFrom(lab.sb1, "tcp", webAddr+":443")
		if err != nil {
			continue
		}
		defer c.Close()
		open = append(open, c)
	}
	r.mustTell("too many", func(e Event) bool { return e.Reason == reasonTooMany && e.Sandbox == "sbx_1" })
	get(t, clientFrom(t, lab.sb2, webAddr, lab.roots), "https://web.example.com/")
	if len(open) == 0 || r.open.Used() > 30 {
		t.Errorf("%d connections were made, %d are taken", len(open), r.open.Used())
	}
}

// TestGreedyYield has a sandbox that came first give back a connection when all are
// taken and another has none.
func TestGreedyYield(t *testing.T) {
	r := newRig(t, allow("web.example.com"), Limits{Connections: 12, Hello: time.Minute})
	setZone(t, usualZone)
	var open []net.Conn
	for n := range 2 {
		c, err := dialFrom(lab.sb1, "tcp", webAddr+":443")
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		open = append(open, c)
		for end := time.Now().Add(30 * time.Second); r.open.Used() <= n; time.Sleep(time.Millisecond) {
			if time.Now().After(end) {
				t.Fatal("a connection is not taken")
			}
		}
	}
	for i := range byte(10) { // the others
		a := netip.AddrFrom4([4]byte{10, 99, 3, i})
		if !r.open.Take(a) {
			t.Fatal("not all can be taken")
		}
		defer r.open.Give(a)
	}
	get(t, clientFrom(t, lab.sb2, webAddr, lab.roots), "https://web.example.com/")
	open[0].SetReadDeadline(time.Now().Add(30 * time.Second))
	if _, err := open[0].Read(make([]byte, 1)); !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("the idle connection of the first: %v", err)
	}
}
