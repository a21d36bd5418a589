package ingress

import (
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/skerry-dev/skerry"
)

func silent() *slog.Logger { return slog.New(slog.DiscardHandler) }

func hello(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, "hello") }

func TestPublishReplaces(t *testing.T) {
	i, ports, first := start(t, running(t, hello), nil)
	more := append(ports, skerry.PublishedPort{Port: 4000, Subdomain: "dddddddddd"})
	if err := i.Publish(boxID, more); err != nil {
		t.Fatal(err)
	}
	if i.URL(more[0]) != first || more[1].HostPort == 0 || more[1].HostPort == more[0].HostPort {
		t.Fatalf("%+v", more)
	}
	if err := i.Publish(boxID, more[1:]); err != nil {
		t.Fatal(err)
	}
	if c, err := net.Dial("tcp", strings.TrimPrefix(first, "http://")); err == nil {
		c.Close()
		t.Error("a port that is no longer published is still open")
	}
	i.Withdraw(boxID)
	if len(i.places)+len(i.routes)+len(i.bySubdomain) != 0 {
		t.Errorf("left: %v %v %v", i.places, i.routes, i.bySubdomain)
	}
}

func TestPublishFailsWhole(t *testing.T) {
	i, ports, first := start(t, running(t, hello), func(c *Config) { c.FirstPort, c.LastPort = 29998, 29999 })
	two := skerry.PublishedPort{Port: 2, Subdomain: "dd"}
	if err := i.Publish(boxID, append(ports, two, skerry.PublishedPort{Port: 3, Subdomain: "ee"})); skerry.CodeOf(err) != skerry.CodeUnavailable {
		t.Fatal(err)
	}
	if res, _ := ask(t, request(t, "GET", first, nil)); res.StatusCode != 200 {
		t.Errorf("what was published before: %d", res.StatusCode)
	}
	if err := i.Publish(boxID, append(ports, two)); err != nil {
		t.Errorf("the port that was given back: %v", err)
	}
}

// TestRestoreWaitsForPort: another program has the port when the service comes
// back.
func TestRestoreWaitsForPort(t *testing.T) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	port := ln.Addr().(*net.TCPAddr).Port
	i, _, _ := start(t, running(t, hello), nil)
	ports := []skerry.PublishedPort{{Port: 3000, Subdomain: "ff", HostPort: port}}
	if err := i.Publish("box_2", ports); err == nil {
		t.Fatal("published at a port that another has")
	}
	if err := i.Restore(boxID, ports); err != nil || ports[0].HostPort != port {
		t.Fatal(ports, err)
	}
	ln.Close()
	deadline := time.Now().Add(20 * time.Second)
	for {
		if res, err := http.Get(i.URL(ports[0])); err == nil {
			res.Body.Close()
			if res.StatusCode != 200 {
				t.Errorf("%d", res.StatusCode)
			}
			return
		}
		if time.Now().After(deadline) {
			t.Fatal("the port is not served")
		}
		time.Sleep(10 * time.Millisecond)
	}
}

// TestThousandsOfRoutes has them come, be used and go at once.
func TestThousandsOfRoutes(t *testing.T) {
	i, _, _ := start(t, running(t, hello), nil)
	const workers, each = 8, 250
	var group sync.WaitGroup
	for w := range workers {
		group.Go(func() {
			for n := range each {
				ports := []skerry.PublishedPort{{Port: 3000, Subdomain: fmt.Sprintf("s%dx%d", w, n)}}
				if err := i.Publish(fmt.Sprintf("box_%d_%d", w, n), ports); err != nil {
					t.Error(err)
					return
				}
				if n%50 != 0 {
					continue
				}
				res, err := http.Get(i.URL(ports[0]))
				if err != nil {
					t.Error(err)
					return
				}
				res.Body.Close()
				if res.StatusCode != 404 { // the backend knows another sandbox alone
					t.Errorf("%d", res.StatusCode)
				}
			}
		})
	}
	group.Wait()
	if len(i.routes) != workers*each+1 {
		t.Errorf("%d routes", len(i.routes))
	}
	for w := range workers {
		for n := range each {
			i.Withdraw(fmt.Sprintf("box_%d_%d", w, n))
		}
	}
	if len(i.places) != 1 {
		t.Errorf("%d ports are left", len(i.places))
	}
}

func TestConfig(t *testing.T) {
	for _, cfg := range []Config{
		{}, {Log: silent(), FirstPort: 5, LastPort: 4}, {Log: silent(), FirstPort: 1, LastPort: 70000}, {Log: silent(), Domain: "example.com"},
	} {
		if i, err := New(cfg); err == nil {
			i.Close()
			t.Errorf("%+v was accepted", cfg)
		}
	}
}
